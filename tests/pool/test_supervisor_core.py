"""The supervisor's state machine: slots that fail, come back, are recycled, and are given up in the end."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from codex_pool.options import PoolOptions
from codex_pool.supervisor.core import SupervisorCore
from codex_pool.supervisor.effects import Changed, Drain, Effect, GiveUp, Kill, PoolReady, ReportLost, Spawn, Stop
from codex_pool.supervisor.fruitless_deaths import (
    FAILED_STARTS_AT_FIRST,
    FRUITLESS_DEATHS,
    FRUITLESS_DEATHS_PER_SLOT,
    FRUITLESS_WINDOW_S,
)
from codex_pool.supervisor.recycling import MEMORY_MIN_AGE_S
from codex_pool.supervisor.restarts import MAX_DEATHS, MAX_DELAY_S, SLOW_DELAY_S, WINDOW_S, BrokerRestarts
from codex_pool.supervisor.slots import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    STABLE_S,
    START_LIMIT_S,
    STOP_LIMIT_S,
    SUCCESSOR_BACKOFF_MAX_S,
)


class Bench:
    """A supervisor core and the workers it has asked for. `alive`: worker -> slot, oldest first."""

    def __init__(self, slots: int = 2, options: PoolOptions | None = None, *, one_first: bool = False) -> None:
        options = msgspec.structs.replace(options or PoolOptions(), workers=slots)
        self.core = SupervisorCore(options, nonce="abc", one_first=one_first)
        self.now = 50.0
        self.alive: dict[str, int] = {}
        self.effects: list[Effect] = []
        self.apply(self.core.start(self.now))

    def apply(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, Spawn):
                assert list(self.alive.values()).count(effect.slot) < 2, "one worker a slot, and one that it replaces"
                self.alive[effect.worker] = effect.slot
            if isinstance(effect, Kill | Drain | Stop):
                assert effect.worker in self.alive
        self.effects += effects
        return effects

    def of(self, kind: type) -> list[Any]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def worker(self, slot: int) -> str:
        """The newest worker of a slot."""
        return [worker for worker, number in self.alive.items() if number == slot][-1]

    def ready(self, slot: int) -> list[Effect]:
        return self.apply(self.core.ready(self.worker(slot), self.now))

    def die(self, slot: int, *, jitter: float = 0.5, stderr: tuple[str, ...] = ()) -> list[Effect]:
        return self.end(self.worker(slot), jitter=jitter, stderr=stderr)

    def end(self, worker: str, *, jitter: float = 0.5, stderr: tuple[str, ...] = ()) -> list[Effect]:
        del self.alive[worker]
        return self.apply(self.core.exited(worker, "killed", stderr, self.now, jitter=jitter))

    def load(self, worker: str, turns: int = 1, threads: int = 0, running: int = 0) -> list[Effect]:
        return self.apply(self.core.load(worker, turns=turns, threads=threads, running=running, now=self.now))

    def wait(self) -> float:
        """Sleep to the next deadline and tick; how long that was."""
        deadline = self.core.next_deadline
        assert deadline is not None
        slept, self.now = deadline - self.now, deadline
        self.apply(self.core.tick(self.now))
        return slept

    def state(self, slot: int) -> dict[str, object]:
        return self.core.states()[slot]


def test_the_others_start_once_the_first_worker_is_ready() -> None:
    bench = Bench(3, one_first=True)
    assert list(bench.alive.values()) == [0]
    bench.now += 1.0
    assert not bench.apply(bench.core.tick(bench.now))
    bench.die(0)
    assert bench.core.next_deadline is not None, "it starts again"
    bench.now = bench.core.next_deadline
    bench.apply(bench.core.tick(bench.now))
    assert list(bench.alive.values()) == [0]
    bench.ready(0)
    assert list(bench.alive.values()) == [0, 1, 2] and not bench.of(PoolReady)
    bench.ready(1)
    bench.ready(2)
    assert len(bench.of(PoolReady)) == 1


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
    assert effects == [ReportLost(name, "killed"), Changed()]
    assert bench.state(0) == {
        "slot": 0,
        "state": "waiting",
        "restarts": 1,
        "lastReason": "killed",
        "recycles": 0,
        "held": "",
        "recycling": "",
        "failedStarts": 0,
        "problem": "",
        "retryAt": None,
    }
    assert BACKOFF_FIRST_S / 2 <= bench.wait() <= BACKOFF_FIRST_S
    assert bench.worker(0) != name and bench.state(0)["state"] == "starting"
    names = [effect.worker for effect in bench.of(Spawn)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("jitter", [0.0, 0.999])
def test_who_fails_again_and_again_waits_longer_each_time_up_to_a_limit(jitter: float) -> None:
    bench = Bench(slots=2)
    bench.ready(1)
    waits = []
    for turns in range(12):
        bench.ready(0)
        # The pool as a whole works.
        bench.load(bench.worker(1), turns=turns + 1)
        bench.die(0, jitter=jitter)
        waits.append(bench.wait())
    assert all(later >= earlier - 1e-6 for earlier, later in itertools.pairwise(waits))
    assert waits[1] == pytest.approx(2 * waits[0])
    assert BACKOFF_MAX_S / 2 <= waits[-1] <= BACKOFF_MAX_S
    bench.ready(0)
    bench.now += STABLE_S
    bench.die(0, jitter=jitter)
    assert bench.wait() == pytest.approx(waits[0]), "a stable worker starts afresh"
    for _ in range(3):
        bench.ready(0)
        bench.load(bench.worker(0))
        bench.die(0, jitter=jitter)
        assert bench.wait() == pytest.approx(waits[0]), "and so does one that has finished a turn"


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


@pytest.mark.parametrize("slots", [1, 4])
def test_later_the_pool_has_more_patience_but_not_without_end(slots: int) -> None:
    """Workers that die before any turn has finished, with no other that serves, are given up as at the start."""
    bench = Bench(slots)
    for slot in range(slots):
        bench.ready(slot)
    for slot in range(1, slots):
        bench.die(slot)
    limit = max(FRUITLESS_DEATHS, FRUITLESS_DEATHS_PER_SLOT * slots)
    for count in range(limit):
        assert bench.of(GiveUp) == []
        bench.die(0, stderr=("last words",))
        while count < limit - 1 and 0 not in bench.alive.values():
            bench.wait()
        if count % 2 and count < limit - 1:
            bench.ready(0)
    (give_up,) = bench.of(GiveUp)
    assert f"{limit} workers died within" in give_up.reason and "had finished a turn: killed" in give_up.reason
    assert give_up.stderr == ("last words",) and bench.core.next_deadline is None


def test_while_a_worker_serves_the_pool_goes_on_whatever_does_not_start() -> None:
    bench = Bench()
    bench.ready(0)
    bench.ready(1)
    bench.die(0)
    for count in range(1, 100):
        bench.wait()
        bench.die(0)
        assert bench.state(0)["failedStarts"] == count and bench.state(0)["problem"] == "killed"
    assert bench.of(GiveUp) == [] and bench.state(1)["state"] == "ready"
    assert bench.core.next_deadline == bench.state(0)["retryAt"]
    bench.wait()
    bench.ready(0)
    assert (bench.state(0)["failedStarts"], bench.state(0)["problem"], bench.state(0)["retryAt"]) == (0, "", None)
    for slot in (0, 1):
        bench.die(slot)
    while not bench.of(GiveUp):
        bench.wait()
        for worker in list(bench.alive):
            bench.end(worker)
    assert len(bench.of(ReportLost)) == 100 + 2 + FRUITLESS_DEATHS - 1, "those of before do not count"


def test_a_worker_that_is_being_killed_does_not_serve() -> None:
    bench = Bench()
    bench.ready(0)
    bench.ready(1)
    bench.apply(bench.core.suspect(bench.worker(1), "no beat"))
    bench.die(0)
    while not bench.of(GiveUp):
        bench.wait()
        bench.die(0)
    assert len(bench.of(ReportLost)) == FRUITLESS_DEATHS


@pytest.mark.parametrize(("turns", "running"), [(1, 0), (0, 1)])
def test_a_pool_that_has_run_a_turn_before_all_were_ready_is_not_given_up(turns: int, running: int) -> None:
    bench = Bench()
    bench.ready(0)
    bench.load(bench.worker(0), turns=turns, running=running)
    for _ in range(FAILED_STARTS_AT_FIRST):
        bench.die(1)
        bench.wait()
    assert bench.of(GiveUp) == []


def test_a_turn_that_finishes_anywhere_takes_back_the_deaths_before_it() -> None:
    bench = Bench()
    bench.ready(0)
    bench.ready(1)
    for turns in range(1, 6):
        for _ in range(FRUITLESS_DEATHS - 1):
            bench.die(0)
            bench.wait()
            bench.ready(0)
        bench.load(bench.worker(1), turns=turns)
    assert bench.of(GiveUp) == []


def test_deaths_long_ago_do_not_count() -> None:
    bench = Bench(slots=1)
    bench.ready(0)
    for _ in range(4 * FRUITLESS_DEATHS):
        bench.die(0)
        bench.now += FRUITLESS_WINDOW_S / (FRUITLESS_DEATHS - 2)
        bench.apply(bench.core.tick(bench.now))
        bench.ready(0)
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
    assert ReportLost(bench.worker(0), "no beat; killed") in bench.die(0)
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
    assert bench.core.load(name, turns=9, threads=9, now=bench.now) == []
    assert bench.core.memory(name, 10**12, bench.now) == []
    assert bench.core.drained(name, bench.now) == []
    assert bench.core.states() == before


# Recycling.


def ready_bench(options: PoolOptions, slots: int = 2) -> Bench:
    bench = Bench(slots, options)
    for slot in range(slots):
        bench.ready(slot)
    bench.effects.clear()
    return bench


def test_a_worn_worker_is_replaced_before_it_drains_and_nothing_failed() -> None:
    bench = ready_bench(PoolOptions(recycle_turns=10))
    old = bench.worker(0)
    assert bench.load(old, turns=9) == []
    (spawn, changed) = bench.load(old, turns=10)
    assert isinstance(spawn, Spawn) and spawn.slot == 0 and changed == Changed()
    assert bench.state(0)["recycling"] == "10 turns, the limit is 10" and bench.state(0)["state"] == "ready"
    assert bench.core.registered == [old, bench.worker(1)]
    assert bench.load(old, turns=11) == [], "once"
    assert bench.ready(0) == [Drain(old, "10 turns, the limit is 10"), Changed()]
    assert bench.core.registered == [spawn.worker, old, bench.worker(1)]
    assert bench.apply(bench.core.drained(old, bench.now)) == [Stop(old)]
    assert bench.core.drained(old, bench.now) == [], "once"
    assert bench.end(old) == [ReportLost(old, "recycled: 10 turns, the limit is 10"), Changed()]
    assert bench.state(0) == {
        "slot": 0,
        "state": "ready",
        "restarts": 0,
        "lastReason": "",
        "recycles": 1,
        "held": "",
        "recycling": "",
        "failedStarts": 0,
        "problem": "",
        "retryAt": None,
    }
    assert bench.core.next_deadline is None


def test_one_slot_is_recycled_at_a_time_the_oldest_first() -> None:
    bench = Bench(3, PoolOptions(recycle_turns=1))
    for slot in (1, 2, 0):
        bench.ready(slot)
        bench.now += 1
    workers = [bench.worker(slot) for slot in range(3)]
    for slot in range(3):
        bench.load(workers[slot])
    order = []
    for _ in range(3):
        (slot,) = [slot for slot in range(3) if bench.state(slot)["recycling"]]
        order.append(slot)
        bench.ready(slot)
        bench.apply(bench.core.drained(workers[slot], bench.now))
        bench.end(workers[slot])
    assert order == [0, 1, 2], "the first that was worn, then by age"
    assert bench.of(Kill) == [] and all(bench.state(slot)["restarts"] == 0 for slot in range(3))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (PoolOptions(recycle_threads=3), "3 threads"),
        (PoolOptions(recycle_age_s=60.0), "60 s"),
        (PoolOptions(recycle_memory_bytes=1000), "1000 bytes"),
    ],
)
def test_what_wears_a_worker(options: PoolOptions, what: str) -> None:
    bench = ready_bench(options, slots=1)
    worker = bench.worker(0)
    bench.load(worker, turns=1000, threads=2)
    bench.apply(bench.core.memory(worker, 999, bench.now))
    bench.now += 59.9
    bench.apply(bench.core.tick(bench.now))
    assert bench.of(Spawn) == []
    bench.load(worker, turns=1000, threads=3)
    bench.apply(bench.core.memory(worker, 1000, bench.now))
    bench.now += 0.1
    bench.apply(bench.core.tick(bench.now))
    assert len(bench.of(Spawn)) == 1 and what in str(bench.state(0)["recycling"])


def test_workers_that_must_be_renewed_are_one_after_the_other_while_old_ones_still_drain() -> None:
    bench = ready_bench(PoolOptions(), slots=3)
    workers = [bench.worker(slot) for slot in range(3)]
    for _ in range(2):
        for name in workers[1:]:
            bench.apply(bench.core.renew(name, "another account", bench.now))
    assert [spawn.slot for spawn in bench.of(Spawn)] == [1], "told again, it is done once"
    assert bench.state(1)["recycling"] == "another account"
    bench.ready(1)
    assert [spawn.slot for spawn in bench.of(Spawn)] == [1], "the next one when somebody looks"
    bench.apply(bench.core.tick(bench.now))
    assert [spawn.slot for spawn in bench.of(Spawn)] == [1, 2]
    bench.ready(2)
    assert bench.of(Drain) == [Drain(name, "another account") for name in workers[1:]]
    for name in workers[1:]:
        assert bench.core.renew(name, "another account", bench.now) == [], "it is being replaced"
        bench.apply(bench.core.drained(name, bench.now))
        bench.end(name)
    assert [bench.state(slot)["recycles"] for slot in range(3)] == [0, 1, 1]
    assert all(bench.state(slot)["restarts"] == 0 for slot in range(3)) and bench.core.next_deadline is None


def test_a_renewal_waits_for_the_old_worker_of_its_slot_and_outlives_a_successor_that_dies() -> None:
    bench = ready_bench(PoolOptions(), slots=1)
    first = bench.worker(0)
    bench.apply(bench.core.renew(first, "a", bench.now))
    bench.die(0)
    assert bench.wait() > 0 and len(bench.of(Spawn)) == 2
    bench.ready(0)
    (second,) = [name for name in bench.core.registered if name != first]
    bench.apply(bench.core.renew(second, "b", bench.now))
    assert len(bench.of(Spawn)) == 2
    bench.apply(bench.core.drained(first, bench.now))
    bench.end(first)
    assert len(bench.of(Spawn)) == 3 and bench.state(0)["recycling"] == "b"


def test_age_is_waited_for() -> None:
    bench = ready_bench(PoolOptions(recycle_age_s=60.0), slots=1)
    assert bench.wait() == 60.0
    assert len(bench.of(Spawn)) == 1


def test_a_bound_that_a_fresh_app_server_is_beyond_does_not_spin() -> None:
    bench = ready_bench(PoolOptions(recycle_memory_bytes=1000), slots=1)
    bench.apply(bench.core.memory(bench.worker(0), 5000, bench.now))
    assert bench.of(Spawn) == []
    assert bench.wait() == MEMORY_MIN_AGE_S
    assert len(bench.of(Spawn)) == 1


def test_a_successor_that_dies_is_tried_again_after_a_while_and_the_old_one_goes_on() -> None:
    bench = ready_bench(PoolOptions(recycle_turns=1), slots=1)
    old = bench.worker(0)
    bench.load(old)
    bench.die(0)
    assert bench.state(0)["state"] == "ready" and bench.state(0)["recycling"] == ""
    assert bench.load(old, turns=2) == [], "not at once"
    assert bench.wait() > 0
    bench.ready(0)
    assert [effect.worker for effect in bench.of(Drain)] == [old]


def test_successors_that_never_start_do_not_end_the_worker_they_are_to_replace() -> None:
    """The successors are tried again, less and less often, and the states say so."""
    bench = ready_bench(PoolOptions(recycle_age_s=1.0), slots=2)
    old = [bench.worker(slot) for slot in range(2)]
    waits: dict[int, list[float]] = {0: [], 1: []}
    died_at = {0: 0.0, 1: 0.0}
    for _ in range(50):
        while len(bench.alive) == 2:
            bench.wait()
        slot = bench.alive[list(bench.alive)[-1]]
        waits[slot].append(bench.now - died_at[slot])
        died_at[slot] = bench.now
        bench.die(slot)
    assert bench.of(GiveUp) == [] and list(bench.alive) == old
    for slot in range(2):
        assert bench.state(slot)["state"] == "ready" and bench.state(slot)["restarts"] == 0
        assert bench.state(slot)["failedStarts"] == len(waits[slot]) == 25
        assert waits[slot][1] < 1 and SUCCESSOR_BACKOFF_MAX_S / 2 <= waits[slot][-1] <= SUCCESSOR_BACKOFF_MAX_S
    bench.die(0)
    assert bench.wait() <= BACKOFF_FIRST_S, "without a worker the slot does not wait as long"


def test_a_worker_that_drains_with_turns_keeps_the_pool_from_being_given_up() -> None:
    bench = ready_bench(PoolOptions(recycle_turns=1), slots=1)
    old = bench.worker(0)
    bench.load(old, turns=1, running=1)
    bench.ready(0)
    for _ in range(3 * FRUITLESS_DEATHS):
        bench.die(0)
        bench.wait()
    assert bench.of(GiveUp) == [] and old in bench.alive


def test_a_worker_that_dies_while_its_successor_starts_is_followed_at_once() -> None:
    bench = ready_bench(PoolOptions(recycle_turns=1), slots=1)
    old = bench.worker(0)
    bench.load(old)
    successor = bench.worker(0)
    assert bench.end(old) == [ReportLost(old, "killed"), Changed()]
    assert bench.state(0)["state"] == "starting" and bench.state(0)["recycling"] == ""
    assert bench.ready(0) == [Changed()]
    assert bench.worker(0) == successor and bench.of(Drain) == []


def test_a_worker_that_dies_while_it_drains_is_lost_and_its_successor_stays() -> None:
    bench = ready_bench(PoolOptions(recycle_turns=1), slots=1)
    old = bench.worker(0)
    bench.load(old)
    bench.ready(0)
    assert bench.end(old) == [ReportLost(old, "killed"), Changed()]
    assert bench.state(0)["state"] == "ready" and bench.state(0)["restarts"] == 0


def test_a_successor_that_dies_while_the_old_one_drains_is_replaced() -> None:
    bench = ready_bench(PoolOptions(recycle_turns=1), slots=1)
    old = bench.worker(0)
    bench.load(old)
    bench.ready(0)
    bench.die(0)
    assert bench.state(0)["state"] == "waiting"
    bench.wait()
    assert bench.core.registered == [old]
    bench.ready(0)
    bench.apply(bench.core.drained(old, bench.now))
    bench.end(old)
    assert bench.state(0)["state"] == "ready" and list(bench.alive) == [bench.worker(0)]


def test_who_drains_may_take_any_time_and_who_stops_may_not() -> None:
    bench = ready_bench(PoolOptions(recycle_turns=1), slots=1)
    old = bench.worker(0)
    bench.load(old)
    bench.ready(0)
    assert bench.core.next_deadline is None
    bench.now += 7 * 24 * 3600.0
    assert bench.apply(bench.core.tick(bench.now)) == []
    bench.apply(bench.core.drained(old, bench.now))
    assert bench.wait() == STOP_LIMIT_S and [effect.worker for effect in bench.of(Kill)] == [old]
    assert bench.core.next_deadline is None


def test_who_is_to_stop_and_runs_a_turn_all_the_same_ends_it_first() -> None:
    """One that began as the broker took the worker for drained."""
    bench = ready_bench(PoolOptions(recycle_turns=1), slots=1)
    old = bench.worker(0)
    bench.load(old)
    bench.ready(0)
    bench.apply(bench.core.drained(old, bench.now))
    bench.load(old, turns=1, running=1)
    assert bench.core.next_deadline is None
    bench.now += 24 * 3600.0
    bench.load(old, turns=2, running=0)
    assert bench.of(Kill) == [] and bench.wait() == STOP_LIMIT_S
    assert [effect.worker for effect in bench.of(Kill)] == [old]


def test_a_slot_has_one_worker_that_drains_and_others_do_not_wait_for_it() -> None:
    bench = ready_bench(PoolOptions(recycle_turns=1), slots=2)
    first, second = (bench.worker(slot) for slot in range(2))
    bench.load(first, turns=1, running=1)
    bench.ready(0)
    bench.load(bench.worker(0))
    assert len(bench.of(Spawn)) == 1, "the slot's next recycling waits"
    bench.load(second, turns=1, running=1)
    assert [spawn.slot for spawn in bench.of(Spawn)] == [0, 1]
    bench.ready(1)
    assert [drain.worker for drain in bench.of(Drain)] == [first, second]
    bench.apply(bench.core.drained(first, bench.now))
    bench.end(first)
    assert [spawn.slot for spawn in bench.of(Spawn)] == [0, 1, 0]


def test_a_new_broker_is_told_again_who_drains() -> None:
    bench = ready_bench(PoolOptions(recycle_turns=1), slots=1)
    old = bench.worker(0)
    bench.load(old)
    bench.ready(0)
    assert bench.core.ready(bench.worker(0), bench.now) == []
    assert bench.core.ready(old, bench.now) == bench.of(Drain) != []


def test_nobody_is_recycled_before_the_pool_is_ready() -> None:
    bench = Bench(2, PoolOptions(recycle_turns=1))
    bench.ready(0)
    assert bench.load(bench.worker(0)) == []


# The broker.


def test_a_broker_is_replaced_at_once_and_given_up_when_it_never_works() -> None:
    restarts = BrokerRestarts()
    for count in range(MAX_DEATHS):
        assert restarts.died(count * 0.1) == 0.0
    assert restarts.died(1.0) is None


def test_a_broker_of_a_pool_that_has_worked_is_replaced_without_end() -> None:
    restarts = BrokerRestarts()
    for count in range(100):
        assert restarts.died(count * WINDOW_S / MAX_DEATHS * 1.01) is not None, "deaths this far apart end no pool"
    delays = []
    for count in range(100):
        restarts.useful()
        delays.append(restarts.died(2000 + count * 0.1))
    assert set(delays[:MAX_DEATHS]) == {0.0} and set(delays[MAX_DEATHS:]) == {SLOW_DELAY_S}, "but it does not spin"
    now, waits = 3000.0, []
    for _ in range(100):
        delay_s = restarts.died(now)
        assert delay_s is not None, "workers run turns without one"
        waits.append(delay_s)
        now += delay_s + 0.1
    assert waits == sorted(waits) and waits[-1] == MAX_DELAY_S


class SupervisorMachine(RuleBasedStateMachine):
    """Any order of readiness, suspicion, load, death and time."""

    @initialize(slots=st.integers(1, 4), turns=st.integers(0, 5), age_s=st.sampled_from([0.0, 30.0]))
    def begin(self, slots: int, turns: int, age_s: float) -> None:
        self.bench = Bench(slots, PoolOptions(recycle_turns=turns or None, recycle_age_s=age_s or None))
        self.dead: list[str] = []
        self.gave_up = False

    def one(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.bench.alive) or [""]))

    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        self.bench.apply(self.bench.core.ready(self.one(data), self.bench.now))

    @rule(data=st.data(), turns=st.integers(0, 6), running=st.integers(0, 2))
    def load(self, data: st.DataObject, turns: int, running: int) -> None:
        self.bench.load(self.one(data), turns=turns, running=running)

    @rule(data=st.data())
    def drained(self, data: st.DataObject) -> None:
        self.bench.apply(self.bench.core.drained(self.one(data), self.bench.now))

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        self.bench.apply(self.bench.core.renew(self.one(data), "out of date", self.bench.now))

    @rule(data=st.data(), jitter=st.floats(0, 0.999))
    def die(self, data: st.DataObject, jitter: float) -> None:
        worker = self.one(data)
        if worker:
            self.dead.append(worker)
            effects = self.bench.end(worker, jitter=jitter)
            assert isinstance(effects[0], ReportLost) and effects[0].worker == worker

    @rule(data=st.data())
    def suspect(self, data: st.DataObject) -> None:
        names = [*sorted(self.bench.alive), *self.dead]
        if names:
            self.bench.apply(self.bench.core.suspect(data.draw(st.sampled_from(names)), "silent"))

    @rule(data=st.data())
    def late_news(self, data: st.DataObject) -> None:
        if self.dead:
            name = data.draw(st.sampled_from(self.dead))
            assert self.bench.core.ready(name, self.bench.now) == []
            assert self.bench.core.drained(name, self.bench.now) == []
            assert self.bench.core.renew(name, "late", self.bench.now) == []
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
        for state in states:
            if state["state"] == "waiting":
                assert bench.core.next_deadline is not None
                assert bench.core.next_deadline <= bench.now + BACKOFF_MAX_S
            else:
                assert state["slot"] in bench.alive.values()

    @invariant()
    def never_two_gaps(self) -> None:
        """One successor starts at a time; the old worker drains only once the new one was ready."""
        if hasattr(self, "bench"):
            assert sum(slot.successor is not None for slot in self.bench.core._slots) <= 1
            for drained in self.bench.of(Stop):
                assert drained.worker in [effect.worker for effect in self.bench.of(Drain)]

    @invariant()
    def no_storm(self) -> None:
        """Every start has its reason: a slot, a failure, a recycling."""
        if hasattr(self, "bench"):
            states = self.bench.core.states()
            recycling = sum(bool(state["recycling"]) for state in states)
            assert len(self.bench.of(Spawn)) <= len(states) + len(self.bench.of(ReportLost)) + recycling

    @invariant()
    def a_pool_that_serves_goes_on(self) -> None:
        """Check that the pool is not given up while a worker is ready or drains."""
        if not hasattr(self, "bench"):
            return
        workers = [worker for slot in self.bench.core._slots for worker in slot.workers]
        if self.bench.of(GiveUp) and not self.gave_up:
            self.gave_up = True
            assert not any(
                worker.state != "starting" and not worker.killing and self.bench.core._pool_ready for worker in workers
            )

    @invariant()
    def one_drains_a_slot(self) -> None:
        if hasattr(self, "bench"):
            for slot in self.bench.core._slots:
                assert len(slot.workers) <= 2 and (slot.retired is None or slot.successor is None)
                assert [w.state in ("draining", "stopping") for w in slot.workers] in (
                    [],
                    [False],
                    [False, False],
                    [False, True],
                    [True],
                )


TestSupervisorMachine = SupervisorMachine.TestCase
TestSupervisorMachine.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_workers_that_cannot_come_to_the_broker_get_more_time() -> None:
    bench = Bench()
    for _ in range(5):
        bench.now += START_LIMIT_S - 1
        bench.core.unreachable(bench.now)
        bench.apply(bench.core.tick(bench.now))
    assert bench.of(Kill) == []
    bench.now += START_LIMIT_S + 1
    bench.apply(bench.core.tick(bench.now))
    assert len(bench.of(Kill)) == 2


def test_starts_that_do_not_count_give_no_pool_up() -> None:
    bench = Bench()
    for slot in range(2):
        bench.ready(slot)
    for _ in range(3 * FRUITLESS_DEATHS):
        worker = bench.worker(0)
        del bench.alive[worker]
        bench.apply(bench.core.exited(worker, "no home", (), bench.now, jitter=0.5, counts=False))
        bench.now += BACKOFF_MAX_S
        bench.apply(bench.core.tick(bench.now))
    assert bench.of(GiveUp) == [] and 0 in bench.alive.values()
