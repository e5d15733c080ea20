"""DirectLoop: an asyncio event loop on which the reader of one descriptor is called without a pass of the loop.

asyncio makes a handle for each descriptor that is ready, queues it, and runs it in a context. Where messages come one
at a time, in a process that has slept before each, that costs more than to handle them. Where there is no epoll it is
an event loop as any other.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any

IS_DIRECT = hasattr(select, "epoll")
# EPOLLIN.
EVENT_READ = 1


class _Selector(selectors.DefaultSelector):
    """Calls `reader` itself while what `only` names is all that is ready; `failed` takes what it raises.

    `has_news`: the loop has something to do that it did not know when it called `select`.
    """

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        super().__init__()
        self._failed = failed
        # The same set of descriptors, without the work that `select` does for each that is ready.
        self._epoll = select.epoll.fromfd(os.dup(self.fileno())) if IS_DIRECT else None
        self.only: list[tuple[int, int]] = []
        self.reader: Callable[[], None] = lambda: None
        self.has_news = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._epoll is None or not self.only:
            return super().select(timeout)
        self.has_news = False
        until = None if timeout is None else time.monotonic() + timeout
        # A negative time would be without limit. A second one that is ready is enough to know that `only` is not all.
        while (found := self._epoll.poll(timeout if timeout is None or timeout > 0 else 0, 2)) == self.only:
            try:
                self.reader()
            except Exception as error:
                self._failed(error)
            if until is not None:
                timeout = until - time.monotonic()
            if self.has_news or (timeout is not None and timeout <= 0):
                return []
        return super().select(0) if found else []

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()
        super().close()


class DirectLoop(asyncio.SelectorEventLoop):
    """See the module's docstring."""

    def __init__(self) -> None:
        self._direct = _Selector(self._failed)
        super().__init__(self._direct)

    def read_directly(self, fd: int, reader: Callable[[], None]) -> None:
        """Call `reader` when there is something to read, as `add_reader`, which is to be called for it as well."""
        self._direct.only, self._direct.reader = [(fd, EVENT_READ)], reader

    def read_no_more(self) -> None:
        """Undo `read_directly`."""
        self._direct.only, self._direct.has_news = [], True

    def call_soon(self, *args: Any, **kwargs: Any) -> asyncio.Handle:  # type: ignore[override]
        self._direct.has_news = True
        return super().call_soon(*args, **kwargs)

    def call_at(self, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        self._direct.has_news = True
        return super().call_at(*args, **kwargs)

    def _failed(self, error: Exception) -> None:
        self.call_exception_handler({"message": "a reader has failed", "exception": error})


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` on a new DirectLoop to its end, as `asyncio.run` does."""
    loop = DirectLoop()
    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()
