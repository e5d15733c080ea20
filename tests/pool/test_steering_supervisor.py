"""The operator's commands at the supervisor: slots that grow, shrink and drain, and the mode of the pool."""

from __future__ import annotations

from typing import Any

import pytest

from codex_pool.broker.mode import Grace, Mode
from codex_pool.options import PoolOptions
from codex_pool.supervisor.commands import CommandError, Commands, Reply
from codex_pool.supervisor.core import SupervisorCore
from codex_pool.supervisor.effects import Changed, Drain, Effect, GiveUp, ReportLost, Spawn, Stop, StopAsked
from codex_pool.supervisor.slots import STOP_LIMIT_S
from codex_pool.supervisor.steering import Steering


class Bench:
    """A supervisor core that is steered. `alive`: its workers, and their slots."""

    def __init__(self, slots: int = 2, *, ready: bool = True, can_stop: bool = True) -> None:
        self.core = SupervisorCore(PoolOptions(workers=slots), nonce="abc")
        self.steering = Steering(self.core, can_stop=can_stop, drain_timeout_s=20.0)
        self.now = 50.0
        self.alive: dict[str, int] = {}
        self.effects: list[Effect] = []
        self.apply(self.core.start(self.now))
        if ready:
            self.all_ready()

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Spawn):
                assert effect.worker not in self.seen(), "a name is used once"
                self.alive[effect.worker] = effect.slot
        self.effects += effects

    def seen(self) -> list[str]:
        return [effect.worker for effect in self.effects if isinstance(effect, Spawn)]

    def of(self, kind: type) -> list[str]:
        return [getattr(effect, "worker", "") for effect in self.effects if isinstance(effect, kind)]

    def command(self, name: str, **params: Any) -> dict[str, Any]:
        result, effects = self.steering.command(name, params, self.now)
        self.apply(effects)
        return result

    def all_ready(self) -> None:
        for name in self.alive.keys() - self.core.registered:
            self.apply(self.core.ready(name, self.now))

    def finish(self, name: str) -> None:
        """A worker that drains has nothing left, and ends."""
        self.apply(self.core.drained(name, self.now))
        assert self.of(Stop)[-1] == name
        self.end(name)

    def end(self, name: str) -> None:
        del self.alive[name]
        self.apply(self.core.exited(name, "exit code 0", (), self.now, jitter=0.5))
        self.apply(self.core.tick(self.now))

    def worker(self, slot: int) -> str:
        """The newest worker of a slot."""
        return [name for name, number in self.alive.items() if number == slot][-1]

    def row(self, slot: int) -> dict[str, object]:
        return next(row for row in self.core.states() if row["slot"] == slot)

    def numbers(self) -> list[object]:
        return [row["slot"] for row in self.core.states()]


# Scaling.


def test_slots_are_added_and_the_last_ones_removed_once_their_turns_are_over() -> None:
    bench = Bench(2)
    assert bench.command("scale", workers=6) == {
        "changed": True,
        "message": "from 2 workers to 6",
        "before": 2,
        "workers": [],
    }
    assert bench.numbers() == [0, 1, 2, 3, 4, 5] and bench.core.wanted == 6
    bench.all_ready()
    bench.effects = [effect for effect in bench.effects if isinstance(effect, Spawn)]
    leaving = [bench.worker(slot) for slot in (3, 4, 5)]
    assert bench.command("scale", workers=3)["workers"] == leaving == bench.of(Drain)
    assert bench.core.wanted == 3 and bench.of(Stop) == [], "their turns go on"
    assert bench.command("scale", workers=3) == {
        "changed": False,
        "message": "there are 3 workers already",
        "before": 3,
    }
    # The middle one first.
    for name in (leaving[1], leaving[0], leaving[2]):
        bench.finish(name)
    assert bench.numbers() == [0, 1, 2] and bench.of(ReportLost) == [leaving[1], leaving[0], leaving[2]]
    assert bench.of(GiveUp) == [] and [row["restarts"] for row in bench.core.states()] == [0, 0, 0]
    assert bench.core.next_deadline is None


def test_a_slot_that_is_added_again_has_workers_of_other_names() -> None:
    bench = Bench(2)
    bench.command("scale", workers=1)
    bench.finish(bench.worker(1))
    bench.command("scale", workers=2)
    assert bench.worker(1).startswith("w1.2-")


def test_a_slot_that_is_wanted_again_while_it_drains_gets_a_worker_beside_the_one_that_drains() -> None:
    bench = Bench(2)
    old = bench.worker(1)
    bench.command("scale", workers=1)
    bench.command("scale", workers=2)
    new = bench.worker(1)
    assert new != old
    bench.all_ready()
    assert bench.row(1)["state"] == "ready" and old in bench.core.registered
    bench.command("scale", workers=1)
    assert bench.of(Drain)[-1] == new
    bench.command("scale", workers=2)
    assert bench.row(1)["state"] == "draining", "a slot has two workers at most"
    bench.finish(old)
    assert bench.worker(1) == new
    bench.finish(new)
    assert bench.worker(1) not in (old, new) and bench.row(1)["restarts"] == 0


def test_a_worker_that_is_still_starting_drains_once_it_is_ready() -> None:
    bench = Bench(1)
    bench.command("scale", workers=2)
    name = bench.worker(1)
    bench.command("scale", workers=1)
    assert bench.of(Drain) == []
    bench.all_ready()
    assert bench.of(Drain) == [name]
    bench.finish(name)
    assert bench.numbers() == [0]


def test_a_worker_of_a_removed_slot_that_cannot_start_is_not_started_again() -> None:
    bench = Bench(1)
    bench.command("scale", workers=2)
    name = bench.worker(1)
    bench.command("scale", workers=1)
    bench.end(name)
    assert bench.numbers() == [0] and bench.core.next_deadline is None and bench.of(GiveUp) == []


def test_a_slot_is_removed_while_its_worker_is_replaced() -> None:
    bench = Bench(2)
    old = bench.worker(1)
    bench.command("recycle", worker="1")
    new = bench.worker(1)
    bench.command("scale", workers=1)
    assert bench.of(Drain) == [old]
    bench.apply(bench.core.ready(new, bench.now))
    assert bench.of(Drain) == [old, new]
    bench.finish(new)
    assert bench.numbers() == [0, 1]
    bench.finish(old)
    assert bench.numbers() == [0]


def test_a_worker_that_drains_and_dies_ends_like_one_that_was_asked() -> None:
    bench = Bench(2)
    bench.command("scale", workers=1)
    bench.end(bench.worker(1))
    assert bench.numbers() == [0] and bench.of(GiveUp) == []


def test_a_worker_that_drains_is_asked_again_by_a_new_broker() -> None:
    bench = Bench(2)
    name = bench.worker(1)
    bench.command("scale", workers=1)
    bench.apply(bench.core.ready(name, bench.now))
    assert bench.of(Drain) == [name, name]
    bench.apply(bench.core.drained(name, bench.now))
    bench.now += STOP_LIMIT_S
    assert bench.core.next_deadline is not None


@pytest.mark.parametrize("workers", [0, -1])
def test_there_is_one_worker_at_least(workers: int) -> None:
    with pytest.raises(CommandError, match="expected 1 or more"):
        Bench().command("scale", workers=workers)


# Draining.


def test_a_slot_that_is_drained_stays_empty_until_it_is_resumed() -> None:
    bench = Bench(2)
    name = bench.worker(1)
    found = bench.command("drain", worker="w1")
    assert found == {"changed": True, "message": f"slot 1: draining {name}", "slot": 1, "workers": [name]}
    found = bench.command("drain", worker=name)
    assert (found["changed"], found["message"]) == (False, f"slot 1: already draining {name}")
    bench.finish(name)
    assert bench.row(1)["state"] == "drained" and bench.row(1)["held"] == "drained"
    assert bench.core.next_deadline is None and bench.core.wanted == 2
    assert bench.command("drain", worker="1")["message"] == "slot 1: already drained"
    assert bench.command("resume", worker="0")["changed"] is False
    assert bench.command("resume") == {"changed": True, "message": "slot 1 gets a worker again"}
    bench.all_ready()
    assert bench.row(1)["state"] == "ready"
    assert bench.command("resume") == {"changed": False, "message": "neither paused nor draining"}


def test_the_last_slot_that_takes_work_is_not_drained() -> None:
    bench = Bench(2)
    bench.command("drain", worker="0")
    with pytest.raises(CommandError, match="slot 1 is the only one that takes work"):
        bench.command("drain", worker="1")
    with pytest.raises(CommandError, match="resume one of them first"):
        bench.command("scale", workers=1)


def test_the_whole_pool_drains_and_is_resumed() -> None:
    bench = Bench()
    found = bench.command("drain", approval_grace=7.0)
    assert found["changed"] and found["waitsFor"] == "all"
    assert bench.steering.mode == Mode(draining=True, graces={"": Grace(57.0, 7.0)})
    assert bench.command("drain", approval_grace=7.0)["changed"] is False
    assert bench.command("drain", approval_grace=1.0)["changed"] is True
    bench.command("resume")
    assert bench.steering.mode == Mode()


def test_the_grace_of_a_worker_ends_with_it() -> None:
    bench = Bench()
    name = bench.worker(1)
    bench.command("drain", worker="1", approval_grace=0.0)
    assert bench.steering.mode.graces == {name: Grace(50.0, 0.0)}
    assert not bench.steering.forget()
    bench.finish(name)
    assert bench.steering.forget() and bench.steering.mode == Mode()
    with pytest.raises(CommandError, match="expected a number of seconds"):
        bench.command("drain", approval_grace=-1.0)


@pytest.mark.parametrize(("given", "slot"), [("1", 1), ("w1", 1), ("w1.", 1), ("w10", 10), ("10", 10)])
def test_a_worker_is_named_by_its_slot_or_the_beginning_of_its_name(given: str, slot: int) -> None:
    assert Bench(11).command("drain", worker=given)["slot"] == slot


@pytest.mark.parametrize("given", ["", "w", "x", "11"])
def test_what_names_no_worker_or_several_is_refused_with_their_names(given: str) -> None:
    with pytest.raises(CommandError, match=r"name one by its slot or its name: w0\.1-abc, w1\.1-abc"):
        Bench().command("drain", worker=given)


# Pause, recycle, stop.


def test_pause_and_resume_say_what_has_changed() -> None:
    bench = Bench()
    assert [bench.command("pause")["changed"], bench.command("pause")["message"]] == [True, "already paused"]
    assert bench.steering.mode == Mode(paused=True)
    assert bench.command("resume") == {"changed": True, "message": "no longer paused"}


def test_all_workers_are_replaced_one_after_the_other() -> None:
    bench = Bench(2)
    first = [bench.worker(0), bench.worker(1)]
    assert bench.command("recycle")["workers"] == first
    assert bench.command("recycle") == {
        "changed": False,
        "message": "every worker is being started or replaced already",
    }
    assert len(bench.alive) == 3, "one successor at a time"
    bench.all_ready()
    bench.apply(bench.core.tick(bench.now))
    assert bench.command("recycle")["changed"] is False, "while the first one drains, too"
    bench.all_ready()
    assert bench.of(Drain) == first
    for name in first:
        bench.finish(name)
    assert [row["recycles"] for row in bench.core.states()] == [1, 1] and len(bench.alive) == 2
    assert bench.command("recycle", worker="0")["workers"] == [bench.seen()[2]]


def test_a_daemon_is_asked_to_stop_once_and_again_for_at_once() -> None:
    bench = Bench()
    assert bench.command("stop")["message"] == "stopping; turns that run are waited for, for up to 20 s"
    assert bench.command("stop")["changed"] is False
    assert bench.command("stop", now=True)["changed"] is True and bench.command("stop", now=True)["changed"] is False
    assert [effect for effect in bench.effects if isinstance(effect, StopAsked)] == [StopAsked(False), StopAsked(True)]
    assert bench.steering.mode == Mode(draining=True, stopping=True)
    with pytest.raises(CommandError, match="the pool is stopping"):
        bench.command("resume")


def test_a_pool_of_a_program_is_not_stopped_by_its_clients() -> None:
    with pytest.raises(CommandError, match="belongs to a program"):
        Bench(can_stop=False).command("stop")


def test_a_pool_that_is_starting_is_not_steered_but_stopped() -> None:
    bench = Bench(ready=False)
    for name in ("pause", "resume", "drain", "recycle"):
        with pytest.raises(CommandError, match="still starting"):
            bench.command(name)
    assert bench.command("stop")["changed"]
    assert Changed() in bench.effects


# Commands.


def test_each_command_is_answered_once_at_once_or_later() -> None:
    commands, sent, replies = Commands(), list[dict[str, Any]](), list[Reply]()

    def fails(params: dict[str, Any], reply: Reply) -> dict[str, Any]:
        raise CommandError("it cannot")

    commands.add("now", lambda params, reply: {"got": params})
    commands.add("later", lambda params, reply: replies.append(reply))
    commands.add("fails", fails)
    for number, name in enumerate(("now", "later", "fails", "unknown"), 1):
        commands.take(number, name, {"a": 1}, sent.append)
    assert [record["command_result"]["id"] for record in sent] == [1, 3, 4]
    assert sent[0] == {"command_result": {"id": 1, "result": {"got": {"a": 1}}}}
    assert sent[1] == {"command_result": {"id": 3, "error": "it cannot"}}
    assert "does not know the command unknown" in sent[2]["command_result"]["error"]
    replies[0].result({"done": True})
    replies[0].error("too late")
    assert sent[3:] == [{"command_result": {"id": 2, "result": {"done": True}}}]
