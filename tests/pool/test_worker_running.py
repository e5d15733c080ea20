"""Turns: of the app-server's own, joined, watched, given up; and threads that are carried to another worker."""

from __future__ import annotations

from typing import Any

import pytest
from session_ids import sid
from worker_bench import WORKSPACE_WRITE, Bench, completed, delta, item, record, thread_result

from codex_app_server.generated.routing import RUNTIME_VERSION
from codex_pool.protocol import wire
from codex_pool.worker.idle_batching import HELD_BYTES
from codex_pool.worker.subscription import Limits
from codex_pool.worker.watchdog import END_LIMIT_S, STALL_LIMIT_S


@pytest.fixture
def bench() -> Bench:
    return Bench().start()


def started(turn_id: str, thread_id: str = "t1", **turn: Any) -> dict[str, Any]:
    params = {"threadId": thread_id, "turn": {"id": turn_id, "status": "inProgress", "items": [], **turn}}
    return {"method": "turn/started", "params": params}


def item_started(turn_id: str, item_id: str = "i") -> dict[str, Any]:
    params = {"item": {"type": "commandExecution", "id": item_id}, "threadId": "t1", "turnId": turn_id}
    return {"method": "item/started", "params": params}


# Turns that the app-server starts by itself.


def test_a_turn_is_held_while_a_goal_runs_one_on_its_thread(bench: Bench) -> None:
    """The app-server would have it join."""
    bench.thread()
    bench.say(started("own"))
    call = bench.dispatch("turn/start", {"threadId": "t1"})
    bench.thread("t2")
    bench.turn("u2", "t2")
    run_for(bench, 5)
    assert bench.open == {} and call not in bench.answered
    bench.complete("own")
    bench.answer(bench.request("turn/start"), {"turn": {"id": "u1"}})
    assert bench.answered[call][1]["result"]["turn"]["id"] == "u1"
    bench.complete("u1")
    # For as long as a client may wait.
    bench.say(started("next"))
    call = bench.dispatch("turn/start", {"threadId": "t1"})
    run_for(bench, 31)
    error = bench.answered[call][1]["error"]
    assert error["code"] == -32603 and "ActiveTurnNotSteerable" in error["message"]
    assert bench.open == {} and bench.core.held["waiting"] == 0


def test_a_turn_that_is_refused_because_of_compaction_is_tried_again(bench: Bench) -> None:
    bench.thread()
    call = bench.dispatch("turn/start", {"threadId": "t1"})
    refused = {"code": -32603, "message": "failed to submit turn input: ActiveTurnNotSteerable { turn_kind: Compact }"}
    bench.say({"id": bench.request("turn/start"), "error": refused})
    bench.open.clear()
    assert call not in bench.answered
    bench.say(started("compaction"))
    run_for(bench, 3)
    assert bench.open == {}
    bench.complete("compaction")
    bench.answer(bench.request("turn/start"), {"turn": {"id": "u1"}})
    assert bench.answered[call][1]["result"]["turn"]["id"] == "u1"


def test_the_broker_interrupts_one_that_runs(bench: Bench) -> None:
    bench.thread()
    bench.say(started("own"))
    bench.apply(bench.core.broker_message(wire.Interrupt("t1", "own"), [], bench.now))
    bench.answer(bench.request("turn/interrupt"))
    bench.complete("own", status="interrupted")
    assert bench.apply(bench.core.broker_message(wire.Interrupt("t1", "own"), [], bench.now)) == [], "it has ended"


def test_a_turn_of_the_app_servers_own_is_numbered_counted_and_ended_like_any_other(bench: Bench) -> None:
    bench.thread()
    bench.say(started("own"), delta("own"), item("own"))
    bench.say(delta("own"))
    bench.complete("own")
    assert bench.routed(wire.TurnStarted) == [wire.TurnStarted("t1", "own", [sid("s1")], by_itself=True)]
    assert bench.ended() == [("t1", "own", "completed", [sid("s1")])]
    assert bench.methods("s1", "own") == [
        "pool/turn/assigned",
        "turn/started",
        "item/agentMessage/delta",
        "item/completed",
        "item/agentMessage/delta",
        "turn/completed",
    ]
    assert bench.check_numbers("s1", "own") == 6 and bench.lines == []
    bench.ack()
    assert bench.core.held["subscriptions"] == bench.core.running_turns == 0


def test_a_turn_of_its_own_that_is_over_in_one_read_with_other_things_between(bench: Bench) -> None:
    bench.thread()
    status = {"method": "thread/status/changed", "params": {"threadId": "t1", "status": {"type": "active"}}}
    bench.dispatch("model/list")
    bench.say(
        status,
        started("own"),
        delta("own"),
        {"id": bench.request("model/list"), "result": {}},
        delta("own"),
        status,
        completed("own"),
    )
    assert bench.check_numbers("s1", "own") == 5
    assert len(bench.routed(wire.TurnStarted)) == len(bench.routed(wire.TurnEnded)) == 1
    assert [line["method"] for _, lines in bench.lines for line in lines] == ["thread/status/changed"] * 2
    assert bench.core.running_turns == 0
    bench.ack()
    held = bench.core.held
    assert not any(held.values()), held


def test_such_turns_keep_the_interest_that_their_session_had(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1", interest="items")
    bench.complete("u1")
    bench.say(started("own"), delta("own"), item("own"), completed("own"))
    assert bench.methods("s1", "own") == ["pool/turn/assigned", "turn/started", "item/completed", "turn/completed"]


def test_such_turns_of_a_thread_that_nobody_follows_are_counted(bench: Bench) -> None:
    bench.thread()
    bench.gone("s1")
    bench.say(started("own"), delta("own"))
    assert bench.core.running_turns == 1 and bench.routed(wire.TurnStarted) == [
        wire.TurnStarted("t1", "own", [], by_itself=True)
    ]
    bench.complete("own")
    assert bench.core.running_turns == 0 and bench.events == {}


def test_the_turn_inside_of_a_review_is_no_turn_of_its_own(bench: Bench) -> None:
    bench.thread()
    bench.dispatch("review/start", {"threadId": "t1"})
    bench.answer(bench.request("review/start"), {"turn": {"id": "u1"}, "reviewThreadId": "t1"})
    bench.say(started("inner", rootTurnId="u1"))
    assert bench.core.running_turns == 1
    bench.complete("u1")
    assert bench.core.held["agents"] == 0


def test_the_threads_of_sub_agents_belong_to_who_follows_their_parent(bench: Bench) -> None:
    bench.thread()
    child = {"method": "thread/started", "params": {"thread": {"id": "t2", "parentThreadId": "t1"}}}
    bench.say(child)
    assert bench.lines == [(["s1"], [child])]
    bench.say(started("own", "t2", rootTurnId="u1"), delta("own", "t2"))
    assert bench.routed(wire.TurnStarted) == [wire.TurnStarted("t2", "own", [sid("s1")])]
    bench.say({"id": 3, "method": "item/commandExecution/requestApproval", "params": {"threadId": "t2"}})
    assert bench.lines[-1][0] == ["s1"]
    bench.apply(bench.core.broker_message(wire.Follow(sid("s2"), "t1"), [], bench.now))
    bench.complete("own", "t2")
    bench.say(started("next", "t2"))
    assert bench.routed(wire.TurnStarted)[-1] == wire.TurnStarted("t2", "next", [sid("s1"), sid("s2")], by_itself=True)
    bench.complete("next", "t2")
    bench.notify("thread/closed", threadId="t2")
    bench.say(started("last", "t2"))
    assert bench.routed(wire.TurnStarted)[-1].sessions == []


def test_a_sub_agent_that_starts_its_turn_in_the_same_read(bench: Bench) -> None:
    bench.thread()
    child = {"method": "thread/started", "params": {"thread": {"id": "t2", "parentThreadId": "t1"}}}
    bench.say(child, started("own", "t2", rootTurnId="u1"), delta("own", "t2"))
    assert bench.lines == [(["s1"], [child])]
    assert bench.routed(wire.TurnStarted) == [wire.TurnStarted("t2", "own", [sid("s1")])]
    assert bench.methods("s1", "own")[1:] == ["turn/started", "item/agentMessage/delta"]


def test_a_thread_of_nobodys_is_told_to_nobody(bench: Bench) -> None:
    for parent in ("t9", None):
        bench.say({"method": "thread/started", "params": {"thread": {"id": "t2", "parentThreadId": parent}}})
    bench.say({"method": "thread/started", "params": {"thread": 1}})
    assert bench.lines == [] and bench.core.loaded_threads == 0


# Joining.


def test_another_session_joins_a_running_turn_from_where_it_is(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    bench.delta("u1")
    params = {"threadId": "t1", "turnId": "u1", "interest": "items"}
    call = bench.dispatch("pool/turn/follow", params, session="s2")
    assert bench.answered[call][1] == {"id": f"c{call}", "result": {}}
    bench.say(delta("u1"), item("u1"))
    bench.complete("u1")
    assert bench.methods("s2", "u1") == ["item/completed", "turn/completed"]
    assert bench.events["s2", "u1"][0][0].after == 2
    bench.gone("s1")
    assert bench.check_numbers("s1", "u1") == bench.check_numbers("s2", "u1") == 5


def test_a_turn_goes_on_as_long_as_anybody_follows_it(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    bench.dispatch("pool/turn/follow", {"threadId": "t1", "turnId": "u1"}, session="s2")
    bench.gone("s1")
    assert bench.open == {}
    bench.gone("s2")
    assert bench.open[bench.request("turn/interrupt")]


@pytest.mark.parametrize("params", [{"turnId": "u9"}, {}, {"turnId": "u1", "threadId": "t2"}, {"turnId": 7}])
def test_a_turn_that_does_not_run_cannot_be_joined(bench: Bench, params: dict[str, Any]) -> None:
    bench.thread()
    bench.turn("u1")
    call = bench.dispatch("pool/turn/follow", {"threadId": "t1", **params}, session="s2")
    error = bench.answered[call][1]["error"]
    assert error["code"] == -32600 and "does not run here" in error["message"]


# Sessions that are gone, their turns kept or not.


def test_turns_that_are_kept_go_on_to_their_end_unfollowed(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    starting = bench.dispatch("turn/start", {"threadId": "t2"})
    ask = {"id": 0, "method": "item/commandExecution/requestApproval", "params": {"threadId": "t1", "turnId": "u1"}}
    bench.say(ask)
    bench.apply(bench.core.broker_message(wire.SessionGone(sid("s1"), keep=True), [], bench.now))
    bench.answer(bench.request("turn/start"), {"turn": {"id": "u2"}})
    assert bench.answered[starting][0].ok and bench.open == {}
    before = len(bench.events)
    bench.complete("u1")
    bench.complete("u2", "t2")
    assert len(bench.events) == before
    assert [each.status for each in bench.routed(wire.TurnEnded)] == ["completed", "completed"]
    assert bench.core.held["subscriptions"] == bench.core.held["server_requests"] == 0
    assert {"id": 0, "result": {"decision": "decline"}} not in bench.sent, "it was kept with the turn"


def test_a_question_moves_to_somebody_else_who_follows(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    bench.dispatch("pool/turn/follow", {"threadId": "t1", "turnId": "u1"}, session="s2")
    params = {"threadId": "t1", "turnId": "u1"}
    bench.say({"id": 0, "method": "item/commandExecution/requestApproval", "params": params})
    assert bench.lines[-1][0] == ["s1"]
    bench.gone("s1")
    assert bench.lines[-1][0] == ["s2"] and bench.lines[-1][1][0]["id"] == "w0/0"


def test_questions_without_a_thread_go_to_the_holder_of_the_account(bench: Bench) -> None:
    ask = {"id": 0, "method": "attestation/generate", "params": {}}
    bench.say(ask)
    assert "error" in bench.sent[-1]
    bench.apply(bench.core.broker_message(wire.DefaultSession(sid("s3")), [], bench.now))
    bench.say({**ask, "id": 1})
    assert bench.lines[-1] == (["s3"], [{**ask, "id": "w0/1"}])
    bench.gone("s3")
    assert bench.sent[-1]["id"] == 1 and "error" in bench.sent[-1]


# Watchdogs.


def status_changed(kind: str) -> dict[str, Any]:
    return {"method": "thread/status/changed", "params": {"threadId": "t1", "status": {"type": kind}}}


def test_a_turn_whose_end_has_another_name_ends_once_its_thread_is_idle(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    bench.say(status_changed("idle"), delta("u1"))
    run_for(bench, int(END_LIMIT_S) + 1)
    # The line that came after it shows that the turn went on.
    assert bench.routed(wire.TurnEnded) == []
    bench.say(status_changed("idle"))
    bench.say({"method": "turn/finished", "params": {"threadId": "t1", "turn": {"id": "u1", "status": "completed"}}})
    run_for(bench, int(END_LIMIT_S) - 1)
    assert bench.routed(wire.TurnEnded) == []
    run_for(bench, 2)
    assert bench.ended() == [("t1", "u1", "stalled", [sid("s1")])]
    (ended,) = [each["params"] for each in bench.received["s1"] if each["method"] == "pool/turn/ended"]
    assert f"its thread has been idle for {END_LIMIT_S:g} s" in ended["message"]
    assert ended["message"].endswith(f"this SDK was made for {RUNTIME_VERSION}")
    assert bench.core.held["turns"] == 0


def run_for(bench: Bench, seconds: int) -> None:
    """Time passes while the app-server is there, but says nothing of its turns."""
    for _ in range(seconds):
        bench.tick(1)
        for number, message in list(bench.open.items()):
            if message["method"] == "thread/loaded/list":
                bench.answer(number, {})


def test_a_turn_that_comes_to_a_standstill_is_interrupted_and_then_given_up() -> None:
    bench = Bench(turn_idle_limit_s=100).start()
    bench.thread()
    bench.turn("u1")
    run_for(bench, 50)
    bench.delta("u1")
    run_for(bench, 99)
    assert bench.open == {}
    run_for(bench, 1)
    interrupt = bench.open[bench.request("turn/interrupt")]
    assert interrupt["params"]["turnId"] == "u1"
    bench.answer(interrupt["id"], {})
    run_for(bench, int(STALL_LIMIT_S))
    assert bench.methods("s1", "u1")[-2:] == ["pool/turn/ended", "turn/completed"]
    ended = bench.events["s1", "u1"][-1][1][0]["params"]
    assert ended["kind"] == "stalled" and ended["safeToRetry"] is False
    assert "nothing was heard of it for 100 s" in ended["message"]
    assert bench.ended() == [("t1", "u1", "stalled", [sid("s1")])]
    bench.complete("u1")
    assert len(bench.routed(wire.TurnEnded)) == 1 and bench.methods("s1", "u1").count("turn/completed") == 1


def test_a_thread_that_still_runs_a_turn_that_was_given_up_takes_no_other() -> None:
    """The app-server would have a new one join it, and never end."""
    bench = Bench(turn_idle_limit_s=1).start()
    bench.thread()
    bench.turn("u1")
    run_for(bench, 12)
    call = bench.turn("u1")
    error = bench.answered[call][1]["error"]
    assert error["code"] == -32603 and "still runs turn u1" in error["message"]
    assert len(bench.routed(wire.TurnStarted)) == 1


def test_an_open_item_or_question_pauses_the_watchdog() -> None:
    bench = Bench(turn_idle_limit_s=10).start()
    bench.thread()
    bench.turn("u1")
    bench.say(item_started("u1", "i"), item_started("u1", "j"))
    bench.say(item("u1"))
    run_for(bench, 100)
    assert bench.open == {}
    bench.say({"id": 0, "method": "item/tool/requestUserInput", "params": {"threadId": "t1", "turnId": "u1"}})
    done = item("u1")
    done["params"]["item"]["id"] = "j"
    bench.say(done)
    run_for(bench, 100)
    assert bench.open == {}
    bench.apply(
        bench.core.broker_message(wire.ServerRequestAnswer(sid("s1")), [b'{"id":"w0/0","result":{}}'], bench.now)
    )
    run_for(bench, 9)
    assert bench.open == {}
    run_for(bench, 1)
    assert bench.open[bench.request("turn/interrupt")]


def retried(turn_id: str, message: str = "Reconnecting... waiting for network") -> dict[str, Any]:
    info = {"responseStreamDisconnected": {"httpStatusCode": None}}
    error = {"message": message, "codexErrorInfo": info, "additionalDetails": "Connection failed"}
    return {"method": "error", "params": {"threadId": "t1", "turnId": turn_id, "willRetry": True, "error": error}}


def item_of_kind(turn_id: str, kind: str) -> dict[str, Any]:
    line = item_started(turn_id, kind)
    line["params"]["item"]["type"] = kind
    return line


@pytest.mark.parametrize("is_open", ["", "agentMessage", "reasoning", "plan", "contextCompaction", "webSearch", "new"])
def test_an_error_that_is_retried_is_silence_and_ends_what_was_streamed(is_open: str) -> None:
    bench = Bench(turn_idle_limit_s=10).start()
    bench.thread()
    bench.turn("u1")
    if is_open:
        bench.say(item_of_kind("u1", is_open))
    bench.say(retried("u1", "Reconnecting... 1/5"))
    for _ in range(9):
        run_for(bench, 1)
        bench.say(retried("u1"))
    assert bench.open == {}
    run_for(bench, 1)
    bench.answer(bench.request("turn/interrupt"), {})
    bench.complete("u1", status="interrupted")
    ended, completed = [line for _, lines in bench.events["s1", "u1"] for line in lines][-2:]
    assert ended["params"]["message"].endswith(
        "nothing was heard of it for 10 s; its last error: Reconnecting... waiting for network: Connection failed"
    )
    assert ended["params"]["lastError"] == retried("u1")["params"]
    error = completed["params"]["turn"]["error"]
    assert error["message"] == ended["params"]["message"] and error["additionalDetails"] == "stalled"
    assert error["codexErrorInfo"] == {"responseStreamDisconnected": {"httpStatusCode": None}}


@pytest.mark.parametrize("tool", ["commandExecution", "fileChange", "mcpToolCall", "dynamicToolCall", "sleep"])
def test_a_tool_goes_on_while_the_stream_is_cut(tool: str) -> None:
    bench = Bench(turn_idle_limit_s=10).start()
    bench.thread()
    bench.turn("u1")
    bench.say(item_of_kind("u1", tool), retried("u1"))
    run_for(bench, 100)
    assert bench.open == {}


def test_the_wall_limit_does_not_pause() -> None:
    bench = Bench(turn_idle_limit_s=None, turn_wall_limit_s=50).start()
    bench.thread()
    bench.turn("u1")
    bench.say(item_started("u1"))
    for _ in range(49):
        run_for(bench, 1)
        bench.delta("u1")
    assert bench.open == {}
    run_for(bench, 1)
    bench.answer(bench.request("turn/interrupt"), {})
    bench.complete("u1", status="interrupted")
    run_for(bench, 20)
    assert bench.ended() == [("t1", "u1", "stalled", [sid("s1")])]
    assert bench.methods("s1", "u1")[-2:] == ["pool/turn/ended", "turn/completed"]
    ended, completed = (line["params"] for line in bench.events["s1", "u1"][-1][1][-2:])
    assert ended["kind"] == "stalled" and "it ran for 50 s, which is its limit" in ended["message"]
    turn = completed["turn"]
    assert (turn["status"], turn["error"]["message"]) == ("failed", ended["message"])
    assert turn["error"]["additionalDetails"] == "stalled"
    assert any("it ran for 50 s, which is its limit" in note for note in bench.notes)


# Threads that are carried from one worker to another.


def test_a_thread_is_put_away_without_a_word_to_its_followers(bench: Bench) -> None:
    bench.thread()
    bench.apply(bench.core.broker_message(wire.Release(900, "t1"), [], bench.now))
    (archive,) = bench.open.values()
    assert (archive["method"], archive["params"]) == ("thread/archive", {"threadId": "t1"})
    bench.notify("thread/archived", threadId="t1")
    bench.notify("thread/closed", threadId="t1")
    bench.answer(archive["id"], {})
    assert 900 not in bench.answered and bench.core.loaded_threads == 0
    bench.answer(bench.request("thread/unarchive"), {})
    assert bench.answered[900] == (wire.Answered(900, True), {"id": None, "result": {}})
    assert bench.lines == [] and bench.routed(wire.ThreadGone) == []
    assert bench.core.loaded_threads == 0 and bench.new_broker().records == []
    bench.apply(bench.core.broker_message(wire.Release(901, "t1"), [], bench.now))
    assert bench.answered[901][0].ok and bench.open == {}, "it is not here any more: who wants it can have it"


def test_a_thread_that_cannot_be_put_away_stays(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1")
    bench.apply(bench.core.broker_message(wire.Release(900, "t1"), [], bench.now))
    assert not bench.answered[900][0].ok and bench.open == {}
    bench.complete("u1")
    bench.apply(bench.core.broker_message(wire.Release(901, "t1"), [], bench.now))
    bench.answer(bench.request("thread/archive"), error="no")
    answered, line = bench.answered[901]
    assert not answered.ok and line["error"]["message"] == "no"
    assert bench.core.loaded_threads == 1 and bench.core.held["leaving"] == 0
    bench.notify("thread/status/changed", threadId="t1", status={})
    assert bench.lines[-1][0] == ["s1"]


def test_a_broker_that_comes_while_a_thread_is_put_away_learns_that_it_is_gone(bench: Bench) -> None:
    bench.thread()
    bench.apply(bench.core.broker_message(wire.Release(900, "t1"), [], bench.now))
    assert len(bench.new_broker().records) == 1
    bench.answer(bench.request("thread/archive"), {})
    bench.answer(bench.request("thread/unarchive"), {})
    assert 900 not in bench.answered and bench.routed(wire.ThreadGone) == [wire.ThreadGone("t1", keep=True)]


@pytest.mark.parametrize("in_archive", [True, False])
def test_a_thread_that_was_put_away_is_taken_out_of_the_archive_first(bench: Bench, in_archive: bool) -> None:
    call = bench.dispatch("thread/read", {"threadId": "t9"}, adopt=record(), archived=True)
    bench.apply(bench.core.broker_message(wire.Follow(sid("s1"), "t9"), [], bench.now))
    (unarchive,) = bench.open.values()
    assert (unarchive["method"], unarchive["params"]) == ("thread/unarchive", {"threadId": "t9"})
    bench.notify("thread/unarchived", threadId="t9")
    bench.answer(unarchive["id"], {}, error=None if in_archive else "it is in no archive")
    bench.answer(bench.request("thread/resume"), thread_result("t9", sandbox=WORKSPACE_WRITE))
    assert [message["method"] for message in bench.open.values()] == ["thread/name/set", "thread/read"]
    bench.answer(bench.request("thread/read"), {})
    assert bench.answered[call][0].ok and bench.lines == []


def test_an_archive_that_a_client_asked_for_is_told(bench: Bench) -> None:
    bench.thread()
    bench.dispatch("thread/archive", {"threadId": "t1"})
    bench.notify("thread/archived", threadId="t1")
    assert bench.lines[-1][1][0]["method"] == "thread/archived"


# The account's limit.


def error(info: Any) -> dict[str, Any]:
    params = {"threadId": "t1", "turnId": "u1", "willRetry": False, "error": {"message": "x", "codexErrorInfo": info}}
    return {"method": "error", "params": params}


@pytest.mark.parametrize(
    ("info", "kind"),
    [
        ("usageLimitExceeded", "usageLimitExceeded"),
        ("rateLimitExceeded", "rateLimitExceeded"),
        ({"responseTooManyFailedAttempts": {"httpStatusCode": 429}}, "responseTooManyFailedAttempts 429"),
        ({"httpConnectionFailed": {"httpStatusCode": 429}}, "httpConnectionFailed 429"),
        ({"httpConnectionFailed": {"httpStatusCode": 500}}, None),
        ({"activeTurnNotSteerable": {"turnKind": "review"}}, None),
        ("serverOverloaded", None),
        (None, None),
        ({"odd": 1}, None),
    ],
)
def test_errors_that_say_that_the_limit_was_met_are_told_to_the_broker(
    bench: Bench, info: Any, kind: str | None
) -> None:
    bench.thread()
    bench.turn("u1")
    bench.say(error(info))
    assert [limited.kind for limited in bench.routed(wire.Limited)] == ([kind] if kind else [])
    failed = completed("u1", status="failed")
    failed["params"]["turn"]["error"] = {"message": "x", "codexErrorInfo": info}
    bench.say(failed)
    assert len(bench.routed(wire.Limited)) == (2 if kind else 0)


def test_a_window_that_is_used_up_is_told_with_its_end(bench: Bench) -> None:
    def update(primary: int, secondary: int) -> None:
        limits = {"limitId": "codex", "primary": {"usedPercent": primary, "resetsAt": 1000}}
        bench.notify(
            "account/rateLimits/updated",
            rateLimits={**limits, "secondary": {"usedPercent": secondary, "resetsAt": 2000}},
        )

    update(99, 50)
    assert bench.routed(wire.Limited) == []
    update(100, 50)
    update(100, 100)
    bench.notify("account/rateLimits/updated", rateLimits={})
    bench.notify("account/rateLimits/updated", rateLimits=7)
    assert bench.routed(wire.Limited) == [
        wire.Limited("rate limit codex", 1000),
        wire.Limited("rate limit codex", 2000),
    ]


# Flow.


def test_a_session_that_does_not_read_ends_its_subscription_and_not_the_turn() -> None:
    bench = Bench(limits=Limits(window=1000, waiting=2000, overflow=20_000)).start()
    bench.thread()
    bench.turn("u1")
    bench.dispatch("pool/turn/follow", {"threadId": "t1", "turnId": "u1"}, session="s2")
    for _ in range(100):
        bench.say(item("u1"))
        last = bench.events["s2", "u1"][-1][0].last
        bench.apply(bench.core.broker_message(wire.Acked(sid("s2"), [wire.Position("u1", last)]), [], bench.now))
    assert bench.core.running_turns == 1 and bench.open == {}
    while "turn/completed" not in bench.methods("s1", "u1"):
        bench.ack()
    assert bench.events["s1", "u1"][-1][1][0]["params"]["kind"] == "overflow"
    bench.complete("u1")
    assert bench.methods("s2", "u1")[-1] == "turn/completed" and bench.check_numbers("s2", "u1") == 102


def test_what_the_worker_did_is_counted_for_the_supervisor(bench: Bench) -> None:
    assert (bench.core.finished_turns, bench.core.loaded_threads) == (0, 0)
    bench.thread()
    bench.thread("t2")
    bench.turn("u1")
    bench.complete("u1")
    bench.notify("thread/closed", threadId="t2")
    assert (bench.core.finished_turns, bench.core.loaded_threads) == (1, 1)


def test_a_question_too_long_to_pass_on_is_declined(bench: Bench) -> None:
    from codex_app_server._protocol.framing import LongLine

    head = b'{"id":5,"method":"item/commandExecution/requestApproval","params":{"threadId":"t1","x":"'
    bench.apply(bench.core.lines([LongLine(head, b'"}}', 10**8)], bench.now))
    assert bench.sent[-1] == {"id": 5, "result": {"decision": "decline"}}
    assert any("beyond the size cap" in note for note in bench.notes)


# Turns that nobody reads along.


def test_what_nobody_reads_along_is_sent_at_the_next_tick_and_at_the_end(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1", interest="items")
    bench.say(started("u1"))
    bench.delta("u1")
    bench.say(item("u1"))
    assert bench.events["s1", "u1"] == [] and bench.core.wants_tick
    bench.tick(0.1)
    ((head, lines),) = bench.events["s1", "u1"]
    assert [line["method"] for line in lines] == ["pool/turn/assigned", "turn/started", "item/completed"]
    assert (head.after, head.last, head.ended) == (0, 4, False) and not bench.core.wants_tick
    bench.delta("u1")
    bench.say(item("u1"))
    bench.complete("u1")
    assert len(bench.events["s1", "u1"]) == 2, "the end goes at once, with all that was held"
    assert bench.check_numbers("s1", "u1") == 7
    bench.ack()
    assert not any(bench.core.held.values()), bench.core.held


def test_how_every_turn_begins_waits_longer(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1", interest="items")
    own = {"item": {"type": "userMessage", "id": "i"}, "threadId": "t1", "turnId": "u1"}
    bench.say(started("u1"), {"method": "item/started", "params": own}, {"method": "item/completed", "params": own})
    bench.delta("u1")
    bench.tick(0.1)
    assert bench.events["s1", "u1"] == [] and not bench.core.wants_tick
    bench.tick(0.8)
    assert bench.events["s1", "u1"] == []
    bench.tick(0.2)
    assert bench.methods("s1", "u1") == ["pool/turn/assigned", "turn/started", "item/started", "item/completed"]
    bench.complete("u1")
    assert bench.check_numbers("s1", "u1") == 6


def test_there_is_no_hurry_while_turns_run_and_nobody_reads_along(bench: Bench) -> None:
    bench.thread()
    assert not bench.core.has_no_readers, "whoever asks waits for the answer"
    bench.turn("u1", interest="items")
    assert bench.core.has_no_readers
    bench.dispatch("pool/turn/follow", {"threadId": "t1", "turnId": "u1"}, session="s2")
    assert not bench.core.has_no_readers
    bench.complete("u1")
    assert not bench.core.has_no_readers


def test_what_is_held_has_a_bound(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1", interest="final")
    bench.delta("u1", text="x" * HELD_BYTES)
    assert bench.check_numbers("s1", "u1") == 2, "the first notification and a delta that it does not want"


def test_who_joins_to_read_along_gets_what_comes_from_then_on_and_at_once(bench: Bench) -> None:
    bench.thread()
    bench.turn("u1", interest="items")
    bench.say(item("u1"))
    bench.dispatch("pool/turn/follow", {"threadId": "t1", "turnId": "u1"}, session="s2")
    assert bench.check_numbers("s1", "u1") == 2 and bench.events["s2", "u1"] == []
    bench.delta("u1")
    assert bench.methods("s2", "u1") == ["item/agentMessage/delta"]
    ((head, _),) = bench.events["s2", "u1"]
    assert (head.after, head.last) == (2, 3)
    bench.gone("s2")
    bench.delta("u1")
    bench.complete("u1")
    assert bench.check_numbers("s1", "u1") == 5


def test_what_is_said_of_threads_that_nobody_reads_along_waits_in_order(bench: Bench) -> None:
    def status(thread_id: str, kind: str) -> dict[str, Any]:
        return {"method": "thread/status/changed", "params": {"threadId": thread_id, "status": {"type": kind}}}

    def started(thread_id: str) -> dict[str, Any]:
        return {"method": "thread/started", "params": {"thread": {"id": thread_id}}}

    def told(line: dict[str, Any]) -> tuple[str, str]:
        params = line["params"]
        if line["method"] == "thread/started":
            return params["thread"]["id"], line["method"]
        return params["threadId"], params["status"]["type"]

    for thread_id in ("t1", "t2"):
        bench.thread(thread_id)
        bench.turn(f"u-{thread_id}", thread_id, interest="items")
        bench.say(started(thread_id), status(thread_id, "active"))
    assert bench.lines == []
    # Who hears of an end is awake.
    bench.complete("u-t1", "t1")
    ((sessions, lines),) = bench.lines
    assert sessions == ["s1"] and [told(line) for line in lines] == [
        ("t1", "thread/started"),
        ("t1", "active"),
        ("t2", "thread/started"),
        ("t2", "active"),
    ]
    bench.say(status("t1", "idle"))
    assert bench.lines[1:] == []
    bench.tick(0.1)
    assert [told(line) for line in bench.lines[1][1]] == [("t1", "idle")]
    # Of a thread that somebody reads along it is told at once, and what waited comes before it.
    bench.say(status("t2", "idle"))
    bench.thread("t3")
    # The answer to the start of a thread has said that it is there.
    bench.say(started("t3"))
    assert bench.lines[2:] == []
    bench.say(status("t3", "idle"))
    assert [told(line) for line in bench.lines[2][1]] == [("t2", "idle"), ("t3", "thread/started"), ("t3", "idle")]
