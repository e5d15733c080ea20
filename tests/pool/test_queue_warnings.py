"""Turns of clients that do not know the queue: a warning where one has to wait; turns on the side delay no other."""

from __future__ import annotations

from typing import Any

import pytest
from broker_bench import Bench, FakeWorker

from codex_pool.broker.queue_notices import WARN_AFTER_S, WARN_AGAIN_S


@pytest.fixture
def bench() -> Bench:
    """One worker with one turn at a time. s1 knows no queue and has t1 and, ephemeral, t2 and t3; s2 has t5 and t6."""
    bench = Bench(slots=1, turns_per_worker=1)
    bench.register()
    bench.hello("s1", knows_queue=False)
    bench.hello("s2")
    bench.thread("t1")
    for name in ("t2", "t3", "t4"):
        bench.thread(name, ephemeral=True)
    bench.thread("t5", session="s2")
    bench.thread("t6", session="s2")
    return bench


def notices(bench: Bench, session: str) -> list[tuple[str, dict[str, Any]]]:
    return [(notice["method"], notice["params"]) for to, notice in bench.notices if to == session]


def start(bench: Bench, thread_id: str, session: str = "s1") -> tuple[str, Any]:
    return bench.call("turn/start", {"threadId": thread_id}, session=session)


def worker_of(bench: Bench) -> FakeWorker:
    return bench.workers["w0"]


# Warnings.


def test_a_turn_that_waits_is_announced_as_codex_warns(bench: Bench) -> None:
    worker, running = bench.turn("t5", session="s2")
    start(bench, "t6", session="s2")
    call = start(bench, "t1")
    assert notices(bench, "s1") == [], "a short wait is not worth a line"
    bench.beat(WARN_AFTER_S, "s1", "s2")
    ((method, params),) = notices(bench, "s1")
    assert (method, params["threadId"]) == ("warning", "t1")
    assert "as many turns as it may" in params["message"] and "1 other waits before it" in params["message"]
    bench.beat(5, "s1", "s2")
    bench.end(worker, running)
    bench.answer_all(worker)
    bench.end(worker, next(iter(worker.running)))
    assert bench.dispatches(call)
    assert len(notices(bench, "s1")) == 1, "once, and no pool/dequeued"


def test_a_turn_that_begins_soon_is_not_announced(bench: Bench) -> None:
    worker, running = bench.turn("t5", session="s2")
    start(bench, "t1")
    bench.end(worker, running)
    bench.beat(3, "s1", "s2")
    assert notices(bench, "s1") == []


def test_a_turn_of_a_busy_thread_is_told_so(bench: Bench) -> None:
    bench.turn("t1")
    start(bench, "t1")
    bench.beat(2, "s1", "s2")
    ((_, params),) = notices(bench, "s1")
    assert "another turn of its thread runs" in params["message"]


def test_without_a_worker_it_says_so() -> None:
    bench = Bench(slots=1)
    worker = bench.register()
    bench.hello("s1", knows_queue=False)
    bench.thread("t1")
    bench.lose(worker)
    start(bench, "t1")
    bench.tick(0.0)
    bench.tick(2.0)
    bench.tick(2.0)
    ((_, params),) = notices(bench, "s1")
    assert "no worker of the pool takes turns yet" in params["message"]


def test_a_turn_that_is_cancelled_is_not_announced(bench: Bench) -> None:
    bench.turn("t5", session="s2")
    bench.cancel(start(bench, "t1"))
    bench.beat(3, "s1", "s2")
    assert notices(bench, "s1") == []


def test_a_client_that_knows_the_queue_gets_its_own_notices(bench: Bench) -> None:
    worker, running = bench.turn("t5", session="s2")
    first, second = start(bench, "t1"), start(bench, "t6", session="s2")
    bench.beat(3, "s1", "s2")
    assert notices(bench, "s2") == [
        ("pool/queued", {"requestId": second[1], "threadId": "t6", "ahead": 1, "waiting": 2})
    ]
    bench.end(worker, running)
    bench.answer_all(worker)
    bench.end(worker, next(iter(worker.running)))
    assert notices(bench, "s2")[-1] == ("pool/dequeued", {"requestId": second[1], "threadId": "t6"})
    assert bench.answers[first]


def test_a_place_is_sent_again_when_it_has_changed_once_a_beat_at_most(bench: Bench) -> None:
    worker, running = bench.turn("t5", session="s2")
    for number in range(4):
        bench.thread(f"x{number}", session="s2")
        start(bench, f"x{number}", session="s2")
    start(bench, "t6", session="s2")

    def places() -> list[tuple[int, int]]:
        found = [params for method, params in notices(bench, "s2") if method == "pool/queued"]
        return [(each["ahead"], each["waiting"]) for each in found if each["threadId"] == "t6"]

    assert places() == [(4, 5)]
    for _ in range(2):
        bench.end(worker, running)
        bench.answer_all(worker)
        (running,) = worker.running
    assert places() == [(4, 5)]
    bench.beat(1, "s1", "s2")
    bench.beat(1, "s1", "s2")
    assert places() == [(4, 5), (2, 3)]


def test_a_warning_is_repeated_when_the_place_has_changed_and_not_at_each_step(bench: Bench) -> None:
    worker, running = bench.turn("t5", session="s2")
    for number in range(2):
        bench.thread(f"x{number}", session="s2")
        start(bench, f"x{number}", session="s2")
    bench.hello("s3", knows_queue=False)
    bench.thread("t7", session="s3")
    for number in range(4):
        bench.thread(f"y{number}", session="s3")
        start(bench, f"y{number}", session="s3")
    start(bench, "t7", session="s3")
    bench.beat(2, "s1", "s2", "s3")

    def warnings() -> list[str]:
        return [params["message"] for _, params in notices(bench, "s3") if params["threadId"] == "t7"]

    assert len(warnings()) == 1
    bench.end(worker, running)
    bench.answer_all(worker)
    bench.beat(5, "s1", "s2", "s3")
    assert len(warnings()) == 1
    bench.beat(WARN_AGAIN_S, "s1", "s2", "s3")
    bench.beat(WARN_AGAIN_S, "s1", "s2", "s3")
    assert len(warnings()) == 2 and "5 others wait" in warnings()[1]


@pytest.mark.parametrize("opt_outs", [None, []])
def test_a_client_of_ours_behind_a_bridge_says_that_it_knows_the_queue(bench: Bench, opt_outs: Any) -> None:
    capabilities = {"experimentalApi": True, "optOutNotificationMethods": opt_outs, "poolQueue": True}
    bench.call("initialize", {"clientInfo": {"name": "x"}, "capabilities": capabilities})
    bench.turn("t5", session="s2")
    start(bench, "t1")
    assert [method for method, _ in notices(bench, "s1")] == ["pool/queued"]


def test_a_client_may_opt_out_of_warnings(bench: Bench) -> None:
    bench.call("initialize", {"capabilities": {"optOutNotificationMethods": ["warning"]}})
    bench.turn("t5", session="s2")
    start(bench, "t1")
    bench.beat(3, "s1", "s2")
    assert notices(bench, "s1") == []


# Turns on the side.


def on_side(bench: Bench) -> None:
    """The next turn that is sent is one that the bench does not count."""
    worker_of(bench).on_side += 1


def test_a_title_turn_runs_beside_the_turn_of_its_user(bench: Bench) -> None:
    worker, running = bench.turn("t1")
    on_side(bench)
    title, second_title = start(bench, "t2"), start(bench, "t3")
    assert bench.dispatches(title), "it needs no permit"
    assert not bench.dispatches(second_title), "one of a worker"
    bench.beat(3, "s1", "s2")
    assert notices(bench, "s1") == [], "its user is not bothered"
    bench.answer_all(worker)
    (of_title,) = worker.running.keys() - {running}
    bench.end(worker, of_title)
    assert bench.dispatches(second_title)
    assert bench.core.state.faults() == []


def test_a_title_turn_delays_no_other_turn(bench: Bench) -> None:
    worker, running = bench.turn("t1")
    on_side(bench)
    bench.turn("t2")
    waits, of_other = start(bench, "t3"), start(bench, "t6", session="s2")
    bench.end(worker, running)
    assert bench.dispatches(of_other) and not bench.dispatches(waits), "though it came later"
    bench.answer_all(worker)
    for turn_id in list(worker.running):
        bench.end(worker, turn_id)
    assert bench.dispatches(waits)
    assert bench.core.state.faults() == []


def test_a_title_turn_of_a_turn_that_waits_runs_at_once(bench: Bench) -> None:
    bench.turn("t5", session="s2")
    start(bench, "t1")
    on_side(bench)
    assert bench.dispatches(start(bench, "t2"))


def test_a_title_turn_that_fails_gives_its_place_back(bench: Bench) -> None:
    worker, _ = bench.turn("t1")
    on_side(bench)
    ((_, head),) = bench.dispatches(start(bench, "t2"))
    second = start(bench, "t3")
    bench.answer(worker, head.call, ok=False)
    assert bench.dispatches(second)


def test_an_ephemeral_thread_alone_has_turns_as_any_other(bench: Bench) -> None:
    bench.turn("t5", session="s2")
    call = start(bench, "t2")
    assert not bench.dispatches(call)
    bench.beat(2, "s1", "s2")
    assert [method for method, _ in notices(bench, "s1")] == ["warning"]


def test_a_client_that_knows_the_queue_has_no_turns_on_the_side(bench: Bench) -> None:
    bench.thread("t7", session="s2", ephemeral=True)
    bench.turn("t5", session="s2")
    assert not bench.dispatches(start(bench, "t7", session="s2"))


def test_a_title_turn_that_waits_for_a_person_is_counted_once(bench: Bench) -> None:
    worker, _ = bench.turn("t1")
    on_side(bench)
    _, of_title = bench.turn("t2")
    bench.wait(worker, of_title)
    assert bench.core.state.workers["w0"].load == 1
    assert not bench.dispatches(start(bench, "t6", session="s2"))
