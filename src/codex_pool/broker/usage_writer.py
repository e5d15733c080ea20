"""The broker's side of the usage store: a thread that opens, reads and writes it.

A write waits for the disk and for other pools, so none happens on the loop; the thread takes all that waits into one
transaction. What cannot be written is kept, and tried again at the next beat. While the store cannot be relied upon -
it was deleted, exchanged or damaged - the ledger is closed, and the thread tries to open it again.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..auth.keys import KeyStore
from ..auth.usage import DAY_S, Rates, merged
from ..auth.usage_store import Change, Counted, Rows, UsageError, UsageStore, path_in
from ..runtime.problems import Problems
from .arguments import BrokerArguments

STORE, WRITES = "usage store", "writes to the usage store"


class Opened(NamedTuple):
    """The store can be relied upon: its sums of all days, rows of this one, and tallies of workers."""

    totals: Rows
    today: Rows
    workers: dict[str, Counted]


class Closed(NamedTuple):
    """The store cannot be relied upon, and why."""

    problem: str


class Wrote(NamedTuple):
    """A write is over; `problem` is why it failed, and is tried again."""

    problem: str | None


class Found(NamedTuple):
    """The answer to `Query`; `problem` is why there is none."""

    number: int
    rows: Rows
    names: dict[str, str]
    problem: str | None


class Query(NamedTuple):
    """A question for the rows from a day on, of one principal or of all."""

    number: int
    since: int
    principal: str | None


class _Look(NamedTuple):
    pass


Report = Opened | Closed | Wrote | Found
_Job = Change | Query | _Look | None


class UsageWriter:
    """See the module's docstring. `descriptor` is readable when there are reports."""

    def __init__(self, home: Path, keys: Path | None, log: Callable[[str], None]) -> None:
        self._home, self._keys, self._log = home, keys, log
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._reports: deque[Report] = deque()
        self.descriptor, self._wake = os.pipe()
        for end in (self.descriptor, self._wake):
            os.set_blocking(end, False)
        self.problems = Problems(lambda line: None)
        # Of the thread, once that runs.
        self._store: UsageStore | None = None
        self._said = ""
        self._waiting = Change({}, {}, {}, [])
        self._open()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self._thread.start()

    @property
    def remedy(self) -> str:
        """The command that accepts the loss of the store."""
        place = f" --keys {self._keys}" if self._keys is not None else ""
        return f"codex-pool keys reset-usage {self._home}{place}"

    def close(self) -> None:
        """End when all that was to be written is written or has failed, or after 5 s."""
        self._jobs.put(None)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            os.close(self.descriptor)
            os.close(self._wake)

    def save(self, change: Change) -> None:
        """Write this."""
        self._jobs.put(change)

    def ask(self, query: Query) -> None:
        """Read rows; `reports` has the answer."""
        self._jobs.put(query)

    def look(self) -> None:
        """Have the store checked, and what failed tried again; call it once a second."""
        self._jobs.put(_Look())

    def reports(self) -> list[Report]:
        """Return the changes of the store since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)
        found: list[Report] = []
        while self._reports:
            report = self._reports.popleft()
            found.append(report)
            now = time.monotonic()
            if isinstance(report, Closed):
                what = f"keys with a limit of tokens or spend are refused: {report.problem}"
                self.problems.failed(STORE, what, now)
            elif isinstance(report, Opened):
                self.problems.solved(STORE, now)
            elif isinstance(report, Wrote) and report.problem is None:
                self.problems.solved(WRITES, now)
            elif isinstance(report, Wrote):
                self.problems.failed(WRITES, f"{path_in(self._home)}: {report.problem}", now)
        return found

    # The thread.

    def _run(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            while not self._jobs.empty():
                jobs.append(self._jobs.get())
            for job in jobs:
                if isinstance(job, Change):
                    self._keep(job)
            self._work([job for job in jobs if isinstance(job, Query)], looks=_Look() in jobs)
            if None in jobs:
                if self._store is not None:
                    self._store.close()
                return

    def _work(self, queries: list[Query], *, looks: bool) -> None:
        try:
            if self._store is not None and (looks or self._has_news):
                self._store.verify()
            if self._store is not None and self._has_news:
                self._write(self._store)
            if self._store is None and looks:
                self._open()
        except UsageError as error:
            self._lose(error)
        except Exception as error:
            # Whatever it is, it is reported, and the thread goes on.
            self._report(Wrote(str(error) or type(error).__name__))
        for query in queries:
            self._report(self._found(query))

    @property
    def _has_news(self) -> bool:
        return bool(self._waiting.rows or self._waiting.workers or self._waiting.gone)

    def _keep(self, change: Change) -> None:
        before = self._waiting
        gone = [*before.gone, *change.gone]
        workers = {**before.workers, **change.workers}
        rows, names = merged(before.rows, change.rows), {**before.names, **change.names}
        self._waiting = Change(rows, names, {each: workers[each] for each in workers.keys() - set(gone)}, gone)

    def _write(self, store: UsageStore) -> None:
        try:
            store.add(self._waiting)
        except sqlite3.OperationalError as error:
            self._report(Wrote(str(error)))
            return
        self._waiting = Change({}, {}, {}, [])
        self._report(Wrote(None))

    def _open(self) -> None:
        try:
            store = UsageStore(self._home, self._keys)
            opened = Opened(store.totals(), store.rows(int(time.time() // DAY_S)), store.workers())
        except UsageError as error:
            self._lose(error)
            return
        if self._said:
            self._log("the usage store can be read again")
        self._store, self._said = store, ""
        self._report(opened)

    def _lose(self, error: UsageError) -> None:
        """Let go of the store, and of what was to be written: the tallies of the workers have it."""
        if self._store is not None:
            self._store.close()
            self._store = None
        self._waiting = Change({}, {}, {}, [])
        if self._said != str(error):
            self._log(f"keys with a limit of tokens or spend are refused: {error}; the remedy: {self.remedy}")
        self._said = str(error)
        self._report(Closed(str(error)))

    def _found(self, query: Query) -> Found:
        if self._store is None:
            return Found(query.number, {}, {}, f"the usage store cannot be read: {self._said}")
        try:
            rows = merged(self._store.rows(query.since, query.principal), self._unwritten(query))
            return Found(query.number, rows, {**self._store.names(), **self._waiting.names}, None)
        except UsageError as error:
            return Found(query.number, {}, {}, str(error))

    def _unwritten(self, query: Query) -> Rows:
        return {
            key: sums
            for key, sums in self._waiting.rows.items()
            if key.day >= query.since and (query.principal is None or key.principal == query.principal)
        }

    def _report(self, report: Report) -> None:
        self._reports.append(report)
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake, b"\0")


def usage_writer_of(arguments: BrokerArguments, log: Callable[[str], None]) -> UsageWriter | None:
    """The writer for the home of a pool that keeps its usage; None for one that does not."""
    if arguments.codex_home is None or not arguments.keeps_usage:
        return None
    keys = KeyStore(arguments.keys).directory if arguments.keys is not None else None
    return UsageWriter(Path(arguments.codex_home), keys, log)


def rates_of(asked: str | None, log: Callable[[str], None]) -> Rates:
    """The rates by the table of prices that `--prices` names."""
    if asked is None:
        return Rates(None)
    # Loaded by need: few pools have prices.
    from ..litellm_prices import find_prices
    from ..prices import PricesError

    try:
        return Rates(find_prices(asked))
    except PricesError as error:
        # It could be read when the pool was started. Without, keys with a limit of spend are refused.
        log(f"the pool has no prices: {error}")
        return Rates(None)
