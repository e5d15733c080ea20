"""The files of a run beside its tables: event logs, session files of codex and artifacts, as the tables name them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codex_app_server._runtime.files import resolved

from . import layout
from .read_database import ReadDatabase
from .rollouts import Rollout, RolloutRow, rollout_of
from .segments import path_of, read_lines, read_member

if TYPE_CHECKING:
    import sqlite3

    from typing_extensions import Self

ARTIFACT_BYTES = 256 * 2**20


class RunFiles:
    """The files of the run in a directory, read-only. Close it, or use `with`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._database = ReadDatabase(path / layout.DATABASE, connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def event_lines(self, n: int, attempt: int) -> Iterator[bytes]:
        """The notifications of an attempt as they came; none if they were not kept."""
        where = "n = ? AND attempt = ?"
        for row in self._fetch(f"SELECT segment, offset, length FROM attempts WHERE {where}", (n, attempt)):
            if row["length"] is not None:
                path = path_of(self.path / layout.EVENTS, row["segment"])
                yield from read_lines(path, row["offset"], row["length"])

    def event_member(self, n: int, attempt: int) -> bytes | None:
        """The event log of an attempt as it is kept, compressed; None if it was not kept."""
        where = "n = ? AND attempt = ? AND length IS NOT NULL"
        for row in self._fetch(f"SELECT segment, offset, length FROM attempts WHERE {where}", (n, attempt)):
            return read_member(path_of(self.path / layout.EVENTS, row["segment"]), row["offset"], row["length"])
        return None

    def events(self, n: int, attempt: int) -> Iterator[dict[str, Any]]:
        """The notifications of an attempt, decoded: `method` and `params`."""
        for line in self.event_lines(n, attempt):
            if line.strip():
                yield json.loads(line)

    def rollouts(self, n: int, attempt: int) -> list[RolloutRow]:
        """Return the session files that are kept of an attempt, its own thread first; those that are missing have a
        note. None are of runs without them."""
        found = self._fetch("SELECT * FROM rollouts WHERE n = ? AND attempt = ? ORDER BY place", (n, attempt))
        return [rollout_of(row) for row in found]

    def rollout_members(self, n: int, attempt: int) -> tuple[Rollout, ...]:
        """The session files of an attempt as they are kept, compressed: to be stored in another run."""
        found = []
        for row in self.rollouts(n, attempt):
            lines = None
            if row.at is not None:
                segment, offset, length = row.at
                lines = read_member(path_of(self.path / layout.ROLLOUTS, segment), offset, length)
            about = (row.thread_id, row.relation, row.parent_id, row.size_bytes, row.cut_bytes, row.note)
            found.append(Rollout(*about, lines))
        return tuple(found)

    def rollout_lines(self, rollout: RolloutRow) -> Iterator[bytes]:
        """Iterate over the lines of a session file; none if it is missing."""
        if rollout.at is not None:
            segment, offset, length = rollout.at
            yield from read_lines(path_of(self.path / layout.ROLLOUTS, segment), offset, length)

    def artifact(self, n: int, name: str) -> bytes:
        """Read an artifact of a sample by its name in `record.artifacts`.

        Raises KeyError, also for one of more than ARTIFACT_BYTES, which a scorer may have left.
        """
        directory = self.artifacts_of(n)
        path = resolved(directory / name)
        if not path.is_relative_to(resolved(directory)) or not path.is_file():
            raise KeyError(f"{directory} has no artifact {name!r}")
        if path.stat().st_size > ARTIFACT_BYTES:
            raise KeyError(f"{path} has more than {ARTIFACT_BYTES:,} bytes: read it piece by piece")
        return path.read_bytes()

    def artifacts_of(self, n: int) -> Path:
        """The directory of a sample's artifacts; it may not exist."""
        rows = self._fetch("SELECT id, epoch, variant FROM samples WHERE n = ?", (n,))
        if not rows:
            raise KeyError(f"{self.path} has no sample number {n}")
        (row,) = rows
        return self.path / layout.ARTIFACTS / layout.directory_name(*row)

    def _fetch(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._database.fetch(query, values)
