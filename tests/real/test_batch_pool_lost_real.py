"""A batch whose pool is killed, or whose daemon restarts, goes on with another one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import codex_cli_bin
import pytest
from programs import Program, codex_pool, running
from test_batch_real import attempts, dataset, prompts, results, until

from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home
from codex_batch.rules.pool_deaths import DEATHS_LIMIT
from codex_batch.store import open_run
from codex_pool.runtime import processes

pytestmark = pytest.mark.real

LIMIT_S = 50.0


def supervisor_of(batch: Program) -> int | None:
    for process in processes.descendants(batch.process.pid):
        try:
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"codex_pool.supervisor" in command and Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
            return process.pid
    return None


def kill_pool(batch: Program) -> int:
    """Kill the supervisor of a batch; its pid."""
    until(lambda: supervisor_of(batch) is not None, "there is a supervisor")
    pid = supervisor_of(batch)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def warnings(batch: Program) -> list[str]:
    events = [json.loads(line) for line in batch.lines["stdout"]]
    return [event["kind"] for event in events if event["event"] == "warning"]


@pytest.mark.parametrize("moment", ["first", "middle", "twice"])
def test_the_supervisor_is_killed_and_the_batch_goes_on(
    moment: str, tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    samples = [{"id": str(n), "prompt": f"[[text deltas=10 pace_ms=60]] {n}"} for n in range(12)]
    data, out = dataset(tmp_path / "d.jsonl", *samples), tmp_path / "out"
    options = ("--home", str(home), "--turns-per-worker", "2", "--retries", "2", "--json", "-o", str(out))
    with running("batch", str(data), *options) as batch:
        batch.wait_for_line('"event": "launch"', "stdout")
        until(lambda: sum(prompts(model).values()) >= (1 if moment == "first" else 6), "turns run")
        before = {record["id"]: record for record in results(out)} if moment != "first" else {}
        pid = kill_pool(batch)
        batch.wait_for_line("pool_replaced", "stdout")
        if moment == "twice":
            asked = sum(prompts(model).values())
            until(lambda: sum(prompts(model).values()) > asked, "another turn runs")
            kill_pool(batch)
        assert batch.wait(LIMIT_S) == 0, batch.lines
    after = {record["id"]: record for record in results(out)}
    assert [(r["id"], r["status"]) for r in after.values()] == [(s["id"], "completed") for s in samples]
    # What had its record was not asked again.
    assert {sample_id: after[sample_id] for sample_id in before} == before
    asked_of = prompts(model)
    assert all(asked_of[samples[int(sample_id)]["prompt"]] == after[sample_id]["attempts"] for sample_id in before)
    lost = Counter(sample_id for sample_id, _, status in attempts(out) if status == "lost")
    assert {s: r["attempts"] - 1 for s, r in after.items() if r["attempts"] > 1} == dict(lost)
    losses = 2 if moment == "twice" else 1
    assert warnings(batch) == ["pool_lost", "pool_replaced"] * losses
    said = [line for line in batch.lines["stderr"] if "the pool was " in line]
    assert f"the pool was lost: its supervisor died (supervisor pid {pid}, killed by SIGKILL; its log: " in said[0]
    assert str(out / "pool.log") in said[0] and "another is started" in said[0]
    assert "the pool was replaced after " in said[1] and "the run goes on" in said[1]


def test_what_is_lost_without_retries_is_recorded_so_and_is_no_failure_of_samples(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    samples = [{"id": "hangs", "prompt": "[[hang]] [[text ok]]"}, *({"id": str(n), "prompt": f"{n}"} for n in range(4))]
    data, out = dataset(tmp_path / "d.jsonl", *samples), tmp_path / "out"
    options = ("--home", str(home), "--workers", "1", "--turns-per-worker", "1", "--max-failures", "1", "-o", str(out))
    with running("batch", str(data), *options) as batch:
        model.wait_for(lambda record: record.outcome == "hanging", 30)
        kill_pool(batch)
        assert batch.wait(LIMIT_S) == 1, batch.lines
    first, *others = results(out)
    assert (first["status"], first["error"]["kind"], first["attempts"]) == ("lost", "lost", 1)
    assert "killed by SIGKILL" in first["error"]["message"]
    assert [record["status"] for record in others] == ["completed"] * 4
    # The same command runs what was lost.
    done = codex_pool("batch", str(data), *options)
    assert done.returncode == 0, done.stderr
    assert results(out)[0]["status"] == "completed"


def test_turns_that_were_completed_before_their_pool_was_lost_are_not_had_again(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    turns = ["say alpha", "[[text deltas=20 pace_ms=100]]"]
    data, out = dataset(tmp_path / "d.jsonl", {"id": "a", "prompts": turns}), tmp_path / "out"
    options = ("--home", str(home), "--workers", "1", "--retries", "1", "-o", str(out))
    with running("batch", str(data), *options) as batch:
        until(lambda: len(prompts(model)) == 2, "the second turn runs")
        kill_pool(batch)
        assert batch.wait(LIMIT_S) == 0, batch.lines
    (record,) = results(out)
    assert record["status"] == "completed" and len(record["responses"]) == 2
    # The first turn was not had again: the second goes on with it.
    assert prompts(model)["say alpha"] == 1
    # The session file of the attempt that was lost is kept as well.
    with open_run(out) as store:
        n = store.sample("a").n
        lost, last = store.rollouts(n, 1), store.rollouts(n, 2)
        assert [each.relation for each in (*lost, *last)] == ["own", "own", "origin"]
        assert last[1].thread_id == lost[0].thread_id
        assert any(b"say alpha" in line for line in store.rollout_lines(lost[0]))


def test_a_turn_that_ended_unseen_before_its_pool_was_lost_is_taken_up(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    data = dataset(tmp_path / "d.jsonl", {"id": "a", "prompt": "[[text deltas=30 pace_ms=60]]"})
    out = tmp_path / "out"
    with running("batch", str(data), "--home", str(home), "--workers", "1", "-o", str(out)) as batch:
        until(lambda: any(record.deltas_sent for record in model.active), "the turn runs")
        (broker,) = [
            process.pid
            for process in processes.descendants(batch.process.pid)
            if b"codex_pool.broker" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        ]
        # Its end is stored, and nobody hears of it.
        os.kill(broker, signal.SIGSTOP)
        stored = [*(home / "sessions").rglob("*.jsonl")]
        until(lambda: any("task_complete" in path.read_text() for path in stored), "the turn has ended")
        kill_pool(batch)
        os.kill(broker, signal.SIGKILL)
        assert batch.wait(LIMIT_S) == 0, batch.lines
    (record,) = results(out)
    assert (record["status"], record["attempts"]) == ("completed", 1)
    assert sum(prompts(model).values()) == 1 and attempts(out) == [("a", 1, "completed")]


def test_a_pool_that_is_killed_while_a_judge_is_asked(tmp_path: Path, home: Path, model: LoopbackModel) -> None:
    data = dataset(tmp_path / "d.jsonl", {"id": "a", "prompt": "say alpha", "target": "x"})
    out = tmp_path / "out"
    judge = json.dumps({"type": "judge", "criteria": '[[hang]] [[json \'{"explanation": "e", "grade": "correct"}\']]'})
    options = ("--home", str(home), "--workers", "1", "--scorer", judge, "--json", "-o", str(out))
    with running("batch", str(data), *options) as batch:
        model.wait_for(lambda record: record.outcome == "hanging", 30)
        kill_pool(batch)
        assert batch.wait(LIMIT_S) == 0, batch.lines
    (record,) = results(out)
    assert record["scores"]["judge"]["error"] is None and record["scores"]["judge"]["passed"] is True
    assert prompts(model)["say alpha"] == 1

    # And when the run is scored again.
    again = judge.replace("[[hang]]", "Again. [[hang]]")
    with running("score", str(out), "--scorer", again, "--home", str(home), "--workers", "1", "--json") as scoring:
        model.wait_for(lambda record: record.outcome == "hanging" and "Again." in record.prompt, 30)
        kill_pool(scoring)
        assert scoring.wait(LIMIT_S) == 0, scoring.lines
    assert warnings(scoring) == ["pool_lost", "pool_replaced"]
    assert results(out)[0]["scores"]["judge"]["passed"] is True


def test_pools_that_cannot_start_any_more_end_the_run_and_it_says_why(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    link = tmp_path / "codex"
    link.symlink_to(codex_cli_bin.bundled_codex_path())
    data = dataset(tmp_path / "d.jsonl", {"id": "done", "prompt": "say alpha"}, {"id": "hangs", "prompt": "[[hang]]"})
    out = tmp_path / "out"
    options = ("--home", str(home), "--codex-bin", str(link), "--workers", "1", "--turns-per-worker", "1")
    with running("batch", str(data), *options, "--retries", "3", "--json", "-o", str(out)) as batch:
        model.wait_for(lambda record: record.outcome == "hanging", 30)
        link.unlink()
        link.symlink_to("/bin/false")
        kill_pool(batch)
        assert batch.wait(LIMIT_S) == 1, batch.lines
    done, hangs = results(out)
    assert (done["status"], hangs["status"]) == ("completed", "lost")
    problem = json.loads(batch.lines["stdout"][-1])["problem"]
    assert "the pool is gone: " in problem and f"{DEATHS_LIMIT} times in a row" in problem
    assert "could not start" in problem and str(out / "pool.log") in problem
    assert any(problem.splitlines()[0] in line for line in batch.lines["stderr"])


def test_ctrl_c_while_there_is_no_pool_ends_the_run(tmp_path: Path, home: Path, model: LoopbackModel) -> None:
    link = tmp_path / "codex"
    link.symlink_to(codex_cli_bin.bundled_codex_path())
    data = dataset(tmp_path / "d.jsonl", {"id": "hangs", "prompt": "[[hang]]"})
    out = tmp_path / "out"
    options = ("--home", str(home), "--codex-bin", str(link), "--workers", "1", "-o", str(out))
    with running("batch", str(data), *options) as batch:
        model.wait_for(lambda record: record.outcome == "hanging", 30)
        link.unlink()
        (tmp_path / "slow").write_text("#!/bin/sh\nexec sleep 60\n")
        (tmp_path / "slow").chmod(0o755)
        link.symlink_to(tmp_path / "slow")
        kill_pool(batch)
        batch.wait_for_line("the pool was lost")
        assert batch.end(signal.SIGINT, LIMIT_S) == 130


# A daemon.


@contextmanager
def daemon(home: Path) -> Iterator[tuple[Program, str]]:
    with running("serve", "--workers", "1", "--turns-per-worker", "2", "--json", home=home) as program:
        yield program, json.loads(program.wait_for_line("launch", "stdout"))["endpoint"]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "supervisor"])
def test_a_daemon_restarts_under_a_batch(how: str, tmp_path: Path, home: Path, model: LoopbackModel) -> None:
    samples = [{"id": str(n), "prompt": f"[[text deltas=10 pace_ms=60]] {n}"} for n in range(8)]
    data, out = dataset(tmp_path / "d.jsonl", *samples), tmp_path / "out"
    with daemon(home) as (first, endpoint):
        options = ("--connect", endpoint, "--retries", "1", "--json", "-o", str(out))
        with running("batch", str(data), *options) as batch:
            until(lambda: sum(prompts(model).values()) >= 4, "turns run")
            if how == "supervisor":
                kill_pool(first)
                first.wait()
            else:
                first.end(signal.Signals[how])
            batch.wait_for_line("was lost")
            with daemon(home) as (second, again):
                assert again == endpoint
                assert batch.wait(LIMIT_S) == 0, batch.lines
                assert second.end(signal.SIGINT) == 0
    assert [(r["id"], r["status"]) for r in results(out)] == [(s["id"], "completed") for s in samples]
    assert warnings(batch)[0] == "pool_lost" and warnings(batch)[-1] == "pool_replaced"
    assert f"the pool at {endpoint} was lost" in batch.wait_for_line("was lost")
    assert max(record["attempts"] for record in results(out)) == 2


def test_a_daemon_that_comes_back_with_another_home_is_not_used(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    other = tmp_path / "other"
    write_loopback_home(other, model.base_url)
    data, out = dataset(tmp_path / "d.jsonl", {"prompt": "[[hang]]"}), tmp_path / "out"
    with contextlib.ExitStack() as stack:
        first, endpoint = stack.enter_context(daemon(home))
        batch = stack.enter_context(running("batch", str(data), "--connect", endpoint, "--json", "-o", str(out)))
        model.wait_for(lambda record: record.outcome == "hanging", 30)
        first.end(signal.SIGTERM)
        batch.wait_for_line("was lost")
        second, _ = stack.enter_context(daemon(other))
        assert batch.wait(LIMIT_S) == 1, batch.lines
        assert second.end(signal.SIGINT) == 0
    assert f"with CODEX_HOME {other}, not {home}" in json.loads(batch.lines["stdout"][-1])["problem"]
