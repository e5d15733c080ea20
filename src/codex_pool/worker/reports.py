"""Reports of a worker to its supervisor: JSON lines on stdout, none of which it waits for."""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import Any

import msgspec

from ..runtime import log
from .core import WorkerCore

LOAD_EVERY_S = 1.0


class Reports:
    """Load and memory, each when it has changed. A supervisor that does not read gets them later."""

    def __init__(self) -> None:
        self._load = (0, 0, 0, 0)
        self._load_at = 0.0
        self._memory_mib = 0

    def load(self, core: WorkerCore) -> None:
        """Report the numbers of turns and threads, at most once in LOAD_EVERY_S."""
        load = core.finished_turns, core.loaded_threads, core.running_turns, log.lost()
        if load != self._load and time.monotonic() - self._load_at >= LOAD_EVERY_S and _writable(1):
            self._load, self._load_at = load, time.monotonic()
            report({"event": "load", **dict(zip(("turns", "threads", "running", "lost_lines"), load, strict=True))})

    def memory(self, memory_bytes: int) -> None:
        """Report the memory, where it has changed by a MiB."""
        if memory_bytes >> 20 != self._memory_mib and _writable(1):
            self._memory_mib = memory_bytes >> 20
            report({"event": "memory", "memory_bytes": memory_bytes})


def report(record: dict[str, Any]) -> None:
    """Write one JSON line for the supervisor."""
    with contextlib.suppress(OSError):
        os.write(1, msgspec.json.encode(record) + b"\n")


def _writable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(0))
