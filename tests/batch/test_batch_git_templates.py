"""Templates that are git checkouts: what git keeps for itself is neither copied, nor a change, nor written by a run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from codex_batch.configuration.settings import _git_state
from codex_batch.dataset.request import Request
from codex_batch.dataset.trees import tree_digest

pytestmark = pytest.mark.git


def git(directory: Path, *arguments: str) -> str:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    names = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "protocol.file.allow=always")
    done = subprocess.run(["git", *names, *arguments], cwd=directory, env=env, check=True, capture_output=True)
    return done.stdout.decode().strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "a.py").write_text("x = 1\n")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    return root


def test_what_git_does_in_a_checkout_is_no_change_of_the_template(checkout: Path) -> None:
    before = tree_digest(checkout)
    os.utime(checkout / "a.py", (1, 1))
    git(checkout, "status")
    git(checkout, "commit", "-q", "--allow-empty", "-m", "two")
    git(checkout, "gc", "-q")
    assert tree_digest(checkout) == before
    (checkout / "a.py").write_text("x = 2\n")
    assert tree_digest(checkout) != before


def test_a_clone_a_worktree_and_a_copy_without_git_are_one_template(tmp_path: Path, checkout: Path) -> None:
    git(tmp_path, "clone", "-q", "--shared", str(checkout), "clone")
    git(checkout, "worktree", "add", "-q", "--detach", str(tmp_path / "worktree"))
    assert (tmp_path / "worktree" / ".git").is_file()
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "a.py").write_text("x = 1\n")
    assert {tree_digest(tmp_path / name) for name in ("clone", "worktree", "plain")} == {tree_digest(checkout)}


def test_a_submodule_counts_with_its_files_only(tmp_path: Path, checkout: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q")
    git(outer, "submodule", "--quiet", "add", str(checkout), "inner")
    before = tree_digest(outer)
    git(outer / "inner", "commit", "-q", "--allow-empty", "-m", "two")
    assert tree_digest(outer) == before
    (outer / "inner" / "a.py").write_text("x = 2\n")
    assert tree_digest(outer) != before


def test_the_state_of_a_datasets_repository_is_read_without_writing_its_index(checkout: Path) -> None:
    dataset = checkout / "d.jsonl"
    dataset.write_text("{}\n")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "two")
    # What the index knows of the file is outdated, so a status that may write would.
    os.utime(dataset, (1, 1))
    before = (checkout / ".git" / "index").read_bytes()
    state = _git_state(Request(source=dataset))
    assert state == {"commit": git(checkout, "rev-parse", "HEAD"), "branch": "main", "changed": False}
    assert (checkout / ".git" / "index").read_bytes() == before
