"""Events of `codex-pool run --json`, and the result of a turn, from notifications."""

from __future__ import annotations

from typing import Any

import pytest

from codex_pool_cli.run_events import RunEvents, item_of, usage_of
from codex_pool_cli.turn_reader import TurnReader

TOTAL = {"totalTokens": 30, "inputTokens": 20, "cachedInputTokens": 4, "outputTokens": 10, "reasoningOutputTokens": 1}
LAST = {"totalTokens": 12, "inputTokens": 8, "cachedInputTokens": 4, "outputTokens": 4, "reasoningOutputTokens": 1}


def events(method: str, **params: Any) -> list[dict[str, Any]]:
    return list(RunEvents().of(method, params))


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (
            {"type": "agentMessage", "id": "m", "text": "hi", "phase": "final_answer"},
            {"type": "agent_message", "id": "m", "text": "hi", "phase": "final_answer"},
        ),
        (
            {"type": "commandExecution", "id": "c", "aggregatedOutput": "x", "exitCode": None, "status": "inProgress"},
            {
                "type": "command_execution",
                "id": "c",
                "aggregated_output": "x",
                "exit_code": None,
                "status": "in_progress",
            },
        ),
        (
            {"type": "fileChange", "id": "f", "changes": [{"path": "a", "kind": {"type": "add"}, "diff": "+"}]},
            {"type": "file_change", "id": "f", "changes": [{"path": "a", "kind": "add", "diff": "+"}]},
        ),
        (
            {"type": "reasoning", "id": "r", "summary": ["one", "two"], "content": []},
            {"type": "reasoning", "id": "r", "summary": ["one", "two"], "content": [], "text": "one\ntwo"},
        ),
        (
            {"type": "collabAgentToolCall", "id": "s", "tool": "spawnAgent", "receiverThreadIds": ["t"]},
            {"type": "collab_agent_tool_call", "id": "s", "tool": "spawn_agent", "receiver_thread_ids": ["t"]},
        ),
        # Of a version that is not known, and odd ones: passed on.
        ({"type": "newThing", "someField": {"innerName": 1}}, {"type": "new_thing", "some_field": {"innerName": 1}}),
        ({"type": "fileChange", "changes": ["odd"]}, {"type": "file_change", "changes": ["odd"]}),
    ],
)
def test_items_have_the_names_of_codex_exec(item: dict[str, Any], expected: dict[str, Any]) -> None:
    assert item_of(item) == expected


def test_what_the_user_has_said_and_the_start_of_a_message_are_no_events() -> None:
    assert events("item/completed", item={"type": "userMessage", "id": "u"}) == []
    assert events("item/started", item={"type": "agentMessage", "id": "m", "text": ""}) == []
    assert events("item/started", item={"type": "webSearch", "id": "w"})[0]["type"] == "item.started"
    assert events("thread/tokenUsage/updated", tokenUsage={}) == []


def test_pieces_and_errors_are_events() -> None:
    assert events("item/agentMessage/delta", itemId="m", delta="a") == [
        {"type": "item.delta", "item_id": "m", "delta": "a"}
    ]
    assert events("item/commandExecution/outputDelta", itemId="c", delta="b")[0]["item_id"] == "c"
    assert events("error", error={"message": "no way"}, willRetry=True) == [
        {"type": "error", "message": "no way", "will_retry": True}
    ]


def test_a_plan_is_a_list_that_is_updated_and_completed_with_the_turn() -> None:
    plan = RunEvents()
    steps = [{"step": "one", "status": "inProgress"}, {"step": "two", "status": "pending"}]
    (first,) = plan.of("turn/plan/updated", {"plan": steps})
    (second,) = plan.of("turn/plan/updated", {"plan": [{"step": "one", "status": "completed"}, steps[1]]})
    last, end = plan.end(None, None, None)
    assert [event["type"] for event in (first, second, last)] == ["item.started", "item.updated", "item.completed"]
    assert last["item"]["items"] == [{"text": "one", "completed": True}, {"text": "two", "completed": False}]
    assert end == {"type": "turn.completed", "usage": None, "final_response": None}


def test_warnings_are_items_as_codex_exec_has_them() -> None:
    found = RunEvents()
    (first,) = found.of_thread("warning", {"threadId": "t", "message": "careful"})
    (second,) = found.of_thread("configWarning", {"summary": "odd", "details": "line 3"})
    assert first == {"type": "item.completed", "item": {"id": "warning_1", "type": "error", "message": "careful"}}
    assert second["item"] == {"id": "warning_2", "type": "error", "message": "odd: line 3"}
    assert list(found.of_thread("thread/status/changed", {})) == []


def test_usage_is_that_of_the_turn_also_where_its_thread_goes_on() -> None:
    turn = TurnReader("th", "t")
    for total, last in ((TOTAL, LAST), ({name: value + LAST[name] for name, value in TOTAL.items()}, LAST)):
        turn.read("thread/tokenUsage/updated", {"turnId": "t", "tokenUsage": {"total": total, "last": last}})
    assert turn.usage == {name: 2 * value for name, value in LAST.items()}
    assert usage_of(turn.usage) == {
        "input_tokens": 16,
        "cached_input_tokens": 8,
        "cache_write_input_tokens": 0,
        "output_tokens": 8,
        "reasoning_output_tokens": 2,
    }


def message(text: str, phase: str | None = None) -> dict[str, Any]:
    return {"turnId": "t", "item": {"type": "agentMessage", "text": text, "phase": phase}}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], None),
        ([message("a"), message("b")], "b"),
        ([message("a", "final_answer"), message("b")], "a"),
        ([message("a"), message("b", "commentary")], "a"),
        ([message("")], ""),
    ],
)
def test_the_answer_is_the_one_that_the_sdk_takes(messages: list[dict[str, Any]], expected: str | None) -> None:
    turn = TurnReader("th", "t")
    for params in messages:
        assert turn.read("item/completed", params)
    assert turn.final_response == expected


def test_turns_of_others_do_not_count_but_those_of_its_sub_agents_are_known() -> None:
    turn = TurnReader("th", "t")
    assert not turn.read("turn/started", {"threadId": "child", "turn": {"id": "c", "rootTurnId": "t"}})
    assert not turn.read("turn/started", {"threadId": "other", "turn": {"id": "o", "rootTurnId": "x"}})
    assert not turn.read("turn/completed", {"threadId": "other", "turn": {"id": "o", "status": "completed"}})
    assert turn.agents == {"c": "child"} and not turn.has_ended
    assert not turn.read("turn/completed", {"threadId": "child", "turn": {"id": "c", "status": "completed"}})
    assert turn.agents == {}


def test_a_failure_has_the_words_of_codex_and_the_kind_of_the_pool() -> None:
    turn = TurnReader("th", "t")
    turn.read("pool/turn/ended", {"turnId": "t", "kind": "lost", "safeToRetry": True})
    turn.read("turn/completed", {"turn": {"id": "t", "status": "failed", "error": {"message": "worker died"}}})
    failure = turn.failure()
    assert failure is not None and (str(failure), failure.kind, failure.safe_to_retry) == ("worker died", "lost", True)
    assert turn.has_ended and turn.status == "failed"


@pytest.mark.parametrize("turn", [None, {"id": "t"}, {"id": "t", "status": "failed", "error": None}])
def test_an_end_that_says_nothing_is_a_failure(turn: Any) -> None:
    reader = TurnReader("th", "t")
    reader.read("turn/completed", {"turnId": "t", "turn": turn})
    failure = reader.failure()
    assert failure is not None and "without a reason" in str(failure)
