"""Limits in time of one turn: followed until it ends, reaches one, or the sample is to halt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from codex_app_server import AppServerError
from codex_app_server.results import TurnCollector

from ..rules.limits import Meter, Reached
from .stopping import Stopped, unless_stopped

TIMEOUT, WALL = "timeout_s", "wall_s"
# How late a limit in time may be noticed that has not started to count yet.
CLOCK_S = 0.5


class TurnLimits:
    """The limits in time of a turn that began at `began_at`, by `clock`; `timeout_s` is that of the turn itself."""

    def __init__(
        self, meter: Meter, timeout_s: float | None, clock: Callable[[], float], halt: asyncio.Future[str]
    ) -> None:
        self._meter = meter
        self._timeout_s = timeout_s
        self._clock = clock
        self._halt = halt
        self.began_at = clock()
        self._ran_before_s = meter.ran_s(self.began_at)

    async def follow(self, reading: Coroutine[Any, Any, Reached | None]) -> Reached | None:
        """Follow `reading` until it ends; the limit that was reached first, if one was.

        Raises Stopped when the sample is to halt.
        """
        limits = self._meter.limits
        if limits.wall_s is None and limits.idle_s is None and self._timeout_s is None:
            return await unless_stopped(self._halt, reading)
        loop = asyncio.get_running_loop()
        over: asyncio.Future[Reached | None] = loop.create_future()
        timer: asyncio.TimerHandle | None = None

        def end(reached: Reached | None) -> None:
            if not over.done():
                over.set_result(reached)

        def on_halt(_: object) -> None:
            end(None)

        def look() -> None:
            nonlocal timer
            now = self._clock()
            reached = self._reached(now)
            if reached is not None:
                end(reached)
            else:
                timer = loop.call_later(self._wait_s(now), look)

        self._halt.add_done_callback(on_halt)
        if self._halt.done():
            end(None)
        look()
        try:
            return await unless_stopped(over, reading)
        except Stopped:
            reached = over.result()
            if reached is None:
                raise
            return reached
        finally:
            self._halt.remove_done_callback(on_halt)
            if timer is not None:
                timer.cancel()

    def was_in_time(self, limit: str | None, collector: TurnCollector) -> bool:
        """Return True if a turn had completed within the limit by the app-server's clock; news of that came late."""
        duration_ms = collector.duration_ms
        if limit not in (WALL, TIMEOUT) or duration_ms is None:
            return False
        try:
            if collector.result().status != "completed":
                return False
        except AppServerError:
            return False
        if limit == TIMEOUT:
            return self._timeout_s is not None and duration_ms / 1000 < self._timeout_s
        wall_s = self._meter.limits.wall_s
        return wall_s is not None and self._ran_before_s + duration_ms / 1000 < wall_s

    def _reached(self, now: float) -> Reached | None:
        timeout_s = self._timeout_s
        if timeout_s is not None and now - self.began_at >= timeout_s:
            return Reached(TIMEOUT, f"the turn ran longer than its timeout_s of {timeout_s:g} s")
        return self._meter.reached(now)

    def _wait_s(self, now: float) -> float:
        """Seconds until a limit could be reached without anything happening."""
        limits, timeout_s = self._meter.limits, self._timeout_s
        waits = [] if timeout_s is None else [max(0.0, timeout_s - (now - self.began_at))]
        if limits.wall_s is not None or limits.idle_s is not None:
            wait_s = self._meter.wait_s(now)
            waits.append(CLOCK_S if wait_s is None else wait_s)
        return min(waits)
