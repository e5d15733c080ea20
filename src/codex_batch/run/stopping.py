"""Waits that give up when a run or a sample is to stop, and the end of tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

CANCEL_AGAIN_S = 2.0


class Stopped(Exception):
    """The run stops, and what was to be done was not done."""


async def unless_stopped(stopping: asyncio.Future[Any], work: Coroutine[Any, Any, T], *, grace_s: float = 0.0) -> T:
    """Return the result of `work`; raise Stopped when `stopping` is done first and `work` not within `grace_s` then."""
    if stopping.done() and grace_s <= 0:
        work.close()
        raise Stopped
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    is_over = has_ended = False

    # Within this task: another one for each thing that is waited for would cost more than the thing.
    def give_up() -> None:
        nonlocal is_over
        is_over = True
        task.cancel()

    def on_stop(_: object) -> None:
        nonlocal timer
        # It may be on its way when the work ends: nothing takes it back then.
        if not has_ended:
            timer = loop.call_later(grace_s, give_up)

    stopping.add_done_callback(on_stop)
    try:
        return await work
    except asyncio.CancelledError:
        if not is_over:
            raise
        if hasattr(task, "uncancel") and task.uncancel() > 0:
            # The task was cancelled by another caller as well.
            raise
        raise Stopped from None
    finally:
        has_ended = True
        stopping.remove_done_callback(on_stop)
        if timer is not None:
            timer.cancel()


async def cancel_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks until all are done; their results are dropped.

    One cancellation may not be enough: where it meets a stop, `unless_stopped` cannot tell the two apart before Python
    3.11. The next one leaves time for what a task does at its end.
    """
    tasks = list(tasks)
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()
