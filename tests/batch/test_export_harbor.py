"""A run as a job of Harbor: its files, and what Harbor's own models make of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from runs import make_run

from codex_batch.dataset import Sample
from codex_batch.export import ExportError, export
from codex_batch.harbor.content import content_digest
from codex_batch.harbor.report import REPORT, Phase, Report, StepReport
from codex_batch.scoring import Score
from codex_batch.store import Entry, RecordRow, RunDirectory, open_run

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "harbor"
MODELS = ROOT / "out" / "harbor" / "bin" / "python"
USAGE = {"input_tokens": 10, "cached_input_tokens": 4, "output_tokens": 5, "total_tokens": 15}
PHASES = {"agent": Phase(1.0, 2.0), "verifier": Phase(2.0, 3.5)}


def harbor(name: str, *, oracle: bool = False) -> dict[str, Any]:
    task = EXAMPLES / name
    return {"task": str(task), "digest": "d", "content": content_digest(task), "oracle": oracle, "ignored": []}


def reward(value: float, **others: float) -> list[Score]:
    more = [Score(scorer=name, value=each) for name, each in others.items()]
    return [Score(scorer="reward", value=value, passed=value >= 1), *more]


def add(directory: RunDirectory, sample: Sample, files: dict[str, bytes], scores: list[Score], **record: Any) -> None:
    """Record a sample with its artifacts, as a batch does."""
    n = directory.store.sample(*sample.key).n
    artifacts = directory.store.artifacts_of(n)
    for name, data in files.items():
        (artifacts / name).parent.mkdir(parents=True, exist_ok=True)
        (artifacts / name).write_bytes(data)
    start = directory.start_attempt(n, "key", None).result(5)
    ends = {"status": record.get("status", "completed")}
    found = {"status": "completed", "attempts": 1, "started_at": 1.0, "ended_at": 4.0, "usage": USAGE, **record}
    directory.finish(start, RecordRow(artifacts=tuple(sorted(files)), **found), ends).result(5)
    directory.replace_scores(n, scores)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with each way in which a task may end."""
    names = (
        "hello-file",
        "two-rewards",
        "steps-mean",
        "steps-final",
        "fix-script",
        "as-user",
        "sort-names",
        "count-errors",
    )
    samples = {name: Sample(name, ("p",), harbor=harbor(name)) for name in names}
    samples["plain"] = Sample("plain", ("p",))
    path = make_run(tmp_path / "run", [])
    directory = RunDirectory(path)
    directory.launch(
        {"dataset": {"name": "tasks", "path": str(EXAMPLES)}, "workers": 2, "turns_per_worker": 1, "retries": 1}
    )
    directory.load([Entry(s.id, 1, s.digest, s.to_json()) for s in samples.values()], "tasks")

    def report(*steps: StepReport, **more: Any) -> bytes:
        return Report(steps, **more).to_json()

    kept = b'[{"source": "/a", "destination": "artifacts/a", "type": "file", "status": "ok"}]'
    add(
        directory,
        samples["hello-file"],
        {
            REPORT: report(StepReport("", {"reward": 1.0}, **PHASES)),
            "verifier/reward.txt": b"1\n",
            "verifier/test-stdout.txt": b"ok",
            "artifacts/a": b"a",
            "artifacts/manifest.json": kept,
            "diff.patch": b"diff",
        },
        reward(1.0),
        model="m",
        codex_version="0.163.0",
        cost=0.5,
        final_response="done \ud800",
    )
    both = {"reward": 0.0, "tidy": 1.0}
    add(
        directory,
        samples["two-rewards"],
        {REPORT: report(StepReport("", both)), "verifier/reward.json": json.dumps(both).encode()},
        reward(0.0, tidy=1.0),
        status="limit",
        limit="timeout_s",
        error={"kind": "limit", "message": "the turn ran longer"},
    )
    add(
        directory,
        samples["steps-mean"],
        {
            REPORT: report(
                StepReport("write", {"reward": 1.0}, **PHASES), StepReport("extend", {"reward": 0.0}, **PHASES)
            ),
            "steps/write/verifier/reward.txt": b"1",
            "steps/extend/verifier/reward.txt": b"0",
            "steps/extend/artifacts/manifest.json": b"[]",
        },
        reward(0.5),
    )
    no_step = StepReport("build", None, "reward.txt: is empty", "RewardFileEmptyError")
    add(
        directory,
        samples["steps-final"],
        {REPORT: report(no_step, is_mean=False, ended="step build has no reward"), "steps/build/verifier/log": b"x"},
        [Score(scorer="reward", value=0.0, error="step build: reward.txt: is empty")],
    )
    late = StepReport("", None, "test.sh ran longer", "VerifierTimeoutError")
    add(
        directory,
        samples["fix-script"],
        {REPORT: report(late)},
        [Score(scorer="reward", value=0.0, error="test.sh ran longer")],
    )
    gone = {"kind": "environmentLost", "message": "the container is gone"}
    add(directory, samples["as-user"], {}, [], status="lost", error=gone)
    add(directory, samples["sort-names"], {}, [], status="interrupted", error={"kind": "interrupted", "message": "x"})
    tokens = {"kind": "limit", "message": "too many"}
    add(
        directory,
        samples["count-errors"],
        {REPORT: report(StepReport("", {"reward": 1.0}), oracle=True), "verifier/reward.txt": b"1"},
        reward(1.0),
        status="limit",
        limit="tokens",
        error=tokens,
    )
    add(directory, samples["plain"], {"diff.patch": b"d"}, [Score(scorer="exact", value=1.0, passed=True)])
    directory.outcome("finished", {})
    directory.close()
    return path


def exported(run: Path, target: Path) -> Path:
    target.parent.mkdir(exist_ok=True)
    with open_run(run) as store:
        assert export(store, target, "harbor") == [target]
    return target


def trials(job: Path) -> dict[str, Path]:
    return {path.name.rpartition("__")[0]: path for path in job.iterdir() if path.is_dir()}


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


ALWAYS = {"config.json", "lock.json", "result.json", "agent/codex-events.jsonl"}


def test_a_job_has_the_files_of_harbor(run: Path, tmp_path: Path) -> None:
    job = exported(run, tmp_path / "job")
    found = trials(job)
    assert files(found["hello-file"]) == ALWAYS | {
        "agent/final-response.txt",
        "verifier/reward.txt",
        "verifier/test-stdout.txt",
        "artifacts/a",
        "artifacts/diff.patch",
        "artifacts/manifest.json",
    }
    manifest = json.loads((found["hello-file"] / "artifacts/manifest.json").read_text())
    assert [each["destination"] for each in manifest] == ["artifacts/a", "artifacts/diff.patch"]
    assert {"steps/write/verifier/reward.txt", "steps/extend/verifier/reward.txt"} <= files(found["steps-mean"])
    assert "exception.txt" in files(found["fix-script"]) and "exception.txt" not in files(found["steps-mean"])
    # A sample that is no task of Harbor has its scores as rewards.
    assert json.loads((found["plain"] / "verifier/reward.json").read_text()) == {"exact": 1.0}


def test_what_has_no_reward_has_none_and_is_counted_apart(run: Path, tmp_path: Path) -> None:
    job = exported(run, tmp_path / "job")
    stats = json.loads((job / "result.json").read_text())["stats"]
    assert (stats["n_completed_trials"], stats["n_errored_trials"], stats["n_cancelled_trials"]) == (9, 6, 1)
    counted = stats["evals"]["codex__tasks"]
    assert {
        key: {value: len(names) for value, names in found.items()} for key, found in counted["reward_stats"].items()
    } == {
        "reward": {"0.0": 1, "0.5": 1, "1.0": 1},
        "tidy": {"1.0": 1},
        "exact": {"1.0": 1},
    }
    for name in ("steps-final", "fix-script", "as-user", "sort-names"):
        result = json.loads((trials(job)[name] / "result.json").read_text())
        assert result["verifier_result"] is None and not result["reward_valid"], name


def test_a_job_is_written_once_and_the_same_each_time(run: Path, tmp_path: Path) -> None:
    job, again = exported(run, tmp_path / "one" / "job"), exported(run, tmp_path / "two" / "job")
    assert files(job) == files(again)
    with open_run(run) as store, pytest.raises(ExportError, match="is no empty directory"):
        export(store, job, "harbor")


def test_an_artifact_that_is_not_there_any_more_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [(Sample("a", ("p",)), "yes")])
    assert "artifacts/diff.patch" not in files(exported(run, tmp_path / "job"))


@pytest.mark.generate
def test_harbors_own_models_take_all_of_it(run: Path, tmp_path: Path) -> None:
    job = exported(run, tmp_path / "job")
    examples = sorted(path for path in EXAMPLES.iterdir() if path.name[0] not in "._")
    command = [str(MODELS), "-B", str(ROOT / "tests/harness/check_harbor.py"), str(job), *map(str, examples)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tasks"] == {path.name: content_digest(path) for path in examples}
    ends = {name: (each["rewards"], each["valid"], each["exceptions"]) for name, each in found["trials"].items()}
    assert ends == {
        "hello-file": ({"reward": 1.0}, True, []),
        "two-rewards": ({"reward": 0.0, "tidy": 1.0}, True, ["AgentTimeoutError"]),
        "steps-mean": ({"reward": 0.5}, True, []),
        "steps-final": (None, False, ["RewardFileEmptyError"]),
        "fix-script": (None, False, ["VerifierTimeoutError"]),
        "as-user": (None, False, ["CodexEnvironmentLostError"]),
        "sort-names": (None, False, ["CancelledError"]),
        "count-errors": ({"reward": 1.0}, True, ["SampleLimitError"]),
        "plain": ({"exact": 1.0}, True, []),
    }
    assert found["trials"]["steps-mean"]["steps"] == [["write", {"reward": 1.0}], ["extend", {"reward": 0.0}]]
