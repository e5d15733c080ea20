"""`codex-pool score`: scores of a run that is over, changed without running it again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from runs import make_run

from codex_batch.dataset import Sample
from codex_batch.store import RunDirectory, SampleRow, directory_name, open_run
from codex_batch.workspace import prepare
from codex_pool.runtime import processes
from codex_pool_cli.verbs import verbs

LIMIT_S = 20.0


def score(run: Path, *arguments: str) -> Result:
    return CliRunner().invoke(verbs, ["score", str(run), *arguments], catch_exceptions=False)


def rows(run: Path) -> dict[str, SampleRow]:
    with open_run(run) as store:
        return {f"{row.id}#{row.epoch}": row for row in store.samples()}


def passed(run: Path) -> dict[str, dict[str, bool | None]]:
    return {name: {score.scorer: score.passed for score in row.scores} for name, row in rows(run).items()}


SAMPLES = [
    (Sample("a", ("p",), target="1", tags=("odd",)), "1"),
    (Sample("b", ("p",), target="2"), "3"),
    (Sample("c", ("p",), target="3", tags=("odd",)), None),
    (Sample("b", ("p",), epoch=2, target="2"), "2"),
]


def test_a_run_is_scored_again_with_its_own_scorers_or_others(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", SAMPLES, scorers=["exact"])
    done = score(run, "--json", "--pass-at", "2")
    assert done.exit_code == 0, done.output
    assert passed(run) == {"a#1": {"exact": True}, "b#1": {"exact": False}, "c#1": {}, "b#2": {"exact": True}}
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["launch", "sample", "sample", "sample", "done"]
    exact = events[-1]["metrics"]["exact"]
    assert exact["scores"] == 3 and exact["pass_at"]["2"] == {"value": 1.0, "samples": 1}
    assert exact["tags"]["odd"]["mean"] == 1.0
    assert "exact" in done.stderr and "0.667" in done.stderr and "3 scores of 2 samples" in done.stderr
    # Scores of others stay, those of the same name are replaced; results.jsonl says the same.
    assert score(run, "--scorer", "includes:3", "--scorer", '{"type": "exact", "target": "3"}').exit_code == 0
    assert passed(run)["b#1"] == {"includes": True, "exact": True} and passed(run)["a#1"]["exact"] is False
    exported = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [(line["id"], line["epoch"]) for line in exported] == [("a", 1), ("b", 1), ("c", 1), ("b", 2)]
    assert exported[1]["scores"]["includes"]["passed"] is True
    assert score(run, "--sample-id", "b#2", "--scorer", "includes:2").exit_code == 0
    assert [row["includes"] for row in passed(run).values() if row] == [False, True, True]


def test_what_was_not_scored_can_be_scored_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", SAMPLES[:2])
    checks = tmp_path / "checks.py"
    checks.write_text("def f(context):\n    raise OSError('later')\n")
    python = json.dumps({"type": "python", "function": "checks:f", "path": str(tmp_path)})
    broken = score(run, "--scorer", python, "--scorer", "exact")
    assert broken.exit_code == 1 and "python: not scored: the function failed: OSError: later" in broken.stderr
    checks.write_text("def f(context):\n    return context['final_response'] == '1'\n")
    done = score(run, "--missing", "--scorer", python, "--scorer", "exact:nothing")
    assert done.exit_code == 0
    # Those that had scored did not again.
    assert passed(run) == {"a#1": {"exact": True, "python": True}, "b#1": {"exact": False, "python": False}}
    again = score(run, "--missing", "--scorer", python)
    assert again.exit_code == 0 and "nothing to score" in again.stderr


def test_samples_bring_scorers_of_their_own(tmp_path: Path) -> None:
    own = Sample("own", ("p",), target="x", scorers=({"type": "includes"},))
    run = make_run(tmp_path / "run", [SAMPLES[0], (own, "xyz")], scorers=["exact"])
    assert score(run).exit_code == 0
    assert passed(run) == {"a#1": {"exact": True}, "own#1": {"includes": True}}


def test_what_cannot_be_scored_is_refused_before_anything_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [(Sample("a", ("p",)), "1"), (Sample("b", ("p",), scorers=("exakt",)), "1")])
    for arguments, words in (
        (["--scorer", "exact"], "a: exact: has no target; give the sample one, or the scorer"),
        (["--scorer", "exakt"], '--scorer: no scorer "exakt"; expected one of exact, '),
        ([], 'b: scorers: no scorer "exakt"'),
        (["--sample-id", "zzz", "--scorer", "regex:x"], "no finished sample of zzz"),
    ):
        refused = score(run, *arguments)
        assert refused.exit_code == 2 and words in refused.stderr, refused.stderr
    assert passed(run) == {"a#1": {}, "b#1": {}}
    (tmp_path / "empty").mkdir()
    assert "it is not the directory of a batch" in score(tmp_path / "empty").stderr
    held = RunDirectory(run)
    assert "is in use by another run" in score(run, "--sample-id", "a", "--scorer", "regex:x").stderr
    held.close()


@pytest.fixture
def task(tmp_path: Path) -> Sample:
    """A sample with a template, and beside it a check that the agent does not see."""
    template = tmp_path / "template"
    template.mkdir()
    (template / "answer").write_text("41\n")
    (template / "old").write_text("old\n")
    return Sample("task", ("p",), workspace={"template": str(template), "setup": "echo made > made"})


def worked(run: Path, sample: Sample, *, keep: bool) -> None:
    """Leave the sample's workspace as if an agent had worked in it."""

    async def work() -> None:
        directory = run / "work" / directory_name(sample.id, sample.epoch)
        workspace = await prepare(sample, directory)
        (workspace.path / "answer").write_text("42\n")
        (workspace.path / "new").write_bytes(b"\0new")
        (workspace.path / "old").unlink()
        artifacts = run / "artifacts" / directory_name(sample.id, sample.epoch)
        artifacts.mkdir(parents=True)
        (artifacts / "diff.patch").write_bytes(await workspace.diff())
        if not keep:
            await workspace.remove()

    asyncio.run(work())


@pytest.mark.git
@pytest.mark.parametrize("keep", [False, True])
def test_a_command_sees_what_the_agent_left(tmp_path: Path, task: Sample, keep: bool) -> None:
    run = make_run(tmp_path / "run", [(task, "done")])
    worked(run, task, keep=keep)
    check = "test $(cat answer) = 42 && test -e new && test ! -e old && test $(cat made) = made && echo fine"
    done = score(run, "--scorer", f"command:{check}")
    assert done.exit_code == 0, done.stderr
    (row,) = rows(run).values()
    assert row.scores[0].passed and row.record is not None
    assert row.record.artifacts == ("command.log", "diff.patch")
    assert (run / "work" / "task" / "workspace").exists() is keep and not (run / "rescoring").exists()


def test_a_directory_that_was_left_empty_is_empty_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [(Sample("plain", ("p",)), "x")], tool_calls=0)
    check = 'command:test -z "$(ls -A)" && touch made'
    assert score(run, "--scorer", check).exit_code == 0
    assert passed(run) == {"plain#1": {"command": True}}
    assert not (run / "rescoring").exists() and not (run / "work" / "plain").exists()
    with contextlib.closing(sqlite3.connect(run / "run.sqlite")) as database, database:
        database.execute("UPDATE records SET tool_calls = 1")
    assert "that the sample worked in is not there any more" in score(run, "--scorer", check).stderr


@pytest.mark.git
def test_a_workspace_that_cannot_be_had_is_said(tmp_path: Path, task: Sample) -> None:
    run = make_run(tmp_path / "run", [(task, "done"), (Sample("plain", ("p",), cwd=str(tmp_path / "gone")), "x")])
    done = score(run, "--scorer", "command:true", "--scorer", "regex:x")
    assert done.exit_code == 1
    for words in (
        "the workspace was not kept, and neither was its diff",
        "gone that the sample worked in is not there",
    ):
        assert words in done.stderr
    assert passed(run)["plain#1"]["regex"] is True
    artifacts = run / "artifacts" / "task"
    artifacts.mkdir(parents=True)
    (artifacts / "diff.patch").write_bytes(b"# more than 9 bytes of differences, only counted:\n a | 1 +\n")
    assert "some of what had changed was too large to be kept" in score(run, "--scorer", "command:true").stderr
    (artifacts / "diff.patch").write_bytes(b"--- a/answer\n+++ b/answer\n@@ -1 +1 @@\n-40\n+42\n")
    assert "patch does not apply" in score(run, "--scorer", "command:true").stderr


def test_an_interrupted_rescoring_leaves_nothing_running(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [(Sample("a", ("p",), cwd=str(tmp_path)), "1")])
    command = [
        sys.executable,
        "-m",
        "codex_pool_cli",
        "score",
        str(run),
        "--scorer",
        "command:echo $$ > pid; sleep 300",
    ]
    scoring = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + LIMIT_S
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text().strip()):
        assert scoring.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    scoring.send_signal(signal.SIGINT)
    assert "interrupted; what was scored is kept" in scoring.communicate(timeout=LIMIT_S)[1]
    assert scoring.returncode == 130
    assert processes.identify(int(pid.read_text())) is None


@pytest.mark.real
def test_a_judge_scores_a_run_through_a_pool(tmp_path: Path, home: Path) -> None:
    run = make_run(tmp_path / "run", SAMPLES[:2])
    options = ["--home", str(home), "--workers", "1", "--scorer", "judge"]
    command = [sys.executable, "-m", "codex_pool_cli", "score", str(run), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S * 2, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert passed(run) == {"a#1": {"judge": True}, "b#1": {"judge": True}}
    assert not (run / "rescoring").exists()
