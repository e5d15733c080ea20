"""Reports as files: the page, and its segments beside it where transcripts are too much for one file."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from codex_app_server._runtime.files import replacing

from ..store.rows import AttemptRow, SampleRow
from .document import ScorerNumbers, detail, line, pair_line
from .figures import PairFigures, RunFigures
from .leaderboard.differing import settings
from .packing import ListPacker, segment_name, segment_script
from .page import comparison_page, run_page
from .source import Source, diff_of, events_of, facts_of, row_of, rows_of

INLINE_BYTES = 4_000_000
SEGMENT_BYTES = 200_000
SEGMENT_RAW_BYTES = 6_000_000

_SEGMENT = re.compile(r"\d{6}\.js")

Progress = Callable[[int], None]


class ReportError(Exception):
    """A report that cannot be written; the message gives the reason."""


def write_run_report(source: Source, path: Path, progress: Progress = lambda done: None) -> None:
    """Write the report of a run to `path`, and beside it `NAME.segments/` if the transcripts need that.

    What stood there is replaced when the new report is complete. Raises ReportError when it cannot be written.
    """
    info = source.info()
    facts, figures, scorers, rows = facts_of(info), RunFigures(info), ScorerNumbers(), ListPacker()
    with writing(path), _Segments(path) as segments:
        for done, row in enumerate(rows_of(source), 1):
            attempts = source.attempts(row.n)
            figures.add(row, attempts)
            rows.add([*line(row, scorers), *segments.add(_detail(source, row, attempts))])
            progress(done)
        where = segments.finish()
        page = run_page(facts, figures, scorers.names, rows.finish(), where, segments.inline)
        segments.publish(page)


def write_comparison(a: Source, b: Source, path: Path, progress: Progress = lambda done: None) -> None:
    """Write the comparison of two runs, sample by sample, as `write_run_report` does."""
    infos = a.info(), b.info()
    facts, runs, pairs = tuple(map(facts_of, infos)), tuple(map(RunFigures, infos)), PairFigures()
    scorers, rows = ScorerNumbers(), ListPacker()
    known: set[tuple[str, int]] = set()
    with writing(path), _Segments(path) as segments:

        def add(first: SampleRow | None, second: SampleRow | None) -> None:
            details: list[dict[str, Any] | None] = [None, None]
            for side, (source, row) in enumerate(((a, first), (b, second))):
                if row is not None:
                    attempts = source.attempts(row.n)
                    runs[side].add(row, attempts)
                    details[side] = _detail(source, row, attempts)
            pairs.add(first, second)
            rows.add([*pair_line(first, second, scorers), *segments.add(details)])
            progress(rows.items)

        for row in rows_of(a):
            known.add((row.id, row.epoch))
            add(row, row_of(b, row.id, row.epoch))
        for row in rows_of(b):
            if (row.id, row.epoch) not in known:
                add(None, row)
        where = segments.finish()
        found = [_settings(info, figures) for info, figures in zip(infos, runs, strict=True)]
        page = comparison_page(facts, pairs, runs, found, scorers.names, rows.finish(), where, segments.inline)
        segments.publish(page)


def _settings(info: Mapping[str, Any], figures: RunFigures) -> dict[str, Any]:
    config = info.get("config") or {}
    return settings(config.get("effective"), figures.answered, config.get("variant") or {})


def _detail(source: Source, row: SampleRow, attempts: Sequence[AttemptRow]) -> dict[str, Any]:
    return detail(row, attempts, lambda attempt: events_of(source, row.n, attempt), diff_of(source, row))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Report a file that cannot be written as a ReportError."""
    try:
        yield
    except OSError as error:
        named = f" ({error.filename})" if error.filename else ""
        raise ReportError(
            f"{path} cannot be written: {error.strerror or error}{named}; name another file with -o"
        ) from error


class _Segments:
    """Details, packed in segments: kept for the page while they are small together, else files beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory = path.with_name(path.stem + ".segments")
        self._partial = path.with_name(path.stem + ".segments.partial")
        self._token = secrets.token_hex(8)
        self._current = ListPacker()
        self._closed = 0
        self.inline: list[str] = []
        self._inline_bytes = 0
        self._in_files = False

    def __enter__(self) -> _Segments:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        _remove(self._partial)

    def add(self, details: Any) -> tuple[int, int]:
        """The segment and the place in it."""
        place = (self._closed, self._current.items)
        self._current.add(details)
        if self._current.compressed_bytes > SEGMENT_BYTES or self._current.raw_bytes > SEGMENT_RAW_BYTES:
            self._close()
        return place

    def finish(self) -> dict[str, Any]:
        """Close the last segment; return what the page must know of them: token, count and directory."""
        if self._current.items:
            self._close()
        return {
            "token": self._token,
            "count": self._closed,
            "directory": self._directory.name if self._in_files else None,
        }

    def publish(self, page: str) -> None:
        """Put the report in its place."""
        with replacing(self._path) as file:
            file.write(page.encode("utf-8", "backslashreplace"))
            file.flush()
            _remove(self._directory)
            if self._in_files:
                self._partial.rename(self._directory)

    def _close(self) -> None:
        packed = self._current.finish()
        self._current = ListPacker()
        self.inline.append(packed)
        self._inline_bytes += len(packed)
        self._closed += 1
        if self._in_files or self._inline_bytes > INLINE_BYTES:
            self._spill()

    def _spill(self) -> None:
        """Write the segments kept so far to files, as are all later ones."""
        if not self._in_files:
            _remove(self._partial)
            self._partial.mkdir()
            self._in_files = True
        first = self._closed - len(self.inline)
        for number, packed in enumerate(self.inline, first):
            script = segment_script(self._token, number, packed)
            (self._partial / segment_name(number)).write_text(script, encoding="ascii")
        self.inline.clear()


def _remove(directory: Path) -> None:
    """Remove a directory of segments, and nothing that is not one."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if not _SEGMENT.fullmatch(path.name):
            raise ReportError(
                f"{path} is not of a report, and {directory} would be replaced; name another file with -o"
            )
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
