"""`codex-pool batch` as a user runs it, on the real binary: one record a sample, whatever happens."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Program, codex_pool, environment, running

from codex_app_server import AppServerConfig
from codex_app_server.testing.loopback import LoopbackModel
from codex_batch.store import Entry, RecordRow, RunDirectory, edit_run, open_run
from codex_pool import Pool
from codex_pool.runtime import processes

EXAMPLE = Path(__file__).parents[2] / "examples" / "batch" / "prompts.jsonl"
LIMIT_S = 30.0

real = pytest.mark.real


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def results(out: Path) -> list[dict[str, Any]]:
    return lines(out / "results.jsonl")


def attempts(out: Path) -> list[tuple[str, int, str | None]]:
    """(id, attempt, status) of every attempt."""
    with open_run(out) as store:
        return [(store.sample_at(row.n).id, row.attempt, row.status) for row in store.all_attempts()]


def run_again(out: Path, *ids: str) -> None:
    """Let samples that are done be run again."""
    with contextlib.closing(edit_run(out)) as directory:
        directory.retry([directory.store.sample(sample_id).n for sample_id in ids])


def dataset(path: Path, *samples: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def prompts(model: LoopbackModel) -> Counter[str]:
    """Count how often the model was asked what."""
    return Counter(record.prompt for record in model.requests)


@real
def test_the_demo_from_end_to_end_and_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("batch", str(EXAMPLE), "--demo", "--retries", "1", "--json", "-o", str(out))
    done = codex_pool(*arguments)
    assert done.returncode == 0, done.stderr
    samples, records = lines(EXAMPLE), results(out)
    assert [record["id"] for record in records] == [sample["id"] for sample in samples]
    assert {record["status"] for record in records} == {"completed"}
    assert {record["id"]: record["attempts"] for record in records if record["attempts"] != 1} == {"flaky-network": 2}
    for sample, record in zip(samples, records, strict=True):
        assert sample["metadata"].get("expected", "") in record["final_response"] and record["error"] is None
        assert record["metadata"] == sample["metadata"] and record["usage"]["total_tokens"] > 0
        assert record["worker"] and record["turn_id"] and record["queued_ms"] >= 0 and record["duration_ms"] > 0
    # Both workers took part, and what a sample wrote is its own.
    assert len({record["worker"] for record in records}) == 2
    assert (out / "work" / "write-file" / "squares.txt").read_text().split() == [str(n * n) for n in range(1, 11)]
    # What a sample has left empty is the next one's, if no tool and no earlier attempt was there.
    left = {path.name for path in (out / "work").iterdir()}
    assert left == {record["id"] for record in records if record["tool_calls"] or record["attempts"] > 1}
    # Every thread was put away, which frees it in the app-server.
    assert len(list((out / "home" / "archived_sessions").iterdir())) == 27
    assert list((out / "home" / "sessions").rglob("*.jsonl")) == []

    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["event"] for record in said] == ["launch", *["sample"] * 26, "done"]
    assert (said[0]["samples"], said[0]["skipped"], said[0]["workers"]) == (26, 0, 2)
    assert {record["id"] for record in said[1:-1]} == {sample["id"] for sample in samples}
    assert said[-1]["counts"]["completed"] == 26 and said[-1]["exit_code"] == 0 and said[-1]["retries"] == 1
    assert "flaky-network: failed, " in done.stderr and "trying again" in done.stderr
    config = json.loads((out / "config.json").read_text())
    assert config["arguments"]["retries"] == 1 and config["dataset"]["samples"] == 26
    with open_run(out) as store:
        run = store.info()
        assert run["state"] == "finished" and run["outcome"]["counts"]["completed"] == 26

    # Again: nothing is left to do, and nothing is done.
    before, tried = (out / "results.jsonl").read_bytes(), attempts(out)
    again = codex_pool(*arguments, limit_s=20.0)
    assert again.returncode == 0 and "nothing to do" in again.stderr
    assert [json.loads(line)["event"] for line in again.stdout.splitlines()] == ["launch", "done"]
    assert (out / "results.jsonl").read_bytes() == before and attempts(out) == tried

    # Only what is told to be is done again.
    run_again(out, "multiply", "haiku")
    assert codex_pool(*arguments).returncode == 0
    assert sorted(set(attempts(out)) - set(tried)) == [("haiku", 2, "completed"), ("multiply", 2, "completed")]
    after = results(out)
    assert [record["id"] for record in after] == [sample["id"] for sample in samples]
    assert {record["status"] for record in after} == {"completed"}
    assert [r["turn_id"] for r in after[1:-1]] == [r["turn_id"] for r in records[1:-1]]


@real
def test_what_fails_is_told_apart_and_exits_with_1(tmp_path: Path) -> None:
    data = dataset(
        tmp_path / "d.jsonl",
        {"id": "slow", "prompt": "[[hang 2]]", "timeout_s": 1},
        {"id": "bad", "prompt": "[[http_error 500]]"},
        {"id": "busy", "prompt": '[[failed server_is_overloaded]] [[text "now"]]'},
        {"id": "fine", "prompt": "[[text deltas=2]]", "timeout_s": 20},
        {"id": "idle", "prompt": "[[hang 0]]", "limits": {"idle_s": 1}},
        {"id": "greedy", "prompt": "[[text deltas=2]]", "limits": {"tokens": 1, "wall_s": 20}},
    )
    done = codex_pool("batch", str(data), "--demo", "--workers", "1", "--retries", "2", "-o", str(tmp_path / "out"))
    assert done.returncode == 1
    slow, bad, busy, fine, idle, greedy = results(tmp_path / "out")
    assert (slow["status"], slow["limit"], slow["attempts"]) == ("limit", "timeout_s", 1)
    assert slow["duration_ms"] >= 900 and "timeout_s of 1 s" in slow["error"]["message"]
    assert (bad["status"], bad["error"]["kind"], bad["attempts"]) == ("failed", "internalServerError", 3)
    assert (busy["status"], busy["final_response"], busy["attempts"]) == ("completed", "now", 2)
    assert fine["status"] == "completed"
    assert (idle["status"], idle["limit"], idle["attempts"]) == ("limit", "idle_s", 1)
    assert (greedy["status"], greedy["limit"], greedy["usage"]["total_tokens"] > 1) == ("limit", "tokens", True)
    for words in (
        "slow: limit, limit: the turn ran longer than its timeout_s",
        "bad: failed, internalServerError",
        "not completed:",
    ):
        assert words in done.stderr


@real
def test_a_turn_that_was_completed_unseen_is_taken_up_and_not_paid_for_again(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    data = dataset(tmp_path / "d.jsonl", {"id": "a", "prompt": "say alpha"}, {"id": "b", "prompt": "say beta"})
    out = tmp_path / "out"
    arguments = ("batch", str(data), "--workers", "1", "--home", str(home), "-o", str(out))
    assert codex_pool(*arguments).returncode == 0
    a, b = results(out)
    # As if the batch had died when the turn of b was over and not yet recorded.
    with contextlib.closing(sqlite3.connect(out / "run.sqlite")) as db, db:
        (n,) = db.execute("SELECT n FROM samples WHERE id = 'b'").fetchone()
        db.execute("DELETE FROM records WHERE n = ?", (n,))
        db.execute("UPDATE attempts SET status = NULL WHERE n = ?", (n,))
        db.execute("UPDATE samples SET state = 'running' WHERE n = ?", (n,))
    assert codex_pool(*arguments).returncode == 0
    again_a, again_b = results(out)
    assert again_a == a
    assert {k: again_b[k] for k in ("status", "final_response", "thread_id", "turn_id", "attempts")} == {
        k: b[k] for k in ("status", "final_response", "thread_id", "turn_id", "attempts")
    }
    assert prompts(model) == {"say alpha": 1, "say beta": 1}


@real
def test_a_run_that_copied_a_loopback_home_goes_on_with_the_same_command(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    data = dataset(tmp_path / "d.jsonl", {"prompt": "say alpha"}, {"prompt": "[[hang]] [[text ok]]"})
    arguments = ("batch", str(data), "--workers", "1", "-o", str(tmp_path / "out"))
    with running(*arguments, home=home) as batch:
        until(lambda: len(model.requests) == 2, "one turn hangs")
        assert batch.end(signal.SIGINT, LIMIT_S) == 130
    done = codex_pool(*arguments, home=home)
    assert done.returncode == 0, done.stderr
    assert [record["status"] for record in results(tmp_path / "out")] == ["completed", "completed"]


@real
def test_the_death_of_an_app_server_costs_a_retry(tmp_path: Path, home: Path, model: LoopbackModel) -> None:
    samples = [{"id": str(n), "prompt": f"[[text deltas=20 pace_ms=60]] {n}"} for n in range(10)]
    data, out = dataset(tmp_path / "d.jsonl", *samples), tmp_path / "out"
    options = ("--home", str(home), "--turns-per-worker", "2", "--retries", "1", "--json", "-o", str(out))
    with running("batch", str(data), *options) as batch:
        batch.wait_for_line('"event": "launch"', "stdout")
        until(lambda: sum(prompts(model).values()) >= 4, "four turns run")
        processes.kill(app_servers(batch)[0])
        assert batch.wait(LIMIT_S) == 0, batch.lines
    assert [(r["id"], r["status"]) for r in results(out)] == [(s["id"], "completed") for s in samples]
    lost = [sample_id for sample_id, _, status in attempts(out) if status == "lost"]
    assert lost and {r["id"] for r in results(out) if r["attempts"] == 2} == set(lost)


@real
def test_every_app_server_of_a_batch_knows_what_is_private_of_its_samples(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    # The one that takes a thread over from a dead one has no other way to know.
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "checks.py").write_text("def right(context): return True")
    (tmp_path / "hidden.txt").write_text("42")
    scorers = [
        {"type": "python", "function": "checks:right", "path": "own"},
        {"type": "command", "command": "true", "files": {"hidden.txt": "hidden.txt"}},
    ]
    files = {"a.txt": "a"}
    data = dataset(tmp_path / "d.jsonl", {"prompt": "[[hang]]", "scorers": scorers, "workspace": {"files": files}})
    with running("batch", str(data), "--home", str(home), "--workers", "1", "-o", str(tmp_path / "out")) as batch:
        until(lambda: len(model.requests) == 1, "the turn hangs")
        command = Path(f"/proc/{app_servers(batch)[0].pid}/cmdline").read_text()
        assert batch.end(signal.SIGINT, LIMIT_S) == 130
    for path in ("own/checks.py", "hidden.txt"):
        assert command.count(f'"{tmp_path}/{path}"="deny"') == 2


@real
def test_ctrl_c_keeps_what_there_is_and_leaves_the_rest(tmp_path: Path, home: Path, model: LoopbackModel) -> None:
    fine = [{"id": f"fine{n}", "prompt": f"say {n}"} for n in range(2)]
    hanging = [{"id": f"hang{n}", "prompt": f"[[hang 1]] {n}"} for n in range(6)]
    # One that is watched by the clock is stopped as well.
    hanging[0]["limits"] = {"wall_s": 60}
    data, out = dataset(tmp_path / "d.jsonl", *fine, *hanging), tmp_path / "out"
    options = ("--home", str(home), "--workers", "1", "--turns-per-worker", "2", "--json", "-o", str(out))
    with running("batch", str(data), *options) as batch:
        until(lambda: sum(prompts(model).values()) == 4, "two turns are completed and two hang")
        assert batch.end(signal.SIGINT, LIMIT_S) == 130
    by_status = Counter(record["status"] for record in results(out))
    assert by_status == {"completed": 2, "interrupted": 2}
    assert {r["error"]["kind"] for r in results(out) if r["error"]} == {"interrupted"}
    done = json.loads(batch.lines["stdout"][-1])
    assert done["event"] == "done" and done["exit_code"] == 130 and done["counts"]["not_run"] == 4
    assert "  not run      4" in batch.lines["stderr"]
    with open_run(out) as store:
        assert store.info()["state"] == "interrupted"


@real
def test_a_second_ctrl_c_does_not_wait_for_turns(tmp_path: Path, home: Path, model: LoopbackModel) -> None:
    data = dataset(tmp_path / "d.jsonl", {"prompt": "[[hang 1]]"})
    with running("batch", str(data), "--home", str(home), "--workers", "1", "-o", str(tmp_path / "out")) as batch:
        until(lambda: bool(model.requests), "the turn runs")
        # It cannot be interrupted now, and the batch would wait for it.
        os.kill(app_servers(batch)[0].pid, signal.SIGSTOP)
        batch.process.send_signal(signal.SIGTERM)
        batch.wait_for_line("interrupted: what runs is being stopped")
        second_at = time.monotonic()
        assert batch.end(signal.SIGINT, LIMIT_S) == 130
        assert time.monotonic() - second_at < 9.0


@real
def test_killed_with_all_it_has_the_batch_goes_on_where_it_was(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    samples = [{"id": str(n), "prompt": f"[[text deltas=10 pace_ms=60]] {n}"} for n in range(9)]
    data, out = dataset(tmp_path / "d.jsonl", *samples), tmp_path / "out"
    arguments = ("batch", str(data), "--home", str(home), "--turns-per-worker", "2", "--json", "-o", str(out))
    with running(*arguments) as batch:
        batch.wait_for_line('"event": "sample"', "stdout")
        below = processes.descendants(batch.process.pid)
        batch.end(signal.SIGKILL)
    until(lambda: not any(processes.identify(p.pid) == p for p in below), "all it had started is gone")
    recorded = results(out)
    assert 1 <= len(recorded) < len(samples)
    done = codex_pool(*arguments)
    assert done.returncode == 0, done.stderr
    after = {record["id"]: record for record in results(out)}
    assert list(after) == [sample["id"] for sample in samples]
    assert {record["status"] for record in after.values()} == {"completed"}
    asked = prompts(model)
    for record in recorded:
        assert after[record["id"]] == record and asked[samples[int(record["id"])]["prompt"]] == 1
    # Each attempt has an end: those that the kill cut too.
    assert None not in [status for _, _, status in attempts(out)]


@real
def test_a_running_pool_is_used_and_left_alone_and_its_queue_is_not_the_wall_limit(
    tmp_path: Path, config: AppServerConfig
) -> None:
    data = dataset(tmp_path / "d.jsonl", *({"prompt": f"say {n}", "timeout_s": 3} for n in range(3)))
    with Pool(workers=1, config=config, turns_per_worker=1) as pool, pool.connect() as codex:
        turn = codex.thread_start().turn("[[hang]]")
        with running("batch", str(data), "--connect", pool.endpoint, "--json", "-o", str(tmp_path / "out")) as batch:
            launch = json.loads(batch.wait_for_line('"event": "launch"', "stdout"))
            assert (launch["endpoint"], launch["workers"], launch["turns_per_worker"]) == (pool.endpoint, 1, 1)
            until(lambda: codex.client.request("pool/status")["turns"]["queued"] == 1, "the first sample is queued")
            queued_at = time.monotonic()
            until(lambda: time.monotonic() - queued_at > 3.2, "longer than its wall limit")
            turn.interrupt()
            assert batch.wait(LIMIT_S) == 0, batch.lines
        assert [record["queued_ms"] >= 3200 for record in results(tmp_path / "out")] == [True, False, False]
        status = codex.client.request("pool/status")
        # The thread of the turn above is left, those of the samples were put away.
        assert status["turns"]["completed"] == 3 and status["workers"][0]["threads"] == 1
    assert not (tmp_path / "out" / "home").exists()


# What cannot start.


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "codex binary not found at "),
        ("echo no such luck >&2; exit 3", "no such luck"),
        ("exec sleep 60", "no app-server was ready within"),
    ],
)
def test_a_pool_that_cannot_start_is_told_in_time_and_leaves_nothing(
    tmp_path: Path, script: str | None, words: str
) -> None:
    binary, data = tmp_path / "fake-codex", dataset(tmp_path / "d.jsonl", {"prompt": "p"})
    if script is not None:
        binary.write_text(f"#!/bin/sh\n{script}\n")
        binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    options = ("--codex-bin", str(binary), "--json", "-o", str(tmp_path / "out"))
    # The command, with less patience than its ten seconds.
    code = "import codex_pool_cli as cli; from codex_batch.run import launch; launch.START_LIMIT_S = 2.0; cli.main()"
    command = [sys.executable, "-c", code, "batch", str(data), *options]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=20.0)
    assert done.returncode == 3, done.stderr
    assert words in done.stderr and str(binary) in done.stderr
    assert [json.loads(line)["exit_code"] for line in done.stdout.splitlines()] == [3]
    with open_run(tmp_path / "out") as store:
        assert store.info()["state"] == "not started"


def test_ctrl_c_while_the_pool_starts_ends_it(tmp_path: Path) -> None:
    binary, data = tmp_path / "fake-codex", dataset(tmp_path / "d.jsonl", {"prompt": "p"})
    binary.write_text(f"#!/bin/sh\ntouch {tmp_path}/started; exec sleep 60\n")
    binary.chmod(0o755)
    options = ("--codex-bin", str(binary), "--json", "-o", str(tmp_path / "out"))
    with running("batch", str(data), *options, home=tmp_path) as batch:
        until((tmp_path / "started").exists, "an app-server was started")
        assert batch.end(signal.SIGINT, LIMIT_S) == 130
    assert json.loads(batch.lines["stdout"][-1])["counts"]["not_run"] == 1


def test_a_wrong_dataset_is_refused_whole_before_anything_starts(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": ""}\n{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x", "cwd": "nope"}\nnope\n')
    done = codex_pool("batch", str(data), "--json", "-o", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "")
    places = [line.removeprefix(f"{data}:").split(": ")[:2] for line in done.stderr.splitlines()]
    assert places == [
        ["1", "prompt"],
        ["3", "cwd"],
        ["3", "id"],
        ["4", "not JSON"],
        ["codex-pool", "4 problems; nothing was run"],
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope.jsonl", "-o", "out"], "nope.jsonl: no such file"),
        (["-o", "out"], "DATASET is missing"),
        (["--demo"], "Missing option '-o'"),
        (["--demo", "-o", "out", "--home", "user"], "cannot go with --home"),
        (["--demo", "-o", "out", "--connect", "default"], "--demo makes an own pool"),
        (["d.jsonl", "-o", "out", "--home", "run", "--connect", "default"], "--home makes an own pool"),
        (["d.jsonl", "-o", "out", "--home", "nope"], "is not a directory; give run, user, or an existing CODEX_HOME"),
        (["d.jsonl", "-o", "out", "--retries", "-1"], "--retries"),
        (["d.jsonl", "-o", "d.jsonl"], "d.jsonl"),
        (["d.jsonl", "-o", "taken"], "has a home/ but no run.sqlite"),
        (["d.jsonl", "-o", "others"], "holds results of other samples, not in d.jsonl: 'x'"),
        (["d.jsonl", "-o", "earlier"], "it was made by an earlier codex-pool"),
        (["d.jsonl", "-o", "busy"], "in use by another run (pid {pid})"),
    ],
)
def test_bad_usage_is_refused_with_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    dataset(tmp_path / "d.jsonl", {"prompt": "p"})
    (tmp_path / "taken" / "home").mkdir(parents=True)
    (tmp_path / "earlier").mkdir()
    dataset(tmp_path / "earlier" / "results.jsonl", {"id": "x", "status": "completed"})
    with contextlib.closing(RunDirectory(tmp_path / "others")) as others:
        others.load([Entry("x", 1, "d", {})], "d")
        start = others.start_attempt(1, "k", None).result(5)
        others.finish(start, RecordRow("completed", 1), {"status": "completed"}).result(5)
    with locked(tmp_path / "busy"):
        done = codex_pool("batch", *arguments, cwd=tmp_path, home=tmp_path)
    words = words.replace("{pid}", str(os.getpid()))
    assert (done.returncode, done.stdout) == (2, "") and words in " ".join(done.stderr.split())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A run directory that another run holds."""
    path.mkdir()
    with open(path / "lock", "w") as file:
        file.write(f"{os.getpid()}\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def until(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {limit_s} s"
        time.sleep(0.02)


def app_servers(batch: Program) -> list[processes.ProcessId]:
    """The app-server processes of a batch."""
    found = []
    for process in processes.descendants(batch.process.pid):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            if command[0].endswith(b"codex") and b"app-server" in command:
                found.append(process)
    assert found
    return found
