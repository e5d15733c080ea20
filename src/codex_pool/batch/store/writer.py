"""The one thread that writes. What waits when it looks is one transaction: many samples share a wait for the disk."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

# While changes come one after the other they are gathered for so long: a commit costs more than ten changes. One that
# comes alone is not kept waiting.
GATHER_S = 0.005
BUSY_S = 0.05

Change = Callable[[sqlite3.Connection], Any]


class Writer:
    """Applies changes in order. A change's future has its result once it is on the disk, or the error that kept it off.

    `before_commit` is called before, `after_commit` with the results after each transaction, on the writer's thread.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        before_commit: Callable[[], None],
        after_commit: Callable[[list[Any]], None],
    ) -> None:
        self._connection = connection
        self._before_commit = before_commit
        self._after_commit = after_commit
        self._waiting: deque[tuple[Change, Future[Any]]] = deque()
        self._has_work = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="run-store", daemon=True)
        self._thread.start()

    def submit(self, change: Change) -> Future[Any]:
        future: Future[Any] = Future()
        with self._has_work:
            if self._closing:
                raise RuntimeError("the run directory is closed")
            self._waiting.append((change, future))
            self._has_work.notify()
        return future

    def close(self) -> None:
        """Apply what waits, then end. May be called twice."""
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
            if error is not None and len(group) > 1:
                # Whoever is to blame fails alone.
                for one in group:
                    error = self._apply([one])
                    if error is not None:
                        one[1].set_exception(error)
            elif error is not None:
                group[0][1].set_exception(error)

    def _apply(self, group: Sequence[tuple[Change, Future[Any]]]) -> BaseException | None:
        """Apply all or nothing; why it was nothing."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            results = [change(self._connection) for change, _ in group]
            self._before_commit()
            self._connection.execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            return error
        # What is made of the tables can be made again; the tables have it.
        with contextlib.suppress(OSError):
            self._after_commit(results)
        for (_, future), result in zip(group, results, strict=True):
            future.set_result(result)
        return None
