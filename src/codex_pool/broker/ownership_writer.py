"""The broker's side of the ownership store: a thread that writes, and the loop's own view of what is there.

A write waits for the disk and for other pools, so it never happens on the loop: the thread takes all that waits into
one transaction and reports it over a pipe. The loop reads, which never waits, and checks once a second that the
store is still the one that it was.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..auth.ownership import Mark, OwnershipError, Row, Store, path_in
from ..runtime.problems import Problems

LOOK_S = 1.0
# The number of a write of nothing, which shows whether writes work again.
TRY = -1
STORE, WRITES = "ownership store", "writes to the ownership store"


class Done(NamedTuple):
    """A write that is over; `problem` is the reason why it failed."""

    number: int
    rows: list[Row]
    problem: str | None


class OwnershipWriter:
    """See the module's docstring. `descriptor` is readable when a write is over."""

    def __init__(self, home: Path, keys: Path | None, log: Callable[[str], None]) -> None:
        self._home = home
        self._keys = keys
        self._log = log
        self._store: Store | None = None
        self._look_at = 0.0
        self._jobs: queue.SimpleQueue[tuple[int, list[Row]] | None] = queue.SimpleQueue()
        self._done: deque[Done] = deque()
        self.descriptor, self._wake = os.pipe()
        for end in (self.descriptor, self._wake):
            os.set_blocking(end, False)
        # Why clients with a key are refused; None while the store can be relied upon.
        self.problem: str | None = None
        # For status; the log has other words for it.
        self.problems = Problems(lambda line: None)
        self._is_trying = False
        self._thread = threading.Thread(target=self._write_all, name="ownership", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End when all that was to be written is written, or after 5 s."""
        self._jobs.put(None)
        self._thread.join(5.0)
        if self._store is not None:
            self._store.close()
        if not self._thread.is_alive():
            os.close(self.descriptor)
            os.close(self._wake)

    def open(self) -> list[Row] | None:
        """Open the store; return all its rows, or None, with `problem` set, if it cannot be relied upon."""
        try:
            self._store = self._connect()
            rows = self._store.news()
        except OwnershipError as error:
            self._lose(error)
            return None
        self.problem = None
        self.problems.solved(STORE, time.monotonic())
        return rows

    @property
    def secret(self) -> bytes:
        """Return the secret that the brokers on one store share."""
        return self._store.id.encode() if self._store is not None else os.urandom(16)

    def news(self) -> list[Row]:
        """The rows that were written since the last call."""
        if self._store is None:
            return []
        try:
            return self._store.news()
        except OwnershipError as error:
            self._lose(error)
            return []

    def look(self, now: float) -> list[Row] | None:
        """Check the store once a second; all rows when one that was lost can be relied upon again."""
        if now < self._look_at:
            return None
        self._look_at = now + LOOK_S
        if self._store is None:
            return self.open()
        try:
            self._store.verify()
        except OwnershipError as error:
            self._lose(error)
        if WRITES in self.problems and self.problems.is_due(WRITES, now) and not self._is_trying:
            self._is_trying = True
            self.write(TRY, [])
        return None

    def write(self, number: int, rows: list[Row]) -> None:
        """Write these; `done` reports when that is over."""
        self._jobs.put((number, rows))

    def done(self) -> list[Done]:
        """The writes that are over since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)
        found: list[Done] = []
        while self._done:
            done = self._done.popleft()
            if done.number == TRY:
                self._is_trying = False
            else:
                found.append(done)
            if done.problem is None:
                self.problems.solved(WRITES, time.monotonic())
            else:
                self.problems.failed(WRITES, f"{path_in(self._home)}: {done.problem}", time.monotonic())
        return found

    def _connect(self) -> Store:
        return Store(self._home, Mark(self._keys, self._home) if self._keys is not None else None)

    def _lose(self, error: OwnershipError) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
        if self.problem != str(error):
            self._log(f"clients with a key are refused: {error}; the remedy: {remedy(self._home, self._keys)}")
        self.problem = str(error)
        self.problems.failed(STORE, f"clients with a key are refused: {error}", time.monotonic())

    # The thread.

    def _write_all(self) -> None:
        store: Store | None = None
        while True:
            jobs = [self._jobs.get()]
            while not self._jobs.empty():
                jobs.append(self._jobs.get())
            work = [job for job in jobs if job is not None]
            problem, rows = None, [row for _, rows in work for row in rows]
            try:
                if work:
                    store = store or self._connect()
                    store.write({row.thread_id: row for row in rows}.values())
            except Exception as error:
                # Whatever it is, it is reported, and the thread goes on.
                problem = str(error) or type(error).__name__
                if store is not None:
                    store.close()
                    store = None
            for number, its in work:
                self._done.append(Done(number, its, problem))
            if work:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._wake, b"\0")
            if None in jobs:
                if store is not None:
                    store.close()
                return


def remedy(home: Path, keys: Path | None) -> str:
    """Remedy for a lost store, for the pool's owner."""
    place = f" --keys {keys}" if keys is not None else ""
    command = f"codex-pool keys reset-ownership {home}{place}"
    return f"put {path_in(home)} back as it was, or accept its loss: {command}"
