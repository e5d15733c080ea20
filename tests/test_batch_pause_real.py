"""A run that meets trouble that is no sample's own, on the real binary: it pauses, says so, and goes on by itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from programs import running

from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_pool.batch.store import open_run

# As `codex-pool`, with less patience.
PROGRAM = "from codex_pool.batch import breaker; breaker.FIRST_TRY_S = 0.5; from codex_pool.cli import main; main()"


@pytest.mark.real
def test_a_refused_login_pauses_the_run_until_it_is_not_refused(tmp_path: Path, home: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    samples = [{"id": f"s{n}", "prompt": f"{n} [[http_error 401]] [[text ok]]"} for n in range(3)]
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    options = ["--workers", "1", "--home", str(home), "--scorer", "exact:ok", "--json", "-o", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "batch", str(data), *options],
        capture_output=True,
        text=True,
        timeout=50,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    assert "paused: the model's service refuses the login" in done.stderr
    assert "the same command goes on later" in done.stderr
    with open_run(out) as store:
        rows = list(store.samples())
        attempts = {row.id: [attempt.status for attempt in store.attempts(row.n)] for row in rows}
    # Each sample met it once, none of them failed, and what was tried is kept.
    assert attempts == {f"s{n}": ["failed", "completed"] for n in range(3)}
    assert [score.passed for row in rows for score in row.scores] == [True] * 3
    ended = json.loads(done.stdout.splitlines()[-1])
    assert ended["event"] == "done" and ended["counts"]["completed"] == 3
    assert ended["metrics"]["exact"]["mean"] == 1.0 and ended["metrics"]["exact"]["samples"] == 3


@pytest.mark.real
def test_without_a_network_turns_wait_and_go_on(tmp_path: Path) -> None:
    data, out, home = tmp_path / "data.jsonl", tmp_path / "out", tmp_path / "home"
    data.write_text(json.dumps({"prompt": "hello", "limits": {"wall_s": 4}}) + "\n")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    write_loopback_home(home, f"http://127.0.0.1:{port}/v1")
    with running("batch", str(data), "--workers", "1", "--home", str(home), "-o", str(out)) as batch:
        batch.wait_for_line("paused: there is no way to the model's service")
        with LoopbackModel(port=port):
            assert batch.wait(40.0) == 0, batch.lines
    with open_run(out) as store:
        (row,) = store.samples()
        # Waiting is in no limit.
        assert row.record is not None and row.record.status == "completed" and row.record.attempts == 1
