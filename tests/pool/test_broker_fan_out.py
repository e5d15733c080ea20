"""Answers of several, and lists that are put together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from codex_pool.broker.fan_out import FanOut, merge


def listed(*entries: Any, **more: Any) -> bytes:
    return json.dumps({"id": 1, "result": {"data": list(entries), "nextCursor": "c", **more}}).encode()


def thread(thread_id: str, name: str | None = None) -> dict[str, Any]:
    return {"id": thread_id, "name": name, "preview": "p"}


def merged(method: str, *lines: bytes, hidden: str = "", names: dict[str, str] | None = None) -> dict[str, Any]:
    line = merge(method, list(lines), (names or {}).get, lambda thread_id: thread_id != hidden)
    result: dict[str, Any] = json.loads(line)["result"]
    return result


def test_a_list_does_not_fail_because_one_worker_does() -> None:
    gather = FanOut(3)
    assert not gather.add(2, "w2", b"late", ok=True) and not gather.add(0, "w0", b"no", ok=False)
    assert gather.add(1, "w1", b"early", ok=True)
    assert gather.results == [b"early", b"late"] and gather.workers == ["w1", "w2"]
    alone = FanOut(2)
    assert not alone.add(0, "w0", b"no", ok=False) and alone.add(1, "w1", None, ok=False)
    assert alone.results == [] and alone.outcome == b"no"
    dead = FanOut(1)
    assert dead.add(0, "w0", None, ok=False) and dead.outcome is None


def test_names_come_from_wherever_they_were_set() -> None:
    first = listed(thread("a", "own"), thread("b"), thread("c"), thread("d"))
    second = listed(thread("a", "other"), thread("b", "from another"))
    result = merged("thread/list", first, second, names={"c": "from the books"})
    assert [entry["name"] for entry in result["data"]] == ["own", "from another", "from the books", None]
    assert result["nextCursor"] == "c" and result["data"][0]["preview"] == "p"


def test_entries_about_threads_are_named_as_well() -> None:
    first = listed({"snippet": "s", "thread": thread("a")})
    result = merged("thread/search", first, listed({"snippet": "s", "thread": thread("a", "found")}))
    assert result["data"] == [{"snippet": "s", "thread": thread("a", "found")}]


def test_what_each_has_of_its_own_is_united() -> None:
    assert merged("thread/loaded/list", listed("a", "b"), listed("b", "c"))["data"] == ["a", "b", "c"]
    owner = {"threadId": "a", "archived": False}
    assert merged("thread/attachmentOwner/list", listed(owner), listed(owner))["data"] == [owner]


def test_what_may_not_be_seen_is_left_out() -> None:
    states = {"a": {}, "b": {}}
    assert merged("thread/list", listed(thread("a"), thread("b"), readStates=states), hidden="a") == {
        "data": [thread("b")],
        "nextCursor": "c",
        "readStates": {"b": {}},
    }
    assert merged("thread/loaded/list", listed("a", "b"), hidden="a")["data"] == ["b"]
    assert merged("thread/search", listed({"thread": thread("a")}), hidden="a")["data"] == []


@pytest.mark.parametrize("line", [
    b'{"id":1,"result":null}', b'{"id":1,"result":[]}', b'{"id":1,"result":{"data":[7, null, {}]}}',
    b"[]", b"{", b'"\xff"',
])  # fmt: skip
def test_answers_of_another_shape_upset_nobody(line: bytes) -> None:
    """A newer app-server may answer in its own way; who may not see everything sees nothing of that."""
    assert merge("thread/list", [line, line], lambda _: None, lambda _: True).replace(b" ", b"") == line.replace(
        b" ", b""
    )
    hidden = json.loads(merge("thread/list", [line, listed(thread("a"))], lambda _: None, lambda _: False))
    assert hidden["result"] == {"data": []}


def test_a_thread_is_listed_as_its_holder_has_it() -> None:
    states = {"a": {"firstUnread": None}, "b": {"firstUnread": None}}
    first = listed({**thread("a"), "status": "notLoaded"}, {**thread("b"), "status": "notLoaded"}, readStates=states)
    second = listed(
        {**thread("b", "set there"), "status": "idle"},
        {**thread("a"), "status": "none"},
        readStates={"b": {"firstUnread": "u1"}},
    )
    line = merge(
        "thread/list", [first, second], lambda _: None, lambda _: True, None, lambda thread_id: int(thread_id == "b")
    )
    result = json.loads(line)["result"]
    assert [(each["id"], each["status"], each["name"]) for each in result["data"]] == [
        ("a", "notLoaded", None),
        ("b", "idle", "set there"),
    ]
    assert result["readStates"] == {"a": {"firstUnread": None}, "b": {"firstUnread": "u1"}}


def test_a_thread_that_its_holder_does_not_list_stays_as_it_is() -> None:
    entry = {"snippet": "s", "thread": thread("a", "n")}
    line = merge("thread/search", [listed(entry), listed()], lambda _: None, lambda _: True, None, lambda _: 1)
    assert json.loads(line)["result"]["data"] == [entry]
