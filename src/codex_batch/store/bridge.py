"""StoreBridge: awaits changes that the writer thread makes; what is written at once wakes the event loop once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

from . import Written


class StoreBridge:
    """Results of writes for the running event loop, which is not woken for each one."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: deque[tuple[asyncio.Future[Any], Written[Any]]] = deque()
        self._is_scheduled = False

    async def result(self, written: Written[Any]) -> Any:
        """The result of a change, which goes on when this wait is cancelled."""
        waiter = self._loop.create_future()
        written.when_done(lambda done: self._on_done(waiter, done))
        return await waiter

    def _on_done(self, waiter: asyncio.Future[Any], written: Written[Any]) -> None:
        self._done.append((waiter, written))
        if not self._is_scheduled:
            self._is_scheduled = True
            # Nothing waits on a loop that is closed.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        # First: what is added from now on may be missed below.
        self._is_scheduled = False
        while self._done:
            waiter, written = self._done.popleft()
            if waiter.done():
                continue
            try:
                waiter.set_result(written.result())
            except BaseException as error:
                waiter.set_exception(error)
