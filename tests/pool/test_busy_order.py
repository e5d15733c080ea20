"""BusyOrder against a look at all workers, whatever becomes of them."""

from __future__ import annotations

import string

import pytest
from broker_bench import Bench
from hypothesis import given
from hypothesis import strategies as st

from codex_pool.broker.busy_order import BusyOrder, busy
from codex_pool.broker.entities import Worker

MANY = 100


def a_worker(slot: int) -> Worker:
    return Worker(string.ascii_letters[slot], slot, 1, 2, b"", 0.0)


STEPS = st.lists(
    st.tuples(st.sampled_from(["turn", "end", "thread", "drop", "leave", "ask", "ask"]), st.integers(0, 5)),
    max_size=60,
)


@given(count=st.integers(0, 6), steps=STEPS)
def test_the_first_is_that_of_a_look_at_all(count: int, steps: list[tuple[str, int]]) -> None:
    workers = {worker.name: worker for worker in map(a_worker, range(count))}
    order = BusyOrder(workers)
    for worker in workers.values():
        order.eased(worker)
    for number, (step, slot) in enumerate(steps):
        worker = workers.get(string.ascii_letters[slot])
        if step == "ask":
            even = [each for each in workers.values() if each.slot % 2 == number % 2]
            assert order.first(lambda each, n=number: each.slot % 2 == n % 2, MANY) is min(even, key=busy, default=None)
            assert order.first(lambda each: True, MANY) is min(workers.values(), key=busy, default=None)
        elif worker is None:
            continue
        elif step == "turn":
            worker.turns.add(str(number))
        elif step == "thread":
            worker.threads.add(str(number))
        elif step == "leave":
            del workers[worker.name]
        else:
            things = worker.turns if step == "end" else worker.threads
            if things:
                things.pop()
            order.eased(worker)
        assert order.faults() == []


def test_its_size_is_bounded_by_that_of_the_workers() -> None:
    workers = {worker.name: worker for worker in map(a_worker, range(4))}
    order = BusyOrder(workers)
    for number in range(2_000):
        worker = workers[string.ascii_letters[number % 4]]
        worker.turns.add("t")
        order.first(lambda each: True, MANY)
        worker.turns.clear()
        order.eased(worker)
    assert len(order._heap) <= 64 + 4 * 4 + 1


def test_workers_that_are_gone_are_forgotten() -> None:
    workers: dict[str, Worker] = {}
    order = BusyOrder(workers)
    for number in range(500):
        workers.clear()
        worker = workers[f"w{number}"] = Worker(f"w{number}", number, 1, 2, b"", 0.0)
        worker.turns.add("t")
        order.eased(worker)
    assert len(order._heap) <= 64 + 4 + 1 and len(order._entry) <= 64 + 4 + 1


def test_no_more_are_passed_over_than_may_be() -> None:
    workers = {worker.name: worker for worker in map(a_worker, range(20))}
    order = BusyOrder(workers)
    for worker in workers.values():
        order.eased(worker)
    asked: list[int] = []

    def fits(worker: Worker) -> bool:
        asked.append(worker.slot)
        return worker.slot == 10

    assert order.first(fits, 8) is None and asked == list(range(8))
    found = order.first(fits, 11)
    assert found is not None and found.slot == 10 and order.faults() == []


def test_a_worker_that_is_not_named_is_a_fault() -> None:
    workers = {"a": a_worker(0)}
    order = BusyOrder(workers)
    workers["a"].turns.add("t")
    order.eased(workers["a"])
    workers["a"].turns.clear()
    assert len(order.faults()) == 1


def test_a_start_does_not_look_at_every_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are spread over 100 workers, each new one to one that has least to do, with a few looks a start."""
    bench = Bench(slots=100, turns_per_worker=4)
    for slot in range(100):
        bench.register(f"w{slot}", slot)
    bench.hello()
    looks: list[str] = []
    load = Worker.load.fget
    assert load is not None

    def counted(worker: Worker) -> int:
        looks.append(worker.name)
        return int(load(worker))

    monkeypatch.setattr(Worker, "load", property(counted))
    for _ in range(200):
        bench.call("thread/start")
    assert len(looks) < 200 * 10
    assert {len(worker.requests) for worker in bench.core.state.workers.values()} == {2}
