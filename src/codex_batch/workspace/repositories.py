"""Git repositories that workspaces are copied from: whether a commit is there; a copy of those that are elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
from pathlib import Path

from . import git


class Repositories:
    """`cache` is where commits of repositories elsewhere are kept; made when it is needed."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self.local: set[Path] = set()
        """Repositories on this machine that have been checked."""

    def check(self, repository: str, revision: str) -> str:
        """The full name of a commit. Raises ValueError when there is no such repository or commit."""
        path = Path(repository)
        if not path.is_absolute():
            return self._fetch(repository, revision)
        if not path.is_dir():
            raise ValueError(f"git: {repository} is no directory; expected a git repository")
        opened = _run("rev-parse", "--git-dir", directory=path, isolated=False)
        if opened.returncode != 0:
            # Also one of another user, which git refuses by default; its own message tells how to allow it.
            raise ValueError(f"git: {repository} is no git repository that can be read: {_words(opened)}")
        commit = _output(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", directory=path
        )
        if not commit:
            raise ValueError(f"git: {repository} has no commit {revision!r}")
        self.local.add(path)
        return commit

    def source(self, repository: str) -> Path:
        """Return the repository that a checked commit is copied from."""
        return Path(repository) if Path(repository).is_absolute() else self._copy(repository)

    def _copy(self, repository: str) -> Path:
        name = hashlib.sha256(repository.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        return self._cache / f"{name}.git"

    def _fetch(self, repository: str, revision: str) -> str:
        copy = self._copy(repository)
        have = (
            _output("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", directory=copy)
            if _is_name(revision)
            else ""
        )
        if have:
            return have
        if not copy.exists():
            self._cache.mkdir(parents=True, exist_ok=True)
            partial = copy.with_suffix(".partial")
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(partial)
            _run("init", "--quiet", "--bare", str(partial), directory=self._cache)
            partial.rename(copy)
        done = _run(
            "fetch",
            "--quiet",
            "--depth",
            "1",
            "--no-tags",
            "--no-recurse-submodules",
            repository,
            revision,
            directory=copy,
            isolated=False,
        )
        if done.returncode != 0:
            raise ValueError(f"git: {repository}: commit {revision!r} could not be fetched: {_words(done)}")
        commit = _output("rev-parse", "FETCH_HEAD^{commit}", directory=copy)
        # Kept alive by a name of its own: the next fetch overwrites FETCH_HEAD.
        _run("update-ref", f"refs/commits/{commit}", commit, directory=copy)
        return commit


async def copy_commit(source: Path, commit: str, git_dir: Path, work_tree: Path) -> None:
    """Write the files of one commit into a directory; nothing of what came before or after it.

    Raises WorkspaceError.
    """
    # Without isolation, because the repository may be another user's: safe.directory stands in the configuration.
    await git.run(
        "fetch",
        "--quiet",
        "--depth",
        "1",
        "--no-tags",
        "--no-recurse-submodules",
        str(source),
        commit,
        git_dir=git_dir,
        isolated=False,
    )
    await git.run("read-tree", commit, git_dir=git_dir)
    await git.run("checkout-index", "--all", "--force", git_dir=git_dir, work_tree=work_tree)


async def begin_history(work_tree: Path) -> None:
    """A repository of its own in a workspace, with one commit: what lies in it now."""
    inner = work_tree / ".git"
    await git.run("init", "--quiet", "--initial-branch", "main", str(work_tree))
    await git.run("add", "--all", "--force", "--", ".", git_dir=inner, work_tree=work_tree)
    await git.run("commit", "--quiet", "--allow-empty", "--message", "Base", git_dir=inner, work_tree=work_tree)


def _is_name(revision: str) -> bool:
    return len(revision) in (40, 64) and all(digit in "0123456789abcdef" for digit in revision)


def _run(*arguments: str, directory: Path, isolated: bool = True) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            git.command(*arguments),
            cwd=directory,
            env=git.environment(isolated=isolated),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=git.LIMIT_S,
        )
    except FileNotFoundError:
        raise ValueError(f"git is not installed (looked on PATH); {git.REMEDY}") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"git: {arguments[0]} took longer than {git.LIMIT_S:.0f} s") from None


def _words(done: subprocess.CompletedProcess[bytes]) -> str:
    """Words of git about its failure, in one line."""
    return " ".join(done.stderr.decode("utf-8", "replace").split()) or f"exit code {done.returncode}"


def _output(*arguments: str, directory: Path) -> str:
    """Return git's output; "" when it fails."""
    if not directory.is_dir():
        return ""
    done = _run(*arguments, directory=directory, isolated=False)
    return done.stdout.decode("utf-8", "surrogateescape").strip() if done.returncode == 0 else ""
