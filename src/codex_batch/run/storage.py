"""Storage: writes of a run that wait for room on its disks and for its database; the run pauses meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..rules.breaker import Breaker
from ..store import RunDirectory, Written, layout
from ..store.bridge import StoreBridge
from ..store.locked import is_locked
from .disks import Disk, is_full
from .stopping import Stopped, unless_stopped

POLL_S = 0.5
WRITE_AGAIN_S = 2.0
# A lock that another program holds for a shorter time is none worth a word.
LOCKED_S = 2.0


class Storage:
    """See the module's docstring. The first of the `disks` is that of the run directory.

    `stopping` is done when the run stops. `on_pause` is called when the breaker may have paused the run.
    """

    def __init__(
        self,
        directory: RunDirectory,
        disks: Sequence[Disk],
        breaker: Breaker,
        stopping: asyncio.Future[Any],
        on_pause: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._disks = disks
        self._breaker = breaker
        self._stopping = stopping
        self._on_pause = on_pause
        self._bridge = StoreBridge()
        # The disk that was found full by looking, and the changes that an error keeps off the disk.
        self._short: Disk | None = None
        self._unwritten = 0
        self._full = disks[0]
        self._full_at = float("-inf")

    async def written(self, change: Callable[[], Written[Any] | asyncio.Future[Any]]) -> Any:
        """Return the result of a change that is on the disk; it gets there also when the caller no longer waits.

        A full disk is waited for, and so is a database that another program has locked; raises Stopped when the run
        stops meanwhile.
        """
        failed = False
        try:
            while True:
                try:
                    writing = change()
                    return await (self._bridge.result(writing) if isinstance(writing, Written) else writing)
                except (sqlite3.Error, OSError) as error:
                    if is_locked(error):
                        # The directory waits for it unless the run is to end.
                        raise Stopped from error
                    if not is_full(error):
                        raise
                    self._unwritten += not failed
                    failed = True
                    message = error.strerror or str(error) if isinstance(error, OSError) else str(error)
                    self._found_full(self._disks[0], message)
                await unless_stopped(self._stopping, asyncio.sleep(WRITE_AGAIN_S))
        finally:
            if failed:
                self._unwritten -= 1
                self._disk_freed()

    async def room(self) -> None:
        """Wait while a disk is full. Raises Stopped when the run stops meanwhile."""
        while not self.has_room():
            await unless_stopped(self._stopping, asyncio.sleep(POLL_S))

    def was_full(self, since: float) -> bool:
        """Return True if a disk has been full since then, a time of the monotonic clock; it was `full_directory`'s."""
        self.has_room()
        return self._full_at >= since

    @property
    def full_directory(self) -> str:
        """The directory whose disk was full last."""
        return str(self._full.directory)

    async def watch(self) -> None:
        """Look without end, so that also a disk is noticed that was full for a while, and a database that is locked."""
        while True:
            self.has_room()
            self.is_locked()
            await asyncio.sleep(POLL_S)

    def has_room(self) -> bool:
        """Return True if there is room on the disks of the run, which pauses while there is none on one."""
        for disk in self._disks:
            shortage = disk.shortage()
            if shortage is not None:
                self._no_longer_short(unless=disk)
                self._short = disk
                self._found_full(disk, shortage)
                return False
        self._no_longer_short()
        return True

    def is_locked(self) -> bool:
        """Return True while the run pauses because another program has its database locked."""
        if self._directory.locked_s() >= LOCKED_S:
            self._breaker.database_locked(str(self._directory.file(layout.DATABASE)), time.monotonic())
            self._on_pause()
            return True
        self._breaker.database_free()
        return False

    def _no_longer_short(self, unless: Disk | None = None) -> None:
        if self._short is not None and self._short is not unless:
            self._short = None
            self._disk_freed()

    def _found_full(self, disk: Disk, message: str) -> None:
        self._full, self._full_at = disk, time.monotonic()
        self._breaker.disk_full(message, self._full_at, str(disk.directory))
        self._on_pause()

    def _disk_freed(self) -> None:
        if self._short is None and self._unwritten == 0:
            self._breaker.disk_mended()
