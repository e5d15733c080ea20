"""Batches on homes and datasets that need care: what codex accepts works, what no guard can deny is refused first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from any_home import AnyHome, make_any_home
from programs import codex_pool

from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, Text, ToolCall

pytestmark = pytest.mark.real
SECRET = "THE-ANSWER"


@pytest.fixture
def uncommon(tmp_path: Path, model: LoopbackModel) -> AnyHome:
    """A home with an empty login, letters beyond the first plane, TOML 1.1, and a profile named as a guard would be."""
    each = make_any_home("only a model", tmp_path, model.base_url)
    (each.path / "auth.json").touch()
    (each.path / "config.toml").write_text(
        'default_permissions = "codex-pool-configured"\nmodel = "m \\e \U0001f41a"\n'
        "shell_environment_policy = {\n  # a comment\n  inherit = 'all',\n}\n"
        '[permissions.codex-pool-configured]\nextends = ":workspace"\n'
        f'[permissions.codex-pool-configured.filesystem]\n"{each.path}" = "read"\n'
        '"/nonexistent \U0001f600" = "deny"\n',
        encoding="utf-8",
    )
    return each


def batch(data: Path, home: AnyHome, *more: str) -> tuple[int, str]:
    """Exit code and stderr of a batch of one worker, in the run directory beside the dataset."""
    out = str(data.parent / "out")
    done = codex_pool(
        "batch", str(data), "--workers", "1", "--scorer", "exact", "-o", out, *more, *home.options, home=home.path
    )
    return done.returncode, done.stderr


def test_an_uncommon_home_works_and_targets_of_links_are_denied(
    tmp_path: Path, uncommon: AnyHome, model: LoopbackModel
) -> None:
    task, elsewhere, config = tmp_path / "tasks" / "a", tmp_path / "elsewhere", tmp_path / "dotfiles.toml"
    task.mkdir(parents=True)
    (elsewhere / "tests").mkdir(parents=True)
    (elsewhere / "tests" / "hidden.py").write_text(SECRET)
    (elsewhere / "open.txt").write_text("visible")
    (task / "prompt.md").write_text("cheat")
    (task / "task.json").write_text(json.dumps({"target": SECRET}))
    (task / "tests").symlink_to(elsewhere / "tests")
    (uncommon.path / "config.toml").rename(config)
    (uncommon.path / "config.toml").symlink_to(config)
    read = f"cat {elsewhere}/tests/hidden.py {task}/tests/hidden.py {config} {elsewhere}/open.txt; echo looked"
    model.script = Script((Rule(ToolCall(read, Text("{output}"))),))
    code, stderr = batch(tmp_path / "tasks", uncommon)
    assert code == 0, stderr
    (record,) = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    said = record["final_response"]
    assert said.count("Permission denied") == 3 and "looked" in said and "visible" in said, record
    assert SECRET not in said and "default_permissions" not in said, record


def test_what_cannot_be_denied_is_refused_before_anything_runs(
    tmp_path: Path, uncommon: AnyHome, model: LoopbackModel
) -> None:
    data = tmp_path / "d.jsonl"
    for cwd in (uncommon.path, tmp_path / "out"):
        cwd.mkdir(exist_ok=True)
        data.write_text(json.dumps({"id": "x", "prompt": "go", "target": "y", "cwd": str(cwd)}) + "\n")
        code, stderr = batch(data, uncommon)
        assert code == 2 and f'd.jsonl:1: cwd: {cwd} of sample "x" is in ' in stderr, stderr
        assert "or --unguarded" in stderr
    data.write_text(json.dumps({"id": "x", "prompt": "go", "target": "y"}) + "\n")
    text = (uncommon.path / "config.toml").read_text(encoding="utf-8")
    granted = text.replace('= "read"', '= {"auth.json" = "write"}')
    (uncommon.path / "config.toml").write_text(granted, encoding="utf-8")
    code, stderr = batch(data, uncommon)
    assert code == 2 and f"grants to write {uncommon.path}/auth.json, in {uncommon.path}" in stderr, stderr
    assert model.requests == []
