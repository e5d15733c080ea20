"""Calls of sessions: done once however often they are sent, looked for after a death, given up and tried again."""

from __future__ import annotations

import msgspec
import pytest
from session_ids import sid
from worker_bench import Bench, record, thread_result

from codex_app_server.operations import DEFAULT_TIMEOUT_S, NO_DEADLINE
from codex_pool.protocol import jsonrpc, wire
from codex_pool.worker import request_table
from codex_pool.worker.dedupe import Answer, AnswerCache, digest_of
from codex_pool.worker.message_marks import mark_of
from codex_pool.worker.request import REQUEST_LIMIT_S, Request
from codex_pool.worker.request_table import MAX_IN_FLIGHT, OVERLOAD_LIMIT_S

OVERLOADED = -32001


@pytest.fixture
def bench() -> Bench:
    return Bench().start()


# Once.


def test_a_call_that_is_sent_again_under_way_is_answered_under_its_latest_number(bench: Bench) -> None:
    first = bench.dispatch("thread/start", id="a")
    second = bench.dispatch("thread/start", id="a", again=True)
    bench.answer(bench.request("thread/start"), thread_result("t1"))
    assert bench.open == {} and first not in bench.answered
    answered, line = bench.answered[second]
    assert answered.record is not None and line["id"] == "a"


def test_a_call_that_was_answered_is_answered_again_with_the_thread_as_it_is_now(bench: Bench) -> None:
    first = bench.dispatch("thread/start", id="a")
    bench.answer(bench.request("thread/start"), thread_result("t1"))
    bench.notify("thread/name/updated", threadId="t1", threadName="N")
    second = bench.dispatch("thread/start", id="a", again=True)
    assert bench.open == {} and bench.answered[second][1] == bench.answered[first][1]
    again = bench.answered[second][0].record
    assert again is not None and again.name == "N"


def test_a_turn_is_started_once_however_often_it_is_sent_again(bench: Bench) -> None:
    bench.thread()
    bench.dispatch("turn/start", {"threadId": "t1"}, id="a")
    bench.dispatch("turn/start", {"threadId": "t1"}, id="a", again=True)
    bench.answer(bench.request("turn/start"), {"turn": {"id": "u1"}})
    bench.complete("u1")
    third = bench.dispatch("turn/start", {"threadId": "t1"}, id="a", again=True)
    assert bench.open == {} and bench.answered[third][1]["result"] == {"turn": {"id": "u1"}}
    assert [message["method"] for message in bench.sent].count("turn/start") == 1


def test_an_id_is_used_again_after_its_answer(bench: Bench) -> None:
    for thread in ("t1", "t2"):
        call = bench.dispatch("thread/start", id=1)
        bench.answer(bench.request("thread/start"), thread_result(thread))
        assert bench.answered[call][1]["result"]["thread"]["id"] == thread
    again = bench.dispatch("thread/start", id=1, again=True)
    assert bench.answered[again][1]["result"]["thread"]["id"] == "t2", "the latest use is the one that is kept"


def test_each_use_of_an_id_is_a_turn_of_its_own(bench: Bench) -> None:
    bench.thread()
    keys = set()
    for number, text in enumerate(("one", "two")):
        bench.dispatch("turn/start", {"threadId": "t1", "input": [text]}, id=1)
        keys.add(bench.sent[-1]["params"]["clientUserMessageId"])
        bench.answer(bench.request("turn/start"), {"turn": {"id": f"u{number}"}})
        bench.complete(f"u{number}")
    assert len(keys) == 2


@pytest.mark.parametrize("again", [False, True])
def test_an_id_that_is_under_way_is_not_given_to_another_request(bench: Bench, again: bool) -> None:
    bench.dispatch("model/list", {"limit": 1}, id="a")
    call = bench.dispatch("model/list", {"limit": 2}, id="a", again=again)
    error = bench.answered[call][1]["error"]
    assert error["code"] == -32600 and "another request" in error["message"] and len(bench.open) == 1


def test_an_answer_is_not_given_to_another_request_that_says_it_was_sent_before(bench: Bench) -> None:
    bench.dispatch("model/list", {"limit": 1, "cursor": "x"}, id="a")
    bench.answer(bench.request("model/list"), {"data": []})
    for method, params in (("model/list", {"limit": 2, "cursor": "x"}), ("thread/list", {"limit": 1, "cursor": "x"})):
        call = bench.dispatch(method, params, id="a", again=True)
        assert bench.answered[call][1]["error"]["code"] == -32600
    call = bench.dispatch("model/list", {"cursor": "x", "limit": 1}, id="a", again=True)
    assert bench.answered[call][1]["result"] == {"data": []}, "the order of members does not matter"
    assert bench.open == {}


def test_the_same_id_of_another_session_is_another_call(bench: Bench) -> None:
    bench.dispatch("model/list", id="a")
    bench.dispatch("model/list", id="a", session="s2")
    assert len(bench.open) == 2


def test_a_session_that_is_over_is_forgotten(bench: Bench) -> None:
    bench.dispatch("model/list", id="a")
    bench.dispatch("model/list", id="b")
    bench.answer(bench.request("model/list"), {})
    bench.gone("s1")
    bench.answer(bench.request("model/list"), {})
    bench.dispatch("model/list", id="a")
    bench.dispatch("model/list", id="b")
    assert len(bench.open) == 2
    assert bench.new_broker().calls == [wire.KnownCall(sid("s1"), '"a"'), wire.KnownCall(sid("s1"), '"b"')]


def test_what_is_remembered_is_bounded() -> None:
    answers = AnswerCache(max_answers=3, max_bytes=100)

    def put(number: int, size: int = 1) -> None:
        answers.put(sid("s"), b"%d" % number, Answer(True, b"x" * size))

    for number in range(5):
        put(number)
    assert [each.request_id for each in answers.calls] == ["2", "3", "4"]
    put(5, size=99)
    assert [each.request_id for each in answers.calls] == ["4", "5"]
    put(6, size=200)
    assert [each.request_id for each in answers.calls] == ["4", "5"], "one that is too long pushes out no other"


# A new broker.


def test_a_new_broker_is_told_all_that_is_here(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    bench.turn("u2", session="s2")
    bench.complete("u2")
    bench.dispatch("model/list", id="open")
    bench.dispatch("turn/start", {"threadId": "t9"}, adopt=record())
    holdings = bench.new_broker()
    assert {each.thread_id for each in holdings.records} == {"t1", "t9"}, "one is on its way here"
    assert holdings.followers["t1"] == [sid("s1")]
    assert holdings.turns == [wire.RunningTurn("t1", "u1", [sid("s1")], began_at=bench.now)]
    assert holdings.ended == ["u2"], "until it is acknowledged"
    assert wire.KnownCall(sid("s1"), '"open"') in holdings.calls and len(holdings.calls) == 5


def test_numbers_of_the_old_broker_mean_nothing_to_the_new_one(bench: Bench) -> None:
    call = bench.dispatch("model/list", id="a")
    bench.new_broker()
    bench.answer(bench.request("model/list"), {"x": 1})
    assert call not in bench.answered
    again = bench.dispatch("model/list", id="a", again=True)
    assert bench.answered[again][1] == {"id": "a", "result": {"x": 1}} and bench.open == {}


def test_a_turn_whose_start_was_answered_into_the_void_is_told_in_full(bench: Bench) -> None:
    bench.thread()
    bench.dispatch("turn/start", {"threadId": "t1"}, id="a")
    bench.new_broker()
    bench.answer(bench.request("turn/start"), {"turn": {"id": "u1"}})
    assert bench.routed(wire.TurnStarted) == [wire.TurnStarted("t1", "u1", [sid("s1")])]
    bench.delta("u1")
    bench.events.clear()
    bench.back("s1")
    assert bench.methods("s1", "u1") == ["pool/turn/assigned", "item/agentMessage/delta"]
    again = bench.dispatch("turn/start", {"threadId": "t1"}, id="a", again=True)
    assert bench.answered[again][1]["result"] == {"turn": {"id": "u1"}} and bench.answered[again][0].started is None


def test_who_comes_back_is_asked_again(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    params = {"threadId": "t1", "turnId": "u1"}
    bench.say({"id": 7, "method": "item/commandExecution/requestApproval", "params": params})
    asked = bench.lines[-1]
    bench.lines.clear()
    bench.back("s2")
    assert bench.lines == []
    bench.back("s1", wire.Position("u1", 1))
    assert bench.lines == [asked]
    assert len(bench.events["s1", "u1"]) == 1, "it had that"


# After a death.


def key_of(params: dict[str, object]) -> str:
    """The key of the turn/start that session s1 sends under the id "a"."""
    line = jsonrpc.decode_request(msgspec.json.encode({"id": "a", "method": "turn/start", "params": params}))
    return mark_of(Request("turn/start", None, line, session=sid("s1"), digest=digest_of(line)))


KEY = key_of({"threadId": "t9"})


def history(*keys: str) -> dict[str, object]:
    turns = [{"id": f"old{n}", "items": [{"type": "userMessage", "clientId": key}]} for n, key in enumerate(keys)]
    return {"thread": {"id": "t9", "turns": turns}}


def adopt_and_look(bench: Bench, **params: object) -> int:
    call = bench.dispatch("turn/start", {"threadId": "t9", **params}, id="a", adopt=record(name=None), again=True)
    bench.answer(bench.request("thread/resume"), thread_result("t9", sandbox=record().sandbox))
    (look,) = bench.open.values()
    assert (look["method"], look["params"]) == ("thread/read", {"threadId": "t9", "includeTurns": True})
    return call


def test_a_turn_that_had_begun_before_a_death_is_not_started_again(bench: Bench) -> None:
    call = adopt_and_look(bench)
    bench.answer(bench.request("thread/read"), history("other", KEY))
    error = bench.answered[call][1]["error"]
    assert (error["code"], error["data"]) == (-32011, {"kind": "lost", "safeToRetry": False, "turnId": "old1"})
    assert bench.open == {}


def test_a_turn_that_had_not_begun_is_started(bench: Bench) -> None:
    call = adopt_and_look(bench)
    bench.answer(bench.request("thread/read"), history("other"))
    start = bench.open[bench.request("turn/start")]
    assert start["params"]["clientUserMessageId"] == KEY and "sandboxPolicy" in start["params"]
    bench.answer(start["id"], {"turn": {"id": "u1"}})
    assert bench.answered[call][0].started == wire.RunningTurn("t9", "u1", [sid("s1")])


def test_a_key_of_the_clients_own_is_looked_for(bench: Bench) -> None:
    call = adopt_and_look(bench, clientUserMessageId="mine")
    bench.answer(bench.request("thread/read"), history(key_of({"threadId": "t9"}), "x", "mine"))
    assert bench.answered[call][1]["error"]["data"]["turnId"] == "old2"


@pytest.mark.parametrize("how", ["error", "unreadable"])
def test_a_turn_that_cannot_be_looked_for_is_not_started(bench: Bench, how: str) -> None:
    call = adopt_and_look(bench)
    if how == "error":
        bench.answer(bench.request("thread/read"), error="no")
    else:
        bench.answer(bench.request("thread/read"), {"thread": 1})
    error = bench.answered[call][1]["error"]
    assert (error["code"], error["data"]) == (-32011, {"kind": "lost", "safeToRetry": False}) and bench.open == {}


def test_a_thread_that_was_adopted_by_another_request_is_looked_through_all_the_same(bench: Bench) -> None:
    bench.dispatch("thread/read", {"threadId": "t9"}, adopt=record(name=None))
    bench.answer(bench.request("thread/resume"), thread_result("t9", sandbox=record().sandbox))
    bench.answer(bench.request("thread/read"), {})
    bench.dispatch("turn/start", {"threadId": "t9"}, id="a", again=True)
    assert [message["method"] for message in bench.open.values()] == ["thread/read"]


def test_a_thread_that_has_always_been_here_is_not_refused_for_want_of_a_history(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    bench.complete("u1")
    bench.dispatch("turn/start", {"threadId": "t1"}, id="a", again=True)
    bench.answer(bench.request("thread/read"), error="not materialized yet")
    bench.answer(bench.request("turn/start"), {"turn": {"id": "u2"}})
    bench.thread("t2", ephemeral=True)
    bench.dispatch("turn/start", {"threadId": "t2"}, id="b", again=True)
    assert [message["method"] for message in bench.open.values()] == ["turn/start"]


def test_a_session_that_goes_while_its_turn_is_looked_for_starts_none(bench: Bench) -> None:
    call = adopt_and_look(bench)
    bench.gone("s1")
    bench.answer(bench.request("thread/read"), history())
    assert bench.open == {} and not bench.answered[call][0].ok


# Deadlines.


def test_deadlines_are_those_of_clients_and_a_little_more() -> None:
    assert REQUEST_LIMIT_S == DEFAULT_TIMEOUT_S + 5 and request_table.NO_DEADLINE == NO_DEADLINE


def test_a_request_that_is_not_answered_gives_up_its_place_and_its_late_answer_is_nobodys(bench: Bench) -> None:
    calls = [bench.dispatch("model/list") for _ in range(MAX_IN_FLIGHT)]
    bench.dispatch("command/exec")
    stuck = list(bench.open)
    bench.tick(REQUEST_LIMIT_S - 1)
    assert len(bench.answered) == 0
    bench.tick(1)
    failed = [call for call in calls if call in bench.answered]
    assert len(failed) == len(stuck)
    error = bench.answered[failed[0]][1]["error"]
    assert error["code"] == -32603 and error["message"] == "the app-server has not answered model/list within 65 s"
    late = [message for number, message in bench.open.items() if number not in stuck]
    assert {message["method"] for message in late if message["method"] != "thread/loaded/list"} == {
        "model/list",
        "command/exec",
    }
    before = len(bench.answered)
    for number in stuck:
        bench.answer(number, {})
    assert len(bench.answered) == before
    bench.tick(REQUEST_LIMIT_S)
    assert [message["method"] for message in late if message["id"] not in stuck][-1] == "command/exec"
    assert len(bench.answered) == len(calls), "what may run as long as it likes has no deadline"


def test_a_client_that_waits_longer_gets_longer(bench: Bench) -> None:
    call, endless = (bench.dispatch("model/list", timeout_s=timeout_s) for timeout_s in (120, 0))
    bench.tick(124)
    assert call not in bench.answered
    bench.tick(1)
    message = bench.answered[call][1]["error"]["message"]
    assert message == "the app-server has not answered model/list within 125 s"
    bench.tick(10_000)
    assert endless not in bench.answered


def test_a_turn_whose_start_is_answered_too_late_is_interrupted(bench: Bench) -> None:
    bench.thread()
    call = bench.dispatch("turn/start", {"threadId": "t1"})
    number = bench.request("turn/start")
    bench.tick(REQUEST_LIMIT_S)
    assert not bench.answered[call][0].ok
    bench.answer(number, {"turn": {"id": "u1"}})
    assert bench.open[bench.request("turn/interrupt")]["params"] == {"threadId": "t1", "turnId": "u1"}


def test_a_resume_that_is_never_answered_refuses_what_waits_for_it(bench: Bench) -> None:
    call = bench.dispatch("turn/start", {"threadId": "t9"}, adopt=record())
    bench.tick(REQUEST_LIMIT_S)
    assert bench.answered[call][1]["error"]["code"] == -32010
    assert bench.core.held["loading"] == 0


def test_an_app_server_that_does_not_answer_initialize_ends_the_worker() -> None:
    bench = Bench()
    bench.apply(bench.core.start(bench.now))
    bench.tick(REQUEST_LIMIT_S)
    assert bench.failed == "initialize failed: the app-server has not answered initialize within 65 s"


# Overload.


def test_what_the_app_server_was_too_busy_for_is_sent_again_later(bench: Bench) -> None:
    call = bench.dispatch("model/list")
    for _ in range(3):
        bench.answer(bench.request("model/list"), error="Server overloaded; retry later.", code=OVERLOADED)
        assert bench.open == {} and bench.core.wants_tick and bench.core.in_flight == 0
        bench.tick(0.05)
        assert bench.open == {}
        bench.tick(1)
    bench.answer(bench.request("model/list"), {"ok": 1})
    assert bench.answered[call][1]["result"] == {"ok": 1} and not bench.core.wants_tick


def test_overload_without_end_is_passed_on_with_a_hint(bench: Bench) -> None:
    call = bench.dispatch("model/list")
    began = bench.now
    while call not in bench.answered:
        if bench.open:
            bench.answer(bench.request("model/list"), error="Server overloaded; retry later.", code=OVERLOADED)
        else:
            bench.tick(0.1)
    assert OVERLOAD_LIMIT_S - 5 <= bench.now - began <= OVERLOAD_LIMIT_S
    error = bench.answered[call][1]["error"]
    assert error["code"] == OVERLOADED and error["data"]["retryAfterMs"] > 0
    tries = sum(message["method"] == "model/list" for message in bench.sent)
    assert 8 <= tries <= 20, tries


def test_who_is_gone_is_not_tried_again(bench: Bench) -> None:
    call = bench.dispatch("model/list")
    bench.answer(bench.request("model/list"), error="Server overloaded; retry later.", code=OVERLOADED)
    bench.gone("s1")
    assert call in bench.answered
    bench.tick(10)
    assert [message["method"] for message in bench.open.values()] in ([], ["thread/loaded/list"])
    assert not any(message["method"] == "model/list" for message in bench.open.values())


# The probe.


def test_an_app_server_that_is_silent_is_asked_whether_it_is_there(bench: Bench) -> None:
    bench.dispatch("model/list")
    for _ in range(9):
        bench.tick(1)
    assert len(bench.open) == 1
    bench.tick(1)
    probe = bench.open[bench.request("thread/loaded/list")]
    assert probe["params"] == {"limit": 1}
    for _ in range(19):
        bench.tick(1)
    assert not bench.failed
    bench.answer(probe["id"], {"data": []})
    for _ in range(29):
        bench.tick(1)
    assert not bench.failed
    bench.tick(1)
    assert bench.failed == "the app-server has not answered a probe for 20 s"


def test_a_probe_finds_a_place_when_all_others_are_taken(bench: Bench) -> None:
    for _ in range(MAX_IN_FLIGHT):
        bench.dispatch("model/list")
    for _ in range(11):
        bench.tick(1)
    assert bench.request("thread/loaded/list")


def test_a_worker_that_stood_still_itself_does_not_blame_its_app_server(bench: Bench) -> None:
    for _ in range(11):
        bench.tick(1)
    bench.tick(3600)
    assert not bench.failed
    for _ in range(19):
        bench.tick(1)
    assert not bench.failed
    bench.tick(1)
    assert bench.failed
