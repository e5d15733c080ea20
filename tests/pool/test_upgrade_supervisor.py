"""Upgrades of codex at the supervisor: slots that get the other binary one by one, and go back to the one before."""

from __future__ import annotations

import pytest

from codex_pool.options import PoolOptions
from codex_pool.supervisor.commands import CommandError
from codex_pool.supervisor.core import SupervisorCore
from codex_pool.supervisor.effects import Drain, Effect, GiveUp, Kill, Spawn
from codex_pool.supervisor.slots import Build
from codex_pool.supervisor.upgrade import Upgrade

OLD, NEW = Build("/bin/old", "1"), Build("/bin/new", "2")


class Bench:
    """A supervisor core with an upgrade. `builds`: the build of each worker that was started."""

    def __init__(self, slots: int = 3) -> None:
        self.core = SupervisorCore(PoolOptions(workers=slots), nonce="abc")
        self.upgrade = Upgrade(self.core, OLD)
        self.now = 50.0
        self.builds: dict[str, int] = {}
        self.effects: list[Effect] = []
        self.apply(self.core.start(self.now))
        for name in list(self.builds):
            self.ready(name)

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Spawn):
                self.builds[effect.worker] = effect.build
        self.effects += effects

    def step(self) -> None:
        self.now += 1.0
        self.apply(self.upgrade.step(self.now))
        self.apply(self.core.tick(self.now))

    def ready(self, name: str) -> None:
        self.apply(self.core.ready(name, self.now))
        self.step()

    def end(self, name: str, why: str = "exit code 1") -> None:
        self.apply(self.core.exited(name, why, (), self.now, jitter=0.5))
        self.step()

    def finish(self, name: str) -> None:
        """A worker that drains has nothing left, and ends."""
        assert name in self.of(Drain)
        self.apply(self.core.drained(name, self.now))
        self.end(name, "exit code 0")

    def of(self, kind: type) -> list[str]:
        return [getattr(effect, "worker", "") for effect in self.effects if isinstance(effect, kind)]

    def begun(self) -> str:
        """The worker that was started last."""
        return list(self.builds)[-1]

    def of_slots(self) -> list[int]:
        """The builds of the workers that take work."""
        return [slot.worker.build for slot in self.core.slots if slot.worker is not None]

    def asked(self) -> None:
        assert self.upgrade.begin(NEW)["changed"] is True
        self.upgrade.passed("0.171.0")
        self.step()


def test_no_worker_has_the_binary_before_the_canary_has_passed() -> None:
    bench = Bench()
    assert bench.upgrade.begin(NEW)["changed"] is True
    bench.end("w0.1-abc")
    assert set(bench.builds.values()) == {0} and bench.upgrade.row["state"] == "checking"
    bench.upgrade.failed("it is broken")
    assert bench.upgrade.row["problem"] == "it is broken; the workers go on with /bin/old"
    bench.step()
    assert set(bench.builds.values()) == {0} and bench.upgrade.build == OLD
    # It may be asked for again.
    assert bench.upgrade.begin(NEW)["changed"] is True


def test_slots_are_replaced_one_at_a_time_and_their_workers_finish_what_they_run() -> None:
    bench = Bench()
    bench.asked()
    for number in range(3):
        assert bench.begun().startswith(f"w{number}.2-") and bench.builds[bench.begun()] == 1
        assert len(bench.of(Drain)) == number, "the worker goes on until its successor is ready"
        bench.ready(bench.begun())
    assert bench.upgrade.row["state"] == "done" and bench.upgrade.build == NEW and bench.of_slots() == [1, 1, 1]
    assert bench.upgrade.row["replaced"] == 3 and bench.upgrade.row["codexVersion"] == "0.171.0"
    for number in range(3):
        bench.finish(f"w{number}.1-abc")
    bench.apply(bench.core.scale(4, bench.now))
    bench.end("w1.2-abc")
    assert [bench.builds[name] for name in ("w3.1-abc", "w1.3-abc")] == [1, 1]
    assert bench.of(GiveUp) == bench.of(Kill) == []


def test_a_successor_that_cannot_start_takes_all_back() -> None:
    bench = Bench()
    bench.asked()
    bench.ready(bench.begun())
    bench.finish("w0.1-abc")
    bench.end(bench.begun(), "no libc")
    assert (
        bench.upgrade.row["state"] == "going back"
        and "slot 1: its new worker could not start: no libc" in (bench.upgrade.row["problem"])
    )
    assert bench.begun() == "w0.3-abc" and bench.builds["w0.3-abc"] == 0
    bench.ready("w0.3-abc")
    row = bench.upgrade.row
    assert row["state"] == "failed" and "the workers are back on /bin/old" in row["problem"] and row["replaced"] == 0
    assert bench.of_slots() == [0, 0, 0] and bench.upgrade.build == OLD
    assert [each["failedStarts"] for each in bench.core.states()] == [0, 0, 0]
    bench.step()
    assert bench.begun() == "w0.3-abc", "nothing else is started"


def test_a_worker_with_the_binary_that_dies_takes_all_back_and_one_that_starts_is_ended() -> None:
    bench = Bench()
    bench.asked()
    bench.ready(bench.begun())
    bench.end("w0.2-abc", "signal 11")
    assert bench.of(Kill) == ["w1.2-abc"] and "its new worker has ended: signal 11" in bench.upgrade.row["problem"]
    bench.end("w1.2-abc", "signal 9")
    assert {bench.builds[name] for name in bench.builds if name.startswith("w0.3")} == {0}
    bench.ready("w0.3-abc")
    assert bench.upgrade.row["state"] == "failed" and bench.of_slots() == [0, 0, 0]
    assert [each["failedStarts"] for each in bench.core.states()] == [0, 0, 0]


def test_a_worker_of_the_binary_before_that_dies_fails_nothing() -> None:
    bench = Bench()
    bench.asked()
    bench.end("w2.1-abc", "killed")
    assert bench.builds["w2.2-abc"] == 0 and bench.upgrade.row["state"] == "replacing"
    bench.end("w0.1-abc", "killed")
    bench.ready("w2.2-abc")
    bench.ready("w0.2-abc")
    bench.ready("w1.2-abc")
    bench.ready("w2.3-abc")
    assert bench.upgrade.row["state"] == "done" and bench.of_slots() == [1, 1, 1]


def test_a_slot_that_is_drained_gets_the_binary_when_it_comes_back() -> None:
    bench = Bench(2)
    bench.apply(bench.core.hold(bench.core.slots[1], "drained", "drained by the operator", bench.now))
    bench.finish("w1.1-abc")
    bench.asked()
    bench.ready("w0.2-abc")
    assert bench.upgrade.row["state"] == "done"
    bench.apply(bench.core.refill(bench.core.slots[1], bench.now))
    assert bench.builds[bench.begun()] == 1


def test_an_upgrade_is_asked_for_once() -> None:
    bench = Bench(1)
    assert bench.upgrade.begin(OLD)["changed"] is False
    bench.asked()
    assert bench.upgrade.begin(NEW)["changed"] is False
    with pytest.raises(CommandError, match="/bin/new is under way"):
        bench.upgrade.begin(Build("/bin/third"))
    bench.ready(bench.begun())
    assert "already" in bench.upgrade.begin(NEW)["message"]
    # The same path with another file is another binary.
    assert bench.upgrade.begin(Build("/bin/new", "3"))["changed"] is True


def test_a_pool_that_starts_is_not_upgraded() -> None:
    core = SupervisorCore(PoolOptions(workers=1), nonce="abc")
    core.start(1.0)
    with pytest.raises(CommandError, match="still starting"):
        Upgrade(core, OLD).begin(NEW)
