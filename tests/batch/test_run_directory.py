"""A run directory from its first run to `--fresh` and `runs remove`: what there is in it, and what is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_batch_store import A, opened, run_one

from codex_batch.manage import control, runs
from codex_batch.store import RunDirectory, layout

COMMAND = [sys.executable, "-m", "codex_pool_cli"]


def names(path: Path) -> set[str]:
    return {each.name for each in path.iterdir()}


def used(path: Path) -> None:
    """A run directory with everything in it that a run, those who watch it, and a rescoring can leave."""
    with opened(path) as directory:
        run_one(directory, A, events=b"x")
    for name in (layout.LOG, layout.OUTPUT, layout.PROGRESS, layout.PROGRESS + ".partial"):
        (path / name).write_text("of an earlier run")
    for name in (layout.HOME, layout.WORK, layout.ARTIFACTS, layout.JUDGE, layout.RESCORING_JUDGE, layout.REPOSITORIES):
        (path / name).mkdir(parents=True, exist_ok=True)
    assert not control.ask(path, {"cancel": "run"}, limit_s=0.0)
    (path / layout.CONTROL / "left.json").write_text("{}")


def test_fresh_leaves_what_a_first_run_has_and_the_repositories(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    RunDirectory(first).close()
    used(again)
    RunDirectory(again, fresh=True).close()
    assert names(again) - names(first) == {layout.REPOSITORIES} and names(first) <= names(again)


def test_fresh_leaves_names_that_are_not_a_runs_alone_without_a_database(tmp_path: Path) -> None:
    for name in (layout.CONTROL, layout.RESCORING):
        (tmp_path / name).mkdir()
    (tmp_path / layout.OUTPUT).write_text("somebody else's")
    RunDirectory(tmp_path, fresh=True).close()
    assert {layout.CONTROL, layout.RESCORING, layout.OUTPUT} <= names(tmp_path)


def test_a_removed_run_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    used(path)
    runs.remove(path)
    assert not path.exists()


@pytest.mark.real
def test_the_log_of_a_fresh_detached_run_is_its_own(tmp_path: Path) -> None:
    path, data = tmp_path / "run", tmp_path / "d.jsonl"
    used(path)
    data.write_text('{"id": "1", "prompt": "hello"}\n')
    command = [*COMMAND, "batch", "--demo", "--workers", "1", "--detach", "--fresh", "-o", str(path)]
    refused = subprocess.run([*command, str(tmp_path / "none.jsonl")], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and "none.jsonl" in refused.stderr
    assert (path / layout.OUTPUT).read_text() == "of an earlier run"
    assert not layout.partial(path / layout.OUTPUT).exists()
    done = subprocess.run([*command, str(data)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    attached = subprocess.run([*COMMAND, "attach", str(path)], capture_output=True, text=True, timeout=60)
    assert attached.returncode == 0, attached.stderr
    text = (path / layout.OUTPUT).read_text()
    assert "of an earlier run" not in text and "results" in text
    assert not layout.partial(path / layout.OUTPUT).exists()
