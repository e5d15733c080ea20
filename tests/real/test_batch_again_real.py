"""The same command again, and `runs retry`, as a user runs them on the real binary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from programs import codex_pool

from codex_app_server.testing.loopback import LoopbackModel
from codex_batch.store import open_run

OPTIONS = ("--workers", "1", "--retry-on", "lost")

# A few runs each, on a machine that may be busy.
pytestmark = pytest.mark.timeout(240)
real = pytest.mark.real


def text(*samples: dict[str, Any]) -> str:
    return "".join(json.dumps(sample) + "\n" for sample in samples)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def statuses(out: Path) -> dict[str, list[str | None]]:
    """The status of each attempt, by sample."""
    with open_run(out) as store:
        return {row.id: [attempt.status for attempt in store.attempts(row.n)] for row in store.samples()}


@real
@pytest.mark.slow
def test_retry_runs_samples_of_the_run_where_it_is_wherever_they_came_from(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    fails = "[[http_error 400]] [[text ok]]"
    samples = [{"id": "a", "prompt": f"a {fails}"}, {"id": "b", "prompt": "b"}, {"id": "c", "prompt": f"c {fails}"}]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    batch = ("batch", *OPTIONS, "--home", str(home), "-o", "out")
    first = codex_pool(*batch, "--", "-", home=home, cwd=here, stdin=text(*samples))
    assert first.returncode == 1, first.stderr
    # The last command of the run asks for one sample only.
    narrow = codex_pool(*batch, "--sample-id", "b", "-", home=home, cwd=here, stdin=text(*samples))
    assert narrow.returncode == 0, narrow.stderr
    here.rename(there)
    shutil.copytree(there / "out", there / "copy", symlinks=True)
    one = codex_pool("runs", "retry", str(there / "copy"), "a", home=home, cwd=tmp_path)
    # Of the run c is not completed.
    assert one.returncode == 1 and "1 to be run again" in one.stderr, one.stderr
    assert statuses(there / "copy") == {"a": ["failed", "completed"], "b": ["completed"], "c": ["failed"]}
    assert statuses(there / "out") == {"a": ["failed"], "b": ["completed"], "c": ["failed"]}
    rest = codex_pool("runs", "retry", "copy", home=home, cwd=there)
    assert rest.returncode == 0 and "1 to be run again" in rest.stderr, rest.stderr
    assert statuses(there / "copy") == {"a": ["failed", "completed"], "b": ["completed"], "c": ["failed", "completed"]}
    with open_run(there / "copy") as store:
        assert store.counts()["completed"] == 3 and "--stored" not in store.info()["config"]["command"]
    assert not here.exists()


@real
@pytest.mark.slow
def test_retry_does_not_begin_what_was_not_begun(tmp_path: Path, home: Path, model: LoopbackModel) -> None:
    samples = [{"id": f"s{n}", "prompt": f"{n} [[http_error 400]] [[text ok]]"} for n in range(4)]
    (tmp_path / "d.jsonl").write_text(text(*samples))
    batch = ("batch", "d.jsonl", *OPTIONS, "--home", str(home), "-o", "out")
    estimated = codex_pool(*batch, "--estimate", "1", home=home, cwd=tmp_path)
    assert estimated.returncode == 1, estimated.stderr
    (tmp_path / "d.jsonl").unlink()
    done = codex_pool("runs", "retry", "out", home=home, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(statuses(tmp_path / "out").values()) == [[], [], [], ["failed", "completed"]]


@real
@pytest.mark.slow
def test_a_corrected_target_and_added_scorers_are_scored_without_a_turn(
    tmp_path: Path, home: Path, model: LoopbackModel
) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "out"
    work = '[[tool_call "echo made > answer && cat answer"]] [[text "{output}"]]'
    samples: list[dict[str, Any]] = [
        {"id": "files", "prompt": f"1 {work}", "target": "made", "workspace": {"files": {"given": "x\n"}}},
        {"id": "wrong", "prompt": "2 [[text 42]]", "target": "41", "workspace": {"files": {"answer": "made\n"}}},
    ]
    data.write_text(text(*samples))
    batch = ("batch", str(data), *OPTIONS, "--home", str(home), "-o", str(out), "--scorer", "exact")
    first = codex_pool(*batch, home=home)
    assert first.returncode == 0, first.stderr
    asked = len(model.requests)
    samples[1]["target"] = "42"
    data.write_text(text(*samples, {"id": "new", "prompt": "3 [[text 7]]", "target": "7"}))
    again = codex_pool(*batch, "--scorer", "command:grep made answer", home=home)
    assert again.returncode == 0, again.stderr
    assert "codex-pool: 1 new sample to be run" in again.stderr
    line = next(line for line in again.stderr.splitlines() if "without running them" in line)
    assert line.startswith("codex-pool: 2 answers of earlier runs to be scored, without running them (")
    assert "not scored by command yet: 2" in line and "another target: 1" in line
    # The new sample was asked, and nothing else.
    assert [request.prompt for request in model.requests[asked:]] == ["3 [[text 7]]"]
    scores = {line["id"]: {name: score["passed"] for name, score in line["scores"].items()} for line in lines(out)}
    assert scores == {
        "files": {"exact": True, "command": True},
        "wrong": {"exact": True, "command": True},
        "new": {"exact": True, "command": False},
    }
    # Nothing is left of workspaces that were made once more, nor to be done.
    assert [path.name for path in (out / "work").iterdir() if not path.name.startswith(".")] == []
    assert "nothing to do" in codex_pool(*batch, home=home).stderr
    # What costs nothing is done also when the run may start nothing more.
    samples[1]["target"] = "43"
    data.write_text(text(*samples, {"id": "new", "prompt": "3 [[text 7]]", "target": "7"}))
    limited = codex_pool(*batch, "--run-tokens", "1", home=home)
    assert limited.returncode == 0 and "without running them (another target: 1)" in limited.stderr, limited.stderr
    assert [line["scores"]["exact"]["passed"] for line in lines(out)] == [True, False, True]
