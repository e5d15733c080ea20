"""The state of a supervisor for the program that comes next, and children that this process has had before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from codex_pool.broker.mode import Mode
from codex_pool.options import PoolOptions
from codex_pool.runtime import startup
from codex_pool.supervisor.arguments import SupervisorArguments
from codex_pool.supervisor.child_process import Child, TakenOverProcess
from codex_pool.supervisor.core import SupervisorCore
from codex_pool.supervisor.effects import Spawn
from codex_pool.supervisor.handover import (
    VERSION,
    Handover,
    HandoverError,
    KeptBroker,
    KeptChild,
    KeptEntrance,
    KeptLoop,
    KeptUpgrade,
    KeptWorkers,
    as_memory,
    decode,
    from_memory,
)
from codex_pool.supervisor.slots import Build

# As `as_utf8` writes a path that is no UTF-8.
PATH = "/home/\udcff/sqlite/0"


def started_core() -> SupervisorCore:
    core = SupervisorCore(PoolOptions(workers=2), nonce="abc")
    for effect in core.start(1.0):
        if isinstance(effect, Spawn):
            core.ready(effect.worker, 2.0)
    return core


def state(core: SupervisorCore) -> Handover:
    arguments = SupervisorArguments(
        options=PoolOptions(workers=2, endpoint="ipc:///s"),
        argv=["codex", "app-server"],
        cwd=None,
        environ={},
        initialize={},
        sqlite_root=PATH,
        auth_json="/a",
    )
    workers = KeptWorkers(children={}, used_homes={}, app_servers={}, homes=[PATH], locks={}, in_use={PATH: 1})
    none = KeptEntrance()
    return Handover(
        version=VERSION,
        from_version="0.0.9",
        arguments=arguments,
        core=core.kept(),
        workers=workers,
        broker=KeptBroker(unsaved={"t": None}),
        account=none,
        ingress=none,
        gateway=none,
        upgrade=KeptUpgrade(builds=[Build("/bin/codex", "1")]),
        mode=Mode(paused=True),
        loop=KeptLoop(held="\xff{"),
        lock=0,
    )


def changed(line: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(line), **changes}).encode()


def test_a_state_comes_back_as_it_was_and_slots_go_on() -> None:
    core = started_core()
    handover = state(core)
    found = decode(startup.encode_arguments(handover))
    assert found == handover
    other = SupervisorCore(PoolOptions(workers=2), nonce="xyz")
    other.restore(found.core)
    assert other.states() == core.states() and other.is_ready
    # The names of workers go on where they were.
    effects = other.exited("w1.1-abc", "it died", (), 3.0, jitter=0.5) + other.tick(9.0)
    assert [effect.worker for effect in effects if isinstance(effect, Spawn)] == ["w1.2-abc"]


def test_fields_of_other_versions_are_left_out_or_have_their_defaults() -> None:
    line = startup.encode_arguments(state(started_core()))
    assert decode(changed(line, future={"a": 1})) == decode(line)
    assert decode(changed(line, loop={})).loop == KeptLoop()


@pytest.mark.parametrize("changes", [{"version": VERSION + 1}, {"core": {"slots": 3}}, {"lock": "one"}, {"mode": None}])
def test_a_state_that_does_not_fit_is_refused_with_the_remedy(changes: dict[str, Any]) -> None:
    line = changed(startup.encode_arguments(state(started_core())), **changes)
    with pytest.raises(HandoverError, match="restart the daemon"):
        decode(line)


def test_a_state_is_read_out_of_memory_and_its_descriptors_are_not_inherited_further() -> None:
    reader, writer = os.pipe()
    try:
        handover = state(started_core())
        handover.lock, handover.name = reader, writer
        os.set_inheritable(reader, True)
        assert from_memory(as_memory(handover)) == handover
        assert not os.get_inheritable(reader)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_child_of_before_is_read_asked_and_reaped(tmp_path: Path) -> None:
    program = "import sys; [print(line, end='', flush=True) for line in sys.stdin]; sys.exit(3)"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno())
    process.stdin.close()
    process.stdout.close()
    kept = KeptChild(
        pid=process.pid, stdin=stdin, stdout=stdout, unsent='"b"}\n', held='{"event":"a","x":', lost_lines=2
    )
    child = Child.taken_over(kept)
    assert child.is_taken_over and child.lost_lines == 2 and child.kept() == kept
    child.flush()
    child.close_stdin()
    assert child.reap(20.0) == "exit code 3"
    process.returncode = 3


def test_a_child_of_before_can_be_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    taken = TakenOverProcess(process.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        taken.wait(0.0)
    taken.kill()
    assert taken.wait(20.0) == -signal.SIGKILL
    process.returncode = -signal.SIGKILL
