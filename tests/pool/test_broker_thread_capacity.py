"""Threads wait for room: workers stay within their limit of processes, and nobody waits without a limit."""

from __future__ import annotations

import pytest
from broker_bench import Bench, FakeWorker, total_held
from session_ids import sid

from codex_pool.broker import thread_capacity
from codex_pool.protocol import wire

LIMIT = 4


def registered(bench: Bench, name: str, slot: int = 0, **figures: int) -> FakeWorker:
    """A worker that tells what is below it."""
    return bench.register(
        name, slot, holdings=wire.encode_worker_state(wire.WorkerState([], tree=wire.ProcessTree(**figures)))
    )


@pytest.fixture
def bench() -> Bench:
    """Two workers with one client; a worker may have LIMIT servers, and a thread brings one."""
    bench = Bench(slots=2, turns_per_worker=8, recycle_descendants=LIMIT)
    registered(bench, "w0", 0, each=1)
    registered(bench, "w1", 1)
    bench.hello()
    return bench


def tell(bench: Bench, worker: FakeWorker, servers: int, threads: int, *, left: int = 0) -> None:
    """All of it has settled."""
    each = -(-servers // threads) if threads else None
    bench.from_worker(worker, wire.ProcessTree(servers, servers, left, threads=threads, each=each))


def start(bench: Bench, count: int, session: str = "s1") -> list[tuple[str, int]]:
    return [bench.call("thread/start", {"ephemeral": True}, session=session) for _ in range(count)]


def answer_all(bench: Bench, worker: FakeWorker) -> list[str]:
    """Every thread/start of this worker is answered; the threads."""
    names = []
    for call in list(worker.open):
        names.append(f"{worker.name}-{call}")
        bench.answer(worker, call, record=wire.ThreadRecord(names[-1], True, turns=1))
    return names


def let_go(bench: Bench, names: list[str], session: str = "s1") -> None:
    for name in names:
        call = bench.call("thread/unsubscribe", {"threadId": name}, session=session)
        ((worker, head),) = bench.dispatches(call)
        bench.answer(bench.workers[worker], head.call)


def starts(worker: FakeWorker) -> int:
    return worker.methods.count("thread/start")


def test_threads_beyond_the_limit_wait_and_are_told_so(bench: Bench) -> None:
    calls = start(bench, 10)
    w0, w1 = bench.workers.values()
    assert starts(w0) == starts(w1) == LIMIT
    queued = [notice["params"]["requestId"] for _, notice in bench.notices if notice["method"] == "pool/queued"]
    assert queued == [call[1] for call in calls[8:]]
    assert bench.status()["threadsWaiting"] == 2 and bench.core.held["awaiting_capacity"] == 2
    answer_all(bench, w0)
    assert starts(w0) == 0, "what was loaded is there, whether it has been counted or not"
    # It turns out that threads bring nothing: there is room for all.
    tell(bench, w0, 0, LIMIT)
    tell(bench, w1, 0, 0)
    assert (starts(w0), starts(w1)) == (1, LIMIT + 1) and bench.core.held["awaiting_capacity"] == 0
    dequeued = [notice["params"]["requestId"] for _, notice in bench.notices if notice["method"] == "pool/dequeued"]
    assert dequeued == queued


def test_what_a_thread_brings_is_learned_and_remembered() -> None:
    bench = Bench(slots=2, turns_per_worker=8, recycle_descendants=2 * thread_capacity.UNKNOWN_COST)
    w0, w1 = registered(bench, "w0", 0), registered(bench, "w1", 1)
    bench.hello()
    start(bench, 10)
    assert starts(w0) == starts(w1) == 2, "it may bring four"
    answer_all(bench, w0)
    tell(bench, w0, 3, 1)
    assert starts(w0) == 1 and starts(w1) == 2
    for worker in (w0, w1):
        bench.lose(worker)
    new = registered(bench, "new", 0)
    assert starts(new) == 2, "three each, at most eight"


def test_servers_that_have_yet_to_come_are_counted_by_their_threads(bench: Bench) -> None:
    w0, w1 = bench.workers.values()
    start(bench, 2)
    names = answer_all(bench, w0) + answer_all(bench, w1)
    let_go(bench, names)
    bench.from_worker(w0, wire.ProcessTree(1, 0, threads=2, young=2, each=2))
    start(bench, 4)
    assert starts(w0) == 0 and starts(w1) == 1
    assert list(bench.full) == ["w0"], "four are, or will be"
    bench.from_worker(w0, wire.ProcessTree(4, 4, threads=2, each=2))
    assert starts(w0) == 0


def test_nobody_is_renewed_by_a_guess() -> None:
    bench = Bench(slots=1, recycle_descendants=LIMIT)
    worker = registered(bench, "w0", 0)
    bench.hello()
    start(bench, 2)
    let_go(bench, answer_all(bench, worker))
    bench.from_worker(worker, wire.ProcessTree(3, 0, threads=2, young=2))
    assert bench.full == {}


def test_a_full_worker_is_renewed_and_its_successor_waits_until_it_has_ended(bench: Bench) -> None:
    w0, w1 = bench.workers.values()
    start(bench, 8)
    names = answer_all(bench, w0) + answer_all(bench, w1)
    tell(bench, w1, 3, 4)
    assert bench.full == {}, "it has room for one"
    let_go(bench, names)
    tell(bench, w0, 4, 4)
    tell(bench, w1, 4, 4)
    assert bench.full == dict.fromkeys(("w0", "w1"), "4 descendants, the limit is 4")
    waiting = start(bench, 3)
    new = registered(bench, "new", 0)
    bench.drain(w0)
    bench.beat(2, "s1")
    assert bench.drained == ["w0"] and starts(new) == 0, "its servers are alive"
    bench.lose(w0, "recycled")
    assert starts(new) == 3 and bench.core.held["awaiting_capacity"] == 0
    assert all(bench.dispatches(call) for call in waiting)
    answer_all(bench, new)
    assert total_held(bench) == 0


def test_a_worker_whose_threads_are_in_use_is_not_renewed(bench: Bench) -> None:
    w0, _ = bench.workers.values()
    start(bench, 8)
    names = answer_all(bench, w0)
    bench.turn(names[0])
    tell(bench, w0, 4, 4)
    let_go(bench, names[1:2])
    tell(bench, w0, 4, 4)
    assert bench.full == {}, "three of four would come back"
    bench.beat(thread_capacity.FULL_S / 2, "s1")
    for name in names[2:]:
        bench.call("thread/read", {"threadId": name})
    bench.beat(thread_capacity.FULL_S / 2, "s1")
    tell(bench, w0, 4, 4)
    assert list(bench.full) == ["w0"], "it has been full for long, and one is not in use"


def test_a_single_thread_with_many_servers_is_not_moved_about(bench: Bench) -> None:
    w0, _ = bench.workers.values()
    start(bench, 1)
    let_go(bench, answer_all(bench, w0))
    tell(bench, w0, 9, 1)
    bench.beat(thread_capacity.FULL_S + 1, "s1")
    tell(bench, w0, 9, 1)
    assert bench.full == {}
    tell(bench, w0, 9, 1, left=2)
    assert list(bench.full) == ["w0"], "commands that turns have left behind end with it"


def test_nobody_waits_for_ever(bench: Bench) -> None:
    w0, w1 = bench.workers.values()
    start(bench, 8)
    for worker in (w0, w1):
        for name in answer_all(bench, worker):
            bench.turn(name)
        tell(bench, worker, 4, 4)
    waiting = start(bench, 2)
    bench.beat(thread_capacity.PATIENCE_S - 5, "s1")
    assert not any(bench.dispatches(call) for call in waiting)
    bench.beat(10, "s1")
    assert all(bench.dispatches(call) for call in waiting)


def test_a_worker_that_drains_for_long_is_not_counted_any_more(bench: Bench) -> None:
    w0, w1 = bench.workers.values()
    start(bench, 8)
    names = answer_all(bench, w0)
    answer_all(bench, w1)
    bench.turn(names[0])
    for worker in (w0, w1):
        tell(bench, worker, 4, 4)
    new = registered(bench, "new", 0)
    bench.drain(w0)
    bench.beat(thread_capacity.PATIENCE_S + 2, "s1")
    calls = start(bench, 5)
    assert starts(new) == LIMIT and len(bench.dispatches(calls[4])) == 0, "its own limit holds all the same"


def test_a_stored_thread_without_a_worker_waits_too(bench: Bench) -> None:
    w0, w1 = bench.workers.values()
    bench.thread("t1")
    bench.lose(w0)
    start(bench, 6)
    answer_all(bench, w1)
    tell(bench, w1, 4, 4)
    bench.call("thread/unsubscribe", {"threadId": "t1"})
    turn = bench.call("turn/start", {"threadId": "t1"})
    read = bench.call("thread/read", {"threadId": "t1"})
    assert not bench.dispatches(turn) and not bench.dispatches(read)
    new = registered(bench, "new", 0)
    assert starts(new) == 2
    ((name, head),) = bench.dispatches(turn)
    assert name == "new" and head.adopt is not None and bench.dispatches(read)[0][0] == "new"


def test_a_fork_waits_for_its_worker_or_moves_with_its_thread(bench: Bench) -> None:
    bench.thread("t1", turns=2)
    w0 = bench.workers["w0"]
    bench.thread("t2", turns=2)
    tell(bench, w0, 4, 4)
    fork = bench.call("thread/fork", {"threadId": "t1"})
    assert not bench.dispatches(fork)
    new = registered(bench, "new", 0)
    bench.drain(w0)
    bench.put_away(w0)
    ((name, head),) = bench.dispatches(fork)
    assert name == new.name and head.adopt is not None


def test_waiting_is_fair_and_ends_with_its_client(bench: Bench) -> None:
    bench.hello("s2")
    start(bench, 14)
    start(bench, 1, "s2")
    gone = start(bench, 1)[0]
    bench.cancel(gone)
    assert bench.error(gone)["code"] == -32800
    w0, w1 = bench.workers.values()
    answer_all(bench, w0)
    answer_all(bench, w1)
    tell(bench, w0, 2, 4)
    assert {str(head.session.session) for head, _ in w0.open.values()} == {"s1", "s2"}
    bench.from_client(wire.Bye())
    assert bench.core.held["awaiting_capacity"] == 0 and bench.core.state.requests.held == 0


def test_without_figures_or_limit_nothing_waits() -> None:
    for options in ({"recycle_descendants": LIMIT}, {}):
        bench = Bench(slots=1, **options)
        worker = (
            bench.register("w0", 0)
            if options
            else registered(bench, "w0", 0, servers=99, settled=99, threads=9, each=11)
        )
        bench.hello()
        start(bench, 20)
        assert starts(worker) == 20 and bench.full == {}


def test_a_new_broker_knows_what_is_there() -> None:
    bench = Bench(slots=1, recycle_descendants=LIMIT)
    worker = registered(bench, "w0", 0, servers=2, settled=2, threads=2, each=1, fresh=1)
    bench.hello()
    start(bench, 3)
    assert starts(worker) == 1
    assert sid("s1") in bench.core.state.sessions


def test_status_shows_what_is_below_a_worker(bench: Bench) -> None:
    w0, _ = bench.workers.values()
    bench.from_worker(w0, wire.ProcessTree(3, 3, 1, 5, 300 << 20, 50 << 20, is_pss=False, threads=3))
    row, other = bench.status()["workers"]
    shown = {name: row[name] for name in ("memoryBytes", "memoryIs", "descendants", "leftCommands")}
    assert shown == {"memoryBytes": 300 << 20, "memoryIs": "rss", "descendants": 4, "leftCommands": 1}
    assert (row["toolCommands"], row["toolMemoryBytes"]) == (5, 50 << 20)
    assert other["memoryBytes"] is None and other["descendants"] == 0


def test_threads_that_are_archived_at_once_make_room_at_once() -> None:
    """A batch of short turns is not held up until what its threads bring is known."""
    bench = Bench(slots=1, turns_per_worker=8, recycle_descendants=4 * thread_capacity.UNKNOWN_COST)
    worker = registered(bench, "w0", 0)
    bench.hello()
    for number in range(20):
        start(bench, 1)
        assert starts(worker) == 1, f"thread {number} waits for the next look"
        (call,) = worker.open
        name = f"t{number}"
        bench.answer(worker, call, record=wire.ThreadRecord(name, False, turns=1))
        bench.call("thread/archive", {"threadId": name})
        (call,) = worker.open
        bench.answer(worker, call)
        bench.from_worker(worker, wire.ThreadGone(name))
