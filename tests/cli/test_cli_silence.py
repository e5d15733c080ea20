"""Messages of `codex-pool run` that nothing comes of its turn."""

from __future__ import annotations

import json
from typing import Any

from codex_app_server.notifications import Notification
from codex_pool_cli.silence import AGAIN_S, ERROR_S, FIRST_S, Silence

WORDS = {"message": "Reconnecting... waiting for network", "additionalDetails": "Connection failed"}


def note(method: str, **params: Any) -> Notification:
    return Notification(json.dumps({"method": method, "params": params}).encode())


def item(method: str, kind: str) -> Notification:
    return note(method, item={"id": kind, "type": kind})


def message_times(
    silence: Silence, until: float, step_s: float = 0.5, errors_every_s: float | None = None
) -> list[float]:
    """The times of its messages, in seconds."""
    times, now = [], 0.0
    while now <= until:
        if errors_every_s is not None and now % errors_every_s == 0:
            silence.observe(note("error", willRetry=True, error=WORDS), now)
        if silence.due(now) is not None:
            times.append(now)
        now += step_s
    return times


def test_an_error_is_said_soon_and_then_now_and_then() -> None:
    for every_s in (1.0, 5.0, 13.0):
        times = message_times(Silence(0.0), 100.0, errors_every_s=every_s)
        assert times == [ERROR_S, ERROR_S + AGAIN_S, ERROR_S + 2 * AGAIN_S, ERROR_S + 3 * AGAIN_S]
    silence = Silence(0.0)
    silence.observe(note("error", willRetry=True, error=WORDS), 0.0)
    message = silence.due(ERROR_S)
    assert (
        message is not None and "cannot be reached (Reconnecting... waiting for network: Connection failed)" in message
    )


def test_nothing_at_all_is_said_too() -> None:
    assert message_times(Silence(0.0), 70.0) == [FIRST_S, FIRST_S + AGAIN_S, FIRST_S + 2 * AGAIN_S]


def test_a_stream_that_goes_on_at_once_is_not_worth_a_word() -> None:
    silence = Silence(0.0)
    silence.observe(note("error", willRetry=True, error=WORDS), 0.0)
    silence.observe(note("item/agentMessage/delta"), 1.0)
    assert silence.due(FIRST_S) is None and silence.wait_s(1.0) == FIRST_S


def test_a_tool_explains_a_silence_and_a_message_does_not() -> None:
    silence = Silence(0.0)
    silence.observe(item("item/started", "commandExecution"), 0.0)
    assert message_times(silence, 100.0) == []
    silence.observe(item("item/completed", "commandExecution"), 100.0)
    silence.observe(item("item/started", "agentMessage"), 100.0)
    assert silence.due(100.0 + FIRST_S) == "the model's provider has sent nothing for 5 s; Ctrl-C ends the turn"
