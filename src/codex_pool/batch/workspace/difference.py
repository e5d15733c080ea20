"""The base of a workspace and what became of it.

The base is kept in a git directory outside of the workspace, where the agent cannot write. A file is left out of the
difference when the workspace's .gitignore says so, or as a cache (see EXCLUDED); what is in the base never is.
"""

from __future__ import annotations

import os
from pathlib import Path

from codex_app_server import _threads

from . import git

LIMIT_BYTES = 32 * 1024 * 1024
EXCLUDED = ("__pycache__/", "*.pyc", ".pytest_cache/", ".mypy_cache/", ".ruff_cache/", "node_modules/", ".venv/")
# Stronger than any .gitattributes: contents as they are, and nothing hidden as binary.
_ATTRIBUTES = "* -text -filter !diff -ident !working-tree-encoding\n"


async def create(git_dir: Path) -> None:
    """An empty place for bases."""
    await git.run("init", "--quiet", "--bare", str(git_dir))
    (git_dir / "info").mkdir(exist_ok=True)
    (git_dir / "info" / "exclude").write_text("".join(f"{pattern}\n" for pattern in EXCLUDED))
    (git_dir / "info" / "attributes").write_text(_ATTRIBUTES)


async def remember(git_dir: Path, work_tree: Path) -> str:
    """Take all files as they are now for the base; its name."""
    await git.run("add", "--all", "--force", "--", ".", git_dir=git_dir, work_tree=work_tree)
    await _add_nested(git_dir, work_tree)
    return (await git.run("write-tree", git_dir=git_dir)).decode().strip()


async def compare(git_dir: Path, work_tree: Path, base: str) -> bytes:
    """A unified diff against the base, in git's format, new files included; one too large is only counted."""
    # What cannot be read is left out, all the rest is in.
    await git.run("add", "--all", "--ignore-errors", "--", ".", git_dir=git_dir, work_tree=work_tree, may_fail=True)
    await _add_nested(git_dir, work_tree)
    options = ("--cached", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames")
    diff = await git.run(
        "diff", *options, "--binary", base, git_dir=git_dir, work_tree=work_tree, limit_bytes=LIMIT_BYTES
    )
    if len(diff) <= LIMIT_BYTES:
        return diff
    counted = await git.run(
        "diff", *options, "--stat=200", base, git_dir=git_dir, work_tree=work_tree, limit_bytes=LIMIT_BYTES
    )
    return b"# more than %d bytes of differences, only counted:\n" % LIMIT_BYTES + counted[:LIMIT_BYTES]


async def _add_nested(git_dir: Path, work_tree: Path) -> None:
    """Take the files of repositories inside as what they are: for git each would be one entry without contents."""
    nested, files = await _threads.in_thread(_nested, work_tree)
    if not nested:
        return
    await git.run(
        *("rm", "-r", "--cached", "--quiet", "--force", "--ignore-unmatch", "--", *nested),
        git_dir=git_dir,
        work_tree=work_tree,
    )
    await git.run("update-index", "--add", "-z", "--stdin", git_dir=git_dir, work_tree=work_tree, stdin=files)


def _nested(work_tree: Path) -> tuple[list[str], bytes]:
    """The outermost repositories below the work tree, and all their files, each with a zero byte behind."""
    roots: list[str] = []
    files = bytearray()
    for root, names, _ in os.walk(work_tree):
        if root != str(work_tree) and os.path.lexists(os.path.join(root, ".git")):
            roots.append(os.path.relpath(root, work_tree))
            names.clear()
        names[:] = [name for name in names if name != ".git" and f"{name}/" not in EXCLUDED]
    for nested in roots:
        for root, names, found in os.walk(work_tree / nested):
            links = [name for name in names if os.path.islink(os.path.join(root, name))]
            for name in found + links:
                path = os.path.join(root, name)
                if name != ".git" and (os.path.isfile(path) or os.path.islink(path)) and os.access(path, os.R_OK):
                    files += os.fsencode(os.path.relpath(path, work_tree)) + b"\0"
            names[:] = [name for name in names if name != ".git" and f"{name}/" not in EXCLUDED]
    return roots, bytes(files)
