"""A daemon on null app-servers reads its configuration again: SIGHUP, `reload`, and what its status says."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import Program, codex_pool, running

import codex_app_server.testing
from codex_app_server.testing import null_app_server
from codex_pool import Pool
from codex_pool.client.transport import PoolTransport
from codex_pool_cli.line_client import LineClient

LIMIT_S = 20.0


def null_codex(directory: Path) -> Path:
    """A codex whose app-server is a null one; each turn waits until it is interrupted."""
    null = Path(codex_app_server.testing.__file__).parent / "_null_app_server.py"
    command = shlex.join([sys.executable, "-S", "-E", str(null), json.dumps({"end": "interrupted"})])
    path = directory / "codex"
    path.write_text(f"#!/bin/sh\nexec {command}\n")
    path.chmod(0o755)
    return path


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status() -> dict[str, Any]:
    done = codex_pool("status", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_daemon_reads_its_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, log, home = tmp_path / "pool.toml", tmp_path / "log", tmp_path / "home"
    home.mkdir()
    file.write_text(f"workers = 1\nturns_per_worker = 1\nlog_file = '{log}'\n")
    monkeypatch.setenv("CODEX_POOL_RECYCLE_TURNS", "50")
    words = ("serve", "--pool-config", str(file), "--home", str(home), "--codex-bin", str(null_codex(tmp_path)))
    with running(*words, home=home) as daemon:
        daemon.wait_for_line("stop  Ctrl-C")
        assert codex_pool("reload").stdout == "nothing changed\n"
        file.write_text(
            f"workers = 2\nturns_per_worker = 2\nlog_file = '{log}'\nrecycle_turns = 9\nturn_wall_limit_s = 1\n"
            "listen_unix = '/x/y.sock'\n"
        )
        # It is a signal of the terminal too: nothing but the file counts.
        reloaded(daemon, log, "restart needed for listen_unix")
        until(lambda: sum(row["state"] == "ready" for row in status()["workers"]) == 2)
        assert status()["turnsPerWorker"] == 2
        done = codex_pool("run", "hello")
        assert done.returncode == 1 and "ran for 1 s, which is its limit" in done.stderr, done.stderr
        file.write_text("worker = 3\n")
        done = codex_pool("reload")
        assert done.returncode == 1 and "no option worker; did you mean workers?" in done.stderr
        found = status()["configuration"]
        assert found["file"] == str(file) and "did you mean workers?" in found["problem"]
        assert found["restartNeeded"] == ["listen_unix"] and status()["turnsPerWorker"] == 2
        reloaded(daemon, log, "the configuration was not reloaded", again=2)
        shown = codex_pool("status").stdout
        assert "configuration: not reloaded" in shown and "restart needed for listen_unix" in shown
        file.write_text(f"workers = 1\nturns_per_worker = 2\nlog_file = '{log}'\n")
        done = codex_pool("reload", "--json")
        assert json.loads(done.stdout) == {
            "changed": True,
            "message": "workers 2 -> 1, turn_wall_limit_s 1 -> no limit",
            "applied": {"workers": {"before": 2, "after": 1}, "turn_wall_limit_s": {"before": 1, "after": None}},
            "restartNeeded": [],
        }
        assert status()["configuration"]["problem"] == ""
        assert daemon.end(signal.SIGTERM) == 0


def reloaded(daemon: Program, log: Path, said: str, again: int = 1) -> None:
    """Send SIGHUP and wait for what the log says of it."""
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: log.read_text().count(said) >= again)


def test_the_pool_of_a_program_is_not_reloaded() -> None:
    with Pool(1, null_app_server()) as pool:
        client = LineClient(PoolTransport(pool.endpoint), on_queue=lambda _: None, on_problem=lambda _: None)
        try:
            client.start()
            with pytest.raises(Exception, match="belongs to a program, which gives its options"):
                client.call("pool/reload", {})
            assert "configuration" not in json.loads(client.call("pool/status", {}))
        finally:
            client.close()
