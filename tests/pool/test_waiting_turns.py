"""Turns that wait for a person: what the worker reports of them, and what the broker does with their permits."""

from __future__ import annotations

from typing import Any

import broker_bench
import msgspec
import pytest
import worker_bench
from session_ids import sid

from codex_pool.protocol import wire

APPROVAL = "item/commandExecution/requestApproval"
DECLINED: dict[str, Any] = {
    APPROVAL: {"decision": "decline"},
    "item/fileChange/requestApproval": {"decision": "decline"},
    "item/permissions/requestApproval": {"permissions": {}},
    "item/tool/requestUserInput": {"answers": {}},
    "mcpServer/elicitation/request": {"action": "decline"},
}


@pytest.fixture
def worker() -> worker_bench.Bench:
    """A worker with a turn of session s1."""
    bench = worker_bench.Bench(turn_idle_limit_s=100, approval_timeout_s=3600).start()
    bench.thread()
    bench.turn("u1")
    return bench


def ask(bench: worker_bench.Bench, id: int = 7, method: str = APPROVAL, turn_id: str | None = "u1") -> None:
    bench.say({"id": id, "method": method, "params": {"threadId": "t1", "turnId": turn_id}})


def answer(bench: worker_bench.Bench, id: int = 7, session: str = "s1") -> None:
    line = msgspec.json.encode({"id": f"w0/{id}", "result": {"decision": "accept"}})
    bench.apply(bench.core.broker_message(wire.ServerRequestAnswer(sid(session)), [line], bench.now))


def keep_gone(bench: worker_bench.Bench, session: str = "s1") -> None:
    bench.apply(bench.core.broker_message(wire.SessionGone(sid(session), keep=True), [], bench.now))


def reports(bench: worker_bench.Bench) -> list[tuple[str, float | None]]:
    return [(each.turn_id, each.since) for each in bench.routed(wire.TurnWaits)]


# The worker.


@pytest.mark.parametrize("method", sorted(DECLINED))
def test_a_turn_waits_from_its_request_to_the_answer(worker: worker_bench.Bench, method: str) -> None:
    ask(worker, method=method)
    asked_at = worker.now
    assert reports(worker) == [("u1", asked_at)]
    worker.tick(5)
    assert reports(worker) == [("u1", asked_at)], "each change once"
    answer(worker)
    assert reports(worker) == [("u1", asked_at), ("u1", None)]


@pytest.mark.parametrize("method", ["item/tool/call", "attestation/generate"])
def test_what_a_program_answers_is_no_wait_for_a_person(worker: worker_bench.Bench, method: str) -> None:
    ask(worker, method=method)
    assert reports(worker) == []


def test_a_request_outside_of_a_turn_makes_no_turn_wait(worker: worker_bench.Bench) -> None:
    ask(worker, method="mcpServer/elicitation/request", turn_id=None)
    assert reports(worker) == []


def test_a_turn_with_two_requests_waits_until_both_are_answered(worker: worker_bench.Bench) -> None:
    ask(worker, 7)
    worker.tick(1)
    ask(worker, 8)
    answer(worker, 7)
    assert [since for _, since in reports(worker)] == [100.0, 101.0], "from the older one to the younger one"
    answer(worker, 8)
    assert reports(worker)[-1] == ("u1", None)


def test_the_end_of_a_turn_is_the_end_of_its_wait(worker: worker_bench.Bench) -> None:
    ask(worker)
    worker.complete("u1", status="interrupted")
    assert [since is None for _, since in reports(worker)] == [False], "TurnEnded says the rest"
    assert worker.core.held["server_requests"] == 0


def test_a_new_broker_is_told_which_turns_wait(worker: worker_bench.Bench) -> None:
    ask(worker)
    asked_at = worker.now
    worker.tick(3)
    (turn,) = worker.new_broker().turns
    assert (turn.turn_id, turn.waits_since) == ("u1", asked_at)


def test_the_idle_limit_does_not_run_while_a_person_thinks(worker: worker_bench.Bench) -> None:
    ask(worker)
    for _ in range(50):
        worker.tick(10)
    assert all(message["method"] != "turn/interrupt" for message in worker.open.values())
    answer(worker)
    for _ in range(11):
        worker.tick(10)
    assert worker.request("turn/interrupt")


@pytest.mark.parametrize("method", sorted(DECLINED))
def test_an_approval_that_nobody_can_give_is_declined_in_its_time(worker: worker_bench.Bench, method: str) -> None:
    ask(worker, method=method)
    keep_gone(worker)
    for _ in range(359):
        worker.tick(10)
    assert all(each.get("id") != 7 for each in worker.sent) and worker.core.held["server_requests"] == 1
    worker.tick(20)
    assert worker.sent[-1] == {"id": 7, "result": DECLINED[method]}
    assert reports(worker)[-1] == ("u1", None) and worker.core.held["server_requests"] == 0
    (note,) = [note for note in worker.notes if "declined" in note]
    assert method in note and "3600 s" in note and "approval_timeout_s" in note


def test_an_approval_that_comes_when_nobody_follows_waits_as_well(worker: worker_bench.Bench) -> None:
    keep_gone(worker)
    ask(worker)
    assert reports(worker) == [("u1", worker.now)] and all(each.get("id") != 7 for each in worker.sent)
    for _ in range(400):
        worker.tick(10)
    assert {"id": 7, "result": {"decision": "decline"}} in worker.sent


def test_the_clock_of_an_approval_stands_while_anybody_follows_its_turn(worker: worker_bench.Bench) -> None:
    ask(worker)
    for _ in range(400):
        worker.tick(10)
    keep_gone(worker)
    for _ in range(300):
        worker.tick(10)
    worker.dispatch("pool/turn/follow", {"threadId": "t1", "turnId": "u1"}, session="s2")
    for _ in range(400):
        worker.tick(10)
    keep_gone(worker, "s2")
    worker.tick(10)
    assert all(each.get("id") != 7 for each in worker.sent)
    for _ in range(400):
        worker.tick(10)
    assert {"id": 7, "result": {"decision": "decline"}} in worker.sent


def test_without_a_limit_an_approval_waits_for_good() -> None:
    bench = worker_bench.Bench(approval_timeout_s=None).start()
    bench.thread()
    bench.turn("u1")
    ask(bench)
    keep_gone(bench)
    bench.tick(1e6)
    bench.tick(1e6)
    assert bench.core.held["server_requests"] == 1


# The broker.


@pytest.fixture
def broker() -> broker_bench.Bench:
    """A broker with one worker, which runs one turn at a time, of at most two that wait."""
    return broker_of()


def broker_of(**options: Any) -> broker_bench.Bench:
    bench = broker_bench.Bench(slots=1, turns_per_worker=1, waiting_turns_per_worker=2, **options)
    bench.register()
    bench.hello()
    for number in range(1, 7):
        bench.thread(f"t{number}")
    return bench


def test_a_turn_that_waits_lets_the_next_one_start(broker: broker_bench.Bench) -> None:
    worker, first = broker.turn("t1")
    second = broker.call("turn/start", {"threadId": "t2"})
    assert broker.dispatches(second) == []
    broker.wait(worker, first)
    assert broker.dispatches(second), "it has the permit"
    broker.answer_all(worker)
    third = broker.call("turn/start", {"threadId": "t3"})
    broker.go_on(worker, first)
    assert not broker.dispatches(third), "two run now, one more than may"
    broker.end(worker, first)
    assert not broker.dispatches(third), "the one that runs has the permit"
    broker.end(worker, next(iter(worker.running)))
    assert broker.dispatches(third)
    assert broker.core.state.faults() == []


def test_turns_that_wait_beyond_the_bound_hold_permits(broker: broker_bench.Bench) -> None:
    worker = broker.workers["w0"]
    for number in (1, 2):
        _, turn_id = broker.turn(f"t{number}")
        broker.wait(worker, turn_id)
    _, third = broker.turn("t3")
    broker.wait(worker, third)
    fourth = broker.call("turn/start", {"threadId": "t4"})
    assert not broker.dispatches(fourth)
    assert [row["holdsPermit"] for row in broker.status()["turnsWaiting"]] == [False, False, True]
    # One of those without a permit goes on, and the third has its place: the permit is still taken.
    broker.go_on(worker, next(iter(worker.running)))
    assert not broker.dispatches(fourth)
    broker.end(worker, next(iter(worker.running)))
    assert broker.dispatches(fourth)
    assert broker.core.state.faults() == []


def test_a_principal_has_a_part_of_the_turns_that_may_wait() -> None:
    bench = broker_bench.Bench(slots=1, turns_per_worker=8, waiting_turns_per_worker=8)
    worker = bench.register()
    bench.hello()
    for number in range(1, 6):
        bench.thread(f"t{number}")
        thread = bench.core.state.threads[f"t{number}"]
        thread.record = msgspec.structs.replace(thread.record, owner="ann" if number < 5 else "")
        _, turn_id = bench.turn(f"t{number}")
        bench.wait(worker, turn_id)
    assert [row["holdsPermit"] for row in bench.status()["turnsWaiting"]] == [False, False, True, True, False]


def test_status_names_the_turns_that_wait_and_their_age(broker: broker_bench.Bench) -> None:
    worker, first = broker.turn("t1")
    broker.wait(worker, first)
    _, second = broker.turn("t2")
    broker.wait(worker, second, since=broker.now - 60)
    broker.now += 1.5
    status = broker.status()
    assert status["turns"]["waiting"] == 2 and status["turns"]["running"] == 2
    assert status["workers"][0]["waiting"] == 2 and status["sessions"][0]["waiting"] == 2
    assert status["turnsWaiting"] == [
        {"turnId": second, "threadId": "t2", "worker": "w0", "waitedMs": 61500, "holdsPermit": False},
        {"turnId": first, "threadId": "t1", "worker": "w0", "waitedMs": 1500, "holdsPermit": False},
    ]


def test_the_next_broker_knows_them(broker: broker_bench.Bench) -> None:
    bench = broker_bench.Bench(slots=1, turns_per_worker=1, checkpoint=broker.checkpoint, expect=["w0"])
    running = wire.RunningTurn("t1", "u1", [sid("s1")], bench.now - 5)
    holdings = wire.encode_worker_state(wire.WorkerState([wire.ThreadRecord("t1", False, 1)], turns=[running]))
    bench.register(holdings=holdings)
    bench.hello(positions=[])
    bench.thread("t2")
    call = bench.call("turn/start", {"threadId": "t2"})
    assert bench.dispatches(call)
    assert bench.status()["turnsWaiting"][0]["waitedMs"] == 5000


def test_a_worker_on_a_new_connection_says_again_which_turns_wait(broker: broker_bench.Bench) -> None:
    worker, first = broker.turn("t1")
    second = broker.call("turn/start", {"threadId": "t2"})
    worker.waited.add(first)
    running = wire.RunningTurn("t1", first, [sid("s1")], broker.now)
    holdings = wire.encode_worker_state(wire.WorkerState([], turns=[running]))
    broker.register(holdings=holdings, connection="w0/1")
    broker.tick(1)
    assert broker.dispatches(second)


def test_a_draining_worker_stays_for_a_turn_that_waits(broker: broker_bench.Bench) -> None:
    worker, first = broker.turn("t1")
    broker.wait(worker, first)
    broker.drain(worker)
    broker.beat(5, "s1")
    assert broker.drained == []
    broker.go_on(worker, first)
    broker.end(worker, first)
    broker.beat(70, "s1")
    assert broker.drained == ["w0"]


def test_a_worker_that_dies_takes_its_waiting_turns_along(broker: broker_bench.Bench) -> None:
    worker, first = broker.turn("t1")
    broker.wait(worker, first)
    broker.lose(worker)
    assert broker.status()["turns"]["waiting"] == 0 and broker.core.held["turns"] == 0


def test_a_report_of_a_turn_that_is_over_means_nothing(broker: broker_bench.Bench) -> None:
    worker, first = broker.turn("t1")
    broker.end(worker, first)
    broker.from_worker(worker, wire.TurnWaits(first, broker.now))
    assert broker.status()["turns"]["waiting"] == 0 and broker.core.state.faults() == []
