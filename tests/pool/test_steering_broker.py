"""The operator's requests at the broker: interrupt, kick, the mode of the pool, and commands for the supervisor."""

from __future__ import annotations

from typing import Any

import pytest
from broker_bench import Bench, total_held

from codex_pool.broker.commands import LIMIT_S, MAX_OPEN
from codex_pool.broker.effects import Command, DrainProgress
from codex_pool.broker.mode import Grace, Mode
from codex_pool.broker.steering import METHODS
from codex_pool.protocol import wire

OVERLOADED, INVALID_PARAMS, INTERNAL_ERROR = -32001, -32602, -32603


@pytest.fixture
def bench() -> Bench:
    """Two workers, an operator and a client."""
    bench = Bench()
    for slot in range(2):
        bench.register(f"w{slot}", slot)
    bench.hello("op")
    bench.hello("s1")
    return bench


def ask(bench: Bench, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    """The answer to a request of the operator that the broker gives at once."""
    (answer,) = bench.answers[bench.call(method, params, session="op")]
    return answer


def result(bench: Bench, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = ask(bench, method, params)["result"]
    return found


def mode(bench: Bench, **fields: Any) -> None:
    bench.apply(bench.core.set_mode(Mode(**fields), bench.now))


def done(bench: Bench, result: dict[str, Any] | None, error: str | None = None) -> None:
    bench.apply(bench.core.command_done(bench.commands[-1].number, result, error, bench.now))


# Commands.


@pytest.mark.parametrize(("method", "params", "sent"), [
    ("pool/pause", {}, {}),
    ("pool/resume", {}, {"worker": None}),
    ("pool/drain", {"worker": "w0", "approvalGrace": 3}, {"worker": "w0", "approval_grace": 3.0}),
    ("pool/scale", {"workers": 6}, {"workers": 6}),
    ("pool/recycle", {"worker": "1"}, {"worker": "1"}),
    ("pool/upgrade", {"codexBin": "/bin/codex"}, {"codex_bin": "/bin/codex", "probe_turn": False}),
    ("pool/upgradeSelf", {}, {}),
    ("pool/stop", {"now": True}, {"now": True}),
])  # fmt: skip
def test_a_command_goes_to_the_supervisor_and_its_result_to_the_client(
    bench: Bench, method: str, params: dict[str, Any], sent: dict[str, Any]
) -> None:
    call = bench.call(method, params, session="op")
    assert bench.commands == [Command(1, method.removeprefix("pool/"), sent)] and call not in bench.answers
    assert bench.core.held["commands"] == 1
    done(bench, {"changed": True, "message": "done"})
    assert bench.answers[call] == [{"id": call[1], "result": {"changed": True, "message": "done"}}]
    done(bench, {"changed": False, "message": "a second answer"})
    assert len(bench.answers[call]) == 1 and bench.core.held["commands"] == 0


@pytest.mark.parametrize(("method", "params"), [
    ("pool/scale", {}), ("pool/scale", {"workers": "6"}), ("pool/scale", {"workers": 6, "more": 1}),
    ("pool/upgrade", {"codexBin": 1}), ("pool/upgradeSelf", {"codexBin": "x"}),
    ("pool/stop", {"now": "yes"}), ("pool/pause", {"worker": "w0"}), ("pool/turn/interrupt", {}),
    ("pool/turn/interrupt", {"turnId": ""}), ("pool/session/kick", {"session": "nobody"}),
])  # fmt: skip
def test_parameters_that_are_none_are_refused_before_anything_is_done(
    bench: Bench, method: str, params: dict[str, Any]
) -> None:
    answer = ask(bench, method, params)
    assert answer["error"]["code"] == INVALID_PARAMS and answer["error"]["message"].startswith(f"{method}: ")
    assert bench.commands == []


def test_an_error_of_the_supervisor_is_that_of_the_request(bench: Bench) -> None:
    call = bench.call("pool/scale", {"workers": 0}, session="op")
    done(bench, None, "0 workers; expected 1 or more")
    error = bench.error(call)
    assert (error["code"], error["message"]) == (INTERNAL_ERROR, "pool/scale: 0 workers; expected 1 or more")


def test_a_command_that_is_not_answered_ends_with_an_error(bench: Bench) -> None:
    call = bench.call("pool/pause", session="op")
    for _ in range(int(LIMIT_S)):
        assert call not in bench.answers
        bench.from_client(wire.Beat(), session="op")
        bench.tick(1.01)
    assert "has not answered in time" in bench.error(call)["message"] and bench.core.held["commands"] == 0


def test_the_number_of_open_commands_is_bounded(bench: Bench) -> None:
    for _ in range(MAX_OPEN):
        bench.call("pool/pause", session="op")
    assert ask(bench, "pool/pause")["error"]["code"] == OVERLOADED


def test_a_result_for_a_client_that_has_gone_is_dropped(bench: Bench) -> None:
    bench.call("pool/pause", session="op")
    bench.from_client(wire.Bye(), session="op")
    done(bench, {"changed": True, "message": "done"})
    assert bench.core.held["commands"] == 0


def test_turns_of_the_workers_that_a_result_names_are_added(bench: Bench) -> None:
    worker = bench.thread("t1")
    _, turn_id = bench.turn("t1")
    bench.wait(worker, turn_id, bench.now - 5.0)
    call = bench.call("pool/drain", {"worker": worker.name}, session="op")
    done(bench, {"changed": True, "message": "draining", "workers": [worker.name]})
    (answer,) = bench.answers[call]
    assert answer["result"]["turns"] == answer["result"]["waiting"] == 1
    assert answer["result"]["clients"] == {"s1": 1}
    assert answer["result"]["turnsWaiting"] == [{"turnId": turn_id, "threadId": "t1", "waitedS": 5.0}]


# Interrupt and kick.


def test_a_turn_is_interrupted_by_the_beginning_of_its_id_and_once_it_has_ended_nothing_happens(bench: Bench) -> None:
    worker = bench.thread("t1")
    _, turn_id = bench.turn("t1")
    found = result(bench, "pool/turn/interrupt", {"turnId": turn_id[:1]})
    assert (found["changed"], found["turnId"], found["threadId"], found["worker"]) == (
        True,
        turn_id,
        "t1",
        worker.name,
    )
    assert worker.heads[-1] == wire.Interrupt("t1", turn_id)
    bench.end(worker, turn_id, "interrupted")
    found = result(bench, "pool/turn/interrupt", {"turnId": turn_id})
    assert found == {"changed": False, "message": f"turn {turn_id} has ended already", "turnId": turn_id}


def test_the_beginning_of_two_ids_names_no_turn(bench: Bench) -> None:
    for thread in ("t1", "t2"):
        bench.thread(thread)
        bench.turn(thread)
    assert "2 turns begin with 'u'" in ask(bench, "pool/turn/interrupt", {"turnId": "u"})["error"]["message"]
    assert "no turn begins with 'x'" in ask(bench, "pool/turn/interrupt", {"turnId": "x"})["error"]["message"]


def test_a_session_that_is_kicked_is_told_and_its_turns_are_its_workers_to_interrupt(bench: Bench) -> None:
    worker = bench.thread("t1")
    bench.turn("t1")
    found = result(bench, "pool/session/kick", {"session": "s"})
    assert found["changed"] and found["session"] == "s1" and "1 turn" in found["message"]
    closed = [head for session, head in bench.heads if session == "s1" and isinstance(head, wire.Closed)]
    assert len(closed) == 1 and not closed[0].again and "operator" in closed[0].message
    gone = [head for head in worker.heads if isinstance(head, wire.SessionGone)]
    assert len(gone) == 1 and not gone[0].keep
    assert result(bench, "pool/session/kick", {"session": "s1"})["changed"] is False
    assert "this is the session" in ask(bench, "pool/session/kick", {"session": "op"})["error"]["message"]


# Pause.


def test_new_turns_wait_while_the_pool_is_paused_and_say_so(bench: Bench) -> None:
    worker = bench.thread("t1")
    bench.thread("t2")
    _, turn_id = bench.turn("t1")
    mode(bench, paused=True)
    assert bench.status()["mode"] == "paused"
    waiting = bench.call("turn/start", {"threadId": "t2"})
    assert bench.dispatches(waiting) == []
    assert bench.notices[-1][1]["params"]["paused"] is True
    bench.end(worker, turn_id)
    assert bench.dispatches(waiting) == [], "a permit that is free starts nothing"
    bench.call("thread/read", {"threadId": "t2"})
    mode(bench)
    assert len(bench.dispatches(waiting)) == 1 and bench.status()["mode"] == "running"


def test_those_that_wait_already_are_told_that_the_pool_is_paused() -> None:
    bench = Bench(slots=1, turns_per_worker=1)
    bench.register()
    bench.hello("s1")
    for thread in ("t1", "t2"):
        bench.thread(thread)
    bench.turn("t1")
    bench.call("turn/start", {"threadId": "t2"})
    assert "paused" not in bench.notices[-1][1]["params"]
    mode(bench, paused=True)
    assert bench.notices[-1][1]["params"]["paused"] is True


def test_a_client_that_does_not_know_the_queue_is_warned_that_the_pool_is_paused(bench: Bench) -> None:
    bench.hello("tui", knows_queue=False)
    bench.thread("t1", session="tui")
    mode(bench, paused=True)
    bench.call("turn/start", {"threadId": "t1"}, session="tui")
    bench.tick(2.0)
    session, notice = bench.notices[-1]
    assert session == "tui" and "the pool is paused" in notice["params"]["message"]


# Drain.


def test_a_pool_that_drains_refuses_new_turns_and_threads_and_what_waits_and_nothing_else() -> None:
    bench = Bench(slots=1, turns_per_worker=1)
    worker = bench.register()
    bench.hello("s1")
    for thread in ("t1", "t2"):
        bench.thread(thread)
    _, turn_id = bench.turn("t1")
    waiting = bench.call("turn/start", {"threadId": "t2"})
    mode(bench, draining=True)
    for call in (waiting, bench.call("turn/start", {"threadId": "t2"}), bench.call("thread/start")):
        error = bench.error(call)
        assert error["code"] == OVERLOADED and "the pool is draining" in error["message"]
        assert error["data"] == {"retryAfterMs": 1000, "what": "draining", "safeToRetry": True}
    for method in ("turn/steer", "turn/interrupt", "thread/read"):
        bench.call(method, {"threadId": "t1", "turnId": turn_id})
    assert worker.methods == ["turn/steer", "turn/interrupt", "thread/read"]
    assert bench.status()["mode"] == "draining"
    mode(bench)
    bench.answer_all(worker)
    bench.end(worker, turn_id)
    assert bench.dispatches(bench.call("turn/start", {"threadId": "t2"}))


def test_turns_of_a_batch_wait_while_the_pool_drains(bench: Bench) -> None:
    bench.hello("batch", priority="batch")
    worker = bench.thread("t1", session="batch")
    mode(bench, draining=True)
    waiting = bench.call("turn/start", {"threadId": "t1"}, session="batch")
    assert bench.dispatches(waiting) == [] and waiting not in bench.answers
    assert bench.notices[-1] == (
        "batch",
        {
            "method": "pool/queued",
            "params": {"requestId": waiting[1], "threadId": "t1", "ahead": 0, "waiting": 1, "paused": True},
        },
    )
    mode(bench, draining=True, paused=True)
    mode(bench, paused=True)
    assert bench.dispatches(waiting) == []
    mode(bench)
    assert [name for name, _ in bench.dispatches(waiting)] == [worker.name]


def test_what_a_drain_waits_for_is_reported_when_it_changes(bench: Bench) -> None:
    worker = bench.thread("t1")
    _, turn_id = bench.turn("t1")
    mode(bench, draining=True)
    assert bench.progress == [DrainProgress(False, 1, {"s1": 1}, 0)]
    bench.tick(1.1)
    assert len(bench.progress) == 1
    mode(bench, draining=True, stopping=True)
    bench.wait(worker, turn_id, bench.now)
    bench.tick(1.1)
    bench.end(worker, turn_id)
    bench.tick(1.1)
    assert bench.progress[1:] == [
        DrainProgress(True, 1, {"s1": 1}, 0),
        DrainProgress(True, 1, {"s1": 1}, 1),
        DrainProgress(True, 0, {}, 0),
    ]


def test_nothing_is_reported_before_the_workers_have_come_to_the_new_broker() -> None:
    bench = Bench(slots=1, expect=["w0"])
    mode(bench, draining=True)
    bench.tick(1.1)
    assert bench.progress == []
    bench.register()
    bench.tick(1.1)
    assert bench.progress == [DrainProgress(False, 0, {}, 0)]


def test_a_turn_that_waits_for_a_person_is_interrupted_after_the_grace(bench: Bench) -> None:
    worker = bench.thread("t1")
    _, turn_id = bench.turn("t1")
    bench.wait(worker, turn_id, bench.now - 100.0)
    mode(bench, draining=True, graces={"": Grace(bench.now + 5.0, 5.0), "other": Grace(0.0, 0.0)})
    bench.tick(1.1)
    assert wire.Interrupt("t1", turn_id) not in worker.heads
    bench.tick(5.0)
    assert wire.Interrupt("t1", turn_id) in worker.heads


def test_a_grace_of_one_worker_is_for_its_turns_only(bench: Bench) -> None:
    worker = bench.thread("t1")
    _, turn_id = bench.turn("t1")
    bench.wait(worker, turn_id, bench.now)
    other = next(name for name in bench.workers if name != worker.name)
    mode(bench, graces={other: Grace(0.0, 0.0)})
    bench.tick(2.0)
    assert wire.Interrupt("t1", turn_id) not in worker.heads
    mode(bench, graces={worker.name: Grace(0.0, 0.0)})
    assert wire.Interrupt("t1", turn_id) in worker.heads


def test_nothing_is_held_at_the_end(bench: Bench) -> None:
    for method in sorted(METHODS):
        bench.call(method, session="op")
    bench.tick(LIMIT_S + 1.0)
    assert bench.core.held["commands"] == 0 and not bench.core.state.faults() and total_held(bench) == 0


# Slots.


def test_rows_of_slots_follow_the_supervisor(bench: Bench) -> None:
    def rows(*numbers: int) -> list[dict[str, Any]]:
        return [{"slot": number, "state": "ready", "restarts": 0} for number in numbers]

    bench.apply(bench.core.slots(rows(0, 1, 2, 3), 4))
    assert [row["slot"] for row in bench.status()["workers"]] == [0, 1, 2, 3]
    bench.apply(bench.core.slots(rows(0, 3), 1))
    assert [row["slot"] for row in bench.status()["workers"]] == [0, 3] and bench.core.state.slots == 1
