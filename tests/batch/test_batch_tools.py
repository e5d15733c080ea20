"""Programs that a run needs: refused by name before anything starts, and only by a run that needs them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from maintainer import program
from programs import codex_pool
from runs import make_run

from codex_batch.dataset import Sample
from codex_batch.run import tools
from codex_batch.run.tools import ToolsError, check_git, check_shell
from codex_batch.workspace import Repositories, git

NEEDS = "a workspace, which needs it to tell what an agent changed; install it, e.g. apt-get install git; nothing was"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is all of PATH, with the shell alone in it."""
    path = tmp_path / "bin"
    path.mkdir()
    (path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(path))
    return path


def dataset(path: Path, *samples: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps({"prompt": "p", **sample}) + "\n" for sample in samples))
    return str(path)


def test_without_git_a_run_with_workspaces_is_refused_in_one_line_and_leaves_nothing(
    tmp_path: Path, bare: Path
) -> None:
    files, commit = {"files": {"a": ""}}, {"git": str(tmp_path), "commit": "main"}
    data = dataset(tmp_path / "d.jsonl", {"workspace": files}, {"workspace": commit}, {"id": "plain"})
    done = codex_pool("batch", data, "--demo", "-o", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr == f"codex-pool: git is not installed (looked on PATH): 2 samples have {NEEDS} run\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.real
def test_without_git_samples_that_need_none_are_run(tmp_path: Path, bare: Path) -> None:
    data = dataset(tmp_path / "d.jsonl", {"workspace": {"files": {"a": ""}}}, {"id": "plain"})
    out = tmp_path / "out"
    done = codex_pool("batch", data, "--demo", "--workers", "1", "--sample-id", "plain", "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "results.jsonl").read_text())["status"] == "completed"
    assert json.loads((out / "config.json").read_text())["dataset"]["git"] is None


def test_without_git_nothing_is_scored_again_that_needs_a_workspace_made(tmp_path: Path, bare: Path) -> None:
    sample = Sample("a", ("p",), target="x", workspace={"files": {"a": ""}})
    run = make_run(tmp_path / "run", [(sample, "x")])
    done = codex_pool("score", str(run), "--scorer", "command:true")
    assert done.returncode == 2
    assert done.stderr == f"codex-pool: git is not installed (looked on PATH): 1 sample has {NEEDS} scored\n"
    assert codex_pool("score", str(run), "--scorer", "exact").returncode == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "echo git version 2.30.2",
            r"git \(/.*/bin/git\) is too old: git version 2\.30\.2, expected 2\.32 or newer: 1 s",
        ),
        ("echo no >&2; exit 3", r"git \(/.*/bin/git\) does not tell its version, but 'no': 1 sample has"),
        ("echo hello", r"git \(/.*/bin/git\) does not tell its version, but 'hello': 1 sample has"),
    ],
)
def test_a_git_that_is_no_use_is_named(bare: Path, text: str, problem: str) -> None:
    program(bare / "git", f"#!/bin/sh\n{text}\n")
    with pytest.raises(ToolsError, match=problem):
        check_git(1)
    check_git(0)


@pytest.mark.parametrize("version", ["2.32.0", "2.39.5 (Apple Git-154)", "3.0.rc1"])
def test_any_newer_git_will_do(bare: Path, version: str) -> None:
    program(bare / "git", f"#!/bin/sh\necho 'git version {version}'\n")
    check_git(1)


def test_a_git_that_does_not_start_is_named(bare: Path) -> None:
    program(bare / "git", "#!/nowhere/at/all\n")
    with pytest.raises(ToolsError, match=r"git does not start: .*No such file"):
        check_git(1)


def test_a_shell_is_asked_for_only_by_what_needs_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_shell({"--workspace-hook": "true", "--notify": None})
    monkeypatch.setattr(tools, "SHELL", str(tmp_path / "sh"))
    check_shell({"--workspace-hook": None, "--notify": None})
    with pytest.raises(ToolsError, match="sh is missing: --notify cannot go without it"):
        check_shell({"--workspace-hook": None, "--notify": "true"})


def test_the_programs_of_command_scorers_that_are_not_on_the_path_are_said_and_refuse_nothing(
    tmp_path: Path, bare: Path
) -> None:
    program(bare / "there", "#!/bin/sh\n")

    def of(*commands: Any, **workspace: Any) -> dict[str, Any]:
        scorers = [{"type": "command", "command": command} for command in commands]
        return {"scorers": scorers, "cwd": str(tmp_path), **workspace}

    data = dataset(
        tmp_path / "d.jsonl",
        of("nowhere -q", "there && cat", "cd . && elsewhere", "A=1 elsewhere", "if true; then elsewhere; fi"),
        of("nowhere", ["./made"], ["missing", "-x"], "./made"),
        {"scorers": [{"type": "command", "command": ["missing"], "env": {"PATH": "/opt/bin"}}]},
        {"id": "not-chosen", "scorers": [{"type": "command", "command": "unasked"}]},
        {
            "scorers": [{"type": "command", "command": "set-up"}],
            "workspace": {"files": {"a": ""}, "setup": "get set-up"},
        },
    )
    # The run directory cannot be made: nothing starts.
    (tmp_path / "file").write_text("")
    options = ("--filter", "id!=not-chosen", "-o", str(tmp_path / "file" / "out"))
    program(bare / "git", "#!/bin/sh\necho git version 2.39.5\n")
    done = codex_pool("batch", data, "--demo", *options)
    said = [line for line in done.stderr.splitlines() if "is not on PATH" in line]
    assert [line.partition(";")[0] for line in said] == [
        "codex-pool: 'missing' is not on PATH, and a command scorer of 1 sample begins with it",
        "codex-pool: 'nowhere' is not on PATH, and a command scorer of 2 samples begins with it",
    ], done.stderr


@pytest.mark.git
def test_workspaces_do_without_a_home_and_without_the_configuration_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = tmp_path / "origin"
    named = ("-c", "user.name=n", "-c", "user.email=e@x")
    for arguments in (["init", "-q", str(origin)], ["-C", str(origin), *named, "commit", "-qm", "m", "--allow-empty"]):
        subprocess.run(["git", *arguments], check=True, env=git.environment(), timeout=20)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert len(Repositories(tmp_path / "cache").check(str(origin), "HEAD")) == 40
    broken = tmp_path / "home"
    broken.mkdir()
    (broken / ".gitconfig").write_text("[core\n")
    monkeypatch.setenv("HOME", str(broken))
    assert git.problem() is None
    # Whose repository may be read stands in that configuration, and git says what is wrong with it.
    with pytest.raises(ValueError, match="no git repository that can be read: fatal: bad config line 1 in file"):
        Repositories(tmp_path / "cache").check(str(origin), "HEAD")


@pytest.mark.git
def test_a_repository_of_another_user_is_refused_with_what_git_says_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = tmp_path / "origin"
    subprocess.run(["git", "init", "-q", str(origin)], check=True, env=git.environment(), timeout=20)
    run = subprocess.run
    # git's own way to be tested as if the repository were another's.
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, env, **more: run(command, env={**env, "GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}, **more),
    )
    with pytest.raises(ValueError, match=r"dubious ownership .* git config --global --add safe\.directory"):
        Repositories(tmp_path / "cache").check(str(origin), "HEAD")
    assert not os.environ.get("GIT_TEST_ASSUME_DIFFERENT_OWNER")
