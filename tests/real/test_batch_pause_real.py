"""A run that meets trouble that is no sample's own, on the real binary: it pauses, says so, and goes on by itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from namespaces import user_namespaces
from programs import running, started

from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_batch.rules.breaker import PUT_BACK_LIMIT
from codex_batch.store import open_run

# As `codex-pool`, with less patience.
PROGRAM = "from codex_batch.rules import breaker; breaker.FIRST_TRY_S = 0.1; from codex_pool_cli import main; main()"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`codex-pool ARGUMENTS`, with less patience, to its end."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=50, env=dict(os.environ)
    )


@pytest.mark.real
def test_a_refused_login_pauses_the_run_until_it_is_not_refused(tmp_path: Path, home: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    samples = [{"id": f"s{n}", "prompt": f"{n} [[http_error 401]] [[text ok]]"} for n in range(3)]
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    options = ["--workers", "1", "--home", str(home), "--scorer", "exact:ok", "--json", "-o", str(out)]
    done = run("batch", str(data), *options)
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
@pytest.mark.parametrize(("count", "times"), [(1, PUT_BACK_LIMIT + 2), (3, 1)])
def test_a_used_up_usage_limit_pauses_the_run_until_it_is_reset(
    tmp_path: Path, home: Path, count: int, times: int
) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    # However few samples there are, and however often one meets it: it is not their own.
    used_up = f"[[http_error 429 code=usage_limit_reached resets_at={int(time.time()) + 3600}]]"
    samples = [{"id": f"s{n}", "prompt": f"{n} {used_up * times} [[text ok]]"} for n in range(count)]
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    done = run("batch", str(data), "--workers", "1", "--home", str(home), "--json", "-o", str(out))
    assert done.returncode == 0, done.stderr
    paused = [line for line in done.stderr.splitlines() if line.startswith("paused: ")]
    # What codex says of it, with the time of the reset; what to do; and when the run goes on.
    assert "the account's usage limit is used up (You" in paused[0], done.stderr
    assert re.search(r"Try again at [^;]*\d:\d\d.[AP]M\.\); wait for its reset, or buy more; ", paused[0]), paused
    assert re.search(r"the run tries again by itself in \d s; Ctrl-C ends it, and the same command", paused[0]), paused
    # Ever more seldom: the fifth wait is sixteen times the first.
    assert times == 1 or "by itself in 2 s;" in paused[-1], paused
    with open_run(out) as store:
        rows = list(store.samples())
        attempts = {row.id: [attempt.status for attempt in store.attempts(row.n)] for row in rows}
    assert attempts == {f"s{n}": ["failed"] * times + ["completed"] for n in range(count)}
    assert [row.record and row.record.status for row in rows] == ["completed"] * count
    ended = json.loads(done.stdout.splitlines()[-1])
    assert ended["event"] == "done" and ended["counts"]["completed"] == count


@pytest.mark.real
def test_a_sandbox_that_cannot_start_pauses_the_run_until_it_can(tmp_path: Path, home: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    command = '[[tool_call "echo made"]] [[text "{output}"]]'
    samples = [{"id": f"s{n}", "prompt": f"{n} {command}", "sandbox": "workspace-write"} for n in range(3)]
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    arguments = ["batch", str(data), "--workers", "1", "--home", str(home), "-o", str(out)]
    with (
        user_namespaces(tmp_path / "asked") as namespaces,
        started(namespaces.below(sys.executable, "-c", PROGRAM, *arguments)) as batch,
    ):
        said = batch.wait_for_line("paused: ")
        assert "codex's sandbox does not work here (bwrap: " in said and "choose another sandbox" in said, batch.lines
        namespaces.grant()
        assert batch.wait(40.0) == 0, batch.lines
        assert namespaces.denied > 0
    with open_run(out) as store:
        rows = list(store.samples())
        attempts = [attempt for row in rows for attempt in store.attempts(row.n)]
    assert [row.record and (row.record.status, row.record.final_response) for row in rows] == [
        ("completed", "made")
    ] * 3
    kinds = Counter(attempt.error["kind"] for attempt in attempts if attempt.error is not None)
    assert set(kinds) == {"sandboxError"} and kinds["sandboxError"] >= 5


@pytest.mark.real
@pytest.mark.parametrize("died", [True, False])
def test_turns_whose_commands_the_sandbox_refused_are_not_gone_on_with(tmp_path: Path, home: Path, died: bool) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    command = '[[tool_call "echo made"]] [[text "{output}"]]'
    # codex calls such a turn completed: of a run that died it may be the last, of any the first of several.
    asked = {"prompt": command} if died else {"prompts": [command, "[[text ok]]"]}
    data.write_text(json.dumps({"id": "a", "sandbox": "workspace-write", **asked}) + "\n")
    arguments = ["batch", str(data), "--workers", "1", "--home", str(home), "-o", str(out)]
    with (
        user_namespaces(tmp_path / "asked") as namespaces,
        started(namespaces.below(sys.executable, "-c", PROGRAM, *arguments)) as batch,
    ):
        assert batch.wait(40.0) == 1, batch.lines
    refused = PUT_BACK_LIMIT + 1
    if died:
        # As if the batch had died when the last turn was over and not yet recorded.
        with contextlib.closing(sqlite3.connect(out / "run.sqlite")) as db, db:
            db.execute("DELETE FROM records")
            db.execute("UPDATE attempts SET status = NULL, error = NULL WHERE attempt = ?", (refused,))
            db.execute("UPDATE samples SET state = 'running'")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    with open_run(out) as store:
        (row,) = store.samples()
        attempts = [(attempt.status, (attempt.error or {}).get("kind")) for attempt in store.attempts(row.n)]
    assert attempts == [*[("failed", "sandboxError")] * refused, ("completed", None)]
    assert row.record is not None
    responses = row.record.responses or [row.record.final_response]
    assert list(responses) == (["made"] if died else ["made", "ok"])


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
