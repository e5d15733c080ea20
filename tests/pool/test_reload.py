"""The configuration of a daemon, read again: what changes while it runs, what needs a restart, files with errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import broker_bench
import msgspec
import pytest
import worker_bench
from hypothesis import given
from hypothesis import strategies as st
from session_ids import sid

from codex_pool.broker.arguments import BrokerLimits
from codex_pool.broker.effects import Command
from codex_pool.daemon import status_text
from codex_pool.option_sources import ConfigSource
from codex_pool.options import PoolOptions, fields
from codex_pool.protocol import wire
from codex_pool.supervisor import reload
from codex_pool.supervisor.core import SupervisorCore
from codex_pool.supervisor.effects import Spawn
from codex_pool.supervisor.reload import Configuration, ReloadError, difference
from codex_pool.worker.arguments import TurnLimits

DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields()}
CHANGED = st.fixed_dictionaries(
    {},
    optional={
        field.name: st.sampled_from(
            {int: [1, 7, field.default], float: [1.5, field.default], str: ["/x", None], bool: [True, False]}[
                field.kind
            ]
        )
        for field in fields()
    },
)


def configuration(file: Path, *, is_required: bool = True, **over: Any) -> Configuration:
    running = DEFAULTS | over
    return Configuration(ConfigSource(file=str(file), is_required=is_required, over=over, running=running), now=100.0)


# What changes.


@given(CHANGED, CHANGED)
def test_live_options_change_and_others_wait_for_a_restart(first: dict[str, Any], second: dict[str, Any]) -> None:
    before, after = DEFAULTS | first, DEFAULTS | second
    changes = difference(before, after, fields())
    live = {field.name for field in fields() if field.is_live}
    differing = {name for name in before if before[name] != after[name]}
    assert changes.live.keys() == differing & live and set(changes.restart) == differing - live
    found = reload.with_changes(PoolOptions(**before), changes)
    assert all(getattr(found, name) == (after if name in live else before)[name] for name in before)
    result = reload.result_of(changes)
    assert result["changed"] == bool(changes.live) and all(name in result["message"] for name in differing)


def test_a_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("turns_per_worker = 3\nturn_wall_limit_s = 60\nlisten_ws = 'h:1'\nrecycle_turns = 9\n")
    found = configuration(file, recycle_turns=5)
    changes = found.read()
    assert changes.live == {"turns_per_worker": (8, 3), "turn_wall_limit_s": (None, 60)}
    assert changes.restart == ("listen_ws",)
    found.apply(changes, 200.0)
    assert found.row == {"file": str(file), "loadedAt": 200.0, "problem": "", "restartNeeded": ["listen_ws"]}
    # What was not taken over is named again, until the file states what runs.
    assert found.read() == ({}, ("listen_ws",))
    file.write_text("turns_per_worker = 3\n")
    changes = found.read()
    assert changes == ({"turn_wall_limit_s": (60, None)}, ())
    assert reload.result_of(changes)["message"] == "turn_wall_limit_s 60 -> no limit"
    found.apply(changes, 300.0)
    assert found.row["restartNeeded"] == [] and reload.result_of(found.read())["message"] == "nothing changed"


def test_a_file_with_an_error_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("turns_per_worker = 3\nworkers = 0\nworker = 1\n")
    found = configuration(file)
    with pytest.raises(ReloadError) as raised:
        found.read()
    found.failed(str(raised.value))
    assert found.row["problem"] == (
        f"{file}:2: workers is 0; expected a whole number, 1 or more; {file}:3: no option worker; did you mean workers?"
    )
    assert found.row["loadedAt"] == 100.0
    file.write_text("turns_per_worker = 3\n")
    found.apply(found.read(), 200.0)
    assert found.row["problem"] == ""


def test_a_default_file_may_come_and_does_not_vanish_unnoticed(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    found = configuration(file, is_required=False)
    assert found.read() == ({}, ())
    file.write_text("turns_per_worker = 3\n")
    found.apply(found.read(), 200.0)
    file.unlink()
    with pytest.raises(ReloadError, match="No such file"):
        found.read()


def test_the_pool_of_a_program_has_nothing_to_read() -> None:
    found = Configuration(None, 0.0)
    with pytest.raises(ReloadError, match="belongs to a program"):
        found.read()
    assert found.row == {}


def test_status_shows_what_a_reload_has_left_to_do() -> None:
    row = {"file": "/c", "loadedAgeMs": 60_000, "problem": "/c:1: no", "restartNeeded": ["listen", "keys"]}
    assert status_text.problems({"workers": [], "configuration": row}) == [
        "configuration: not reloaded, that of 1 min 00 s ago stays in force: /c:1: no",
        "configuration: restart needed for listen, keys",
    ]
    assert status_text.problems({"workers": []}) == []


# Those who take it over.


def test_more_turns_begin_at_once_and_fewer_once_others_have_ended() -> None:
    bench = broker_bench.Bench(slots=1, turns_per_worker=1)
    bench.register()
    bench.hello()
    for number in range(4):
        bench.thread(f"t{number}")
    worker, _ = bench.turn("t0")
    calls = [bench.call("turn/start", {"threadId": f"t{number}"}) for number in (1, 2, 3)]
    assert not any(map(bench.dispatches, calls))
    bench.turns_per_worker = 2
    bench.apply(bench.core.set_limits(BrokerLimits(2, 32, 0), bench.now))
    assert [bool(bench.dispatches(call)) for call in calls] == [True, False, False]
    assert bench.status()["turnsPerWorker"] == 2
    bench.answer_all(worker)
    bench.apply(bench.core.set_limits(BrokerLimits(1, 32, 0), bench.now))
    bench.end(worker, next(iter(worker.running)))
    assert not bench.dispatches(calls[1]), "one still runs"
    bench.end(worker, next(iter(worker.running)))
    assert bench.dispatches(calls[1]) and not bench.dispatches(calls[2])
    assert bench.core.state.faults() == []


def test_turns_that_wait_for_a_person_give_up_permits_within_the_new_bound() -> None:
    bench = broker_bench.Bench(slots=1, turns_per_worker=1, waiting_turns_per_worker=1)
    worker = bench.register()
    bench.hello()
    for number in range(3):
        bench.thread(f"t{number}")
    for number in range(2):
        _, turn_id = bench.turn(f"t{number}")
        bench.wait(worker, turn_id)
    third = bench.call("turn/start", {"threadId": "t2"})
    assert not bench.dispatches(third)
    bench.apply(bench.core.set_limits(BrokerLimits(1, 2, 0), bench.now))
    assert bench.dispatches(third) and bench.core.state.faults() == []


def test_a_reload_goes_to_the_supervisor_and_its_error_to_the_client() -> None:
    bench = broker_bench.Bench(slots=1)
    bench.register()
    bench.hello()
    call = bench.call("pool/reload")
    assert bench.commands[-1] == Command(bench.commands[-1].number, "reload", {})
    bench.apply(bench.core.command_done(bench.commands[-1].number, None, "not reloaded", bench.now))
    assert "not reloaded" in bench.error(call)["message"]
    bench.core.configuration({"file": "/c", "loadedAt": bench.now - 2, "problem": "", "restartNeeded": []})
    assert bench.status()["configuration"] == {
        "file": "/c",
        "loadedAgeMs": 2000,
        "problem": "",
        "restartNeeded": [],
    }


def test_limits_hold_for_turns_that_run() -> None:
    bench = worker_bench.Bench(turn_idle_limit_s=600, approval_timeout_s=3600).start()
    bench.thread()
    bench.turn("u1")
    bench.tick(20)
    bench.core.set_limits(TurnLimits(600, 25, 3600))
    bench.tick(6)
    assert bench.open[bench.request("turn/interrupt")]["params"]["turnId"] == "u1"


def test_the_limit_of_approvals_holds_for_those_that_are_open() -> None:
    bench = worker_bench.Bench(approval_timeout_s=None).start()
    bench.thread()
    bench.turn("u1")
    bench.say({"id": 7, "method": "item/tool/requestUserInput", "params": {"threadId": "t1", "turnId": "u1"}})
    bench.apply(bench.core.broker_message(wire.SessionGone(sid("s1"), keep=True), [], bench.now))
    for _ in range(4):
        bench.tick(10)
    assert bench.core.held["server_requests"] == 1
    bench.core.set_limits(TurnLimits(600, None, 30))
    bench.tick(10)
    assert {"id": 7, "result": {"answers": {}}} in bench.sent


def test_a_lower_limit_of_recycling_replaces_a_worker_that_is_past_it() -> None:
    core = SupervisorCore(PoolOptions(workers=1), nonce="abc")
    spawn = core.start(0.0)[0]
    assert isinstance(spawn, Spawn)
    core.ready(spawn.worker, 1.0)
    core.load(spawn.worker, turns=5, threads=0, now=2.0)
    options = msgspec.structs.replace(PoolOptions(workers=1), recycle_turns=5)
    assert isinstance(core.set_options(options, 3.0)[0], Spawn)
    assert core.states()[0]["recycling"] == "5 turns, the limit is 5"
