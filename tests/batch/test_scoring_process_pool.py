"""Scorers that only compute run off the event loop, and what they may take is bounded."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from scored import context

from codex_batch.scoring import ProcessPool, Score, parse_scorer, process_pool, score_sample
from codex_batch.scoring.scorer import ScoringFailed

T = TypeVar("T")
# What is never done within any limit.
CATASTROPHE = r"regex:^(a+)+$", "a" * 60 + "!"


@dataclass
class Held:
    """The longest time that the event loop did not run."""

    longest_s: float = 0.0

    async def watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            self.longest_s = max(self.longest_s, time.monotonic() - before - 0.01)


def run(work: Callable[[ProcessPool], Awaitable[T]], count: int = 2) -> tuple[T, float]:
    """Return what comes of `work`, and for how long the loop stood still."""

    async def main() -> tuple[T, float]:
        held, there = Held(), ProcessPool(count)
        watching = asyncio.ensure_future(held.watch())
        try:
            return await asyncio.wait_for(work(there), 40), held.longest_s
        finally:
            watching.cancel()
            await there.close()

    return asyncio.run(main())


async def score(there: ProcessPool, spec: Any, response: str | None, target: Any = None) -> Score:
    (found,) = await score_sample(
        [parse_scorer(spec, "scorers")], context(response, target, diff=b"x"), process_pool=there
    )
    return found


@pytest.mark.parametrize("spec", ["exact", "includes", "number", "regex:4+2", {"type": "json_schema", "schema": {}}])
def test_the_score_is_the_same(spec: Any) -> None:
    (here,) = asyncio.run(score_sample([parse_scorer(spec, "scorers")], context("42", "42")))
    there, _ = run(lambda process_pool: score(process_pool, spec, "42", "42"))
    assert (there.scorer, there.value, there.passed, there.answer) == (here.scorer, 1.0, True, here.answer)


def test_a_scorer_that_computes_for_long_holds_up_nobody() -> None:
    async def work(there: ProcessPool) -> list[Score]:
        other = [score(there, "exact", "42", "42") for _ in range(20)]
        return list(await asyncio.gather(score(there, *CATASTROPHE), *other))

    (slow, *other), held_s = run(work)
    assert slow.error is not None and "took more than 1 s of CPU time" in slow.error
    assert all(found.passed and found.duration_ms < 1000 for found in other)
    assert held_s < 0.5


def test_all_of_a_score_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # The response is read letter by letter, many times over.
    spec = {"type": "regex", "pattern": "4", "ignore_case": True}

    async def work(there: ProcessPool) -> tuple[Score, Score]:
        monkeypatch.setattr(process_pool, "ANSWER_LIMIT_S", 0.5)
        stuck = await score(there, *CATASTROPHE)
        monkeypatch.undo()
        return stuck, await score(there, spec, "4")

    (stuck, after), _ = run(work, 1)
    assert stuck.error is not None and "on this response" in stuck.error and after.passed


def test_a_process_that_dies_costs_the_score_that_it_was_at() -> None:
    async def work(there: ProcessPool) -> tuple[Score, Score]:
        assert (await score(there, "exact", "42", "42")).passed
        (child,) = there._idle
        os.kill(child.pid, signal.SIGKILL)
        return await score(there, "exact", "42", "42"), await score(there, "exact", "42", "42")

    (lost, after), _ = run(work)
    assert lost.error is not None and "ended without an answer: signal 9" in lost.error
    assert after.passed


def test_a_long_response_is_scored_and_one_without_end_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(there: ProcessPool) -> tuple[Score, Score]:
        found = await score(there, "includes", "x" * 24_000_000 + "\udc80 42", "42")
        monkeypatch.setattr(process_pool, "MAX_CHARACTERS", 100)
        return found, await score(there, "includes", "x" * 100, "42")

    (found, refused), _ = run(work)
    assert found.passed
    assert refused.error is not None and "too long: 200 characters; at most 100 are read" in refused.error


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(there: ProcessPool) -> tuple[Score, Score]:
        monkeypatch.setattr(process_pool, "MEMORY_LIMIT_BYTES", 256 * 2**20)
        return await score(there, "exact", "\U0001d538" * 20_000_000, "x"), await score(there, "exact", "x", "x")

    (found, after), _ = run(work)
    assert found.error is not None and "took more than 256 MiB of memory" in found.error
    assert after.passed


def test_cpu_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(there: ProcessPool) -> tuple[Score, Score]:
        monkeypatch.setattr(process_pool, "CPU_LIMIT_S", 1)
        slow = {"type": "number", "which": "only"}
        return await score(there, slow, "1 2 3 " * 400_000, "1"), await score(there, "exact", "x", "x")

    (found, after), _ = run(work)
    assert found.error is not None and "of CPU time on this response" in found.error
    assert after.passed


def test_a_cancelled_score_ends_its_process() -> None:
    async def work(there: ProcessPool) -> None:
        asking = asyncio.ensure_future(score(there, *CATASTROPHE))
        await asyncio.sleep(0.3)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not there._idle

    run(work)
    assert issubclass(ScoringFailed, Exception)
