"""The marks that a pool puts on the messages of users: no client sees one."""

from __future__ import annotations

from typing import Any

import pytest
from worker_bench import Bench

THREAD = {"threadId": "t1", "turnId": "u1"}


@pytest.fixture
def bench() -> Bench:
    bench = Bench().start()
    bench.thread()
    return bench


def message(name: str | None) -> dict[str, Any]:
    return {"type": "userMessage", "id": "i", "clientId": name, "content": []}


def echo(bench: Bench, name: str) -> list[Any]:
    """The client's own message, and another item with the same text, as the client gets them."""
    agent = {"type": "agentMessage", "id": "j", "text": f'"clientId":"{name}"'}
    before = len(bench.received["s1"])
    for item in (message(name), agent):
        for method in ("item/started", "item/completed"):
            bench.notify(method, item=item, **THREAD)
    return [line["params"]["item"] for line in bench.received["s1"][before:]]


def test_the_mark_is_in_no_notification(bench: Bench) -> None:
    bench.turn("u1")
    mark = bench.sent[-1]["params"]["clientUserMessageId"]
    items = echo(bench, mark)
    assert [item["clientId"] for item in items[:2]] == [None, None]
    assert items[2]["text"] == f'"clientId":"{mark}"', "a text is no mark"


def test_what_comes_before_the_answer_has_none_either(bench: Bench) -> None:
    bench.dispatch("turn/start", THREAD)
    mark = bench.sent[-1]["params"]["clientUserMessageId"]
    number = bench.request("turn/start")
    del bench.open[number]
    item = {"method": "item/started", "params": {"item": message(mark), **THREAD}}
    bench.say(item, {"id": number, "result": {"turn": {"id": "u1"}}}, item)
    found = [line for line in bench.received["s1"] if line["method"] == "item/started"]
    assert [line["params"]["item"]["clientId"] for line in found] == [None, None]


def test_a_name_that_the_client_has_given_stays(bench: Bench) -> None:
    bench.dispatch("turn/start", {"threadId": "t1", "clientUserMessageId": "mine"})
    bench.answer(bench.request("turn/start"), {"turn": {"id": "u1"}})
    assert [item.get("clientId") for item in echo(bench, "mine")] == ["mine", "mine", None, None]


@pytest.mark.parametrize("method", ["thread/read", "thread/resume", "thread/turns/list", "thread/items/list"])
def test_answers_have_none(bench: Bench, method: str) -> None:
    bench.turn("u1")
    mark = bench.sent[-1]["params"]["clientUserMessageId"]
    bench.complete("u1")
    call = bench.dispatch(method, {"threadId": "t1"})
    turns = [{"id": "u1", "items": [message(mark), message("mine")]}]
    bench.answer(bench.request(method), {"thread": {"id": "t1", "turns": turns}})
    items = bench.answered[call][1]["result"]["thread"]["turns"][0]["items"]
    assert [item["clientId"] for item in items] == [None, "mine"]
