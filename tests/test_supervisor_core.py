"""The supervisor's state machine: slots that fail, come back, and are given up in the end."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from codex_pool.supervisor.core import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    FAILED_STARTS_AT_FIRST,
    FAILED_STARTS_LATER,
    STABLE_S,
    START_LIMIT_S,
    Changed,
    Effect,
    GiveUp,
    Kill,
    PoolReady,
    Spawn,
    SupervisorCore,
    TellLost,
)


class Bench:
    """A supervisor core and the workers it has asked for. `alive`: worker -> slot."""

    def __init__(self, slots: int = 2) -> None:
        self.core = SupervisorCore(slots=slots, nonce="abc")
        self.now = 50.0
        self.alive: dict[str, int] = {}
        self.effects: list[Effect] = []
        self.apply(self.core.start(self.now))

    def apply(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, Spawn):
                assert effect.slot not in self.alive.values(), "one worker a slot"
                self.alive[effect.worker] = effect.slot
            if isinstance(effect, Kill):
                assert effect.worker in self.alive
        self.effects += effects
        return effects

    def of(self, kind: type) -> list[Any]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def worker(self, slot: int) -> str:
        return next(worker for worker, number in self.alive.items() if number == slot)

    def ready(self, slot: int) -> list[Effect]:
        return self.apply(self.core.ready(self.worker(slot), self.now))

    def die(self, slot: int, *, jitter: float = 0.5, stderr: tuple[str, ...] = ()) -> list[Effect]:
        worker = self.worker(slot)
        del self.alive[worker]
        return self.apply(self.core.exited(worker, "killed", stderr, self.now, jitter=jitter))

    def wait(self) -> float:
        """Sleep to the next deadline and tick; how long that was."""
        deadline = self.core.next_deadline
        assert deadline is not None
        slept, self.now = deadline - self.now, deadline
        self.apply(self.core.tick(self.now))
        return slept

    def state(self, slot: int) -> dict[str, object]:
        return self.core.states()[slot]


def test_the_pool_is_ready_once_when_every_slot_has_been() -> None:
    bench = Bench(slots=3)
    assert [effect.slot for effect in bench.of(Spawn)] == [0, 1, 2]
    bench.ready(0)
    bench.ready(2)
    assert bench.of(PoolReady) == []
    bench.ready(1)
    assert len(bench.of(PoolReady)) == 1 and bench.core.next_deadline is None
    bench.die(0)
    bench.wait()
    bench.ready(0)
    assert len(bench.of(PoolReady)) == 1


def test_a_worker_that_dies_is_told_lost_and_replaced_under_another_name() -> None:
    bench = Bench()
    bench.ready(0)
    bench.ready(1)
    name = bench.worker(0)
    effects = bench.die(0)
    assert effects == [TellLost(name, "killed"), Changed()]
    assert bench.state(0) == {"slot": 0, "state": "waiting", "restarts": 1, "lastReason": "killed"}
    assert BACKOFF_FIRST_S / 2 <= bench.wait() <= BACKOFF_FIRST_S
    assert bench.worker(0) != name and bench.state(0)["state"] == "starting"
    names = [effect.worker for effect in bench.of(Spawn)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("jitter", [0.0, 0.999])
def test_who_fails_again_and_again_waits_longer_each_time_up_to_a_limit(jitter: float) -> None:
    bench = Bench(slots=1)
    waits = []
    for _ in range(12):
        bench.ready(0)
        bench.die(0, jitter=jitter)
        waits.append(bench.wait())
    assert all(later >= earlier - 1e-6 for earlier, later in itertools.pairwise(waits))
    assert waits[1] == pytest.approx(2 * waits[0])
    assert BACKOFF_MAX_S / 2 <= waits[-1] <= BACKOFF_MAX_S
    bench.ready(0)
    bench.now += STABLE_S
    bench.die(0, jitter=jitter)
    assert bench.wait() == pytest.approx(waits[0]), "a stable worker starts afresh"


def test_one_slot_that_fails_does_not_hold_up_the_other() -> None:
    bench = Bench()
    bench.ready(0)
    bench.ready(1)
    for _ in range(4):
        bench.die(0)
        assert bench.state(1)["state"] == "ready"
        bench.wait()
        bench.ready(0)


def test_at_the_start_a_binary_that_dies_is_given_up_soon() -> None:
    bench = Bench(slots=4)
    for slot in range(FAILED_STARTS_AT_FIRST):
        assert bench.of(GiveUp) == []
        bench.die(slot, stderr=("first", "last words"))
    (give_up,) = bench.of(GiveUp)
    assert "killed" in give_up.reason and give_up.stderr == ("first", "last words")
    bench.die(3)
    bench.now += 1000
    before = len(bench.of(Spawn))
    assert bench.apply(bench.core.tick(bench.now)) == [] and len(bench.of(Spawn)) == before
    assert len(bench.of(GiveUp)) == 1


def test_later_the_pool_has_more_patience_but_not_for_ever() -> None:
    bench = Bench(slots=1)
    bench.ready(0)
    bench.die(0)
    bench.wait()
    for _ in range(FAILED_STARTS_LATER):
        assert bench.of(GiveUp) == []
        bench.die(0)
        if not bench.of(GiveUp):
            bench.wait()
    assert len(bench.of(GiveUp)) == 1


def test_a_start_that_succeeds_takes_back_the_failures_before_it() -> None:
    bench = Bench(slots=1)
    for _ in range(10):
        bench.die(0)
        bench.wait()
        bench.ready(0)
        bench.die(0)
        bench.wait()
    assert bench.of(GiveUp) == []


def test_who_is_not_ready_in_time_is_killed_once() -> None:
    bench = Bench(slots=1)
    assert bench.wait() == START_LIMIT_S
    assert [effect.worker for effect in bench.of(Kill)] == [bench.worker(0)]
    assert bench.core.next_deadline is None
    bench.now += 1
    bench.apply(bench.core.tick(bench.now))
    assert len(bench.of(Kill)) == 1
    bench.die(0)
    assert bench.core.next_deadline is not None


def test_a_suspect_is_killed_once_and_its_successor_can_be_suspected_again() -> None:
    bench = Bench(slots=1)
    bench.ready(0)
    for _ in range(2):
        bench.apply(bench.core.suspect(bench.worker(0), "no beat"))
    assert bench.of(Kill) == [Kill(bench.worker(0), "no beat")]
    bench.die(0)
    bench.wait()
    bench.ready(0)
    bench.apply(bench.core.suspect(bench.worker(0), "no beat"))
    assert len(bench.of(Kill)) == 2


@pytest.mark.parametrize("name", ["", "nobody", "w0.1-other"])
def test_workers_that_are_not_known_are_tolerated(name: str) -> None:
    bench = Bench()
    bench.ready(0)
    bench.die(0)
    before = bench.core.states()
    assert bench.core.ready(name, bench.now) == []
    assert bench.core.suspect(name, "x") == []
    assert bench.core.exited(name, "x", (), bench.now, jitter=0.5) == []
    assert bench.core.states() == before


class SupervisorMachine(RuleBasedStateMachine):
    """Any order of readiness, suspicion, death and time."""

    @initialize(slots=st.integers(1, 4))
    def begin(self, slots: int) -> None:
        self.bench = Bench(slots)
        self.dead: list[str] = []

    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        if self.bench.alive:
            self.bench.ready(data.draw(st.sampled_from(sorted(self.bench.alive.values()))))

    @rule(data=st.data(), jitter=st.floats(0, 0.999))
    def die(self, data: st.DataObject, jitter: float) -> None:
        if self.bench.alive:
            slot = data.draw(st.sampled_from(sorted(self.bench.alive.values())))
            self.dead.append(self.bench.worker(slot))
            effects = self.bench.die(slot, jitter=jitter)
            assert effects[0] == TellLost(self.dead[-1], "killed")

    @rule(data=st.data())
    def suspect(self, data: st.DataObject) -> None:
        names = [*sorted(self.bench.alive), *self.dead]
        if names:
            self.bench.apply(self.bench.core.suspect(data.draw(st.sampled_from(names)), "silent"))

    @rule(data=st.data())
    def late_news(self, data: st.DataObject) -> None:
        if self.dead:
            name = data.draw(st.sampled_from(self.dead))
            if not self.bench.of(GiveUp):
                assert self.bench.core.ready(name, self.bench.now) == []
                assert self.bench.core.exited(name, "again", (), self.bench.now, jitter=0.1) == []

    @rule(seconds=st.floats(0.01, 20))
    def time_passes(self, seconds: float) -> None:
        self.bench.now += seconds
        self.bench.apply(self.bench.core.tick(self.bench.now))

    @invariant()
    def never_stuck(self) -> None:
        """Every slot has a worker or a time at which it gets one; a pool that gave up starts nothing."""
        if not hasattr(self, "bench"):
            return
        bench = self.bench
        if bench.of(GiveUp):
            assert len(bench.of(GiveUp)) == 1
            assert not any(
                isinstance(effect, Spawn) for effect in bench.effects[bench.effects.index(bench.of(GiveUp)[0]) :]
            )
            return
        states = bench.core.states()
        waiting = [state for state in states if state["state"] == "waiting"]
        assert len(bench.alive) + len(waiting) == len(states)
        if waiting:
            assert bench.core.next_deadline is not None
            assert bench.core.next_deadline <= bench.now + BACKOFF_MAX_S

    @invariant()
    def no_storm(self) -> None:
        """Starts are bounded by time: in a row, a slot waits at least half of the first wait."""
        if hasattr(self, "bench"):
            restarts = sum(int(str(state["restarts"])) for state in self.bench.core.states())
            assert len(self.bench.of(Spawn)) <= len(self.bench.core.states()) + restarts


TestSupervisorMachine = SupervisorMachine.TestCase
TestSupervisorMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
