"""Waits that a stop ends, and tasks that are told to end at any moment."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from codex_batch.run.stopping import Stopped, cancel_all, unless_stopped


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def stopped_then_slow(stopping: asyncio.Future[None]) -> None:
    """Clean up after being stopped, which takes its time unless it is cancelled."""
    with pytest.raises(Stopped):
        await unless_stopped(stopping, for_ever())
    await for_ever()


@pytest.mark.parametrize("turns_between", range(8))
def test_a_task_that_is_told_to_end_ends_whenever_it_was_stopped(turns_between: int) -> None:
    async def scene() -> bool:
        stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(stopped_then_slow(stopping))
        await asyncio.sleep(0)
        stopping.set_result(None)
        for _ in range(turns_between):
            await asyncio.sleep(0)
        await asyncio.wait_for(cancel_all([task]), 10)
        return task.done()

    assert asyncio.run(scene())


def test_what_a_task_does_at_its_end_is_not_cut_short() -> None:
    cleaned = []

    async def slow_to_end() -> None:
        try:
            await for_ever()
        finally:
            await asyncio.sleep(0.3)
            cleaned.append(True)

    async def scene() -> None:
        task = asyncio.ensure_future(slow_to_end())
        await asyncio.sleep(0)
        await asyncio.wait_for(cancel_all([task]), 10)

    asyncio.run(scene())
    assert cleaned == [True]


def test_what_ended_tasks_came_to_is_dropped() -> None:
    async def fails() -> None:
        raise OSError("on its own")

    async def scene() -> list[bool]:
        tasks = [asyncio.ensure_future(fails()), asyncio.ensure_future(for_ever())]
        await asyncio.sleep(0)
        await asyncio.wait_for(cancel_all(tasks), 10)
        return [task.cancelled() for task in tasks]

    assert asyncio.run(scene()) == [False, True]


@pytest.mark.parametrize("first", ["work", "stop"])
@pytest.mark.parametrize("turns_between", range(4))
def test_work_that_ends_while_it_is_being_stopped_is_not_cancelled_later(first: str, turns_between: int) -> None:
    async def scene() -> bool:
        loop = asyncio.get_running_loop()
        stopping: asyncio.Future[None] = loop.create_future()
        work: asyncio.Future[None] = loop.create_future()

        async def wait() -> None:
            await work

        async def follow() -> bool:
            with contextlib.suppress(Stopped):
                await unless_stopped(stopping, wait())
            for _ in range(10):
                await asyncio.sleep(0)
            return True

        task = asyncio.ensure_future(follow())
        await asyncio.sleep(0)
        ends = [work, stopping] if first == "work" else [stopping, work]
        ends[0].set_result(None)
        for _ in range(turns_between):
            await asyncio.sleep(0)
        if not ends[1].done():
            ends[1].set_result(None)
        return await asyncio.wait_for(task, 10)

    assert asyncio.run(scene())
