"""The worker's state machine: events in, effects out, against an app-server made of a dictionary."""

from __future__ import annotations

import itertools
import json
import re

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from session_ids import sid
from worker_bench import WORKSPACE_WRITE, Bench, completed, delta, encode, item, record, thread_result

from codex_pool.protocol import wire
from codex_pool.worker import adoption
from codex_pool.worker.request_table import CONTROL_METHODS, CONTROL_PERMITS, MAX_IN_FLIGHT


@pytest.fixture
def bench() -> Bench:
    return Bench().start()


def test_registers_once_the_app_server_has_answered() -> None:
    bench = Bench()
    bench.apply(bench.core.start(bench.now))
    assert not bench.ready and bench.apply(bench.core.broker_message(wire.RegisterRequest(), [], bench.now)) == []
    bench.answer(bench.request("initialize"), {"userAgent": "codex/0"})
    assert bench.ready and bench.sent[-1] == {"method": "initialized"}
    assert bench.routed(wire.Register) == [wire.Register(0, "w0", 10, 11)]
    bench.apply(bench.core.broker_message(wire.RegisterRequest(), [], bench.now))
    assert len(bench.routed(wire.Register)) == 2


def test_an_answer_goes_back_under_the_id_of_its_caller(bench: Bench) -> None:
    first, second = bench.dispatch("model/list"), bench.dispatch("config/read", session="s2")
    bench.answer(bench.request("config/read"), {"b": 2})
    bench.answer(bench.request("model/list"), error="no")
    assert bench.answered[second] == (wire.Answered(second, True), {"id": f"c{second}", "result": {"b": 2}})
    answered, line = bench.answered[first]
    assert not answered.ok and line == {"id": f"c{first}", "error": {"code": -32600, "message": "no"}}
    assert bench.core.in_flight == 0


def test_a_turn_is_announced_numbered_and_ended_in_order(bench: Bench) -> None:
    bench.thread()
    bench.routes.clear()
    call = bench.turn("u1")
    bench.say(delta("u1"), delta("u1"), item("u1"))
    bench.complete("u1")
    assert [type(route).__name__ for route in bench.routes] == [
        "Answered",
        "TurnStarted",
        "ToSessions",
        "ToSessions",
        "TurnEnded",
    ]
    assert bench.answered[call][0].started == wire.RunningTurn("t1", "u1", [sid("s1")])
    assert bench.methods("s1", "u1") == [
        "pool/turn/assigned",
        *["item/agentMessage/delta"] * 2,
        "item/completed",
        "turn/completed",
    ]
    assert bench.check_numbers("s1", "u1") == 5
    head, _ = bench.events["s1", "u1"][1]
    assert head.runs == [wire.Run(2, "droppable"), wire.Run(1, "kept")]
    assert bench.ended() == [("t1", "u1", "completed", [sid("s1")])]
    assert bench.core.running_turns == 0


def test_deltas_are_numbered_line_by_line_and_left_out_where_nobody_wants_deltas(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    bench.dispatch("pool/turn/follow", {"threadId": "t1", "turnId": "u1"}, session="s2", interest="items")
    line = encode({**delta("u1"), "emittedAtMs": 1700000000000})
    before = bench.core.lines_read
    bench.apply(bench.core.lines([encode(item("u1")), *[line] * 200, encode(item("u1"))], bench.now))
    bench.complete("u1")
    assert bench.core.lines_read == before + 203
    assert bench.check_numbers("s1", "u1") == bench.check_numbers("s2", "u1") == 204
    head, _ = bench.events["s1", "u1"][1]
    assert head.runs == [wire.Run(1, "kept"), wire.Run(200, "droppable"), wire.Run(1, "kept")]
    assert bench.methods("s1", "u1").count("item/agentMessage/delta") == 200
    assert bench.methods("s2", "u1") == ["item/completed", "item/completed", "turn/completed"]


def test_what_comes_before_the_answer_of_a_start_is_not_lost(bench: Bench) -> None:
    """Even the end may come in the same read as the answer, or before it."""
    bench.thread()
    bench.dispatch("turn/start", {"threadId": "t1"})
    request_id = bench.request("turn/start")
    bench.say(delta("u1"), completed("u1"))
    assert bench.events == {}
    bench.answer(request_id, {"turn": {"id": "u1"}})
    assert bench.methods("s1", "u1") == ["pool/turn/assigned", "item/agentMessage/delta", "turn/completed"]
    assert bench.check_numbers("s1", "u1") == 3
    assert len(bench.routed(wire.TurnEnded)) == 1 and bench.core.running_turns == 0


def test_interest_leaves_out_what_nobody_asked_for_and_covers_its_numbers(bench: Bench) -> None:
    bench.thread()
    interests: dict[str, wire.Interest] = {"u1": "full", "u2": "items", "u3": "final"}
    for turn_id, interest in interests.items():
        bench.turn(turn_id, interest=interest)
        bench.say(delta(turn_id), {"method": "turn/plan/updated", "params": {"threadId": "t1", "turnId": turn_id}})
        bench.say(delta(turn_id), item(turn_id), delta(turn_id))
        bench.complete(turn_id)
        assert bench.check_numbers("s1", turn_id) == 7
    assert len(bench.methods("s1", "u1")) == 7
    assert bench.methods("s1", "u2") == ["pool/turn/assigned", "turn/plan/updated", "item/completed", "turn/completed"]
    assert bench.methods("s1", "u3") == ["pool/turn/assigned", "item/completed", "turn/completed"]


def test_never_more_than_64_in_flight_and_8_places_for_control(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    for _ in range(200):
        bench.dispatch("thread/read", {"threadId": "t1"})
    assert len(bench.open) == MAX_IN_FLIGHT - CONTROL_PERMITS
    for _ in range(20):
        bench.dispatch("turn/steer", {"threadId": "t1", "expectedTurnId": "u1"})
    assert len(bench.open) == MAX_IN_FLIGHT
    control = [message for message in bench.open.values() if message["method"] in CONTROL_METHODS]
    assert len(control) == CONTROL_PERMITS
    while bench.open:
        bench.answer(next(iter(bench.open)), {})
        assert len(bench.open) <= MAX_IN_FLIGHT
    assert len(bench.answered) == 222 and bench.core.in_flight == 0


def test_a_turn_start_gets_an_idempotency_key(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1", session="s7")
    mark = bench.sent[-1]["params"]["clientUserMessageId"]
    assert re.fullmatch("codex-pool:[0-9a-f]{40}", mark)
    bench.dispatch("turn/start", {"threadId": "t1", "clientUserMessageId": None})
    assert bench.sent[-1]["params"]["clientUserMessageId"] not in (None, mark)
    bench.dispatch("turn/start", {"threadId": "t1", "clientUserMessageId": "mine"})
    assert bench.sent[-1]["params"]["clientUserMessageId"] == "mine"


# Sessions that are gone.


def test_the_turns_of_a_gone_session_are_interrupted(bench: Bench) -> None:
    bench.thread("t1", "s1")
    bench.thread("t2", "s2")
    bench.turn("u1", "t1", session="s1")
    bench.turn("u2", "t2", session="s2")
    bench.gone("s1")
    interrupt = bench.open[bench.request("turn/interrupt")]
    assert interrupt["params"] == {"threadId": "t1", "turnId": "u1"}
    bench.answer(interrupt["id"], {})
    before = len(bench.events["s1", "u1"])
    bench.delta("u1")
    bench.complete("u1", status="interrupted")
    assert len(bench.events["s1", "u1"]) == before
    assert bench.ended() == [("t1", "u1", "interrupted")]
    assert bench.core.running_turns == 1 and bench.open == {}


def test_what_is_interrupted_of_a_review_is_the_turn_inside_of_it(bench: Bench) -> None:
    bench.thread()
    bench.dispatch("review/start", {"threadId": "t1"})
    bench.answer(bench.request("review/start"), {"turn": {"id": "u1"}, "reviewThreadId": "t1"})
    bench.notify("turn/started", threadId="t1", turn={"id": "inner", "rootTurnId": "u1"})
    bench.gone("s1")
    assert bench.open[bench.request("turn/interrupt")]["params"] == {"threadId": "t1", "turnId": "inner"}
    bench.complete("u1", status="interrupted")
    assert bench.core.held["turns"] == 0


def test_an_interrupt_that_came_too_early_is_tried_again(bench: Bench) -> None:
    """Right after its start the app-server says that there is no active turn."""
    bench.thread()
    bench.turn("u1")
    bench.gone("s1")
    bench.answer(bench.request("turn/interrupt"), error="no active turn to interrupt")
    assert bench.core.wants_tick
    bench.tick(0.1)
    bench.answer(bench.request("turn/interrupt"), {})
    bench.complete("u1", status="interrupted")
    assert not bench.core.wants_tick
    bench.tick(1)
    assert bench.open == {} and bench.core.running_turns == 0


def test_a_turn_that_ends_before_the_second_try_is_left_alone(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    bench.gone("s1")
    bench.answer(bench.request("turn/interrupt"), error="no active turn to interrupt")
    bench.complete("u1")
    bench.tick(1)
    assert bench.open == {} and not bench.core.wants_tick


def test_a_turn_whose_session_went_while_it_started_is_interrupted(bench: Bench) -> None:
    bench.thread()
    call = bench.dispatch("turn/start", {"threadId": "t1"})
    bench.gone("s1")
    bench.answer(bench.request("turn/start"), {"turn": {"id": "u1"}})
    assert bench.open[bench.request("turn/interrupt")]["params"] == {"threadId": "t1", "turnId": "u1"}
    assert call in bench.answered, "the broker's books need the answer"
    bench.answer(bench.request("turn/interrupt"), {})
    bench.complete("u1", status="interrupted")
    assert len(bench.routed(wire.TurnStarted)) == len(bench.routed(wire.TurnEnded)) == 1
    assert bench.events == {}


def test_requests_of_a_gone_session_that_still_wait_here_are_answered(bench: Bench) -> None:
    """Otherwise the broker counts their turns as starting for ever."""
    bench.thread()
    calls = [bench.dispatch("turn/start", {"threadId": "t1"}) for _ in range(MAX_IN_FLIGHT + 5)]
    record = wire.ThreadRecord("t9", False, turns=1, sandbox='{"type":"readOnly"}')
    adopting = bench.dispatch("turn/start", {"threadId": "t9"}, adopt=record)
    bench.gone("s1")
    waiting = [*calls[MAX_IN_FLIGHT - CONTROL_PERMITS :], adopting]
    assert all(call in bench.answered and not bench.answered[call][0].ok for call in waiting)


def test_a_question_goes_to_one_follower_and_only_its_answer_counts(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    ask = {"id": 0, "method": "item/commandExecution/requestApproval", "params": {"threadId": "t1", "turnId": "u1"}}
    bench.say(ask)
    sessions, (line,) = bench.lines[-1]
    assert sessions == ["s1"] and line == {**ask, "id": "w0/0"}
    answer = encode({"id": "w0/0", "result": {"decision": "accept"}})
    assert bench.core.broker_message(wire.ServerRequestAnswer(sid("s2")), [answer], bench.now) == []
    bench.apply(bench.core.broker_message(wire.ServerRequestAnswer(sid("s1")), [answer], bench.now))
    assert bench.sent[-1] == {"id": 0, "result": {"decision": "accept"}}
    assert bench.core.broker_message(wire.ServerRequestAnswer(sid("s1")), [answer], bench.now) == [], "answered once"
    bench.say({**ask, "id": 1})
    bench.complete("u1")
    assert bench.core.held["server_requests"] == 0, "a turn that is over asks nothing"


def test_a_question_that_is_resolved_otherwise_is_withdrawn_under_the_id_it_was_asked_under(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    params = {"threadId": "t1", "turnId": "u1"}
    bench.say({"id": 7, "method": "item/commandExecution/requestApproval", "params": params})
    public_id = bench.lines[-1][1][0]["id"]
    bench.notify("serverRequest/resolved", threadId="t1", requestId=7)
    sessions, (resolved,) = bench.lines[-1]
    assert (sessions, resolved["params"]) == (["s1"], {"threadId": "t1", "requestId": public_id})
    sent = len(bench.sent)
    bench.apply(
        bench.core.broker_message(
            wire.ServerRequestAnswer(sid("s1")),
            [encode({"id": public_id, "result": {"decision": "accept"}})],
            bench.now,
        )
    )
    assert (len(bench.sent), bench.core.held["server_requests"]) == (sent, 0)
    bench.notify("serverRequest/resolved", threadId="t1")
    assert bench.lines[-1][1][0]["params"] == {"threadId": "t1"}


def test_the_ends_of_log_ins_go_to_who_began_them_and_none_gives_way(bench: Bench) -> None:
    for session, login_id in (("s1", "a"), ("s2", "b"), ("s3", "c")):
        bench.dispatch("account/login/start", session=session)
        bench.answer(bench.request("account/login/start"), {"type": "chatgpt", "loginId": login_id})
    bench.gone("s3")
    for login_id in ("a", "b", "c"):
        bench.notify("account/login/completed", loginId=login_id, success=False, error="Login was not completed")
    ends = [(head.sessions, lines[0]["params"]["loginId"]) for head, lines in bench.logins]
    assert ends == [([sid("s1")], "a"), ([sid("s2")], "b"), ([], "c")]


def test_questions_with_nobody_to_answer_are_declined(bench: Bench) -> None:
    method = "item/commandExecution/requestApproval"
    bench.say({"id": 0, "method": method, "params": {"threadId": "t1", "turnId": "u1"}})
    assert bench.sent[-1] == {"id": 0, "result": {"decision": "decline"}}
    bench.thread()
    bench.turn("u1")
    bench.say({"id": 1, "method": method, "params": {"threadId": "t1", "turnId": "u1"}})
    bench.gone("s1")
    assert {"id": 1, "result": {"decision": "decline"}} in bench.sent
    bench.say({"id": 2, "method": method, "params": {"threadId": "t1", "turnId": "u1"}})
    assert bench.sent[-1] == {"id": 2, "result": {"decision": "decline"}}
    bench.say({"id": 3, "method": method, "params": {"threadId": "t1", "turnId": "its thread follows no more"}})
    assert bench.sent[-1] == {"id": 3, "result": {"decision": "decline"}}


# Adoption.


def test_an_adopted_thread_takes_nothing_until_it_is_as_it_was(bench: Bench) -> None:
    first = bench.dispatch("thread/read", {"threadId": "t9"}, adopt=record())
    second = bench.dispatch("turn/start", {"threadId": "t9"})
    (resume,) = bench.open.values()
    assert resume["method"] == "thread/resume"
    assert resume["params"] == {
        "threadId": "t9",
        "excludeTurns": True,
        "sandbox": "workspace-write",
        "approvalPolicy": "never",
        "cwd": "/w",
        "model": "m",
    }
    bench.answer(resume["id"], thread_result("t9", sandbox='{"type":"workspaceWrite","networkAccess":true}'))
    assert [message["method"] for message in bench.open.values()] == ["thread/name/set", "thread/read", "turn/start"]
    start = bench.open[bench.request("turn/start")]
    assert start["params"]["sandboxPolicy"] == json.loads(WORKSPACE_WRITE), "the mode alone is not the policy"
    bench.answer(bench.request("thread/name/set"), {})
    bench.answer(bench.request("thread/read"), {"thread": {"id": "t9"}})
    bench.answer(bench.request("turn/start"), {"turn": {"id": "u1"}})
    assert bench.answered[first][0].ok and bench.answered[second][0].ok
    bench.complete("u1", "t9")
    bench.dispatch("turn/start", {"threadId": "t9"})
    assert "sandboxPolicy" not in bench.sent[-1]["params"]


def test_a_thread_with_a_permission_profile_is_adopted_with_it_or_not_at_all(bench: Bench) -> None:
    """No sandbox policy says what the profile denies to read."""
    profile = {"id": "mine", "extends": ":workspace"}
    bench.dispatch("turn/start", {"threadId": "t9"}, adopt=record(name=None, profile="mine"))
    resume = bench.open[bench.request("thread/resume")]
    assert resume["params"]["permissions"] == "mine" and "sandbox" not in resume["params"]
    resumed = {**thread_result("t9", sandbox=WORKSPACE_WRITE), "activePermissionProfile": profile}
    bench.answer(resume["id"], resumed)
    assert "sandboxPolicy" not in bench.open[bench.request("turn/start")]["params"]


@pytest.mark.parametrize(
    ("wanted", "answer", "words"),
    [
        (
            {"profile": "mine"},
            {},
            "`activePermissionProfile` in the answer to thread/resume is missing, expected 'mine'",
        ),
        ({"profile": "mine"}, {"activePermissionProfile": None}, "is None, expected 'mine'"),
        ({"profile": "mine"}, {"activePermissionProfile": {"id": "other"}}, "is 'other', expected 'mine'"),
        ({"profile": "mine"}, {"sandbox": None}, "`sandbox` in the answer to thread/resume is None"),
        ({}, {"activePermissionProfile": {"id": "other"}}, "is 'other', expected 'none'"),
        ({}, {"sandbox": {}}, "`sandbox` in the answer to thread/resume is missing, expected 'workspaceWrite'"),
        ({}, {"sandbox": "workspaceWrite-ish"}, "is 'workspaceWrite-ish', expected 'workspaceWrite'"),
        ({}, {"thread": {"id": "t8"}}, "does not name the thread"),
        ({"sandbox": ""}, {"sandbox": None}, "its sandbox is not known"),
        ({"sandbox": ""}, {"sandbox": {"type": "dangerFullAccess"}}, "its sandbox is not known"),
    ],
)
def test_a_thread_whose_answer_lacks_what_was_asked_for_is_refused(
    bench: Bench, wanted: dict[str, str], answer: dict[str, object], words: str
) -> None:
    """An absent field says nothing; it is never equal to what was wanted."""
    call = bench.dispatch("turn/start", {"threadId": "t9"}, adopt=record(name=None, **wanted))
    bench.answer(bench.request("thread/resume"), {**thread_result("t9", sandbox=WORKSPACE_WRITE), **answer})
    error = bench.answered[call][1]["error"]
    assert error["code"] == -32010 and words in error["message"] and error["message"].endswith("; start a new thread")
    assert bench.open == {}


def test_one_of_codexs_own_profiles_is_no_other_profile(bench: Bench) -> None:
    bench.dispatch("turn/start", {"threadId": "t9"}, adopt=record(name=None))
    answer = {**thread_result("t9", sandbox=WORKSPACE_WRITE), "activePermissionProfile": {"id": ":workspace"}}
    bench.answer(bench.request("thread/resume"), answer)
    assert bench.request("turn/start")


def test_which_fields_an_answer_has_is_told_by_the_version_and_unknown_ones_are_held_to_the_newest() -> None:
    newest = adoption.FIELDS[-1][1]
    older = adoption.Fields(sandbox="policy", profile="permissions")
    table = (((0, 100, 0), older), ((0, 133, 0), newest))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adoption, "FIELDS", table)
        for user_agent in ("codex_pool/0.163.0 (Debian 12)", "a b/0.133.0", "x/1.0.0", "", "?", "x/0.99.9"):
            assert adoption.fields_of(user_agent) == newest, user_agent
        for user_agent in ("x/0.100.0", "x/0.132.9-alpha.1 (y)"):
            assert adoption.fields_of(user_agent) == older, user_agent


def test_a_profile_that_was_asked_for_is_kept_where_nothing_says_that_it_is_gone(bench: Bench) -> None:
    call = bench.dispatch("thread/start", {"permissions": "mine"})
    bench.answer(bench.request("thread/start"), thread_result("t1"))
    assert bench.answered[call][0].record.profile == "mine"
    bench.notify("thread/settings/updated", threadId="t1", threadSettings={"cwd": "/elsewhere"})
    assert bench.routed(wire.ThreadChanged)[-1].record.profile == "mine"
    settings = {"cwd": "/elsewhere", "activePermissionProfile": None}
    bench.notify("thread/settings/updated", threadId="t1", threadSettings=settings)
    assert bench.routed(wire.ThreadChanged)[-1].record.profile == ""


def test_the_permission_profile_of_a_thread_is_in_its_record_unless_it_is_codexs_own(bench: Bench) -> None:
    call = bench.dispatch("thread/start")
    answer = {**thread_result("t1"), "activePermissionProfile": {"id": "mine", "extends": None}}
    bench.answer(bench.request("thread/start"), answer)
    assert bench.answered[call][0].record.profile == "mine"
    settings = {"cwd": "/w", "activePermissionProfile": {"id": ":workspace"}}
    bench.notify("thread/settings/updated", threadId="t1", threadSettings=settings)
    assert bench.routed(wire.ThreadChanged)[-1].record.profile == ""


def test_a_resume_of_its_own_does_not_make_an_adopted_thread_forget_its_policy(bench: Bench) -> None:
    bench.dispatch("thread/resume", {"threadId": "t9"}, adopt=record())
    loose = '{"type":"workspaceWrite","networkAccess":true}'
    bench.answer(bench.request("thread/resume"), thread_result("t9", sandbox=loose))
    bench.answer(bench.request("thread/name/set"), {})
    bench.answer(bench.request("thread/resume"), thread_result("t9", sandbox=loose))
    bench.turn("u1", "t9")
    assert bench.sent[-1]["params"]["sandboxPolicy"] == json.loads(WORKSPACE_WRITE)


def test_the_policy_is_sent_until_a_turn_has_taken_it(bench: Bench) -> None:
    bench.dispatch("turn/start", {"threadId": "t9", "sandboxPolicy": None}, adopt=record(name=None))
    bench.answer(bench.request("thread/resume"), thread_result("t9", sandbox=WORKSPACE_WRITE))
    assert bench.sent[-1]["params"]["sandboxPolicy"] == json.loads(WORKSPACE_WRITE), "null is as good as absent"
    bench.answer(bench.request("turn/start"), error="bad input")
    bench.dispatch("turn/start", {"threadId": "t9", "sandboxPolicy": {"type": "readOnly"}})
    assert bench.sent[-1]["params"]["sandboxPolicy"] == {"type": "readOnly"}, "who says what he wants gets it"
    bench.answer(bench.request("turn/start"), error="bad input")
    bench.dispatch("turn/start", {"threadId": "t9"})
    assert bench.sent[-1]["params"]["sandboxPolicy"] == json.loads(WORKSPACE_WRITE)


@pytest.mark.parametrize("how", ["error", "wider sandbox", "no thread in the answer"])
def test_a_thread_that_cannot_come_back_as_it_was_is_refused_again_and_again(bench: Bench, how: str) -> None:
    """Also at the next request: dropped from the books, it would run with the configured sandbox."""
    for _ in range(2):
        calls = [
            bench.dispatch("turn/start", {"threadId": "t9"}, adopt=record()),
            bench.dispatch("thread/read", {"threadId": "t9"}),
        ]
        bench.apply(bench.core.broker_message(wire.Follow(sid("s1"), "t9"), [], bench.now))
        request_id = bench.request("thread/resume")
        if how == "error":
            bench.answer(request_id, error="no rollout found")
        elif how == "wider sandbox":
            bench.answer(request_id, thread_result("t9", sandbox='{"type":"dangerFullAccess"}'))
        else:
            bench.answer(request_id, {})
        for call in calls:
            answered, line = bench.answered[call]
            assert (
                not answered.ok and line["error"]["code"] == -32010 and line["error"]["data"] == {"safeToRetry": True}
            )
        assert bench.routes[-3] == wire.ThreadGone("t9", keep=True)
        assert bench.open == {}
    bench.notify("thread/status/changed", threadId="t9", status="idle")
    assert bench.lines == [], "nobody follows it here"


# Threads.


def test_a_name_is_in_the_record_before_its_client_is_told(bench: Bench) -> None:
    """The worker may die before the notification comes."""
    bench.thread()
    bench.routes.clear()
    bench.dispatch("thread/name/set", {"threadId": "t1", "name": "N"})
    bench.answer(bench.request("thread/name/set"), {})
    changed, answered = bench.routes
    assert changed.record.name == "N" and isinstance(answered, wire.Answered)
    bench.dispatch("thread/name/set", {"threadId": "t1", "name": "M"})
    bench.answer(bench.request("thread/name/set"), error="no")
    bench.notify("thread/name/updated", threadId="t1", threadName="N")
    assert bench.routed(wire.ThreadChanged) == [changed]


def test_the_record_of_a_thread_follows_its_settings_and_name(bench: Bench) -> None:
    bench.thread()
    settings = {"cwd": "/x", "model": "m2", "sandboxPolicy": json.loads(WORKSPACE_WRITE), "approvalPolicy": "never"}
    bench.notify("thread/settings/updated", threadId="t1", threadSettings=settings)
    bench.notify("thread/name/updated", threadId="t1", threadName="N")
    last = bench.routed(wire.ThreadChanged)[-1].record
    assert (last.cwd, last.model, last.name) == ("/x", "m2", "N")
    assert json.loads(last.sandbox) == json.loads(WORKSPACE_WRITE)
    bench.turn("u1")
    bench.apply(bench.core.broker_message(wire.RegisterRequest(), [], bench.now))


def test_what_a_thread_says_in_the_same_read_as_its_start_reaches_who_started_it(bench: Bench) -> None:
    bench.dispatch("thread/start", session="s1")
    number = bench.request("thread/start")
    del bench.open[number]
    named = {"method": "thread/name/updated", "params": {"threadId": "t1", "threadName": "N"}}
    bench.lines.clear()
    bench.say({"id": number, "result": thread_result("t1")}, named)
    assert bench.lines[-1] == (["s1"], [named])
    assert bench.routed(wire.ThreadChanged)[-1].record.name == "N"


def test_threads_that_leave_the_app_server_leave_the_books(bench: Bench) -> None:
    for thread_id in ("t1", "t2"):
        bench.thread(thread_id)
    bench.dispatch("thread/archive", {"threadId": "t1"})
    bench.answer(bench.request("thread/archive"), {})
    bench.notify("thread/closed", threadId="t2")
    assert bench.routed(wire.ThreadGone) == [wire.ThreadGone("t1"), wire.ThreadGone("t2", keep=True)]


def test_threadless_notifications_come_once_a_second_and_the_last_one_counts(bench: Bench) -> None:
    for used in (1, 1, 2, 3):
        bench.notify("account/rateLimits/updated", rateLimits={"used": used})
    assert [line["params"]["rateLimits"]["used"] for _, (line,) in bench.lines] == [1]
    assert bench.core.wants_tick
    bench.tick(0.5)
    assert len(bench.lines) == 1
    bench.tick(0.6)
    assert [line["params"]["rateLimits"]["used"] for _, (line,) in bench.lines] == [1, 3]
    assert bench.lines[0][0] == [] and not bench.core.wants_tick


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"null", b"[]", b'"x"', b'{"id":999,"result":{}}', b'{"method":"turn/completed"}', b'{"method":1}',
     b'{"method":"turn/completed","params":{"threadId":"t9","turn":{"id":"u9"}}}', b"\xff\xfe",
     b'{"method":"thread/closed","params":{"threadId":"nobody"}}'],
)  # fmt: skip
def test_strange_lines_of_the_app_server_are_survived(bench: Bench, line: bytes) -> None:
    bench.thread()
    bench.turn("u1")
    bench.apply(bench.core.lines([line], bench.now))
    bench.complete("u1")
    assert bench.methods("s1", "u1")[-1] == "turn/completed"


def test_an_answer_that_cannot_be_read_fails_its_call(bench: Bench) -> None:
    call = bench.dispatch("model/list")
    number = bench.request("model/list")
    bench.apply(bench.core.lines([b'{"id":%d,"result":{"data":[' % number], bench.now))
    answered, line = bench.answered[call]
    assert not answered.ok and "unreadable" in line["error"]["message"]


def test_unknown_sessions_threads_and_questions_are_tolerated(bench: Bench) -> None:
    assert bench.core.broker_message(wire.SessionGone(sid("nobody")), [], bench.now) == []
    assert bench.core.broker_message(wire.Follow(sid("s"), "nothing"), [], bench.now) == []
    for line in (b"{}", b'{"id":null}', b'{"id":4,"result":1}', b'{"id":"w0/4","result":1}'):
        assert bench.core.broker_message(wire.ServerRequestAnswer(sid("s")), [line], bench.now) == []


# Everything at once.

SESSIONS = ["s1", "s2", "s3"]
THREADS = ["t1", "t2", "t3", "t4"]


class WorkerMachine(RuleBasedStateMachine):
    """Any order of events. The broker's promise is kept: no two turns of one thread at once."""

    @initialize()
    def begin(self) -> None:
        self.bench = Bench().start()
        options = wire.SessionOptions(sid("s3"), all_turns=True)
        self.bench.apply(self.bench.core.broker_message(options, [], self.bench.now))
        self.turn_numbers = itertools.count(1)
        self.calls: set[int] = set()
        # What the app-server runs: turn -> thread; turns it has announced before its answer; starts not yet answered.
        self.running: dict[str, str] = {}
        self.early: dict[int, tuple[str, bool]] = {}
        self.busy: set[str] = set()
        self.gone: set[str] = set()
        self.questions = itertools.count()

    @rule(
        thread=st.sampled_from(THREADS), session=st.sampled_from(SESSIONS), interest=st.sampled_from(["full", "items"])
    )
    def start_turn(self, thread: str, session: str, interest: wire.Interest) -> None:
        if thread in self.busy or session in self.gone:
            return
        self.busy.add(thread)
        self.calls.add(self.bench.dispatch("turn/start", {"threadId": thread}, session=session, interest=interest))

    @rule(thread=st.sampled_from(THREADS), session=st.sampled_from(SESSIONS))
    def adopt_and_start(self, thread: str, session: str) -> None:
        if thread in self.busy or session in self.gone:
            return
        self.busy.add(thread)
        adopt = msgspec.structs.replace(record(), thread_id=thread)
        self.calls.add(self.bench.dispatch("turn/start", {"threadId": thread}, session=session, adopt=adopt))

    @rule(
        count=st.integers(1, 40), method=st.sampled_from(["thread/read", "turn/steer", "turn/interrupt", "model/list"])
    )
    def other_requests(self, count: int, method: str) -> None:
        for _ in range(count):
            self.calls.add(self.bench.dispatch(method, {"threadId": "t1"}))

    @precondition(lambda self: self.bench.open)
    @rule(data=st.data(), ok=st.booleans())
    def answer(self, data: st.DataObject, ok: bool) -> None:
        self._answer(data.draw(st.sampled_from(sorted(self.bench.open))), ok)

    def _answer(self, request_id: int, ok: bool) -> None:
        request = self.bench.open[request_id]
        method, params = request["method"], request["params"]
        turn_id, ended = self.early.pop(request_id, (None, False))
        if method == "turn/start":
            if not ok and turn_id is None:
                self.busy.discard(params["threadId"])
                self.bench.answer(request_id, error="no")
                return
            turn_id = turn_id or f"u{next(self.turn_numbers)}"
            if ended:
                self.busy.discard(params["threadId"])
            else:
                self.running[turn_id] = params["threadId"]
            self.bench.answer(request_id, {"turn": {"id": turn_id}})
        elif method == "thread/resume":
            before = len(self.bench.answered)
            result = thread_result(params["threadId"], sandbox=WORKSPACE_WRITE)
            self.bench.answer(request_id, result, error=None if ok else "no rollout")
            if not ok and len(self.bench.answered) > before:
                self.busy.discard(params["threadId"])
        elif ok:
            self.bench.answer(request_id, {})
        else:
            self.bench.answer(request_id, error="no active turn to interrupt")

    @rule(data=st.data(), ended=st.booleans())
    def early_events(self, data: st.DataObject, ended: bool) -> None:
        starts = [n for n, m in self.bench.open.items() if m["method"] == "turn/start" and n not in self.early]
        if not starts:
            return
        request_id = data.draw(st.sampled_from(starts))
        turn_id, thread = f"u{next(self.turn_numbers)}", self.bench.open[request_id]["params"]["threadId"]
        self.early[request_id] = (turn_id, ended)
        self.bench.say(delta(turn_id, thread), *([completed(turn_id, thread)] if ended else []))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 5))
    def events(self, data: st.DataObject, count: int) -> None:
        turns = data.draw(st.lists(st.sampled_from(sorted(self.running)), min_size=1, max_size=count))
        self.bench.say(*(maker(turn, self.running[turn]) for turn in turns for maker in (delta, item)))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        turn_id = data.draw(st.sampled_from(sorted(self.running)))
        thread = self.running.pop(turn_id)
        self.busy.discard(thread)
        self.bench.complete(turn_id, thread)

    @rule(turn=st.sampled_from(["u1", "u2", "never"]), thread=st.sampled_from(THREADS), answered=st.booleans())
    def ask(self, turn: str, thread: str, answered: bool) -> None:
        before, sent = len(self.bench.lines), len(self.bench.sent)
        number = next(self.questions)
        method = "item/commandExecution/requestApproval"
        self.bench.say({"id": number, "method": method, "params": {"threadId": thread, "turnId": turn}})
        passed_on = self.bench.lines[before:]
        if not passed_on:
            # The same event may send requests that have waited.
            assert {"id": number, "result": {"decision": "decline"}} in self.bench.sent[sent:]
            return
        ((sessions, (line,)),) = passed_on
        assert not self.gone.intersection(sessions)
        assert set(sessions[1:]) <= {"s3"}, "the first, and those that get all turns"
        session = sessions[-1]
        if answered:
            self.bench.apply(
                self.bench.core.broker_message(
                    wire.ServerRequestAnswer(sid(session)), [encode({"id": line["id"], "result": {}})], self.bench.now
                )
            )
            assert self.bench.sent[-1] == {"id": number, "result": {}}

    @rule(session=st.sampled_from(SESSIONS))
    def session_gone(self, session: str) -> None:
        self.gone.add(session)
        self.bench.gone(session)
        self._forget_refused_starts()

    @rule(session=st.sampled_from(SESSIONS), thread=st.sampled_from(THREADS), on=st.booleans())
    def follow(self, session: str, thread: str, on: bool) -> None:
        if session in self.gone:
            return
        if on:
            self.bench.apply(self.bench.core.broker_message(wire.Follow(sid(session), thread), [], self.bench.now))
        else:
            self.calls.add(self.bench.dispatch("thread/unsubscribe", {"threadId": thread}, session=session))

    @rule()
    def time_passes(self) -> None:
        self.bench.tick(0.3)

    def _forget_refused_starts(self) -> None:
        """Threads whose start was refused are free again: only open starts, adoptions and turns keep them busy."""
        starting = {m["params"]["threadId"] for m in self.bench.open.values() if "threadId" in m["params"]}
        requests = self.bench.core._requests._requests.values()
        waiting = {request.thread_id for request in requests if request.state in ("loading", "queued")}
        self.busy &= starting | waiting | set(self.running.values())

    @invariant()
    def bounded(self) -> None:
        in_flight = self.bench.open.values()
        assert len(in_flight) == self.bench.core.in_flight <= MAX_IN_FLIGHT
        assert sum(m["method"] not in CONTROL_METHODS for m in in_flight) <= MAX_IN_FLIGHT - CONTROL_PERMITS

    @invariant()
    def numbered(self) -> None:
        for session, turn_id in self.bench.events:
            self.bench.check_numbers(session, turn_id)

    @invariant()
    def ended_once(self) -> None:
        started = [route.turn_id for route in self.bench.routed(wire.TurnStarted)]
        ended = [route.turn_id for route in self.bench.routed(wire.TurnEnded)]
        assert len(set(started)) == len(started) and len(set(ended)) == len(ended) and set(ended) <= set(started)

    def teardown(self) -> None:
        """Check that nothing is kept and every call was answered, once the app-server has answered and ended all."""
        if not hasattr(self, "bench"):
            return
        for _ in range(10_000):
            if self.bench.open:
                self._answer(next(iter(self.bench.open)), True)
            elif self.running:
                turn_id, thread = self.running.popitem()
                self.bench.complete(turn_id, thread)
            else:
                break
        self.bench.tick(1)
        while self.bench.open:
            self._answer(next(iter(self.bench.open)), True)
        self.bench.ack()
        assert set(self.bench.answered) == self.calls
        assert self.bench.core.running_turns == 0
        held = self.bench.core.held
        assert held.pop("options") == (0 if "s3" in self.gone else 1)
        held.pop("server_requests")
        assert not any(held.values()), held
        started = {route.turn_id for route in self.bench.routed(wire.TurnStarted)}
        assert {route.turn_id for route in self.bench.routed(wire.TurnEnded)} == started


TestWorkerMachine = WorkerMachine.TestCase
TestWorkerMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
