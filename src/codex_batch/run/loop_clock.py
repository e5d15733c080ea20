"""A clock for limits in time that stands still while the event loop does. Pure but for `beat`: the clock is passed in.

Samples share one event loop. Where something holds it up - a large answer of another sample, a machine that is
overloaded, a process that was stopped - the events of all others wait, and that time is none of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

BEAT_S = 0.1
# A loop that is only busy is this late now and then.
LATE_S = 0.15


class RunningClock:
    """Seconds during which the event loop ran. It counts while `beat` runs, or something else calls it as often."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seen_at = monotonic()
        self._held_up_s = 0.0

    def __call__(self) -> float:
        """The time, comparable only with other times of this clock."""
        now = self._monotonic()
        gap_s = now - self._seen_at
        if gap_s > BEAT_S + LATE_S:
            self._held_up_s += gap_s - BEAT_S
        self._seen_at = now
        return now - self._held_up_s

    async def beat(self) -> None:
        """Call it every BEAT_S, without end: what is longer than that between two calls was a loop that stood still."""
        self()
        while True:
            await asyncio.sleep(BEAT_S)
            self()
