"""LoopTimer: one timer of an event loop, for the earliest of the times that it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class LoopTimer:
    """Calls `ring` on the loop at the earliest time that was set; then none is set any more."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._when = 0.0

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        """Ring at this time of the monotonic clock, or before. Called on `loop`."""
        if self._timer is not None:
            if self._when <= when:
                return
            self._timer.cancel()
        self._when = when
        self._timer = loop.call_later(max(0.0, when - time.monotonic()), self._on_time)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_time(self) -> None:
        self._timer = None
        self._ring()
