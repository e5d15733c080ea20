"""Sessions that get all turns of their threads: whose turns they get, which requests they are asked, how they leave."""

from __future__ import annotations

import json
from typing import Any

import pytest
from session_ids import sid
from worker_bench import WORKSPACE_WRITE, Bench, encode, record, thread_result

from codex_pool.protocol import wire
from codex_pool.worker.unfollowed import KEEP_S, UNSUBSCRIBE_AFTER_S

APPROVAL = "item/commandExecution/requestApproval"
UNSUBSCRIBE = "thread/unsubscribe"


@pytest.fixture
def bench() -> Bench:
    """Sessions a, b and c get all turns, and keep theirs; s1 has the default options. Thread t1 is of a."""
    bench = Bench().start()
    for name in "abc":
        take(bench, wire.SessionOptions(sid(name), all_turns=True, keep=True))
    bench.thread("t1", "a", sandbox=WORKSPACE_WRITE)
    return bench


def take(bench: Bench, head: Any) -> None:
    bench.apply(bench.core.broker_message(head, [], bench.now))


def resume(bench: Bench, session: str, thread_id: str = "t1") -> int:
    call = bench.dispatch("thread/resume", {"threadId": thread_id}, session=session)
    bench.answer(bench.request("thread/resume"), thread_result(thread_id))
    return call


def unsubscribe(bench: Bench, session: str, thread_id: str = "t1") -> str:
    call = bench.dispatch(UNSUBSCRIBE, {"threadId": thread_id}, session=session)
    status: str = bench.answered[call][1]["result"]["status"]
    return status


def methods(bench: Bench) -> list[str]:
    """Methods of the requests that the app-server has not answered."""
    return [message["method"] for message in bench.open.values()]


def gone(bench: Bench, session: str) -> None:
    """A session ends that keeps its turns."""
    take(bench, wire.SessionGone(sid(session), keep=True))


def ask(bench: Bench, number: int = 0, turn_id: str = "u1", thread_id: str = "t1") -> None:
    bench.say({"id": number, "method": APPROVAL, "params": {"threadId": thread_id, "turnId": turn_id}})


def asked(bench: Bench, since: int = 0) -> list[list[str]]:
    """The sessions that were asked, one list a message."""
    return [names for names, lines in bench.lines[since:] if any(line.get("method") == APPROVAL for line in lines)]


def decide(bench: Bench, session: str, decision: str = "accept", number: int = 0) -> None:
    line = b'{"id":"w0/%d","result":{"decision":"%s"}}' % (number, decision.encode())
    bench.apply(bench.core.broker_message(wire.ServerRequestAnswer(sid(session)), [line], bench.now))


def decisions(bench: Bench) -> list[str]:
    return [message["result"]["decision"] for message in bench.sent if "method" not in message]


# Turns.


def test_a_turn_goes_to_its_starter_and_to_subscribers_that_get_all(bench: Bench) -> None:
    resume(bench, "b")
    resume(bench, "s1")
    bench.turn("u1", session="a")
    bench.delta("u1")
    bench.complete("u1")
    expected = ["pool/turn/assigned", "item/agentMessage/delta", "turn/completed"]
    assert bench.methods("a", "u1") == bench.methods("b", "u1") == expected
    assert ("s1", "u1") not in bench.events, "it gets its own turns"
    assert bench.routed(wire.TurnStarted)[-1].sessions == [sid("a"), sid("b")]


def test_a_turn_of_a_session_with_the_default_options_goes_to_subscribers_that_get_all(bench: Bench) -> None:
    bench.turn("u1", session="s1", interest="final")
    bench.delta("u1")
    bench.complete("u1")
    assert "item/agentMessage/delta" in bench.methods("a", "u1")
    assert "item/agentMessage/delta" not in bench.methods("s1", "u1")


def test_who_resumes_gets_a_running_turn_from_behind_the_answer_on(bench: Bench) -> None:
    bench.turn("u1", session="a")
    bench.delta("u1", text="before")
    call = bench.dispatch("thread/resume", {"threadId": "t1"}, session="b")
    number = bench.request("thread/resume")
    del bench.open[number]
    # All in one read.
    bench.say(
        {"method": "item/agentMessage/delta", "params": {"threadId": "t1", "turnId": "u1", "delta": "2"}},
        {"id": number, "result": thread_result("t1")},
        {"method": "item/agentMessage/delta", "params": {"threadId": "t1", "turnId": "u1", "delta": "3"}},
    )
    assert bench.answered[call][0].ok
    ((head, lines),) = bench.events["b", "u1"]
    assert [line["params"]["delta"] for line in lines] == ["3"] and head.start == head.after == 3
    order = [type(route).__name__ for route in bench.routes]
    assert order.index("Answered", -4) < len(order) - 1, "the answer precedes what comes after it"
    assert bench.check_numbers("a", "u1") == 4
    assert bench.routed(wire.TurnStarted)[-1].sessions == [sid("a"), sid("b")], "the broker knows whom to tell its loss"


def test_a_turn_that_began_before_the_subscriber_was_lost_and_followed_again(bench: Bench) -> None:
    """The broker names the followers on another worker."""
    bench.dispatch("turn/start", {"threadId": "t9"}, session="s1", adopt=record())
    take(bench, wire.Follow(sid("a"), "t9"))
    bench.answer(bench.request("thread/resume"), thread_result("t9", WORKSPACE_WRITE))
    bench.answer(bench.request("turn/start"), {"turn": {"id": "u9"}})
    bench.complete("u9", "t9")
    assert bench.methods("a", "u9")[-1] == bench.methods("s1", "u9")[-1] == "turn/completed"


def test_options_survive_a_new_broker_and_end_with_their_session(bench: Bench) -> None:
    assert bench.new_broker().options == [wire.SessionOptions(sid(name), True, True) for name in "abc"]
    for name in "abc":
        gone(bench, name)
    assert bench.core.held["options"] == 0
    take(bench, wire.SessionOptions(sid("d"), all_turns=True))
    take(bench, wire.SessionOptions(sid("d")))
    assert bench.core.held["options"] == 0


# Leaving.


def test_nothing_of_the_thread_comes_behind_the_answer_to_an_unsubscribe(bench: Bench) -> None:
    resume(bench, "b")
    bench.turn("u1", session="a")
    assert unsubscribe(bench, "b") == "unsubscribed"
    bench.received.clear()
    bench.delta("u1")
    bench.notify("thread/name/updated", threadId="t1", threadName="n")
    bench.complete("u1")
    assert [line["method"] for line in bench.received["b"]] == ["thread/name/updated"], "every connection gets that"
    assert len(bench.received["a"]) == 3
    assert unsubscribe(bench, "b") == "notSubscribed"
    bench.ack()
    assert bench.core.held["subscriptions"] == 0


def test_unsubscribing_ends_no_turn_and_another_resume_joins_it_again(bench: Bench) -> None:
    bench.turn("u1", session="a")
    bench.delta("u1")
    assert unsubscribe(bench, "a") == "unsubscribed"
    bench.delta("u1", text="missed")
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert bench.open == {}, "neither interrupted nor unsubscribed while it runs"
    resume(bench, "a")
    bench.complete("u1")
    head, _ = bench.events["a", "u1"][-1]
    assert (head.start, head.after, head.last) == (3, 3, 4)


def test_what_a_worker_does_not_know_its_app_server_answers(bench: Bench) -> None:
    call = bench.dispatch(UNSUBSCRIBE, {"threadId": "nonsense"}, session="a")
    bench.answer(bench.request(UNSUBSCRIBE), error="invalid thread id")
    assert bench.answered[call][1]["error"]["message"] == "invalid thread id"


def test_the_app_server_is_unsubscribed_when_nobody_is_subscribed_any_more(bench: Bench) -> None:
    resume(bench, "b")
    bench.turn("u1", session="a")
    bench.complete("u1")
    for session in ("a", "b"):
        bench.tick(UNSUBSCRIBE_AFTER_S)
        assert UNSUBSCRIBE not in methods(bench)
        unsubscribe(bench, session)
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert UNSUBSCRIBE in methods(bench)


@pytest.mark.parametrize("keep", [False, True])
def test_a_fleeting_thread_of_a_session_that_keeps_its_turns_is_kept_as_long_as_an_app_server_does(keep: bool) -> None:
    bench = Bench().start()
    take(bench, wire.SessionOptions(sid("a"), all_turns=True, keep=True))
    bench.thread("t1", "a", ephemeral=True)
    if not keep:
        unsubscribe(bench, "a")
    gone(bench, "a")
    bench.tick(UNSUBSCRIBE_AFTER_S)
    assert bool(bench.routed(wire.ThreadGone)) is not keep
    bench.tick(KEEP_S)
    assert bench.routed(wire.ThreadGone) == [wire.ThreadGone("t1", keep=True)]


@pytest.mark.parametrize("method", ["thread/archive", "thread/delete"])
def test_followers_hear_that_a_thread_was_put_away_by_another(bench: Bench, method: str) -> None:
    resume(bench, "b")
    resume(bench, "s1")
    bench.dispatch(method, {"threadId": "t1"}, session="c")
    before = len(bench.lines)
    bench.answer(bench.request(method), {})
    bench.notify(f"{method}d", threadId="t1")
    ((names, (line,)),) = bench.lines[before:]
    assert sorted(names) == ["a", "b", "c"] and line["method"] == f"{method}d"
    bench.notify(f"{method}d", threadId="t1")
    assert len(bench.lines) == before + 1, "once"


def test_what_comes_in_one_read_with_the_answer_that_ends_or_begins_a_subscription(bench: Bench) -> None:
    bench.thread("t2", "s1")
    bench.dispatch("thread/archive", {"threadId": "t2"}, session="s1")
    number = bench.request("thread/archive")
    del bench.open[number]
    before = len(bench.lines)
    bench.say({"id": number, "result": {}}, {"method": "thread/archived", "params": {"threadId": "t2"}})
    assert [sorted(names) for names, _ in bench.lines[before:]] == [["a", "b", "c"]], "and never to all sessions"
    bench.dispatch("thread/resume", {"threadId": "t1"}, session="b")
    number = bench.request("thread/resume")
    del bench.open[number]
    status = {"method": "thread/status/changed", "params": {"threadId": "t1", "status": {"type": "idle"}}}
    usage = {"method": "thread/tokenUsage/updated", "params": {"threadId": "t1", "turnId": "u0"}}
    warning = {"method": "warning", "params": {"threadId": "t1", "message": "m"}}
    bench.received.clear()
    bench.say(status, warning, {"id": number, "result": thread_result("t1")}, usage, warning, status)
    got = {name: [line["method"] for line in lines] for name, lines in bench.received.items()}
    assert got["a"] == ["thread/status/changed", "warning", "warning", "thread/status/changed"]
    assert got["b"] == ["thread/status/changed", "thread/tokenUsage/updated", "warning", "thread/status/changed"]
    assert got["c"] == ["thread/status/changed", "thread/status/changed"]


# Requests of the app-server.


def test_all_subscribers_are_asked_and_the_first_answer_counts(bench: Bench) -> None:
    resume(bench, "b")
    bench.turn("u1", session="a")
    ask(bench)
    assert asked(bench) == [["a", "b"]]
    decide(bench, "b")
    decide(bench, "a", "decline")
    decide(bench, "c", "decline")
    assert decisions(bench) == ["accept"]
    bench.notify("serverRequest/resolved", threadId="t1", requestId=0)
    last = [bench.received[name][-1] for name in "ab"]
    assert [line["params"] for line in last] == [{"threadId": "t1", "requestId": "w0/0"}] * 2


def test_one_that_was_asked_and_follows_only_the_turn_hears_that_it_is_resolved(bench: Bench) -> None:
    bench.dispatch("turn/start", {"threadId": "t1"}, session="s1")
    bench.answer(bench.request("turn/start"), {"turn": {"id": "u1"}})
    ask(bench)
    assert asked(bench) == [["s1", "a"]]
    decide(bench, "a")
    bench.notify("serverRequest/resolved", threadId="t1", requestId=0)
    assert [bench.received[name][-1]["method"] for name in ("a", "s1")] == ["serverRequest/resolved"] * 2


def test_followers_with_the_default_options_are_asked_as_before(bench: Bench) -> None:
    bench.thread("t2", "s1")
    bench.turn("u2", "t2", session="s1")
    bench.dispatch("pool/turn/follow", {"threadId": "t2", "turnId": "u2"}, session="s2")
    ask(bench, 0, "u2", "t2")
    assert asked(bench) == [["s1"]]
    bench.gone("s1")
    assert asked(bench) == [["s1"], ["s2"]]
    bench.gone("s2")
    assert decisions(bench) == ["decline"]


def test_an_open_request_outlives_the_one_that_was_asked_and_is_asked_again(bench: Bench) -> None:
    bench.turn("u1", session="a")
    ask(bench)
    gone(bench, "a")
    bench.tick(3600)
    assert decisions(bench) == [] and asked(bench) == [["a"]]
    assert "turn/interrupt" not in methods(bench)
    before = len(bench.lines)
    resume(bench, "b")
    assert asked(bench, before) == [["b"]], "under the same id"
    resume(bench, "b")
    resume(bench, "s1")
    assert asked(bench, before) == [["b"], ["b"]], "as an app-server does; s1 only if nobody else is asked"
    decide(bench, "a", "decline")
    decide(bench, "b")
    assert decisions(bench) == ["accept"]
    bench.complete("u1")
    assert bench.core.held["server_requests"] == 0


def test_a_request_that_comes_while_nobody_is_subscribed_waits(bench: Bench) -> None:
    bench.turn("u1", session="a")
    gone(bench, "a")
    ask(bench)
    assert decisions(bench) == [] and asked(bench) == []
    bench.dispatch("pool/turn/follow", {"threadId": "t1", "turnId": "u1"}, session="s1")
    assert asked(bench) == [["s1"]], "who joins the turn"
    bench.gone("s1")
    assert decisions(bench) == [], "the turn is kept for a"
    assert "turn/interrupt" not in methods(bench)
    resume(bench, "s1")
    assert asked(bench) == [["s1"], ["s1"]], "who resumes the thread"


def test_a_request_stays_open_when_those_who_were_asked_unsubscribe(bench: Bench) -> None:
    resume(bench, "b")
    bench.turn("u1", session="a")
    ask(bench)
    unsubscribe(bench, "a")
    decide(bench, "a", "decline")
    unsubscribe(bench, "b")
    assert decisions(bench) == []
    resume(bench, "c")
    assert asked(bench) == [["a", "b"], ["c"]]


def test_a_session_that_reconnects_is_asked_again_beside_others(bench: Bench) -> None:
    resume(bench, "b")
    bench.turn("u1", session="a")
    ask(bench)
    bench.back("b")
    assert asked(bench) == [["a", "b"], ["b"]]


def test_a_long_answer_is_sent_whole_when_a_turn_runs_behind_it(bench: Bench) -> None:
    bench.turn("u1", session="a")
    for session, parts in (("b", False), ("s1", True)):
        line = b'{"id":7,"method":"thread/resume","params":{"threadId":"t1"}}'
        head = wire.Dispatch(900 + len(session), sid(session), accepts_parts=True)
        bench.apply(bench.core.broker_message(head, [line], bench.now))
        result = {**thread_result("t1"), "more": "x" * 1_100_000}
        number = bench.request("thread/resume")
        del bench.open[number]
        effects = bench.core.lines([b'{"id":%d,"result":%s}' % (number, encode(result))], bench.now)
        assert any("Bulk" in type(effect).__name__ for effect in effects) is parts


# Members of a request beside its method and parameters.


@pytest.mark.parametrize("written", [b"-9223372036854775808", b'""', b'"\\u00e9\\/\\n"', b'"' + b"y" * 1024 + b'"'])
def test_ids_of_every_type_are_echoed_and_reported_as_the_broker_writes_them(bench: Bench, written: bytes) -> None:
    for call, again in ((900, False), (901, True)):
        line = b'{"id":%s,"method":"model/list","params":{},"trace":{"traceparent":"t"}}' % written
        bench.apply(bench.core.broker_message(wire.Dispatch(call, sid("a"), again=again), [line], bench.now))
    request = bench.open[bench.request("model/list")]
    assert request["trace"] == {"traceparent": "t"}
    bench.answer(request["id"], {})
    assert bench.answered[901][1]["id"] == json.loads(written) and 900 not in bench.answered
    known = bench.new_broker().calls[-1]
    assert known == wire.KnownCall(sid("a"), encode(json.loads(written)).decode())


def test_a_trace_is_kept_when_a_request_is_sent_to_the_app_server_again(bench: Bench) -> None:
    line = b'{"id":1,"method":"thread/read","params":{"threadId":"t1"},"trace":{"traceparent":"t"}}'
    bench.apply(bench.core.broker_message(wire.Dispatch(900, sid("a")), [line], bench.now))
    bench.answer(bench.request("thread/read"), error="Server overloaded; retry later.", code=-32001)
    bench.tick(1)
    assert bench.open[bench.request("thread/read")]["trace"] == {"traceparent": "t"}
