"""Waking: awaits what another thread does; what is done there at once wakes the event loop once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

from .store import Written


class Waking:
    """For the running event loop, which is not woken for each thing that is written."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: deque[tuple[asyncio.Future[Any], Written[Any]]] = deque()
        self._told = False

    async def result(self, written: Written[Any]) -> Any:
        """The result of a change, which goes on when this wait is cancelled."""
        waiter = self._loop.create_future()
        written.when_done(lambda done: self._on_done(waiter, done))
        return await waiter

    def _on_done(self, waiter: asyncio.Future[Any], written: Written[Any]) -> None:
        self._done.append((waiter, written))
        if not self._told:
            self._told = True
            # Of a loop that is closed nobody waits.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        # First: what is added from now on may be missed below.
        self._told = False
        while self._done:
            waiter, written = self._done.popleft()
            if waiter.done():
                continue
            try:
                waiter.set_result(written.result())
            except BaseException as error:
                waiter.set_exception(error)
