"""One turn of an attempt, from turn/start to its end: followed, limited in time, interrupted when the run stops."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from codex_app_server import AppServerError, TransportClosedError
from codex_app_server.async_api import AsyncThread, AsyncTurnHandle
from codex_app_server.operations import TurnCollector, final_response

from . import policy
from .dataset import Sample
from .policy import Outcome, Status

T = TypeVar("T")

# How long an interrupted turn may take to end, and a turn/start may still be answered when the run stops.
INTERRUPT_LIMIT_S = 10.0
START_ANSWER_LIMIT_S = 1.0


class Stopped(Exception):
    """The run stops, and what was to be done was not done."""


async def unless_stopped(stopping: asyncio.Future[Any], work: Coroutine[Any, Any, T], *, grace_s: float = 0.0) -> T:
    """The result of `work`; raises Stopped when `stopping` is done first and `work` not within `grace_s` then."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and grace_s > 0:
            await asyncio.wait({task}, timeout=grace_s)
        if task.done():
            return task.result()
        raise Stopped
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


class Turn:
    """The turn of one attempt at a sample. `on_assigned` is called when it really begins: not while it is queued."""

    def __init__(self, thread: AsyncThread, sample: Sample, key: str, on_assigned: Callable[[], None]) -> None:
        self._thread = thread
        self._sample = sample
        self._key = key
        self._on_assigned = on_assigned
        self._collector = TurnCollector("")
        self._turn_id: str | None = None
        self._worker: str | None = None
        self._queued_ms: int | None = None
        self._began_at: float | None = None
        self.pool_gone: TransportClosedError | None = None

    async def run(self, stopping: asyncio.Future[Any]) -> Outcome:
        """What it came to. Raises Stopped if it was not started before the run stopped."""
        try:
            return await self._run(stopping)
        except AppServerError as error:
            if isinstance(error, TransportClosedError):
                self.pool_gone = error
            status, problem = policy.failure(error)
            return self._outcome(status, problem)

    async def _run(self, stopping: asyncio.Future[Any]) -> Outcome:
        sample = self._sample
        options: dict[str, Any] = {"effort": sample.effort, "output_schema": sample.output_schema}
        start = self._thread.turn(sample.prompt, interest="items", client_user_message_id=self._key, **options)
        turn = await unless_stopped(stopping, start, grace_s=START_ANSWER_LIMIT_S)
        self._turn_id = self._collector.turn_id = turn.id
        self._began_at = time.monotonic()
        reader = asyncio.ensure_future(self._read(turn))
        reason: dict[str, str] | None = None
        try:
            await asyncio.wait({reader, stopping}, timeout=sample.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not reader.done():
                reason = self._reason(stopping.done())
                await _interrupt(turn)
                await asyncio.wait({reader}, timeout=INTERRUPT_LIMIT_S)
            if not reader.done():
                assert reason is not None
                late = f"; it did not end within {INTERRUPT_LIMIT_S:.0f} s of being interrupted"
                return self._outcome("interrupted", {**reason, "message": reason["message"] + late})
            reader.result()
        finally:
            reader.cancel()
        result = self._collector.result()
        if result.status == "interrupted":
            other = {"kind": policy.INTERRUPTED, "message": "the turn was interrupted"}
            return self._outcome("interrupted", reason or other)
        return self._outcome("completed", None)

    async def _read(self, turn: AsyncTurnHandle) -> None:
        async for notification in turn.stream():
            if notification.method == "pool/turn/assigned":
                params = notification.params
                self._worker, self._queued_ms = params.get("worker"), params.get("queuedMs")
                self._on_assigned()
            else:
                self._collector.add(notification)

    def _reason(self, stopped: bool) -> dict[str, str]:
        if stopped:
            return {"kind": policy.INTERRUPTED, "message": "the batch was interrupted"}
        message = f"the turn ran longer than its timeout_s of {self._sample.timeout_s:g} s"
        return {"kind": policy.WALL_LIMIT, "message": message}

    def _outcome(self, status: Status, error: dict[str, str] | None) -> Outcome:
        collector = self._collector
        duration_ms = collector.turn.duration_ms if collector.turn is not None else None
        if duration_ms is None and self._began_at is not None:
            duration_ms = round((time.monotonic() - self._began_at) * 1000)
        return Outcome(
            status=status,
            error=error,
            final_response=final_response(collector.items),
            usage=usage(collector.usage),
            thread_id=self._thread.id,
            turn_id=self._turn_id,
            worker=self._worker,
            queued_ms=self._queued_ms,
            duration_ms=duration_ms,
        )


def usage(reported: Any) -> dict[str, int] | None:
    """The tokens of a thread of one turn, all its model requests together."""
    if reported is None:
        return None
    total = reported.total
    return {
        "input_tokens": total.input_tokens,
        "cached_input_tokens": total.cached_input_tokens,
        "output_tokens": total.output_tokens,
        "reasoning_output_tokens": total.reasoning_output_tokens,
        "total_tokens": total.total_tokens,
    }


async def _interrupt(turn: AsyncTurnHandle) -> None:
    # One that cannot be interrupted ends by itself, or is given up by the caller.
    with contextlib.suppress(AppServerError, asyncio.TimeoutError):
        await asyncio.wait_for(turn.interrupt(), INTERRUPT_LIMIT_S)
