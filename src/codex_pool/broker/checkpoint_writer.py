"""The record of threads for the next broker, kept whatever becomes of its file.

While the file cannot be written, or was removed, changes are reported to the supervisor, which gives them to the next
broker with its start arguments; and the whole record is written again with backoff.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from ..protocol.wire import ThreadRecord
from ..runtime.problems import Problems
from .checkpoint import Changes, CheckpointFile

WHAT = "record of threads"
THREADS_PER_REPORT = 50


def with_unsaved(threads: list[ThreadRecord] | None, unsaved: Mapping[str, Any]) -> list[ThreadRecord] | None:
    """Bring the threads of a file up to date with what was reported; None if there was no broker before."""
    if threads is None and not unsaved:
        return None
    known = {record.thread_id: record for record in threads or ()}
    for thread_id, record in unsaved.items():
        known.pop(thread_id, None)
        if record is not None:
            known[thread_id] = msgspec.convert(record, ThreadRecord)
    return list(known.values())


class CheckpointWriter:
    """See the module's docstring. `threads` returns all records; `report` sends something to the supervisor."""

    def __init__(
        self,
        checkpoint: CheckpointFile,
        threads: Callable[[], Collection[ThreadRecord]],
        problems: Problems,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._checkpoint_file = checkpoint
        self._threads = threads
        self._problems = problems
        self._report = report

    def keep(self, changes: Changes, now: float) -> None:
        """Write changed records of threads, or report them to the supervisor."""
        if WHAT not in self._problems:
            try:
                if self._checkpoint_file.keep(changes, len(self._threads())):
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
        if (WHAT in self._problems or not self._checkpoint_file.is_kept) and self._problems.is_due(WHAT, now):
            self._write(now)

    def _write(self, now: float) -> None:
        try:
            self._checkpoint_file.write(self._threads())
        except OSError as error:
            self._failed(error, now)
        else:
            self._problems.solved(WHAT, now)
            self._report({"event": "saved"})

    def _failed(self, error: OSError, now: float) -> None:
        problem = f"{error.filename or self._checkpoint_file.path}: {error.strerror or os.strerror(error.errno or 0)}"
        self._problems.failed(WHAT, problem, now)
