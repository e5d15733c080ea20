"""A daemon as its operator steers it: its verbs, and signals, with turns that run on null app-servers."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Program, codex_pool, environment, running

from codex_app_server import Codex, ServerBusyError, TransportClosedError, TurnFailedError, TurnHandle
from codex_app_server.testing import null_app_server
from codex_pool import Pool, connect
from codex_pool.runtime import processes

LIMIT_S = 20.0

pytestmark = pytest.mark.slow


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.02)


class Daemon:
    """`codex-pool serve` on null app-servers, and a client. Turns run until `let_end`."""

    def __init__(self, program: Program, endpoint: str, supervisor: int, codex: Codex, file: Path) -> None:
        self.program, self.endpoint, self.supervisor, self.codex = program, endpoint, supervisor, codex
        self._file = file

    def verb(self, *arguments: str, code: int = 0) -> str:
        """Return what a verb prints on stdout."""
        done = codex_pool(*arguments, "--connect", self.endpoint)
        assert done.returncode == code, done
        return done.stdout if code == 0 else done.stderr

    def asked(self, *arguments: str) -> dict[str, Any]:
        """The answer of a verb."""
        found: dict[str, Any] = json.loads(self.verb(*arguments, "--json"))
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.codex.client.request("pool/status")
        return found

    def states(self) -> list[str]:
        return [row["state"] for row in self.status()["workers"]]

    def turns(self, count: int) -> list[TurnHandle]:
        """So many further turns, each on a thread of its own, which run."""
        before = self.status()["turns"]["running"]
        found = [self.codex.thread_start().turn("hello") for _ in range(count)]
        wait_until(lambda: self.status()["turns"]["running"] == before + count, "they run")
        return found

    def let_end(self) -> None:
        self._file.touch()


@pytest.fixture
def daemon(tmp_path: Path) -> Callable[..., Any]:
    """Starts a daemon with options of `serve`."""
    file = tmp_path / "go"
    override = null_app_server(hold=str(file)).launch_args_override
    assert override is not None
    binary = tmp_path / "codex"
    binary.write_text(f"#!/bin/sh\nexec {shlex.join(override)}\n")
    binary.chmod(0o755)
    (tmp_path / "home").mkdir()

    @contextlib.contextmanager
    def start(*options: str) -> Iterator[Daemon]:
        with running("serve", "--json", "--codex-bin", str(binary), *options, home=tmp_path / "home") as program:
            launch = json.loads(program.wait_for_line('"launch"', "stdout"))
            program.wait_for_line("stop  Ctrl-C")
            with connect(launch["endpoint"], name="tester") as codex:
                yield Daemon(program, launch["endpoint"], launch["pid"], codex, file)

    return start


def session_of(served: Daemon) -> str:
    """The id of the session that has begun last."""
    events = served.codex.client.request("pool/status", {"trace": True})["trace"]["events"]
    session: str = [event["session"] for event in events if event["kind"] == "session connected"][-1]
    return session


def test_workers_are_added_and_removed_under_turns_none_of_which_fails(daemon: Callable[..., Any]) -> None:
    with daemon("--workers", "2", "--turns-per-worker", "2") as served:
        turns = served.turns(4)
        assert served.asked("scale", "6")["changed"] is True
        wait_until(lambda: served.states() == ["ready"] * 6, "they are ready")
        turns += served.turns(8)
        found = served.asked("scale", "3")
        assert (found["before"], len(found["workers"])) == (6, 3) and found["turns"] > 0
        assert served.asked("scale", "3")["changed"] is False
        assert served.status()["turns"]["running"] == 12
        served.let_end()
        assert [turn.run(timeout=LIMIT_S).status for turn in turns] == ["completed"] * 12
        wait_until(lambda: served.states() == ["ready"] * 3, "the others have ended")
        assert [row["restarts"] for row in served.status()["workers"]] == [0, 0, 0]
        # Their threads go on with the workers that are left.
        assert served.asked("scale", "4")["changed"] is True
        wait_until(lambda: served.states() == ["ready"] * 4, "it is ready")
        for turn in turns:
            resumed = served.codex.thread_resume(turn.thread_id)
            assert resumed.run("again").status == "completed"
        assert served.program.end(signal.SIGTERM) == 0


def test_a_worker_is_drained_and_comes_back_and_all_are_recycled(daemon: Callable[..., Any]) -> None:
    with daemon("--workers", "2") as served:
        (turn,) = served.turns(1)
        busy = next(row for row in served.status()["workers"] if row["turns"])
        slot = str(busy["slot"])
        found = served.asked("drain", slot)
        assert found["workers"] == [busy["worker"]] and found["clients"] == {"tester": 1}
        assert "is the only one that takes work" in served.verb("drain", str(1 - busy["slot"]), code=1)
        served.let_end()
        assert turn.run(timeout=LIMIT_S).status == "completed"
        assert "drained" in codex_pool("drain", slot, "--wait", "--connect", served.endpoint).stderr
        assert sorted(served.states()) == ["drained", "ready"]
        assert served.verb("resume", slot) == f"slot {slot} gets a worker again\n"
        wait_until(lambda: served.states() == ["ready", "ready"], "both are ready")
        before = {row["worker"] for row in served.status()["workers"]}
        assert set(served.asked("recycle")["workers"]) == before
        wait_until(
            lambda: (
                served.states() == ["ready", "ready"]
                and before.isdisjoint(row.get("worker") for row in served.status()["workers"])
            ),
            "both are replaced",
        )
        assert served.codex.thread_start().run("hello").status == "completed"


def test_a_pool_that_is_paused_stays_so_when_its_broker_dies(daemon: Callable[..., Any]) -> None:
    with daemon("--workers", "1") as served:
        served.let_end()
        thread = served.codex.thread_start()
        assert served.verb("pause") == "paused: new turns wait, those that run go on\n"
        assert served.verb("pause") == "already paused\n"
        handles: list[TurnHandle] = []
        starting = threading.Thread(target=lambda: handles.append(thread.turn("hello")), daemon=True)
        starting.start()
        command = [sys.executable, "-m", "codex_pool_cli", "run", "hello", "--connect", served.endpoint]
        run = subprocess.Popen(
            command, env=environment(None), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: served.status()["turns"]["queued"] == 2, "they wait")
        os.kill(broker_of(served.supervisor), signal.SIGKILL)
        wait_until(lambda: served.status()["turns"]["queued"] == 2, "they wait again")
        assert served.status()["mode"] == "paused" and "; paused" in served.verb("status")
        assert served.verb("resume") == "no longer paused\n"
        _, err = run.communicate(timeout=LIMIT_S)
        assert run.returncode == 0 and err.count("the pool is paused: this waits until it is resumed") == 1, err
        starting.join(LIMIT_S)
        assert handles[0].run(timeout=LIMIT_S).status == "completed"


def test_a_command_whose_broker_dies_is_carried_out_by_way_of_the_next(daemon: Callable[..., Any]) -> None:
    with daemon("--workers", "1") as served:
        broker = broker_of(served.supervisor)
        os.kill(served.supervisor, signal.SIGSTOP)
        command = [sys.executable, "-m", "codex_pool_cli", "pause", "--connect", served.endpoint]
        program = subprocess.Popen(command, env=environment(None), stdout=subprocess.PIPE, text=True)
        served.program.wait_for_line("pool/pause")
        os.kill(broker, signal.SIGKILL)
        os.kill(served.supervisor, signal.SIGCONT)
        out, _ = program.communicate(timeout=LIMIT_S)
        assert program.returncode == 0 and out.strip() in (
            "paused: new turns wait, those that run go on",
            "already paused",
        )
        assert served.status()["mode"] == "paused"


def test_interrupt_and_kick(daemon: Callable[..., Any]) -> None:
    with daemon("--workers", "1") as served:
        (turn,) = served.turns(1)
        assert served.asked("interrupt", turn.id)["changed"] is True
        assert turn.run(timeout=LIMIT_S).status == "interrupted"
        wait_until(lambda: served.status()["turns"]["running"] == 0, "the broker knows")
        assert served.verb("interrupt", turn.id) == f"turn {turn.id} has ended already\n"
        assert "no turn begins with 'nothing'" in served.verb("interrupt", "nothing", code=1)
        with connect(served.endpoint, name="other") as other:
            running_turn = other.thread_start().turn("hello")
            found = served.asked("kick", session_of(served))
            assert found["client"] == "other" and "it followed 1 turn" in found["message"]
            with pytest.raises(TransportClosedError, match="ended by an operator"):
                running_turn.run(timeout=LIMIT_S)
        wait_until(lambda: served.status()["turns"]["running"] == 0, "its turn is interrupted")


def test_sigterm_waits_for_turns_and_says_for_whose_and_refuses_new_ones(daemon: Callable[..., Any]) -> None:
    with daemon("--workers", "1") as served:
        turns = served.turns(2)
        thread = served.codex.thread_start()
        served.program.process.send_signal(signal.SIGTERM)
        line = served.program.wait_for_line("draining")
        assert line == (
            "codex-pool: draining for up to 20 s, waiting for 2 turns: 2 of tester; SIGTERM or Ctrl-C ends it now"
        )
        with pytest.raises(ServerBusyError, match="the pool is stopping") as refused:
            thread.turn("hello")
        assert refused.value.data["what"] == "draining" and refused.value.data["safeToRetry"] is True
        turns[0].interrupt()
        served.program.wait_for_line("codex-pool: waiting for 1 turn: 1 of tester")
        served.let_end()
        assert [turn.run(timeout=LIMIT_S).status for turn in turns] == ["interrupted", "completed"]
        assert served.program.wait(LIMIT_S) == 0
        records = [json.loads(each)["record"] for each in served.program.lines["stdout"]]
        assert records == ["launch", "draining", "draining", "done"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_daemon_that_drains(daemon: Callable[..., Any], number: int) -> None:
    with daemon("--workers", "1", "--drain-timeout", "0") as served:
        (turn,) = served.turns(1)
        served.program.process.send_signal(signal.SIGTERM)
        assert "draining, waiting" in served.program.wait_for_line("draining")
        assert served.program.end(number, 10.0) == 0
        with pytest.raises((TurnFailedError, TransportClosedError)):
            turn.run(timeout=LIMIT_S)
        assert served.program.lines["stderr"][-1] == "codex-pool: stopped"


def test_a_drain_ends_at_its_timeout(daemon: Callable[..., Any]) -> None:
    with daemon("--workers", "1", "--drain-timeout", "0.5") as served:
        (turn,) = served.turns(1)
        assert served.program.end(signal.SIGTERM, 12.0) == 0
        assert any(
            "ending after 0.5 s (--drain-timeout); waiting for 1 turn" in line
            for line in served.program.lines["stderr"]
        )
        with pytest.raises((TurnFailedError, TransportClosedError)):
            turn.run(timeout=LIMIT_S)


def test_stop_waits_until_the_daemon_has_ended(daemon: Callable[..., Any]) -> None:
    with daemon("--workers", "1") as served:
        (turn,) = served.turns(1)
        command = [sys.executable, "-m", "codex_pool_cli", "stop", "--connect", served.endpoint]
        stopping = subprocess.Popen(
            command, env=environment(None), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        served.program.wait_for_line("draining")
        served.let_end()
        assert turn.run(timeout=LIMIT_S).status == "completed"
        out, err = stopping.communicate(timeout=LIMIT_S)
        assert stopping.returncode == 0, err
        assert out.startswith("stopping; turns that run are waited for, for up to 20 s\n")
        assert err.splitlines()[-1] == "stopped" and served.program.wait(LIMIT_S) == 0


def test_stop_now_does_not_wait(daemon: Callable[..., Any]) -> None:
    with daemon("--workers", "1") as served:
        served.turns(1)
        assert served.verb("stop", "--now") == "stopping now; turns that run end\n"
        assert served.program.wait(LIMIT_S) == 0


def test_a_drain_lists_the_turns_that_wait_for_a_person_and_waits_for_them() -> None:
    asks = {"method": "item/commandExecution/requestApproval", "params": {"itemId": "i", "command": "ls"}}
    answered = threading.Event()

    def approve(method: str, params: Any) -> dict[str, Any]:
        answered.wait(LIMIT_S)
        return {"decision": "decline"}

    with (
        Pool(1, null_app_server(ask=asks)) as pool,
        pool.connect(name="patient", approval_handler=approve) as codex,
    ):
        turn = codex.thread_start().turn("hello")
        wait_until(lambda: codex.client.request("pool/status")["turns"]["waiting"] == 1, "it waits")
        found = json.loads(codex_pool("drain", "--json", "--connect", pool.endpoint).stdout)
        assert found["waiting"] == 1 and found["turnsWaiting"][0]["turnId"] == turn.id
        refused = codex_pool("stop", "--connect", pool.endpoint)
        assert refused.returncode == 1 and "belongs to a program" in refused.stderr
        command = [sys.executable, "-m", "codex_pool_cli", "drain", "--wait", "--connect", pool.endpoint]
        draining = subprocess.Popen(
            command, env=environment(None), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert draining.stdout is not None
        assert draining.stdout.readline() == "already draining\n"
        answered.set()
        out, err = draining.communicate(timeout=LIMIT_S)
        assert draining.returncode == 0 and f"turn {turn.id} of thread {turn.thread_id}: for a person" in out
        assert err.splitlines()[0] == "waiting for 1 turn: 1 of patient; 1 waiting for a person"
        assert err.splitlines()[-1] == "drained"
        assert turn.run(timeout=LIMIT_S).status == "completed"


def broker_of(supervisor: int) -> int:
    for each in processes.descendants(supervisor):
        with contextlib.suppress(OSError):
            if b"codex_pool.broker" in Path(f"/proc/{each.pid}/cmdline").read_bytes():
                return each.pid
    raise AssertionError("there is no broker")
