"""A run directory that is merged, read as it is at one moment; nothing in it is changed."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from codex_app_server._runtime import fork

from ..store import RunDirectoryError, layout
from ..store.reader import refuse_other
from ..store.rows import from_json
from ..store.schema import open_for_reading
from ..store.segments import path_of
from ..store.statements import SETTLED
from .choose import AttemptId, SampleState
from .facts import Facts

MERGE_PID = 0
"""Pid of the launch that stands for a merge."""
LaunchId = tuple[int, float]
"""Pid and start of a launch: the same in every copy of its run directory."""


class Source:
    """A run that samples are taken of. Close it in the end.

    Raises RunDirectoryError for what is not a run, cannot be read, or is under way: its process then holds its lock,
    which is held here for as long as this is open. `is_held`: this process holds it already.
    """

    def __init__(self, place: int, path: Path, *, is_held: bool = False) -> None:
        self.place, self.path = place, path
        refuse_other(path)
        with ExitStack() as stack:
            if not is_held:
                _hold(path, stack)
            self.db = open_for_reading(path / layout.DATABASE, at_rest=not is_held)
            stack.callback(self.db.close)
            self.db.row_factory = sqlite3.Row
            # All that is read is of one moment.
            self.db.execute("BEGIN")
            self.launches = [dict(row) for row in self.db.execute("SELECT * FROM launches ORDER BY number")]
            self.notes = {row["key"]: from_json(row["value"]) for row in self.db.execute("SELECT key, value FROM run")}
            self._closing = stack.pop_all()

    def close(self) -> None:
        self._closing.close()

    @property
    def facts(self) -> Facts:
        """Facts that must be alike in runs that become one."""
        configs = [from_json(launch["config"]) for launch in self.launches if launch["pid"] != MERGE_PID]
        merges = [from_json(launch["config"]) for launch in self.launches if launch["pid"] == MERGE_PID]
        return Facts.of(str(self.path), self.notes, configs, merges)

    @property
    def identity(self) -> str:
        """A name of the run, the same for copies of its directory; empty for one that was never started."""
        return "" if not self.launches else "{}:{!r}".format(*launch_id(self.launches[0]))

    def states(self) -> Iterator[tuple[layout.SampleKey, SampleState]]:
        """Yield the state of each sample of the run."""
        attempts: dict[int, list[AttemptId]] = {}
        ended: dict[int, int] = {}
        for row in self.db.execute("SELECT n, key, started_at, status FROM attempts ORDER BY n, attempt"):
            attempts.setdefault(row["n"], []).append((row["key"], row["started_at"]))
            ended[row["n"]] = ended.get(row["n"], 0) + (row["status"] is not None)
        for row in self.db.execute(
            "SELECT s.n, s.id, s.epoch, s.variant, s.state, s.position, r.status, "
            "coalesce((SELECT max(scored_at) FROM scores x WHERE x.n = s.n), 0.0) AS scored_at "
            "FROM samples s LEFT JOIN records r USING (n)"
        ):
            n = row["n"]
            yield (
                (row["id"], row["epoch"], row["variant"]),
                SampleState(
                    source=self.place,
                    n=n,
                    position=row["position"],
                    is_done=row["state"] == "done",
                    is_recorded=row["status"] is not None,
                    is_settled=row["state"] in ("done", "scoring") and row["status"] in SETTLED,
                    attempts=tuple(attempts.get(n, ())),
                    ended=ended.get(n, 0),
                    scored_at=row["scored_at"],
                ),
            )

    def rows(self, table: str, n: int) -> list[dict[str, Any]]:
        """The rows of a table that are of a sample."""
        return [dict(row) for row in self.db.execute(f"SELECT * FROM {table} WHERE n = ?", (n,))]

    def missing_logs(self, n: int) -> list[Path]:
        """The files of event logs of a sample that are not there, or end too early."""
        found = []
        for row in self.rows("attempts", n):
            if row["length"] is not None:
                path = path_of(self.path / layout.EVENTS, row["segment"])
                if not path.is_file() or path.stat().st_size < row["offset"] + row["length"]:
                    found.append(path)
        return found

    def member(self, directory: str, row: Mapping[str, Any]) -> bytes:
        """The event log or session file that a row has in `directory`, compressed. Raises OSError."""
        offset, length = row["offset"], row["length"]
        with path_of(self.path / directory, row["segment"]).open("rb") as file:
            file.seek(offset)
            return file.read(length)


def launch_id(launch: dict[str, Any]) -> LaunchId:
    return launch["pid"], launch["started_at"]


def _hold(path: Path, stack: ExitStack) -> None:
    """Keep a run from being started in the directory. One that was copied without its lock is not under way."""
    try:
        lock = stack.enter_context(fork.Held(lambda: os.open(path / layout.LOCK, os.O_RDONLY | os.O_CLOEXEC)))
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunDirectoryError(f"{path / layout.LOCK}: {error.strerror}; make it readable, or copy it") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
        raise RunDirectoryError(
            f"{path} is under way (pid {pid}); wait for its end, or stop it with codex-pool runs cancel"
        ) from None
