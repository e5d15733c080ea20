"""Evaluations on the real binary: workspaces, turns on one thread, scores, limits; killed and gone on with."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import codex_pool, running

from codex_app_server.testing.loopback import LoopbackModel
from codex_batch.export.recorded import recorded
from codex_batch.store import open_run
from codex_pool.runtime import processes

pytestmark = pytest.mark.real
LIMIT_S = 40.0
EVAL = Path(__file__).parents[2] / "examples" / "eval"


def results(out: Path) -> dict[str, dict[str, Any]]:
    return {r["id"]: r for r in map(json.loads, (out / "results.jsonl").read_text(encoding="utf-8").splitlines())}


def dataset(path: Path, *samples: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {LIMIT_S} s"
        time.sleep(0.02)


def asked(model: LoopbackModel) -> Counter[str]:
    return Counter(record.prompt for record in model.requests)


def test_the_example_evaluation_scores_what_its_script_intends(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = EVAL / "_demo" / "agent.toml"
    arguments = ("batch", str(EVAL), "--demo-script", str(script), "--retries", "1", "-o", str(out))
    done = codex_pool(*arguments, limit_s=120.0)
    expected = json.loads((EVAL / "_demo" / "expected.json").read_text())
    found = results(out)
    assert {
        name: {"status": r["status"], "score": round(r["scores"].get("hidden-tests", {"value": 0})["value"])}
        for name, r in found.items()
    } == expected, done.stderr
    assert done.returncode == 1 and "hidden-tests" in done.stderr
    assert found["bank-account"]["turns"] == 2 and len(found["bank-account"]["responses"]) == 2
    assert found["top-words"]["limit"] == "tool_calls"
    # Workspaces are gone, what was changed in them is kept, and what happened.
    assert list((out / "work").iterdir()) == []
    with open_run(out) as store:
        row = store.sample("leap-year")
        assert b"400" in store.artifact(row.n, "diff.patch")
        methods = [event["method"] for event in store.events(row.n, 1)]
        assert methods[-1] == "turn/completed" and "item/completed" in methods


def test_turns_that_were_had_on_a_thread_are_not_had_again_after_a_kill(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    prompts = ["say one", "[[text deltas=20 pace_ms=100]] two", "say three"]
    workspace = {"files": {"a.txt": "a\n"}}
    sample = {"id": "s", "prompts": prompts, "workspace": workspace, "sandbox": "read-only", "target": "say three"}
    data, out = dataset(tmp_path / "d.jsonl", sample), tmp_path / "out"
    options = ("--home", str(home), "--workers", "1", "--scorer", "includes", "-o", str(out))
    with running("batch", str(data), *options) as batch:
        until(lambda: asked(model)[prompts[1]] == 1, "the second turn hangs")
        (out / "work" / "s" / "workspace" / "a.txt").write_text("changed\n")
        below = processes.descendants(batch.process.pid)
        batch.end(signal.SIGKILL)
    until(lambda: not any(processes.identify(p.pid) == p for p in below), "all it had started is gone")
    done = codex_pool("batch", str(data), *options)
    assert done.returncode == 0, done.stderr
    record = results(out)["s"]
    assert asked(model) == {prompts[0]: 1, prompts[1]: 2, prompts[2]: 1}
    assert len(record["responses"]) == 3 and "say one" in record["responses"][0] and record["attempts"] == 2
    assert record["turns"] == 3 and record["scores"]["includes"]["value"] == 1.0
    with open_run(out) as store:
        # The attempt went on with a fork of the thread, whose session file has only what came then.
        thread = recorded(store, store.sample("s")).own
        assert thread is not None
        assert [step.text for step in thread.steps if step.role == "user" and not step.is_of_codex] == prompts
        # It went on in the same workspace.
        assert b"+changed" in store.artifact(store.sample("s").n, "diff.patch")


def test_what_was_answered_when_the_run_died_is_scored_by_the_next(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    gate = tmp_path / "gate"
    scorer = {"type": "command", "name": "c", "command": f"test -e {gate} || sleep 60; cat made.txt"}
    workspace = {"files": {"a": ""}, "setup": "echo made > made.txt"}
    data = dataset(tmp_path / "d.jsonl", {"id": "s", "prompt": "say x", "workspace": workspace, "scorers": [scorer]})
    out = tmp_path / "out"
    options = ("--home", str(home), "--workers", "1", "-o", str(out))
    with running("batch", str(data), *options) as batch:
        until(lambda: (out / "run.sqlite").exists() and _state(out, "s") == "scoring", "the sample is scored")
        below = processes.descendants(batch.process.pid)
        batch.end(signal.SIGKILL)
    until(lambda: not any(processes.identify(p.pid) == p for p in below), "all it had started is gone")
    assert results(out) == {}
    gate.touch()
    done = codex_pool("batch", str(data), *options)
    assert done.returncode == 0, done.stderr
    assert results(out)["s"]["scores"]["c"]["passed"] is True and asked(model) == {"say x": 1}


def _state(out: Path, sample: str) -> str:
    with open_run(out) as store, contextlib.suppress(KeyError):
        return store.sample(sample).state
    return ""


def test_a_setup_that_fails_is_a_failure_and_one_that_was_killed_begins_anew(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    gate = tmp_path / "gate"
    slow = {"files": {"a": ""}, "setup": f"echo x >> made.txt; test -e {gate} || sleep 60"}
    wrong = {"files": {"a": ""}, "setup": "echo no such luck >&2; exit 3"}
    samples = [{"id": "slow", "prompt": "say x", "workspace": slow}, {"id": "bad", "prompt": "y", "workspace": wrong}]
    data, out = dataset(tmp_path / "d.jsonl", *samples), tmp_path / "out"
    options = ("--home", str(home), "--workers", "1", "--keep", "-o", str(out))
    with running("batch", str(data), *options) as batch:
        made = out / "work" / "slow" / "workspace" / "made.txt"
        until(made.exists, "it is being set up")
        batch.end(signal.SIGKILL)
    gate.touch()
    done = codex_pool("batch", str(data), *options)
    assert done.returncode == 1
    found = results(out)
    assert (found["bad"]["status"], found["bad"]["error"]["kind"]) == ("failed", "workspace")
    assert "no such luck" in found["bad"]["error"]["message"]
    assert found["slow"]["status"] == "completed" and made.read_text() == "x\n"


def test_a_workspace_that_the_last_sample_left_when_killed_is_removed_by_the_same_command(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    data = dataset(tmp_path / "d.jsonl", {"id": "s", "prompt": "say x", "workspace": {"files": {"a": ""}}})
    out, stopping = tmp_path / "out", tmp_path / "stopping"
    # The hook is told to stop when a sample is recorded, before its workspace is removed; once it takes too long.
    hook = f'[ "$CODEX_POOL_HOOK" != stop ] || ! mkdir {stopping} || sleep 60'
    arguments = ("batch", str(data), "--home", str(home), "--workers", "1", "--workspace-hook", hook, "-o", str(out))
    with running(*arguments) as batch:
        until(stopping.exists, "the workspace is about to be removed")
        batch.end(signal.SIGKILL)
    left = out / "work" / "s"
    assert _state(out, "s") == "done" and (left / "workspace" / "a").exists()
    done = codex_pool(*arguments)
    assert done.returncode == 0 and "nothing to do" in done.stderr, done.stderr
    assert not left.exists()
    # Killed a moment later, when it was half removed.
    (left / "workspace").mkdir(parents=True)
    (left / "workspace" / "a").touch()
    kept = codex_pool(*arguments, "--keep")
    assert kept.returncode == 0 and left.exists(), kept.stderr
    done = codex_pool(*arguments)
    assert done.returncode == 0 and not left.exists(), done.stderr
    assert asked(model) == {"say x": 1}


def test_what_the_judge_was_paid_counts_in_the_limits_of_a_run_that_goes_on(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    data = dataset(tmp_path / "d.jsonl", {"id": "a", "prompt": "say x"}, {"id": "b", "prompt": "say y"})
    out, prices = tmp_path / "out", tmp_path / "prices.toml"
    prices.write_text('currency = "USD"\n[models."*"]\ninput = 1.0\ncached_input = 1.0\noutput = 1.0\n')
    arguments = ("batch", str(data), "--home", str(home), "--workers", "1", "--scorer", "judge", "-o", str(out))
    first = codex_pool(*arguments, "--limit", "1", "--prices", str(prices))
    assert first.returncode == 0, first.stderr
    with open_run(out) as store:
        of_attempts = sum((a.usage or {})["total_tokens"] for row in store.samples() for a in store.attempts(row.n))
        tokens, cost = store.spent()
    # The judge reads all of its instructions; the sample is a word.
    assert tokens > of_attempts > 0 and cost == pytest.approx(tokens / 1e6)
    for limit in (("--run-tokens", str(of_attempts + 1)), ("--run-cost", f"{(of_attempts + 1) / 1e6:.9f}")):
        again = codex_pool(*arguments, "--prices", str(prices), *limit)
        assert again.returncode == 1 and "its limit is" in again.stderr, again.stderr
        assert asked(model)["say y"] == 0
    assert codex_pool(*arguments).returncode == 0 and asked(model)["say y"] == 1


def test_a_run_goes_on_in_the_background_and_is_told_what_to_do(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    data = dataset(
        tmp_path / "d.jsonl",
        *({"id": f"hang{n}", "prompt": f"[[hang 1]] {n}"} for n in range(2)),
        {"id": "x", "prompt": "say x"},
    )
    out, said = tmp_path / "out", tmp_path / "said"
    notify = f"echo $CODEX_POOL_STATE $CODEX_POOL_EXIT_CODE > {said}"
    options = ("--home", str(home), "--workers", "1", "--notify", notify, "--detach", "-o", str(out))
    done = codex_pool("batch", str(data), *options)
    assert done.returncode == 0 and "goes on in the background" in done.stderr
    assert "in use by another run" in codex_pool("batch", str(data), "-o", str(out)).stderr
    assert codex_pool("runs", "list", str(tmp_path)).stdout.splitlines()[1].split()[1] == "running"
    until(lambda: sum(asked(model).values()) == 3, "all are under way")
    assert codex_pool("runs", "cancel", str(out), "hang0").returncode == 0
    with running("attach", str(out)) as attached:
        until(lambda: _state(out, "hang0") == "done", "the sample is cancelled")
        assert codex_pool("runs", "cancel", str(out)).returncode == 0
        assert attached.wait(LIMIT_S) == 130
    until(said.exists, "the command at the end was run")
    found = results(out)
    assert [(name, r["status"]) for name, r in found.items()] == [
        ("hang0", "interrupted"),
        ("hang1", "interrupted"),
        ("x", "completed"),
    ]
    assert found["hang0"]["error"]["kind"] == "cancelled" and said.read_text().split() == ["interrupted", "130"]
    assert "nothing to cancel" in codex_pool("runs", "cancel", str(out)).stderr
    assert codex_pool("runs", "export", str(out), "--format", "csv").stdout.count("\n") == 4
    shown = json.loads(codex_pool("runs", "show", str(out), "x", "--json").stdout)
    assert "say x" in shown["final_response"] and len(shown["attempts"]) == 1
    assert codex_pool("runs", "rm", str(out), "--yes").returncode == 0 and not out.exists()


def test_limits_of_the_run_end_it_and_an_estimate_runs_some_samples_only(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('[models."*"]\ninput = 1000000\noutput = 1000000\n')
    data = dataset(tmp_path / "d.jsonl", *({"id": str(n), "prompt": f"say {n}"} for n in range(6)))
    out = tmp_path / "out"
    options = (
        "--home",
        str(home),
        "--workers",
        "1",
        "--turns-per-worker",
        "1",
        "--prices",
        str(prices),
        "-o",
        str(out),
    )
    done = codex_pool("batch", str(data), *options, "--estimate", "2")
    assert done.returncode == 0, done.stderr
    assert list(results(out)) == ["0", "3"] and "estimate: cost" in done.stderr and "USD" in done.stderr
    cost = sum(r["cost"] for r in results(out).values())
    assert cost > 0
    done = codex_pool("batch", str(data), *options, "--run-cost", str(cost + 1))
    assert done.returncode == 1 and "its limit is" in done.stderr and len(results(out)) == 3
    assert codex_pool("batch", str(data), *options).returncode == 0 and len(results(out)) == 6
    assert max(asked(model).values()) == 1
