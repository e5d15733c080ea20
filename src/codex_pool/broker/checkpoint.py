"""The record of threads for the next broker, kept whatever becomes of its file.

While the file cannot be written, or was removed, changes are told to the supervisor, which gives them to the next
broker with its start arguments; and the whole record is written again with backoff.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from codex_pool.broker.legacy import Changes, Legacy
from codex_pool.problems import Problems
from codex_pool.wire import ThreadRecord

WHAT = "record of threads"
THREADS_PER_REPORT = 50


def with_unsaved(threads: list[ThreadRecord] | None, unsaved: Mapping[str, Any]) -> list[ThreadRecord] | None:
    """Threads of a file, brought up to date with what the supervisor was told; None if there was no broker before."""
    if threads is None and not unsaved:
        return None
    known = {record.thread_id: record for record in threads or ()}
    for thread_id, record in unsaved.items():
        known.pop(thread_id, None)
        if record is not None:
            known[thread_id] = msgspec.convert(record, ThreadRecord)
    return list(known.values())


class Checkpoint:
    """See the module's docstring. `threads` returns all records that there are; `report` tells the supervisor."""

    def __init__(
        self,
        legacy: Legacy,
        threads: Callable[[], Collection[ThreadRecord]],
        problems: Problems,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._legacy = legacy
        self._threads = threads
        self._problems = problems
        self._report = report

    def keep(self, changes: Changes, now: float) -> None:
        """Write down what threads have become, or tell the supervisor."""
        if WHAT not in self._problems:
            try:
                if self._legacy.keep(changes, len(self._threads())):
                    return
            except OSError as error:
                self._failed(error, now)
            else:
                self._write(now)
        if WHAT in self._problems:
            # In short lines: the pipe to the supervisor holds 64 KiB.
            left = iter(changes.items())
            while part := dict(itertools.islice(left, THREADS_PER_REPORT)):
                self._report({"event": "unsaved", "threads": part})

    def look(self, now: float) -> None:
        """Write all of them again if the file is not at its path, or could not be written."""
        if (WHAT in self._problems or not self._legacy.is_kept) and self._problems.is_due(WHAT, now):
            self._write(now)

    def _write(self, now: float) -> None:
        try:
            self._legacy.write(self._threads())
        except OSError as error:
            self._failed(error, now)
        else:
            self._problems.solved(WHAT, now)
            self._report({"event": "saved"})

    def _failed(self, error: OSError, now: float) -> None:
        problem = f"{error.filename or self._legacy.path}: {error.strerror or os.strerror(error.errno or 0)}"
        self._problems.failed(WHAT, problem, now)
