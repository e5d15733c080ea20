"""Broadcasts of an app-server reach the sessions that get all turns, by principal."""

from __future__ import annotations

from typing import Any

import pytest
from session_ids import sid
from worker_bench import WORKSPACE_WRITE, Bench, record, thread_result

from codex_pool.protocol import wire
from codex_pool.worker.broadcasts import METHODS

K1, K2 = wire.SessionId("key", "k1"), wire.SessionId("key", "k2")


@pytest.fixture
def bench() -> Bench:
    """Sessions a and b of the owner and k1 and k2 of a key get all turns, s1 does not. Thread t1 is of a."""
    bench = Bench().start()
    for session in (sid("a"), sid("b"), K1, K2):
        bench.apply(bench.core.broker_message(wire.SessionOptions(session, all_turns=True, keep=True), [], bench.now))
    bench.thread("t1", "a", sandbox=WORKSPACE_WRITE)
    bench.thread("k", K1)  # type: ignore[arg-type]
    return bench


def got(bench: Bench) -> dict[Any, list[str]]:
    """The methods that each session has got since the last time."""
    found = {name: [line["method"] for line in lines] for name, lines in bench.received.items() if lines}
    bench.received.clear()
    return found


def say(bench: Bench, method: str, thread_id: str = "t1", **params: Any) -> None:
    key = {"thread": {"id": thread_id}} if method == "thread/started" else {"threadId": thread_id}
    bench.notify(method, **key, **params)


@pytest.mark.parametrize("method", sorted(METHODS - {"thread/closed"}))
def test_they_go_to_all_sessions_of_the_principal_that_get_all_turns(bench: Bench, method: str) -> None:
    say(bench, method)
    assert got(bench) == {"a": [method], "b": [method]}
    say(bench, method, "k")
    assert got(bench) == {K1: [method], K2: [method]}


@pytest.mark.parametrize("method", ["warning", "thread/settings/updated", "thread/readState/changed"])
def test_others_go_to_followers_only(bench: Bench, method: str) -> None:
    say(bench, method)
    assert got(bench) == {"a": [method]}


def test_sessions_with_the_default_options_get_those_of_their_own_threads(bench: Bench) -> None:
    bench.thread("t2", "s1")
    say(bench, "thread/name/updated", "t2")
    assert got(bench) == {name: ["thread/name/updated"] for name in ("a", "b", "s1")}
    say(bench, "thread/name/updated", "t1")
    assert got(bench) == {name: ["thread/name/updated"] for name in "ab"}


def test_also_of_a_thread_that_nobody_follows(bench: Bench) -> None:
    bench.dispatch("thread/unsubscribe", {"threadId": "t1"}, session="a")
    say(bench, "thread/status/changed", status={"type": "idle"})
    assert got(bench) == {name: ["thread/status/changed"] for name in "ab"}


@pytest.mark.parametrize("method", ["thread/archive", "thread/unarchive", "thread/delete"])
def test_also_of_a_thread_that_is_not_here(bench: Bench, method: str) -> None:
    for session, expected in ((sid("b"), {"a", "b"}), (K2, {K1, K2})):
        bench.dispatch(method, {"threadId": "t9"}, session=session)  # type: ignore[arg-type]
        bench.answer(bench.request(method), {})
        say(bench, f"{method}d", "t9")
        assert got(bench).keys() == expected


def test_the_move_of_a_thread_to_another_worker_is_reported_to_nobody(bench: Bench) -> None:
    bench.turn("u1", session="a")
    bench.complete("u1")
    got(bench)
    bench.apply(bench.core.broker_message(wire.Release(99, "t1"), [], bench.now))
    say(bench, "thread/status/changed", status={"type": "notLoaded"})
    bench.answer(bench.request("thread/archive"), {})
    say(bench, "thread/archived")
    bench.answer(bench.request("thread/unarchive"), {})
    say(bench, "thread/unarchived")
    assert got(bench) == {}


@pytest.mark.parametrize("adopt", [None, record()], ids=["not known", "adopted"])
def test_also_of_a_thread_that_is_being_loaded(bench: Bench, adopt: wire.ThreadRecord | None) -> None:
    bench.dispatch("thread/resume", {"threadId": "t9"}, session="b", adopt=adopt)
    say(bench, "thread/status/changed", "t9", status={"type": "idle"})
    assert got(bench) == {name: ["thread/status/changed"] for name in "ab"}


# What is repeated after a resume.


def usage(turn_id: str = "u0") -> dict[str, Any]:
    return {"method": "thread/tokenUsage/updated", "params": {"threadId": "t1", "turnId": turn_id}}


GOAL = {"method": "thread/goal/cleared", "params": {"threadId": "t1"}}


@pytest.mark.parametrize("session", ["a", "b", "s1"])
def test_what_a_resume_repeats_goes_to_who_has_resumed(bench: Bench, session: str) -> None:
    bench.dispatch("thread/resume", {"threadId": "t1"}, session=session)
    number = bench.request("thread/resume")
    del bench.open[number]
    bench.say({"id": number, "result": thread_result("t1")}, usage(), GOAL)
    found = got(bench)
    assert found.pop(session) == ["thread/tokenUsage/updated", "thread/goal/cleared"]
    assert set(found) == {"a", "b"} - {session} and all(each == ["thread/goal/cleared"] for each in found.values())
    bench.turn("u1", session="a")
    bench.say(usage("u1"))
    assert "thread/tokenUsage/updated" in got(bench)["a"], "that of a turn is no repetition"


def test_what_the_worker_itself_resumes_repeats_nothing(bench: Bench) -> None:
    bench.dispatch("turn/start", {"threadId": "t9"}, session="a", adopt=record())
    bench.apply(bench.core.broker_message(wire.Follow(sid("a"), "t9"), [], bench.now))
    number = bench.request("thread/resume")
    del bench.open[number]
    of_t9 = [{**line, "params": {**line["params"], "threadId": "t9"}} for line in (usage(), GOAL)]
    bench.say({"id": number, "result": thread_result("t9", WORKSPACE_WRITE)}, *of_t9)
    assert got(bench) == {}
    bench.say(of_t9[1])
    assert got(bench)["a"] == ["thread/goal/cleared"], "the next one is of something that has happened"


# Notices of deprecation.

NOTICE = {"method": "deprecationNotice", "params": {"summary": "s", "details": None}}


@pytest.mark.parametrize(
    ("method", "params", "is_concerned"),
    [
        ("thread/resume", {}, True),
        ("thread/resume", {"excludeTurns": True}, False),
        ("thread/read", {"includeTurns": True}, True),
        ("thread/read", {}, False),
        ("review/start", {"delivery": "detached"}, True),
    ],
)
def test_a_notice_goes_to_who_has_asked(bench: Bench, method: str, params: dict[str, Any], is_concerned: bool) -> None:
    bench.dispatch("thread/read", {"threadId": "t1"}, session="a")
    bench.dispatch(method, {"threadId": "t1", **params}, session="b")
    bench.say(NOTICE)
    if is_concerned:
        assert got(bench) == {"b": ["deprecationNotice"]}
        bench.say(NOTICE)
    assert bench.lines[-1] == ([], [NOTICE]), "of something else: for all"


def test_each_of_two_gets_its_own(bench: Bench) -> None:
    for session in ("b", "s1"):
        bench.dispatch("thread/read", {"threadId": "t1", "includeTurns": True}, session=session)
    bench.say(NOTICE, NOTICE)
    assert got(bench) == {"b": ["deprecationNotice"], "s1": ["deprecationNotice"]}
