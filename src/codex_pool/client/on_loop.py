"""OnLoop: has a transport's work done on an asyncio event loop, where those live for whom it is done."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from codex_app_server._runtime import fork
from codex_app_server._runtime.timer import LoopTimer

if TYPE_CHECKING:
    import asyncio


class OnLoop:
    """Calls `work` on `loop`, soon after `soon` and at the time of `wake_at`, and the readers of watched descriptors.

    All methods but `soon` must be called on the loop, or when that is closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
        self._loop = loop
        self._work = work
        self._thread = threading.get_ident()
        self._scheduled = False
        self._closed = False
        self._watched: object = None
        self._descriptors: list[int] = []
        self._timer = LoopTimer(self._call)

    def soon(self) -> bool:
        """Call `work` on the loop soon. May be called from any thread. False when the loop is closed."""
        if self._scheduled:
            # It has not looked since, and when it does it sees all there is.
            return not self._loop.is_closed()
        self._scheduled = True
        try:
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self._on_soon)
            else:
                self._loop.call_soon_threadsafe(self._on_soon)
        except RuntimeError:
            return False
        return True

    def watch(self, what: object, readers: Mapping[int, Callable[[], None]]) -> None:
        """Watch the descriptors of `what` from now on, and no others; `readers` are called when they are readable."""
        if what is self._watched:
            return
        self.unwatch()
        self._watched = what
        for descriptor, reader in readers.items():
            # Another thread may close its own, whose number must not be reused while it is watched here.
            duplicate = os.dup(descriptor)
            self._descriptors.append(duplicate)
            self._loop.add_reader(duplicate, self._on_readable, reader)

    def unwatch(self) -> None:
        for descriptor in self._descriptors:
            with contextlib.suppress(RuntimeError):
                self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self._watched, self._descriptors = None, []

    def wake_at(self, when: float) -> None:
        """Call `work` at this time of the monotonic clock, or earlier."""
        self._timer.set(self._loop, when)

    def close(self) -> None:
        """`work` is not called any more."""
        self._closed = True
        self.unwatch()
        self._timer.stop()

    def let_go(self) -> None:
        """Release the descriptors in a forked child, without touching the loop."""
        self._closed = True
        fork.let_go(*self._descriptors)

    def _on_readable(self, reader: Callable[[], None]) -> None:
        # The loop may have found it readable before it was closed, or released in a child that was forked then.
        if not self._closed:
            reader()

    def _on_soon(self) -> None:
        self._scheduled = False
        self._call()

    def _call(self) -> None:
        if not self._closed:
            self._work()
