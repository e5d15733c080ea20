"""FairQueue: who is served next, of those that wait with one worker."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from codex_pool.broker.fair_queue import FairQueue


def any_thread(_: str) -> bool:
    return True


def filled(**sessions: tuple[int, int]) -> FairQueue[tuple[str, int]]:
    """A queue in which each session, given as (weight, items), has all of its items waiting, in one order."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for session, (weight, items) in sessions.items():
        for number in range(items):
            queue.put(session, weight, f"{session}{number}", (session, number))
    return queue


def serve(queue: FairQueue[Any], count: int) -> list[Any]:
    return [queue.take(any_thread) for _ in range(count)]


def test_one_with_many_does_not_keep_one_with_one_waiting() -> None:
    queue = filled(many=(1, 10_000), one=(1, 1))
    assert ("one", 0) in serve(queue, 2)
    assert len(queue) == 9_999


def test_one_who_comes_late_does_not_wait_for_those_before() -> None:
    queue = filled(many=(1, 1000))
    serve(queue, 500)
    queue.put("late", 1, "t", ("late", 0))
    assert ("late", 0) in serve(queue, 2)


@pytest.mark.parametrize("weights", [(4, 1), (1, 1), (1, 4)])
def test_shares_are_as_the_weights(weights: tuple[int, int]) -> None:
    queue = filled(a=(weights[0], 1000), b=(weights[1], 1000))
    served = Counter(session for session, _ in serve(queue, 500))
    assert abs(served["a"] / 500 - weights[0] / sum(weights)) < 0.02


def test_one_who_asks_again_whenever_it_was_served_gets_no_more_than_its_share() -> None:
    """The lane of such a client is empty each time: it must not be taken for somebody new."""
    queue = filled(steady=(1, 1000))
    queue.put("again", 1, "t", ("again", 0))
    served: Counter[str] = Counter()
    for _ in range(100):
        item = queue.take(any_thread)
        assert item is not None
        served[item[0]] += 1
        if item[0] == "again":
            queue.put("again", 1, "t", ("again", 0))
    assert abs(served["again"] - 50) <= 1


def test_one_whose_threads_were_busy_does_not_catch_up_at_the_cost_of_others() -> None:
    queue = filled(a=(1, 100), b=(1, 100))
    for _ in range(50):
        item = queue.take(lambda thread: thread.startswith("b"))
        assert item is not None and item[0] == "b"
    assert Counter(session for session, _ in serve(queue, 20))["a"] in (10, 11)


def test_busy_threads_let_others_pass_and_keep_their_order() -> None:
    queue: FairQueue[int] = FairQueue()
    for number, thread in enumerate("xxyy"):
        queue.put("s", 1, thread, number)
    assert queue.take(lambda thread: thread == "y") == 2
    assert queue.take(lambda thread: False) is None
    assert [queue.take(any_thread) for _ in range(4)] == [0, 3, 1, None]


def test_what_is_taken_out_is_not_served() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(4):
        queue.put("s", 1, "t", number)
        queue.put("other", 1, "t", 10 + number)
    assert queue.remove("s", "t", 1) and not queue.remove("s", "t", 1)
    assert not queue.remove("s", "nothing", 1) and not queue.remove("nobody", "t", 1)
    assert all(queue.remove("s", "t", item) for item in (0, 2, 3)) and not queue.remove("s", "t", 0)
    assert sorted(queue) == [10, 11, 12, 13] == queue.remove_all()
    assert len(queue) == 0 and queue.take(any_thread) is None


class QueueMachine(RuleBasedStateMachine):
    """Sessions that put, are served, and go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.model: dict[tuple[str, str], list[int]] = {}
        self.next = 0
        # How often others of its weight or less were served since this session could have been.
        self.passed: Counter[tuple[str, str]] = Counter()

    @staticmethod
    def weight(session: str) -> int:
        return 4 if session in ("i1", "i2") else 1

    @rule(session=st.sampled_from(["i1", "i2", "b1", "b2"]), thread=st.sampled_from("xyz"), count=st.integers(1, 5))
    def put(self, session: str, thread: str, count: int) -> None:
        for _ in range(count):
            self.queue.put(session, self.weight(session), thread, self.next)
            self.model.setdefault((session, thread), []).append(self.next)
            self.next += 1

    @rule(free=st.sets(st.sampled_from("xyz")))
    def take(self, free: set[str]) -> None:
        could = {session for session, thread in self.model if thread in free}
        item = self.queue.take(lambda thread: thread in free)
        assert (item is None) == (not could)
        if item is None:
            return
        session, thread = next(key for key, items in self.model.items() if item in items)
        assert thread in free and self.model[session, thread].pop(0) == item
        if not self.model[session, thread]:
            del self.model[session, thread]
        for other in could - {session}:
            self.passed[other, session] += 1
            # Nobody is served twice its share before one who could have been served.
            assert self.passed[other, session] <= 2 * max(1, self.weight(session) // self.weight(other))
        for key in list(self.passed):
            if session == key[0] or key[0] not in could:
                del self.passed[key]

    @rule(session=st.sampled_from(["i1", "b1"]))
    def leave(self, session: str) -> None:
        for (name, thread), items in self.model.items():
            if name == session:
                assert all(self.queue.remove(session, thread, item) for item in items)
        self.model = {key: items for key, items in self.model.items() if key[0] != session}
        self.passed.clear()

    @invariant()
    def counts(self) -> None:
        assert len(self.queue) == sum(map(len, self.model.values())) == len(list(self.queue))


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=60))
def test_when_nothing_waits_nothing_is_kept(sessions: list[str]) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, session in enumerate(sessions):
        queue.put(session, 1, "t", number)
    serve(queue, len(sessions))
    assert queue._shares == queue._principals == {} and len(queue) == 0


priorities = st.dictionaries(st.sampled_from(["ann", "ben", "cy"]), st.integers(1, 100), min_size=2)


@settings(max_examples=60, deadline=None)
@given(priorities, st.dictionaries(st.sampled_from(["ann", "ben", "cy"]), st.integers(1, 5), min_size=3))
def test_principals_are_served_as_their_priorities_however_many_sessions_they_have(
    priorities: dict[str, int], sessions: dict[str, int]
) -> None:
    queue: FairQueue[str] = FairQueue()
    for name, priority in priorities.items():
        for number in range(400):
            session = f"{name}-{number % sessions[name]}"
            queue.put(session, 1, f"{name}{number}", name, principal=name, priority=priority)
    stated = list(queue.in_order())[:400]
    served = serve(queue, 400)
    assert served == stated
    total = sum(priorities.values())
    for name, priority in priorities.items():
        assert abs(served.count(name) - 400 * priority / total) <= 2
    # Nobody starves: between two of one's own no more of another come than both priorities say.
    for name, priority in priorities.items():
        places = [place for place, who in enumerate(served) if who == name]
        for before, after in itertools.pairwise(places):
            between = Counter(served[before + 1 : after])
            assert all(count <= priorities[who] / priority + 1 for who, count in between.items())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["ann", "ben"]), st.integers(0, 2), st.sampled_from("xyz"), st.sampled_from("ptr")),
        max_size=60,
    )
)
def test_the_stated_order_is_that_of_serving_whatever_has_happened(
    script: list[tuple[str, int, str, str]],
) -> None:
    queue: FairQueue[int] = FairQueue()
    there: dict[int, tuple[str, str]] = {}
    for number, (name, session, thread, what) in enumerate(script):
        if what == "p":
            there[number] = f"{name}-{session}", thread
            priority = 10 if name == "ann" else 30
            queue.put(f"{name}-{session}", 1 + 3 * (session == 0), thread, number, principal=name, priority=priority)
        elif what == "t":
            item = queue.take(any_thread)
            assert (item is None) == (not there)
            there.pop(item, None)
        elif there:
            item = next(iter(there))
            assert queue.remove(*there.pop(item), item)
    assert len(queue) == len(there)
    stated = list(queue.in_order())
    assert stated == serve(queue, len(there)) and sorted(stated) == sorted(there)
