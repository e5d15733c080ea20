"""Rows of SWE-bench as tasks, and the check that scores them, on a repository of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from swebench_rows import BROKEN, FIX, PYTEST, SHORT, TEST, make_repository, row

from codex_batch.dataset import DatasetError, Request, swebench
from codex_batch.dataset import swebench_check as check
from codex_batch.dataset.swebench import CHECK, TASKS, Conversion, image_of, write_tasks
from codex_pool_cli.verbs import verbs

pytestmark = pytest.mark.git


def rows_file(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def converted(tmp_path: Path, *rows: Mapping[str, Any], **options: Any) -> list[dict[str, Any]]:
    write_tasks(rows_file(tmp_path / "rows.jsonl", *rows), tmp_path / "tasks", Conversion(**options))
    return [json.loads(line) for line in (tmp_path / "tasks" / TASKS).read_text().splitlines()]


def test_a_row_becomes_a_sample_with_its_repository_and_scorer(tmp_path: Path) -> None:
    commit = make_repository(tmp_path / "clones" / "owner" / "calc")
    (task,) = converted(tmp_path, row(commit), repositories=tmp_path / "clones", test_command=PYTEST)
    assert task["id"] == "owner__calc-1" and "add(2, 3) is -1" in task["prompt"]
    assert task["workspace"] == {"git": str(tmp_path / "clones" / "owner" / "calc"), "commit": commit}
    assert task["metadata"]["FAIL_TO_PASS"] == ["test_calc.py::test_add"]
    assert "container" not in task and FIX not in json.dumps(task)
    # The dataset of a run takes it.
    dataset = Request(source=tmp_path / "tasks" / TASKS).open(
        check_sample=lambda sample, where: [], check_repository=lambda repository, commit: commit
    )
    with dataset:
        (sample,) = dataset
    assert sample.id == task["id"]


def test_without_a_test_command_there_is_no_scorer_and_no_test(tmp_path: Path) -> None:
    (task,) = converted(tmp_path, row("abc"))
    assert task["workspace"] == {"git": "https://github.com/owner/calc.git", "commit": "abc"}
    assert "scorers" not in task and "test_patch" not in task["metadata"]
    assert not (tmp_path / "tasks" / CHECK).exists()


def test_images_are_those_of_the_rows_or_the_published_ones() -> None:
    assert image_of({"instance_id": "astropy__astropy-12907"}) == (
        "swebench/sweb.eval.x86_64.astropy_1776_astropy-12907:latest"
    )
    assert image_of({"instance_id": "a__b-1", "image": "registry.example/b:1"}) == "registry.example/b:1"


def test_samples_ask_for_containers_where_samples_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swebench, "FIELDS", {"id", "container"})
    (task,) = converted(tmp_path, row("abc"), images=True)
    image = "swebench/sweb.eval.x86_64.owner_1776_calc-1:latest"
    assert task["container"] == {"image": image, "workdir": "/testbed"}
    monkeypatch.setattr(swebench, "FIELDS", {"id"})
    with pytest.raises(DatasetError, match="--images: this codex-pool runs no containers for samples"):
        converted(tmp_path, row("abc"), images=True)


def test_all_that_is_wrong_is_named_with_its_place_and_nothing_is_written(tmp_path: Path) -> None:
    wrong = {**row("abc"), "repo": "calc", "FAIL_TO_PASS": "no"}
    lacking = {name: value for name, value in row("abc").items() if name != "base_commit"}
    with pytest.raises(DatasetError) as caught:
        converted(tmp_path, row("abc"), wrong, lacking, row("abc"))
    where = tmp_path / "rows.jsonl"
    assert caught.value.problems == [
        f"{where}:2: FAIL_TO_PASS: is 'no'; expected a list of names, or one as JSON",
        f"{where}:3: base_commit: is missing; expected a text, as rows of SWE-bench have it",
        f"{where}:4: instance_id: 'owner__calc-1' is there already; expected each once",
    ]
    assert not (tmp_path / "tasks").exists()
    with pytest.raises(DatasetError, match=r"repo: owner/calc has no clone \(looked for .*/owner/calc, "):
        converted(tmp_path, row("abc"), repositories=tmp_path)
    with pytest.raises(DatasetError, match="has no rows; expected some of SWE-bench"):
        converted(tmp_path)


def test_the_command_reports_how_many_and_refuses_what_is_wrong(tmp_path: Path) -> None:
    rows = rows_file(tmp_path / "rows.jsonl", row("abc"))
    done = CliRunner().invoke(verbs, ["convert", "swebench", str(rows), "-o", str(tmp_path / "out")])
    assert (done.exit_code, done.stderr) == (0, f"{tmp_path}/out/tasks.jsonl: 1 tasks\n")
    done = CliRunner().invoke(verbs, ["convert", "swebench", str(tmp_path / "none"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 2 and "no such file" in done.stderr


def checked(
    tmp_path: Path, change: Mapping[str, str | None], command: str = SHORT
) -> tuple[int, str, dict[str, Any] | None]:
    """The exit code, the errors and the score of a workspace with changes."""
    workspace = tmp_path / "workspace"
    make_repository(workspace)
    for name, text in change.items():
        path = workspace / name
        if text is None:
            subprocess.run(["rm", "-r", str(path)], check=True, timeout=10)
        else:
            path.write_text(text)
    asked = {"metadata": {**row("abc"), "test_command": command}}
    for name in ("FAIL_TO_PASS", "PASS_TO_PASS"):
        asked["metadata"][name] = json.loads(asked["metadata"][name])
    done = subprocess.run(
        [sys.executable, str(check.__file__)],
        cwd=workspace,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    last = done.stdout.splitlines()[-1] if done.returncode == 0 else "null"
    return done.returncode, done.stderr, json.loads(last)


def test_a_fix_passes_and_what_is_broken_does_not(tmp_path: Path) -> None:
    _, _, score = checked(tmp_path / "a", {"calc.py": FIX}, PYTEST)
    assert score == {
        "value": 1.0,
        "passed": True,
        "explanation": "all tests have passed",
        "metadata": {"fail_to_pass": "1/1", "pass_to_pass": "1/1"},
    }
    _, _, score = checked(tmp_path / "b", {})
    assert score is not None and score["value"] == 0.0
    assert score["explanation"] == "not passed: test_calc.py::test_add: FAILED"
    _, _, score = checked(tmp_path / "c", {"calc.py": BROKEN})
    assert score is not None and score["metadata"] == {"fail_to_pass": "1/1", "pass_to_pass": "0/1"}


def test_tests_that_the_agent_has_changed_are_restored(tmp_path: Path) -> None:
    easy = "def test_add(): pass\ndef test_same(): pass\n"
    _, _, score = checked(tmp_path, {"test_calc.py": easy, "calc.py": BROKEN})
    assert score is not None and score["passed"] is False
    assert (tmp_path / "workspace" / "test_calc.py").read_text() == TEST


def test_what_is_no_fault_of_the_agent_is_no_score(tmp_path: Path) -> None:
    code, errors, _ = checked(tmp_path / "a", {}, "true")
    assert code == 1
    assert errors == ("swebench: `true` printed no results of tests (exit code 0); expected those of pytest -rA\n")
    # Nothing is restored from a repository that the workspace lies in.
    make_repository(tmp_path / "b")
    code, errors, _ = checked(tmp_path / "b", {".git": None, "test_calc.py": "def test_own(): pass\n"})
    assert code == 1 and "the workspace has no commit" in errors
    assert (tmp_path / "b" / "workspace" / "test_calc.py").read_text() == "def test_own(): pass\n"


def test_results_are_read_as_pytest_writes_them() -> None:
    output = """\
PASSED a.py::one
FAILED a.py::two - assert 1 == 2
ERROR b.py - ImportError: no
PASSED a.py::three[x y]
XFAIL a.py::four - not yet
PASSED a.py::five
FAILED a.py::five
 PASSED a.py::six
"""
    found = check.results_of(output)
    assert found["a.py::three[x"] == found["a.py::three[x y]"] == "PASSED"
    assert (found["a.py::two"], found["b.py"], found["a.py::five"]) == ("FAILED", "ERROR", "FAILED")
    assert check.score(found, ["a.py::one"], ["a.py::four"])["passed"] is True
    missing = check.score(found, ["a.py::one", "a.py::six"], [])
    assert missing["explanation"] == "not passed: a.py::six: no result"
