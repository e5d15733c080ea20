"""The one thread that writes. What waits when it looks is one transaction: many samples share a wait for the disk."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from codex_app_server._runtime import threads

from . import locked

T = TypeVar("T")

log = logging.getLogger("codex_batch")

# While changes come one after the other they are gathered for so long: a commit costs more than ten changes. One that
# comes alone is not kept waiting.
GATHER_S = 0.01
BUSY_S = 0.05
# Who is to end waits so long for a database that another program has locked.
HURRIED_S = 10.0
_LOOK_S = 0.05

Change = Callable[[sqlite3.Connection], Any]


class Written(Generic[T]):
    """Outcome of a change: its result once it is on the disk, or the error that kept it off.

    A future of the standard library costs as much as the change: these share the condition of their writer.
    """

    __slots__ = ("_callback", "_error", "_is_done", "_result", "_settled")

    def __init__(self, settled: threading.Condition) -> None:
        self._settled = settled
        self._is_done = False
        self._result: T
        self._error: BaseException | None = None
        self._callback: Callable[[Written[T]], None] | None = None

    def result(self, timeout_s: float | None = None) -> T:
        """Waits for it. Raises TimeoutError, or what kept the change off the disk."""
        if not self._is_done:
            with self._settled:
                if not self._settled.wait_for(lambda: self._is_done, timeout_s):
                    raise TimeoutError(f"the change was not on the disk within {timeout_s} s")
        if self._error is not None:
            raise self._error
        return self._result

    def when_done(self, callback: Callable[[Written[T]], None]) -> None:
        """Call back once, on the writer's thread, or at once if it is done."""
        with self._settled:
            if not self._is_done:
                self._callback = callback
                return
        callback(self)


class Writer:
    """Applies changes in order, and answers each with what became of it.

    `before_commit` is called before, `after_commit` with the results after each transaction, on the writer's thread.
    While another program has the database `path` locked, changes wait.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        before_commit: Callable[[], None],
        after_commit: Callable[[list[Any]], None],
    ) -> None:
        self._connection = connection
        self._path = path
        self.locked_since: float | None = None
        """Begin of the lock that another program holds, a time of the monotonic clock; None without one."""
        self._hurried_at: float | None = None
        self._before_commit = before_commit
        self._after_commit = after_commit
        self._waiting: deque[tuple[Change, Written[Any]]] = deque()
        self._has_work = threading.Condition()
        self._settled = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="run-store", daemon=True)
        threads.start(self._thread, "to write the run")

    def submit(self, change: Change) -> Written[Any]:
        written: Written[Any] = Written(self._settled)
        with self._has_work:
            if self._closing:
                raise RuntimeError("the run directory is closed")
            self._waiting.append((change, written))
            self._has_work.notify()
        return written

    def hurry(self) -> None:
        """Wait for a locked database for HURRIED_S only, from now on; changes that are not written by then fail."""
        if self._hurried_at is None:
            self._hurried_at = time.monotonic()

    def close(self) -> None:
        """Apply what waits, then end. May be called twice."""
        self.hurry()
        with self._has_work:
            self._closing = True
            self._has_work.notify()
        self._thread.join()

    def _run(self) -> None:
        committed_at = 0.0
        while True:
            with self._has_work:
                while not self._waiting and not self._closing:
                    self._has_work.wait()
            if time.monotonic() - committed_at < BUSY_S and not self._closing:
                time.sleep(GATHER_S)
            with self._has_work:
                group = list(self._waiting)
                self._waiting.clear()
            if not group:
                return
            error = self._apply(group)
            committed_at = time.monotonic()
            if error is not None and len(group) > 1 and not locked.is_locked(error):
                # Only the change that caused the error fails.
                for one in group:
                    error = self._apply([one])
                    if error is not None:
                        self._settle([one], error=error)
            elif error is not None:
                self._settle(group, error=error)

    def _apply(self, group: Sequence[tuple[Change, Written[Any]]]) -> BaseException | None:
        """Apply all or nothing; why it was nothing."""
        try:
            self._execute("BEGIN IMMEDIATE")
            results = [change(self._connection) for change, _ in group]
            self._before_commit()
            self._execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            return error
        # What is made of the tables can be made again; the tables have it.
        try:
            self._after_commit(results)
        except OSError:
            pass
        except Exception:
            log.exception("what was written to the run could not be passed on")
        self._settle(group, results)
        return None

    def _execute(self, statement: str) -> None:
        """Begin or commit, as soon as no other program has the database locked."""
        is_said = False
        while True:
            try:
                self._connection.execute(statement)
            except sqlite3.OperationalError as error:
                if not locked.is_locked(error):
                    raise
                now = time.monotonic()
                since = self.locked_since = self.locked_since or now
                if self._hurried_at is not None and now - max(since, self._hurried_at) >= HURRIED_S:
                    raise
            else:
                self.locked_since = None
                return
            if not is_said and now - since >= locked.SAY_AFTER_S:
                is_said = True
                log.warning("%s; waiting for it", locked.problem(self._path))
            time.sleep(_LOOK_S)

    def _settle(
        self,
        group: Sequence[tuple[Change, Written[Any]]],
        results: Sequence[Any] = (),
        error: BaseException | None = None,
    ) -> None:
        with self._settled:
            for place, (_, written) in enumerate(group):
                if error is None:
                    written._result = results[place]
                written._error, written._is_done = error, True
            self._settled.notify_all()
        for _, written in group:
            if written._callback is not None:
                # One that fails must not keep the others waiting, nor end the thread.
                try:
                    written._callback(written)
                except Exception:
                    log.exception("what waits for a change of the run could not be told")
