"""Waking: awaits what another thread does; what is done there at once wakes the event loop once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from concurrent.futures import Future
from typing import Any


class Waking:
    """For the running event loop. `asyncio.wrap_future` would wake it for each future."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._told = False

    async def result(self, future: Future[Any]) -> Any:
        """The result of `future`, which nobody cancels; it goes on when this wait is cancelled."""
        waiter = self._loop.create_future()
        future.add_done_callback(lambda done: self._on_done(waiter, done))
        return await waiter

    def _on_done(self, waiter: asyncio.Future[Any], future: Future[Any]) -> None:
        self._done.append((waiter, future))
        if not self._told:
            self._told = True
            # Of a loop that is closed nobody waits.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        # First: what is added from now on may be missed below.
        self._told = False
        while self._done:
            waiter, future = self._done.popleft()
            if waiter.done():
                continue
            error = future.exception()
            if error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(future.result())
