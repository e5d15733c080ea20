"""The clock of limits in time: what holds up the event loop is nobody's running time."""

from __future__ import annotations

import asyncio
import time

from codex_batch.rules.limits import Limits, Meter
from codex_batch.run.loop_clock import BEAT_S, RunningClock


def test_a_loop_that_stands_still_is_not_counted() -> None:
    now = 100.0
    clock = RunningClock(lambda: now)
    began_at = clock()
    for _ in range(20):
        now += BEAT_S
        clock()
    assert round(clock() - began_at, 6) == 2.0
    now += 60.0
    assert clock() - began_at <= 2.0 + BEAT_S + 1e-6
    now += 2 * BEAT_S
    assert round(clock() - began_at, 6) == round(2.0 + 3 * BEAT_S, 6)


def test_a_sample_is_not_at_its_limit_because_another_one_held_up_the_loop() -> None:
    async def measure() -> tuple[bool, float]:
        clock = RunningClock()
        beating = asyncio.ensure_future(clock.beat())
        meter = Meter(Limits(wall_s=0.6))
        meter.turn_started()
        meter.assigned(clock())
        await asyncio.sleep(2 * BEAT_S)
        # What another sample must not do, and does all the same.
        time.sleep(1.0)
        reached = meter.reached(clock())
        beating.cancel()
        return reached is not None, meter.ran_s(clock())

    reached, ran_s = asyncio.run(measure())
    assert not reached and ran_s < 0.6
