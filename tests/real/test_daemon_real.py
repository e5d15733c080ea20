"""The daemon as a user meets it: serve, run, status, clients, stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import codex_pool, environment, running

from codex_app_server.testing.loopback import LoopbackModel

pytestmark = pytest.mark.real

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_serve_run_status_and_stop() -> None:
    with running("serve", "--demo", "--workers", "1", "--json") as daemon:
        launch = json.loads(daemon.wait_for_line("launch", "stdout"))
        assert launch["workers"] == 1 and launch["endpoint"].endswith("/codex-pool/default.sock")
        daemon.wait_for_line("stop  Ctrl-C")

        done = codex_pool("run", "Say theodolite-41.")
        assert (done.returncode, "theodolite-41" in done.stdout) == (0, True)
        assert "using the daemon at" in done.stderr

        done = codex_pool("run", "-", "--connect", "default", stdin="Say alidade-42.")
        assert (done.returncode, "alidade-42" in done.stdout) == (0, True)

        table = codex_pool("status").stdout.splitlines()
        assert table[0].startswith("1 of 1 workers ready") and "2 completed" in table[0]
        assert table[1].split()[:3] == ["slot", "state", "turns"]
        assert table[2].split()[:3] == ["0", "ready", "0/8"]
        status = json.loads(codex_pool("status", "--json").stdout)
        assert status["turns"]["completed"] == 2

        example = [sys.executable, str(EXAMPLES / "pool" / "daemon_client.py")]
        done = subprocess.run(example, env=environment(None), capture_output=True, text=True, timeout=30)
        assert "Say hello in one sentence." in done.stdout, done.stderr

        assert daemon.end(signal.SIGINT) == 0
    assert json.loads(daemon.lines["stdout"][-1]) == {"record": "done", "exit_code": 0}
    assert daemon.lines["stderr"][-1] == "codex-pool: stopped"


def test_a_second_daemon_is_refused_and_names_the_first(home: Path) -> None:
    with running("serve", "--workers", "1", "--json", home=home) as first:
        pid = json.loads(first.wait_for_line("launch", "stdout"))["pid"]
        second = codex_pool("serve", "--workers", "1", home=home)
        assert second.returncode == 3
        assert "a pool is already running on ipc://" in second.stderr and f"supervisor pid {pid}" in second.stderr
        assert codex_pool("run", "Say gnomon-43.").returncode == 0
        assert first.end(signal.SIGTERM) == 0


def test_a_daemon_whose_supervisor_is_killed_ends_and_says_so(home: Path) -> None:
    with running("serve", "--workers", "1", "--json", home=home) as daemon:
        pid = json.loads(daemon.wait_for_line("launch", "stdout"))["pid"]
        os.kill(pid, signal.SIGKILL)
        assert daemon.wait() == 3
    assert "its supervisor died" in daemon.lines["stderr"][-1]


def test_ctrl_c_interrupts_the_turn_of_run(home: Path, model: LoopbackModel) -> None:
    with running("run", "[[hang 3]]", home=home) as program:
        model.wait_for(lambda record: record.outcome == "hanging", 20)
        assert program.end(signal.SIGINT) == 130, program.lines
        model.wait_for(lambda record: record.outcome == "disconnected", 10)
    assert program.lines["stderr"][-1] == "codex-pool: interrupted"


def test_a_failed_turn_of_run_exits_with_1(home: Path) -> None:
    done = codex_pool("run", "[[failed invalid_prompt]]", home=home)
    assert done.returncode == 1
    assert "the turn failed: " in done.stderr and done.stdout == ""


def test_the_example_of_a_pool_runs(home: Path) -> None:
    example = [sys.executable, str(EXAMPLES / "pool" / "many_questions.py")]
    done = subprocess.run(example, env=environment(home), capture_output=True, text=True, timeout=40)
    assert done.returncode == 0, done.stderr
    # The model's script puts a checksum into its answers that stands in no prompt.
    assert "This is the loopback model; checksum" in done.stdout
