"""Changes of what every app-server has in memory: one at a time, checked, and given to those who come later."""

from __future__ import annotations

import json
from typing import Any

import pytest
from broker_bench import THREAD_LOST, Bench, FakeWorker, encode, total_held
from session_ids import sid

from codex_pool.auth.policy import AccessPolicy, Counts, Refusal
from codex_pool.auth.principal import Identity
from codex_pool.broker import change_kinds, external_tokens, replayed_requests, shared_changes
from codex_pool.broker.core import BrokerCore
from codex_pool.protocol import wire

LOGIN, LOGOUT, READ = "account/login/start", "account/logout", "account/read"
KEY = {"type": "apiKey", "apiKey": "sk-1"}
EXTERNAL = {"type": "chatgptAuthTokens", "accessToken": "token-1", "chatgptAccountId": "a", "chatgptPlanType": "pro"}
EVERYWHERE = [("w0", LOGIN), ("w0", READ), ("w1", LOGIN), ("w1", READ)]


@pytest.fixture
def bench() -> Bench:
    """Two workers, one client."""
    bench = Bench()
    for slot in range(2):
        bench.register(f"w{slot}", slot)
    bench.hello()
    bench.now += 1
    return bench


def updated(mode: str | None) -> dict[str, Any]:
    return {"method": "account/updated", "params": {"authMode": mode, "planType": None}}


def next_broker(bench: Bench) -> None:
    """The broker dies; its workers come to the next one, which knows what the supervisor tells it."""
    changed_at, under_way = bench.account
    bench.now += 1
    bench.renewals = {}
    bench.core = BrokerCore(
        slots=bench.slots,
        turns_per_worker=bench.turns_per_worker,
        now=bench.now,
        expect=bench.workers,
        changed_at=bench.now if under_way else changed_at,
    )
    for slot, (name, worker) in enumerate(bench.workers.items()):
        worker.applies.clear()
        kept = [encode(line) for line in worker.kept]
        kept_at = worker.current.replayed_at if worker.current is not None else 0.0
        holdings = wire.encode_worker_state(wire.WorkerState([], replayed_requests=kept, replayed_at=kept_at))
        bench.register(name, slot, holdings=holdings, connection=f"{name}/{bench.now}")


# The account.


def test_a_log_in_is_applied_to_one_after_the_other_and_checked_and_told_once(bench: Bench) -> None:
    call = bench.call(LOGIN, KEY)
    assert bench.account == (0.0, True), "the supervisor knows before anything has changed"
    assert bench.apply_all() == EVERYWHERE
    assert bench.answers[call] == [{"id": call[1], "result": {}}]
    assert [message for _, message in bench.notices] == [updated("apiKey")]
    assert bench.account == (bench.now, False) and bench.renewals == {}
    assert all(worker.as_of == bench.now for worker in bench.workers.values())
    assert bench.core.state.account.session == sid("s1") and total_held(bench) == 0


def test_what_comes_meanwhile_waits_in_its_order(bench: Bench) -> None:
    first, second = bench.workers.values()
    calls = [bench.call(LOGIN, {**KEY, "apiKey": key}) for key in ("a", "b")]
    read, out = bench.call(READ), bench.call(LOGOUT)
    assert first.open == second.open == {}
    while not first.open:
        bench.apply_one(first if first.applies else second)
    assert [call in bench.answers for call in (*calls, read, out)] == [True, True, False, False]
    assert (first.account, second.account) == ("b", "b")
    assert bench.apply_all() == [("w0", LOGOUT), ("w0", READ), ("w1", LOGOUT), ("w1", READ)], "a read holds nobody up"
    bench.answer_all(first)
    assert read in bench.answers and out in bench.answers and total_held(bench) == 0


def test_one_that_does_not_agree_is_tried_again_and_then_nobody_is_trusted(bench: Bench) -> None:
    call = bench.call(LOGIN, KEY)
    first, second = bench.workers.values()
    bench.apply_one(first)
    bench.apply_one(first, {"result": {"account": None, "requiresOpenaiAuth": True}})
    assert bench.apply_one(first) == LOGIN, "once more"
    bench.apply_one(first)
    for _ in range(shared_changes.MAX_TRIES):
        bench.apply_one(second)
        bench.apply_one(second, {"result": {"account": None, "requiresOpenaiAuth": True}})
    error = bench.error(call)
    assert "w1 is not logged in" in error["message"] and "repeat the request" in error["message"]
    assert error["data"]["safeToRetry"] and set(bench.renewals) == {"w0", "w1"}
    assert bench.account == (bench.now, False) and total_held(bench) == 0


def test_what_is_refused_at_once_changes_nothing(bench: Bench) -> None:
    call = bench.call(LOGIN, KEY)
    bench.apply_one(bench.workers["w0"], {"error": {"code": -32600, "message": "API key login is disabled"}})
    assert bench.error(call)["message"] == "API key login is disabled"
    assert bench.account == (0.0, False) and bench.renewals == {} and not bench.workers["w1"].applies


def test_what_fails_in_the_middle_of_the_first_leaves_nobody_trusted(bench: Bench) -> None:
    call = bench.call(LOGOUT)
    bench.apply_one(bench.workers["w0"], {"error": {"code": -32603, "message": "disk full"}})
    assert "disk full" in bench.error(call)["message"] and set(bench.renewals) == {"w0", "w1"}


def test_a_worker_that_is_wedged_is_renewed_and_the_change_goes_on(bench: Bench) -> None:
    call = bench.call(LOGIN, KEY)
    bench.beat(shared_changes.STEP_LIMIT_S + 2, "s1")
    assert "has not answered" in bench.renewals["w0"] and bench.workers["w1"].applies
    bench.workers["w0"].applies.clear()
    assert bench.apply_all() == EVERYWHERE[2:] and "result" in bench.answers[call][0]
    turn = bench.call("thread/start")
    assert bench.dispatches(turn)[0][0] == "w1"


def test_a_wedged_worker_is_to_be_renewed_for_the_next_broker_too(bench: Bench) -> None:
    bench.call("config/value/write", {"keyPath": "model", "value": "x", "mergeStrategy": "replace"})
    bench.beat(shared_changes.STEP_LIMIT_S + 2, "s1")
    assert "has not answered" in bench.renewals["w0"]
    next_broker(bench)
    assert set(bench.renewals) == {"w0"} and bench.status()["workers"][0]["state"] == "stale"


def test_a_worker_that_dies_in_the_middle_is_not_waited_for(bench: Bench) -> None:
    call = bench.call(LOGIN, KEY)
    bench.lose(bench.workers["w0"])
    assert bench.apply_all() == EVERYWHERE[2:] and "result" in bench.answers[call][0]


def test_a_change_waits_for_a_worker_and_who_registers_meanwhile_takes_part(bench: Bench) -> None:
    for worker in bench.workers.values():
        bench.lose(worker)
    call = bench.call(LOGIN, KEY)
    late = bench.spawn("w1.2")
    new = bench.register("w0.2", 0)
    bench.apply_one(new)
    bench.register("w1.2", 1)
    assert bench.apply_all() == [("w0.2", READ), ("w1.2", LOGIN), ("w1.2", READ)] and late.account == "sk-1"
    assert "result" in bench.answers[call][0]


def test_turns_that_run_are_not_failed_by_a_change(bench: Bench) -> None:
    for name in ("t1", "t2"):
        bench.thread(name)
    busy, turn = bench.turn("t1")
    free = next(each for each in bench.workers.values() if each is not busy)
    call = bench.call(LOGIN, KEY)
    assert {name for name, _ in bench.apply_all()} == {free.name}
    assert call in bench.answers and set(bench.renewals) == {busy.name}
    bench.end(busy, turn)


def test_a_turn_goes_last_to_where_a_log_in_is_under_way(bench: Bench) -> None:
    worker = begun(bench)
    others = [bench.thread(f"t{number}") for number in range(2)]
    assert worker not in others


def test_who_was_starting_and_took_no_part_is_renewed_before_it_gets_a_turn(bench: Bench) -> None:
    bench.spawn("w0.2")
    bench.lose(bench.workers["w0"])
    bench.now += 1
    bench.call(LOGIN, KEY)
    bench.apply_all()
    bench.register("w0.2", 0)
    assert set(bench.renewals) == {"w0.2"} and bench.status()["workers"][0]["state"] == "stale"
    calls = [bench.call("thread/start") for _ in range(4)]
    assert {bench.dispatches(call)[0][0] for call in calls} == {"w1"}
    bench.renewals.clear()
    bench.beat(2, "s1")
    assert set(bench.renewals) == {"w0.2"}, "the supervisor is told again: it may not have heard it"
    bench.register("w0.3", 0)
    assert set(bench.renewals) == {"w0.2"}


def test_the_client_may_be_gone_or_ask_again(bench: Bench) -> None:
    bench.hello("s2")
    gone = bench.call(LOGIN, KEY, session="s2")
    bench.from_client(wire.Bye(), session="s2")
    assert bench.apply_all() == EVERYWHERE and gone not in bench.answers
    call = bench.call(LOGIN, KEY)
    bench.hello(connection="s1/2")
    bench.call(LOGIN, KEY, id=call[1], again=True)
    assert bench.apply_all() == EVERYWHERE
    bench.call(LOGIN, KEY, id=call[1], again=True)
    assert bench.apply_all() == [], "it is answered again, and not done again"
    assert bench.answers[call] == [{"id": call[1], "result": {}}] * 2 and total_held(bench) == 0


def test_an_answer_that_is_held_is_given_once_to_a_client_that_asks_again(bench: Bench) -> None:
    worker = bench.thread("t1")
    bench.call("turn/start", {"threadId": "t1"})
    call = bench.call("config/value/write", {"keyPath": "a", "value": 1})
    # It is not made in time: a turn is about to begin with what was before.
    for each in bench.workers.values():
        each.applies.clear()
    bench.beat(60, "s1")
    assert worker.name in bench.renewals and call not in bench.answers
    bench.hello(connection="s1/2")
    bench.call("config/value/write", {"keyPath": "a", "value": 1}, id=call[1], again=True)
    assert call not in bench.answers
    bench.answer_all(worker)
    assert len(bench.answers[call]) == 1
    bench.call("config/value/write", {"keyPath": "a", "value": 2}, id=call[1], again=True)
    assert bench.answers[call][1]["error"]["code"] == -32600 and not worker.applies


@pytest.mark.parametrize("also_applied", [False, True])
def test_another_request_cannot_have_the_id_of_a_change_that_runs(bench: Bench, also_applied: bool) -> None:
    call = bench.call(LOGIN, KEY)
    if also_applied:
        bench.apply_one(next(worker for worker in bench.workers.values() if worker.applies))
    bench.call(LOGOUT, {}, id=call[1])
    assert bench.error(call)["code"] == -32600
    bench.apply_all()
    assert [answer.get("result") for answer in bench.answers[call]] == [None, {}] and bench.stored == "sk-1"


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_a_broker_that_dies_in_the_middle_leaves_nobody_trusted(bench: Bench, steps: int) -> None:
    call = bench.call(LOGIN, KEY)
    for _ in range(steps):
        bench.apply_one(next(worker for worker in bench.workers.values() if worker.applies))
    next_broker(bench)
    assert set(bench.renewals) == (set() if steps == 4 else {"w0", "w1"})
    bench.hello(connection="s1/2")
    bench.call(LOGIN, KEY, id=call[1], again=True)
    if steps < 4:
        assert bench.apply_all() == [], "there is nobody to do it"
        bench.register("w0.2", 0)
    assert {method for _, method in bench.apply_all()} == {LOGIN, READ} and "result" in bench.answers[call][-1]


def test_a_worker_has_a_new_connection_in_the_middle(bench: Bench) -> None:
    call = bench.call(LOGIN, KEY)
    bench.register("w0", 0, connection="w0/2")
    assert bench.apply_all() == EVERYWHERE and "result" in bench.answers[call][0]
    bench.call(LOGOUT, id=call[1])
    assert len(bench.apply_all()) == 4, "an id may be used anew by who does not say again"


@pytest.mark.parametrize(("expect", "read", "told", "problem"), [
    ("in", {"account": {"type": "apiKey"}, "requiresOpenaiAuth": True}, [updated("apikey")], ""),
    ("in", {"account": None, "requiresOpenaiAuth": True}, [], "None"),
    ("in", {"account": None, "requiresOpenaiAuth": False}, [updated("apikey")], ""),
    ("in", {"account": None, "requiresOpenaiAuth": False}, [updated(None)], "authMode None"),
    ("out", {"account": None, "requiresOpenaiAuth": True}, [updated(None)], ""),
    ("out", {"account": {"type": "chatgpt"}, "requiresOpenaiAuth": True}, [], "chatgpt"),
    ("out", {"account": {"type": "amazonBedrock"}, "requiresOpenaiAuth": True}, [updated(None)], ""),
    ("out", {"account": None, "requiresOpenaiAuth": False}, [updated("apikey")], "apikey"),
    ("in", {"account": {"type": "chatgpt"}, "requiresOpenaiAuth": True},
     [{"method": "account/login/completed", "params": {"success": False, "error": "no routing"}}], "no routing"),
])  # fmt: skip
def test_the_signs_of_a_log_in(expect: Any, read: Any, told: list[Any], problem: str) -> None:
    found = change_kinds.differs(expect, encode({"id": 1, "result": read}), map(encode, told))
    assert problem in found and bool(found) == bool(problem)


# Log-ins that app-servers end by themselves.


def begun(bench: Bench) -> FakeWorker:
    """A log-in by browser that is under way on the worker that is returned."""
    call = bench.call(LOGIN, {"type": "chatgpt"})
    (worker,) = [worker for worker in bench.workers.values() if worker.open]
    bench.answer_with(worker, next(iter(worker.open)), {"id": call[1], "result": {"type": "chatgpt", "loginId": "l1"}})
    return worker


def ended(bench: Bench, worker: FakeWorker, *, success: bool = True) -> None:
    lines = [{"method": "account/login/completed", "params": {"loginId": "l1", "success": success, "error": None}}]
    lines += [updated("chatgpt")] if success else []
    body = b"\n".join(map(encode, lines))
    worker.as_of = bench.now if success else worker.as_of
    head = wire.LoginEnded("l1", [sid("s1")], changed=success)
    bench.from_worker(worker, head, wire.encode(wire.Lines()), body)


def test_after_a_log_in_elsewhere_threads_move_to_who_has_it_or_are_refused(bench: Bench) -> None:
    stored, pinned = bench.thread("t1"), bench.thread("t2", ephemeral=True)
    assert stored.name != pinned.name
    worker = begun(bench)
    other = next(each for each in bench.workers.values() if each is not worker)
    moved, refused = ("t1", "t2") if other is stored else ("t2", "t1")
    if other is pinned:
        bench.thread("t3")
    bench.now += 1
    ended(bench, worker)
    assert set(bench.renewals) == {other.name} and len(bench.notices) == 2
    call = bench.call("turn/start", {"threadId": moved if other is stored else "t2"})
    if other is stored:
        bench.put_away(other)
        assert bench.dispatches(call)[0][0] == worker.name
    else:
        error = bench.error(call)
        assert error["code"] == THREAD_LOST and "is ephemeral" in error["message"] and refused == "t1"


def test_a_goal_begins_no_turn_with_the_account_before(bench: Bench) -> None:
    for name in ("t1", "t2"):
        bench.thread(name)
    worker = begun(bench)
    other = next(each for each in bench.workers.values() if each is not worker)
    thread = next(iter(bench.core.state.workers[other.name].threads))
    for each in (worker, other):
        bench.from_worker(each, wire.TurnStarted(f"at {each.name}", f"runs at {each.name}", [], by_itself=True))
    bench.now += 1
    ended(bench, worker)
    started = wire.TurnStarted(thread, "next", [sid("s1")], by_itself=True)
    for each in (started, started, wire.TurnStarted("child", "of a turn that runs", [sid("s1")])):
        bench.from_worker(other, each)
    bench.from_worker(worker, wire.TurnStarted("t9", "new account", [], by_itself=True))
    found = [head for each in bench.workers.values() for head in each.heads if isinstance(head, wire.Interrupt)]
    assert found == [wire.Interrupt(thread, "next")]


def test_the_client_hears_of_a_log_in_once_no_turn_is_about_to_begin_with_the_account_before(bench: Bench) -> None:
    for name in ("t1", "t2"):
        bench.thread(name)
    worker = begun(bench)
    other = next(each for each in bench.workers.values() if each is not worker)
    thread = next(iter(bench.core.state.workers[other.name].threads))
    bench.call("turn/start", {"threadId": thread})
    (number,) = other.open
    bench.now += 1
    ended(bench, worker)
    assert bench.notices == []
    turn = bench.answer(other, number)
    assert [message["method"] for _, message in bench.notices] == ["account/login/completed", "account/updated"]
    assert turn is not None
    bench.end(other, turn)
    assert total_held(bench) == 0


def test_a_log_in_is_cancelled_where_it_is_and_a_second_one_takes_its_place(bench: Bench) -> None:
    worker = begun(bench)
    bench.call("account/login/cancel", {"loginId": "l1"})
    assert worker.methods == ["account/login/cancel"]
    bench.answer_all(worker)
    bench.call(LOGIN, {"type": "chatgptDeviceCode"})
    assert worker.methods == [LOGIN]


def test_a_log_in_fails_with_its_worker_and_one_that_failed_changes_nothing(bench: Bench) -> None:
    worker = begun(bench)
    bench.lose(worker)
    ((session, message),) = bench.notices
    assert session == "s1" and message["params"]["loginId"] == "l1" and not message["params"]["success"]
    bench.register("w0.2", 0)
    ended(bench, begun(bench), success=False)
    assert bench.renewals == {} and total_held(bench) == 0


def test_a_worker_with_a_log_in_under_way_has_not_drained(bench: Bench) -> None:
    worker = begun(bench)
    bench.drain(worker)
    assert bench.drained == []
    ended(bench, worker, success=False)
    assert bench.drained == [worker.name]


def test_the_next_broker_knows_of_log_ins(bench: Bench) -> None:
    worker = begun(bench)
    next_broker(bench)
    holdings = wire.encode_worker_state(wire.WorkerState([], logins={"l1": sid("s1")}))
    other = bench.register("w7", 0, holdings=holdings)
    bench.hello(connection="s1/2")
    bench.call("account/login/cancel", {"loginId": "l1"})
    assert other.methods == ["account/login/cancel"] and worker.open == {}
    bench.now += 1
    bench.register("w8", 1, as_of=bench.now, changed_at=bench.now)
    assert set(bench.renewals) == {"w0", "w1", "w7"}, "somebody has logged in on w8 while no broker was there"


# External tokens.


def ask_tokens(bench: Bench, worker: FakeWorker, number: int) -> None:
    line = encode({"id": f"{worker.name}/{number}", "method": "account/chatgptAuthTokens/refresh", "params": {}})
    bench.from_worker(worker, wire.TokensWanted(), line)


def test_new_tokens_are_asked_for_once_and_go_to_all(bench: Bench) -> None:
    first, second = bench.workers.values()
    bench.call(LOGIN, EXTERNAL)
    assert bench.apply_all() == EVERYWHERE
    ask_tokens(bench, first, 1)
    ask_tokens(bench, first, 2)
    ask_tokens(bench, second, 1)
    asked = [message for _, message in bench.notices if message["method"].endswith("refresh")]
    assert [message["id"] for message in asked] == ["tokens/1"]
    bench.now += 1
    new = {"accessToken": "token-2", "chatgptAccountId": "a", "chatgptPlanType": "pro"}
    bench.raw(encode({"id": "tokens/1", "result": new}))
    assert [(name, line["id"]) for name, line in bench.tells] == [("w0", "w0/1"), ("w0", "w0/2"), ("w1", "w1/1")]
    assert all(line["result"] == new for _, line in bench.tells)
    ask_tokens(bench, first, 3)
    assert bench.tells[-1] == ("w0", {"id": "w0/3", "result": new}), "it asks for what was refused before"
    third = bench.register("w2", 0)
    assert third.applies and "token-2" in json.dumps(third.applies)
    assert not bench.core.state.workers["w2"].takes_work
    bench.now += external_tokens.FRESH_S + 1
    ask_tokens(bench, second, 2)
    bench.raw(encode({"id": "tokens/2", "result": {**new, "accessToken": "token-3"}}))
    bench.apply_all()
    assert first.account == third.account == "token-3", "who has not asked has it too"
    assert not any("token-" in note for note in bench.notes) and total_held(bench) == 0


def test_a_question_for_tokens_follows_the_client_and_ends(bench: Bench) -> None:
    bench.call(LOGIN, EXTERNAL)
    bench.apply_all()
    worker = bench.workers["w0"]
    ask_tokens(bench, worker, 1)
    bench.hello(connection="s1/2")
    bench.beat(2, "s1")
    asked = [message["id"] for _, message in bench.notices if message["method"].endswith("refresh")]
    assert asked == ["tokens/1"] * 2
    bench.beat(external_tokens.LIMIT_S + 1, "s1")
    assert "error" in bench.tells[-1][1]
    bench.from_client(wire.Bye())
    ask_tokens(bench, worker, 2)
    assert "no client is there" in bench.tells[-1][1]["error"]["message"] and total_held(bench) == 0


def test_external_tokens_are_logged_out_of_by_new_app_servers(bench: Bench) -> None:
    bench.call(LOGIN, EXTERNAL)
    bench.apply_all()
    bench.now += 1
    out = bench.call(LOGOUT)
    assert bench.apply_all() == [] and set(bench.renewals) == {"w0", "w1"}
    assert all(worker.kept == [] for worker in bench.workers.values()), "no later broker hears of them"
    new = bench.register("w0.2", 0)
    assert bench.apply_all() == [("w0.2", READ)] and new.kept == []
    assert bench.answers[out] == [{"id": out[1], "result": {}}] and total_held(bench) == 0


# What no file keeps.


def test_settings_are_given_to_who_comes_later_before_it_gets_a_turn(bench: Bench) -> None:
    for number in range(3):
        bench.call("skills/extraRoots/set", {"extraRoots": [f"/{number}"]})
    bench.call("environment/add", {"environmentId": "e", "execServerUrl": "x"})
    bench.call("config/value/write", {"keyPath": "x"})
    bench.apply_all()
    bench.now += 1
    for worker in list(bench.workers.values()):
        bench.lose(worker)
    call = bench.call("thread/start")
    new = bench.register("w0.2", 0)
    assert new.open == {} and not bench.dispatches(call)
    assert bench.apply_all() == [("w0.2", "skills/extraRoots/set"), ("w0.2", "environment/add")]
    assert bench.dispatches(call) and next(line["params"] for line in new.kept) == {"extraRoots": ["/2"]}
    bench.workers = {"w0.2": new}
    new.open.clear()
    next_broker(bench)
    bench.hello(connection="s1/2")
    other = bench.register("w1.2", 1)
    assert bench.apply_all() == [("w1.2", "skills/extraRoots/set"), ("w1.2", "environment/add")]
    assert other.kept == new.kept and new.applies == {}


def test_a_setting_that_a_later_app_server_refuses_holds_nobody_up(bench: Bench) -> None:
    bench.call("environment/add", {"environmentId": "e", "execServerUrl": "x"})
    bench.apply_all()
    new = bench.register("w2", 1)
    bench.apply_one(new, {"error": {"code": -32600, "message": "not any more"}})
    assert "not any more" in bench.notes[-1] and total_held(bench) == 0
    assert bench.core.state.workers["w2"].takes_work


def test_who_has_drained_is_given_nothing_more(bench: Bench) -> None:
    worker = bench.workers["w0"]
    bench.drain(worker)
    bench.call("environment/add", {"environmentId": "e", "execServerUrl": "x"})
    bench.beat(2, "s1")
    assert bench.apply_all() == [("w1", "environment/add")] and total_held(bench) == 0


def test_what_is_kept_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replayed_requests, "MAX_KEPT", 2)
    calls = []
    for number in range(3):
        calls.append(bench.call("environment/add", {"environmentId": f"e{number}", "execServerUrl": "x"}))
        bench.apply_all()
    assert bench.error(calls[2])["code"] == -32001 and "limit" in bench.error(calls[2])["message"]
    bench.call("environment/add", {"environmentId": "e1", "execServerUrl": "y"})
    assert len(bench.apply_all()) == 2, "what is there already may change"


def test_a_write_with_a_version_is_checked_by_the_first_only(bench: Bench) -> None:
    call = bench.call("config/value/write", {"keyPath": "x", "expectedVersion": "v1"})
    first, second = bench.workers.values()
    assert "expectedVersion" in json.dumps(first.applies)
    bench.apply_one(first, {"result": {"version": "v2"}})
    assert "expectedVersion" not in json.dumps(second.applies)
    bench.apply_one(second, {"result": {"version": "v2"}})
    assert bench.answers[call] == [{"id": call[1], "result": {"version": "v2"}}]


def test_plugins_are_written_by_one_and_others_start_their_servers_again(bench: Bench) -> None:
    call = bench.call("plugin/install", {"pluginName": "p"})
    assert bench.apply_all() == [("w0", "plugin/install"), ("w1", "config/mcpServer/reload")]
    assert "result" in bench.answers[call][0] and bench.renewals == {}
    bench.call("mcpServer/oauth/login", {"name": "m"})
    worker = bench.workers["w0"]
    assert worker.methods == ["mcpServer/oauth/login"]
    bench.answer_all(worker)
    line = encode({"method": "mcpServer/oauthLogin/completed", "params": {"name": "m", "success": True}})
    bench.from_worker(worker, wire.LoginEnded("", [], changed=True, mcp=True), wire.encode(wire.Lines()), line)
    assert bench.apply_all() == [("w1", "config/mcpServer/reload")] and len(bench.notices) == 1
    bench.call("account/bedrock/setup", {})
    bench.now += 1
    assert bench.apply_all() == [("w0", "account/bedrock/setup")] and set(bench.renewals) == {"w1"}


@pytest.mark.parametrize("method", [LOGIN, LOGOUT, "account/login/cancel", "mcpServer/oauth/login", "plugin/install"])
def test_a_limited_client_changes_nothing_even_where_it_was_granted(method: str) -> None:
    for methods in ((), ("account/*", "mcpServer/*", "plugin/*")):
        policy = AccessPolicy([Identity(name="eve", methods=methods, sandbox="workspace-write")], realpath=str)
        assert isinstance(policy.check("eve", method, encode({"id": 1, "method": method}), None, Counts()), Refusal)
