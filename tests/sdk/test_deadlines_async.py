"""Timeouts and deadlines, the same with asyncio and without it."""

from __future__ import annotations

import time

import pytest
from loops import on_a_loop  # asyncio only

from codex_app_server import AsyncCodex, RequestTimeoutError, operations
from codex_app_server.retry import aretry_on_overload
from codex_app_server.testing import null_app_server

# No file of that name comes into being: turns are held for good.
HELD = "/nowhere"
SHORT_S = 0.05


@on_a_loop
async def test_next_notification_has_a_timeout() -> None:
    async with AsyncCodex(null_app_server()) as codex:
        with pytest.raises(TimeoutError, match=r"no notification within 0\.05 s"):
            while True:
                await codex.client.next_notification(timeout_s=SHORT_S)


@on_a_loop
async def test_the_next_of_a_stream_has_a_timeout_and_the_turn_goes_on() -> None:
    async with AsyncCodex(null_app_server(hold=HELD)) as codex:
        thread = await codex.thread_start()
        turn = await thread.turn("x")
        with pytest.raises(TimeoutError):
            while True:
                await turn.stream().next(timeout_s=SHORT_S)
        assert codex.client.running_turn(thread.id) == (True, turn.id)


@on_a_loop
async def test_the_end_of_a_log_in_has_a_timeout() -> None:
    async with AsyncCodex(null_app_server()) as codex:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await codex.client.wait_for_login_completed("nobody", SHORT_S)


@on_a_loop
async def test_a_run_past_its_timeout_interrupts_its_turn() -> None:
    async with AsyncCodex(null_app_server(hold=HELD)) as codex:
        thread = await codex.thread_start()
        began_at = time.monotonic()
        with pytest.raises(RequestTimeoutError, match=r"the turn did not end within 0\.05 s"):
            await thread.run("x", timeout=SHORT_S)
        assert time.monotonic() - began_at < 5
        # The thread is free again: the turn was interrupted.
        turn = await thread.turn("x", on_busy="queue")
        with pytest.raises(RequestTimeoutError, match=f"turn {turn.id} did not end"):
            await turn.run(timeout=SHORT_S)


@on_a_loop
async def test_a_run_that_waits_for_another_turn_has_its_timeout() -> None:
    async with AsyncCodex(null_app_server(hold=HELD)) as codex:
        thread = await codex.thread_start()
        turn = await thread.turn("x")
        with pytest.raises(RequestTimeoutError, match="the turn did not end"):
            await thread.run("y", on_busy="queue", timeout=SHORT_S)
        assert codex.client.running_turn(thread.id) == (True, turn.id)


@on_a_loop
async def test_a_deadline_ends_the_wait_for_an_answer() -> None:
    async with AsyncCodex(null_app_server(on={"model/list": {"silent": True}})) as codex:
        for left_s in (-1.0, SHORT_S):
            operation = operations.request("model/list")
            with pytest.raises(RequestTimeoutError, match="no answer to model/list"):
                await codex.client.perform(operation, deadline=time.monotonic() + left_s)
        await codex.thread_start()
        assert codex.client.held["calls"] == 0


@on_a_loop
async def test_an_error_that_is_no_overload_is_raised_at_once() -> None:
    calls = []

    async def fail() -> None:
        calls.append(1)
        raise ValueError("no overload")

    with pytest.raises(ValueError, match="no overload"):
        await aretry_on_overload(fail, max_attempts=5)
    assert calls == [1]
