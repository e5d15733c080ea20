"""Workers that are to be replaced: what can leave them does, what cannot is waited for."""

from __future__ import annotations

import pytest
from broker_bench import THREAD_LOST, Bench, FakeWorker, total_held
from session_ids import sid

from codex_pool.broker import workers as workers_room
from codex_pool.protocol import wire


@pytest.fixture
def bench() -> Bench:
    """One worker, its replacement ready beside it, one client."""
    bench = Bench(slots=1)
    bench.register("old", 0)
    bench.hello()
    return bench


def replacement(bench: Bench) -> FakeWorker:
    return bench.register("new", 0)


def test_an_idle_worker_is_drained_at_once(bench: Bench) -> None:
    bench.thread("t1")
    replacement(bench)
    bench.drain(bench.workers["old"])
    assert bench.drained == ["old"]
    bench.drain(bench.workers["old"])
    assert bench.drained == ["old"] == bench.core.drained


def test_a_worker_that_has_not_registered_with_this_broker_is_not_taken_for_idle(bench: Bench) -> None:
    """Such a worker may run turns; once it registers, the supervisor asks again."""
    bench.apply(bench.core.drain("unheard of", bench.now))
    assert bench.drained == [] == bench.core.drained


def test_a_draining_worker_gets_nothing_new_and_finishes_what_it_has(bench: Bench) -> None:
    old = bench.thread("t1")
    _, turn_id = bench.turn("t1")
    new = replacement(bench)
    bench.drain(old)
    for method in ("thread/start", "model/list", "account/read"):
        bench.call(method)
    assert old.open == {} and new.methods == ["thread/start", "model/list", "account/read"]
    bench.call("turn/steer", {"threadId": "t1", "turnId": turn_id})
    bench.call("turn/interrupt", {"threadId": "t1", "turnId": turn_id})
    assert old.methods == ["turn/steer", "turn/interrupt"]
    bench.answer_all(old)
    assert bench.drained == []
    bench.end(old, turn_id, "interrupted")
    assert bench.drained == ["old"] and bench.status()["draining"][0]["worker"] == "old"
    assert [row["worker"] for row in bench.status()["workers"]] == ["new"]


@pytest.mark.parametrize("method", ["turn/start", "thread/read", "thread/resume"])
def test_an_idle_thread_is_handed_over_at_its_next_request(bench: Bench, method: str) -> None:
    old = bench.thread("t1", turns=2)
    bench.thread("busy")
    _, turn_id = bench.turn("busy")
    new = replacement(bench)
    bench.drain(old)
    call = bench.call(method, {"threadId": "t1"})
    later = bench.call("thread/read", {"threadId": "t1"})
    assert list(old.releases.values()) == ["t1"] and bench.dispatches(call) == bench.dispatches(later) == []
    bench.from_worker(old, wire.ThreadGone("t1"))
    bench.put_away(old)
    ((name, head),) = bench.dispatches(call)
    assert name == "new" and head.archived and head.adopt is not None and head.adopt.turns == 2
    ((name, head),) = bench.dispatches(later)
    assert name == "new" and head.adopt is None
    assert wire.Follow(sid("s1"), "t1") in new.heads
    bench.answer_all(new)
    bench.end(old, turn_id)
    assert bench.drained == ["old"] and call in bench.answers and later in bench.answers
    told = [notice["method"] for _, notice in bench.notices if notice["params"]["requestId"] == call[1]]
    assert told == (["pool/queued", "pool/dequeued"] if method == "turn/start" else [])


def test_turns_that_wait_for_a_busy_thread_follow_it(bench: Bench) -> None:
    old = bench.thread("t1")
    _, turn_id = bench.turn("t1")
    calls = [bench.call("turn/start", {"threadId": "t1"}) for _ in range(2)]
    new = replacement(bench)
    bench.drain(old)
    assert bench.status()["turns"]["queued"] == 2
    bench.end(old, turn_id)
    bench.put_away(old)
    assert [name for name, _ in bench.dispatches(calls[0])] == ["new"] and bench.drained == ["old"]
    bench.answer_all(new)
    bench.end(new, next(iter(new.running)))
    assert [name for name, _ in bench.dispatches(calls[1])] == ["new"]


def test_what_waited_for_room_alone_goes_to_another_worker_at_once() -> None:
    bench = Bench(slots=1, turns_per_worker=1)
    old = bench.register("old")
    bench.hello()
    for thread_id in ("t1", "t2"):
        bench.thread(thread_id)
    bench.turn("t1")
    waiting = bench.call("turn/start", {"threadId": "t2"})
    new = replacement(bench)
    bench.drain(old)
    bench.put_away(old)
    assert [name for name, _ in bench.dispatches(waiting)] == ["new"] and new.load == 1


def test_a_thread_that_its_worker_does_not_let_go_stays(bench: Bench) -> None:
    old = bench.thread("t1")
    replacement(bench)
    _, turn_id = bench.turn("t1")
    bench.drain(old)
    call = bench.call("turn/start", {"threadId": "t1"})
    bench.end(old, turn_id)
    bench.put_away(old, ok=False)
    assert [name for name, _ in bench.dispatches(call)] == ["old"]
    bench.answer_all(old)
    bench.end(old, next(iter(old.running)))
    assert bench.drained == ["old"] and old.releases == {}


def test_a_thread_on_its_way_is_left_to_the_next_broker_before_its_worker_puts_it_away(bench: Bench) -> None:
    old = bench.thread("t1", turns=2)
    bench.thread("busy")
    bench.turn("busy")
    replacement(bench)
    bench.drain(old)
    bench.call("turn/start", {"threadId": "t1"})
    assert list(old.releases.values()) == ["t1"]
    assert "t1" in [record.thread_id for record in bench.checkpoint]


def test_a_thread_that_its_worker_closed_and_then_did_not_put_away_goes_on_after_its_death(bench: Bench) -> None:
    old = bench.thread("t1")
    bench.thread("busy")
    bench.turn("busy")
    replacement(bench)
    bench.drain(old)
    call = bench.call("turn/start", {"threadId": "t1"})
    bench.from_worker(old, wire.ThreadGone("t1", keep=True))
    bench.put_away(old, ok=False)
    bench.lose(old)
    ((name, head),) = bench.dispatches(call)
    assert name == "new" and head.adopt is not None and head.adopt.thread_id == "t1"


def test_a_worker_that_dies_while_it_puts_a_thread_away(bench: Bench) -> None:
    """Nobody knows whether it put the thread away; the next one is told that it may have."""
    old = bench.thread("t1")
    bench.thread("busy")
    bench.turn("busy")
    replacement(bench)
    bench.drain(old)
    call = bench.call("turn/start", {"threadId": "t1"})
    bench.lose(old)
    ((name, head),) = bench.dispatches(call)
    assert name == "new" and head.archived and head.adopt is not None and not head.again


@pytest.mark.parametrize("fields", [{"ephemeral": True}, {"turns": 0}], ids=["ephemeral", "turnless"])
def test_a_thread_that_cannot_leave_is_leased(bench: Bench, fields: dict[str, int]) -> None:
    old = bench.thread("t1", **fields)
    replacement(bench)
    bench.drain(old)
    assert bench.drained == []
    call = bench.call("turn/start", {"threadId": "t1"})
    assert [name for name, _ in bench.dispatches(call)] == ["old"]
    bench.answer_all(old)
    bench.end(old, next(iter(old.running)))
    if "turns" in fields:
        assert bench.drained == ["old"], "it is stored now and may leave"
        return
    bench.beat(workers_room.LEASE_IDLE_S - 1, "s1")
    assert bench.drained == []
    bench.beat(3, "s1")
    assert bench.drained == ["old"]


def test_leases_have_a_limit_that_running_turns_do_not_have(bench: Bench) -> None:
    old = bench.thread("t1", ephemeral=True)
    replacement(bench)
    bench.drain(old)
    _, turn_id = bench.turn("t1")
    bench.beat(2 * workers_room.LEASES_LIMIT_S, "s1")
    assert bench.drained == []
    bench.end(old, turn_id)
    assert bench.drained == ["old"]


def test_a_lease_ends_with_the_session(bench: Bench) -> None:
    old = bench.thread("t1", ephemeral=True)
    replacement(bench)
    bench.drain(old)
    bench.from_client(wire.Bye())
    bench.beat(1)
    assert bench.drained == ["old"]


def test_a_turn_that_waits_for_a_person_is_waited_for(bench: Bench) -> None:
    """However long: an approval may be given hours later."""
    old = bench.thread("t1")
    _, turn_id = bench.turn("t1")
    replacement(bench)
    bench.drain(old)
    for _ in range(3):
        bench.beat(3600.0, "s1")
    assert bench.drained == [] == bench.core.drained and len(bench.ended) == 0
    bench.end(old, turn_id)
    assert bench.drained == ["old"] == bench.core.drained


def test_what_comes_between_the_end_of_draining_and_that_of_the_worker_waits(bench: Bench) -> None:
    """The worker's threads are still its own; to ask it is too late."""
    old = bench.thread("t1")
    bench.thread("t2", ephemeral=True)
    bench.from_client(wire.Bye())
    bench.hello("s2")
    new = replacement(bench)
    bench.drain(old)
    assert bench.drained == ["old"]
    calls = [bench.call("turn/start", {"threadId": "t1"}, session="s2") for _ in range(2)]
    read = bench.call("thread/read", {"threadId": "t1"}, session="s2")
    ephemeral = bench.call("thread/read", {"threadId": "t2"}, session="s2")
    bench.cancel(calls[1])
    bench.call("config/value/write", session="s2")
    assert old.open == {} and old.applies == {} and bench.apply_all() == [("new", "config/value/write")]
    bench.lose(old, "it has ended")
    assert [name for name, _ in [*bench.dispatches(calls[0]), *bench.dispatches(read)]] == ["new", "new"]
    assert bench.error(calls[1])["code"] == -32800 and bench.error(ephemeral)["code"] == THREAD_LOST
    bench.answer_all(new)
    bench.end(new, next(iter(new.running)))
    assert total_held(bench) == 0


def test_who_has_drained_and_is_not_ended_gives_its_threads_away_all_the_same(bench: Bench) -> None:
    """The supervisor may be stopped: nobody waits for it without a limit."""
    old = bench.thread("t1")
    worker, turn_id = bench.turn("t1")
    bench.end(worker, turn_id)
    new = replacement(bench)
    bench.drain(old)
    call = bench.call("turn/start", {"threadId": "t1"})
    bench.beat(workers_room.DRAINED_LIMIT_S - 1, "s1")
    assert bench.drained == ["old"] and old.releases == {} and not bench.dispatches(call)
    bench.beat(2, "s1")
    assert list(old.releases.values()) == ["t1"]
    bench.put_away(old)
    assert [name for name, _ in bench.dispatches(call)] == [new.name]
    assert bench.drained == ["old"] == bench.core.drained, "whoever has not heard it asks"


def test_without_another_worker_requests_wait_for_one(bench: Bench) -> None:
    old = bench.thread("t1", ephemeral=True)
    bench.drain(old)
    call = bench.call("thread/start")
    assert bench.core.held["unassigned"] == 1
    new = replacement(bench)
    assert [name for name, _ in bench.dispatches(call)] == [new.name]
