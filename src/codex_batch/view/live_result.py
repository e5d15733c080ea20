"""LiveResult: a run, or a variant of one, as its page shows it: read again when its files have changed.

A run is read as a whole each time, so it is read seldom enough that this costs a small part of a core: REST times as
long as it took passes before it is read again. What does not change costs one look at its files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from codex_app_server._runtime.text import plural

from ..manage import control
from ..report import page
from ..report.document import ScorerNumbers, detail, line
from ..report.figures import RunFigures
from ..report.leaderboard.operands import Chosen, source_of
from ..report.packing import ListPacker, pack
from ..report.source import RunFacts, Source, diff_of, events_of, facts_of, rows_of
from ..run.live_transcripts import path_of
from ..store import RunStore, layout, open_run
from ..store.segments import read_lines

REST = 20.0
MIN_REST_S = 1.0
EVERY_MS = 2000
# So long the run may take to notice that one of its samples is looked at; the page asks again.
ASK_LIMIT_S = 0.5
STATES = {"running": "running", "died": "died; run the same command to go on", "interrupted": "interrupted"}


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
    """A run as it was read at one time; `rows` are the lines of its table."""

    version: str
    state: str
    facts: RunFacts
    figures: RunFigures
    scorers: ScorerNumbers
    rows: list[list[Any]]


class LiveResult:
    """Reads a run for its page. May be used from several threads. `clock` counts seconds."""

    def __init__(self, chosen: Chosen, clock: Callable[[], float] = time.monotonic) -> None:
        self._chosen = chosen
        self._path = chosen.path
        self._clock = clock
        self._lock = threading.Lock()
        self._content: Content | None = None
        self._rest_until = 0.0

    def page(self) -> str:
        """Return the whole page. Raises RunDirectoryError."""
        content = self._current()
        rows = ListPacker()
        for row in content.rows:
            rows.add(row)
        live = {"version": content.version, "every_ms": EVERY_MS}
        return page.live_page(content.facts, content.figures, content.scorers.names, rows.finish(), live, content.state)

    def changes(self, version: str) -> str | None:
        """Return what the page shows, packed; None if that is what it has. Raises RunDirectoryError."""
        content = self._current()
        if content.version == version:
            return None
        return pack(
            {
                "version": content.version,
                "state": content.state,
                "figures": page.live_figures(content.facts, content.figures),
                "rows": content.rows,
                "data": {
                    "scorers": content.scorers.names,
                    "epochs": content.figures.epochs,
                    "currency": content.facts.currency,
                },
            }
        )

    def sample(self, n: int) -> str:
        """Return all of a sample, packed, with the events so far of an attempt that runs. Raises KeyError for one that
        there is not, RunDirectoryError."""
        with open_run(self._path) as store:
            row = store.sample_at(n)
            if row.record is None and layout.holder(self._path) is not None:
                control.ask(self._path, {"follow": n}, limit_s=ASK_LIMIT_S)
            attempts = store.attempts(n)
            source = source_of(store, self._chosen)
            return pack(detail(row, attempts, lambda attempt: self._events(source, n, attempt), diff_of(source, row)))

    def _events(self, source: Source, n: int, attempt: int) -> Iterator[Mapping[str, Any]]:
        stored = False
        for event in events_of(source, n, attempt):
            stored = True
            yield event
        if stored:
            return
        path = path_of(self._path / layout.LIVE, n, attempt)
        # It may be replaced or removed meanwhile: the page asks again.
        with contextlib.suppress(OSError, ValueError):
            for text in read_lines(path, 0, path.stat().st_size):
                yield json.loads(text)

    def _current(self) -> Content:
        with self._lock:
            if self._content is None:
                self._read(self._stamp())
            elif self._clock() >= self._rest_until:
                stamp = self._stamp()
                if stamp != self._content.version:
                    self._read(stamp)
            assert self._content is not None
            return self._content

    def _stamp(self) -> str:
        return stamp(self._path)

    def _read(self, version: str) -> None:
        began = self._clock()
        with open_run(self._path) as store:
            self._content = _content(store, self._chosen, version)
        took_s = self._clock() - began
        self._rest_until = self._clock() + max(MIN_REST_S, REST * took_s)


def stamp(path: Any) -> str:
    """Return a text that changes whenever something is stored in a run, or the process of the run ends."""
    parts = [str(layout.holder(path))]
    for name in (layout.DATABASE, f"{layout.DATABASE}-wal"):
        try:
            found = (path / name).stat()
            parts.append(f"{found.st_mtime_ns}-{found.st_size}")
        except OSError:
            parts.append("none")
    return ".".join(parts)


def _content(store: RunStore, chosen: Chosen, version: str) -> Content:
    source = source_of(store, chosen)
    info = source.info()
    attempts: dict[int, list[Any]] = {}
    for attempt in store.all_attempts():
        attempts.setdefault(attempt.n, []).append(attempt)
    facts, figures, scorers, rows = facts_of(info), RunFigures(info), ScorerNumbers(), []
    done = 0
    for row in rows_of(source):
        figures.add(row, attempts.get(row.n, ()))
        # The place of the detail of a sample is its number.
        rows.append([*line(row, scorers), row.n, 0])
        done += row.record is not None
    state = STATES.get(str(info.get("state")), "ended")
    state = f"{state} · {done:,} of {plural(len(rows), 'sample')}"
    facts = dataclasses.replace(facts, problem=None, name=chosen.name)
    return Content(version, state, facts, figures, scorers, rows)
