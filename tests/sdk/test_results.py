"""Outcome of a turn, from lines as they come."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest

from codex_app_server import TurnEndedError, TurnFailedError, TurnResult
from codex_app_server.generated import models
from codex_app_server.notifications import Notification
from codex_app_server.results import TurnCollector

TURN = {"id": "tu", "items": [], "status": "completed", "startedAt": 5, "completedAt": 7, "durationMs": 1500}
TOKENS = {
    "inputTokens": 3,
    "cachedInputTokens": 1,
    "outputTokens": 2,
    "reasoningOutputTokens": 0,
    "totalTokens": 5,
}


def line(method: str, **params: Any) -> Notification:
    message = {"method": method, "params": {"threadId": "th", "turnId": "tu", **params}, "emittedAtMs": 1700000000000}
    return Notification(json.dumps(message, separators=(",", ":")).encode())


def completed(item: Any) -> Notification:
    return line("item/completed", item=item, completedAtMs=1700000000000)


def said(text: str, phase: str | None = None) -> Notification:
    return completed({"type": "agentMessage", "id": "i", "text": text, "phase": phase})


def ran(command: str) -> Notification:
    item = {"type": "commandExecution", "id": "c", "command": command, "commandActions": [], "cwd": "/w"}
    return completed({**item, "status": "completed"})


def used(total: int) -> Notification:
    usage = {"total": {**TOKENS, "totalTokens": total}, "last": TOKENS, "modelContextWindow": None}
    return line("thread/tokenUsage/updated", tokenUsage=usage)


def ended(**turn: Any) -> Notification:
    return line("turn/completed", turn={**TURN, **turn})


def collected(*notifications: Notification) -> TurnCollector:
    collector = TurnCollector("tu")
    for notification in notifications:
        collector.add(notification)
    return collector


def test_items_and_usage_are_decoded_when_they_are_looked_at() -> None:
    came = [ran("echo agentMessage"), said("hm", "commentary"), used(4), said("yes"), used(9), ended()]
    result = collected(*came).result()
    assert (result.id, result.final_response, result.duration_ms) == ("tu", "yes", 1500)
    assert result.status is models.TurnStatus.completed and result.error is None
    assert all(notification._payload is None for notification in came)
    assert [item.type for item in result.items] == ["commandExecution", "agentMessage", "agentMessage"]
    assert result.items is result.items
    assert result.usage is not None and result.usage.total.total_tokens == 9


def test_a_result_is_a_value() -> None:
    came = [said("yes"), used(9), ended()]
    result = collected(*came).result()
    assert result == collected(*came).result()
    assert pickle.loads(pickle.dumps(collected(*came).result())) == result
    assert dataclasses.replace(collected(*came).result(), final_response="no").items == result.items
    assert "yes" in repr(collected(*came).result())
    made = TurnResult("tu", models.TurnStatus.completed, None, "yes", result.items, result.usage, 5, 7, 1500)
    assert made == result
    with pytest.raises(AttributeError, match="itmes"):
        result.itmes  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.id = "x"  # type: ignore[misc]


def test_what_does_not_fit_is_left_out() -> None:
    odd = [completed(3), line("thread/tokenUsage/updated", tokenUsage={}), used(9)]
    result = collected(said("yes"), *odd, line("thread/tokenUsage/updated", tokenUsage=None), ended()).result()
    assert [item.text for item in result.items] == ["yes"]
    assert result.usage is not None and result.usage.total.total_tokens == 9
    lone = Notification(said("X").raw.replace(b'"X"', b'"\\ud800"'))
    assert collected(said("before"), lone, ended()).result().final_response == "before"


def test_how_a_turn_ended() -> None:
    assert collected(said("part"), ended(status="interrupted")).result().status == "interrupted"
    reason = {"message": "was slow", "codexErrorInfo": None, "additionalDetails": None}
    error = collected(ended(error=reason)).result().error
    assert error is not None and error.message == "was slow"
    with pytest.raises(TurnFailedError, match="was slow") as failed:
        collected(ended(status="failed", error=reason)).result()
    assert isinstance(failed.value.turn, models.Turn)
    with pytest.raises(TurnFailedError, match="without a readable turn/completed"):
        collected(said("yes"), line("turn/completed", turn={"id": 3})).result()
    with pytest.raises(TurnFailedError, match="without a readable turn/completed"):
        collected(said("yes")).result()
    with pytest.raises(TurnEndedError):
        collected().result()
