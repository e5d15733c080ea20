"""The base of a workspace and what became of it.

The base is kept in a git directory outside of the workspace, where the agent cannot write. A file is left out of the
difference when the workspace's .gitignore says so, or as a cache (see EXCLUDED); what is in the base never is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from codex_app_server._runtime import threads

from . import git, large_files

LIMIT_BYTES = 32 * 1024 * 1024
EXCLUDED = ("__pycache__/", "*.pyc", ".pytest_cache/", ".mypy_cache/", ".ruff_cache/", "node_modules/", ".venv/")
_SKIPPED = frozenset({".git", *(pattern.rstrip("/") for pattern in EXCLUDED if pattern.endswith("/"))})
# Files of the base that are too large for it, as they were.
_LARGE = "large.json"
_NAMES_BYTES = 64 * 2**20
# Stronger than any .gitattributes: contents as they are, and nothing hidden as binary.
_ATTRIBUTES = "* -text -filter !diff -ident !working-tree-encoding\n"


async def create(git_dir: Path) -> None:
    """An empty place for bases."""
    await git.run("init", "--quiet", "--bare", str(git_dir))
    (git_dir / "info").mkdir(exist_ok=True)
    (git_dir / "info" / "exclude").write_text("".join(f"{pattern}\n" for pattern in EXCLUDED))
    (git_dir / "info" / "attributes").write_text(_ATTRIBUTES)


async def remember(git_dir: Path, work_tree: Path) -> str:
    """Take all files as they are now for the base; its name. Of large files only the state is noted."""
    large = await threads.in_thread(_large, work_tree)
    await threads.in_thread(large_files.save, git_dir / _LARGE, large)
    await _add(git_dir, work_tree, large, "--force")
    await _add_nested(git_dir, work_tree, large)
    return (await git.run("write-tree", git_dir=git_dir)).decode().strip()


async def compare(git_dir: Path, work_tree: Path, base: str) -> bytes:
    """A unified diff against the base, in git's format, new files included; what is too large is only counted.

    It begins with lines of comment that state it, see `large_files.is_whole`. Raises WorkspaceError.
    """
    before = await threads.in_thread(large_files.load, git_dir / _LARGE)
    listing = ("ls-files", "-z", "--modified", "--others", "--exclude-standard")
    listed = await git.run(*listing, git_dir=git_dir, work_tree=work_tree, limit_bytes=_NAMES_BYTES)
    measured = await threads.in_thread(_measure, work_tree, listed, before)
    if measured.is_too_much:
        return large_files.counted(measured)
    left_out = {**before, **dict.fromkeys(measured.large)}
    # What cannot be read is left out, all the rest is in.
    await _add(git_dir, work_tree, left_out, "--ignore-errors", may_fail=True)
    await _add_nested(git_dir, work_tree, left_out)
    described = await threads.in_thread(large_files.described, work_tree, measured, before)
    options = ("--cached", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames")
    diff = await git.run(
        "diff", *options, "--binary", base, git_dir=git_dir, work_tree=work_tree, limit_bytes=LIMIT_BYTES
    )
    if len(diff) <= LIMIT_BYTES:
        return described + diff
    counted = await git.run(
        "diff", *options, "--stat=200", base, git_dir=git_dir, work_tree=work_tree, limit_bytes=LIMIT_BYTES
    )
    return b"# more than %d bytes of differences, only counted:\n" % LIMIT_BYTES + described + counted[:LIMIT_BYTES]


async def _add(git_dir: Path, work_tree: Path, left_out: Iterable[str], *options: str, may_fail: bool = False) -> None:
    specs = [".", *(f":(exclude,top,literal){path}" for path in left_out)]
    await git.run(
        *("add", "--all", *options, "--pathspec-from-file=-", "--pathspec-file-nul"),
        git_dir=git_dir,
        work_tree=work_tree,
        stdin=b"".join(os.fsencode(spec) + b"\0" for spec in specs),
        may_fail=may_fail,
    )


async def _add_nested(git_dir: Path, work_tree: Path, left_out: Collection[str]) -> None:
    """Take the files of repositories inside as what they are: for git each would be one entry without contents."""
    nested = await threads.in_thread(_nested, work_tree)
    if not nested:
        return
    await git.run(
        *("rm", "-r", "--cached", "--quiet", "--force", "--ignore-unmatch", "--", *nested),
        git_dir=git_dir,
        work_tree=work_tree,
    )
    files = await threads.in_thread(_files_of, work_tree, nested, left_out)
    await git.run("update-index", "--add", "-z", "--stdin", git_dir=git_dir, work_tree=work_tree, stdin=files)


def _large(work_tree: Path) -> dict[str, large_files.Signature]:
    # What lies in the base is never left out as a cache.
    return large_files.signatures(work_tree, large_files.files_below(work_tree, frozenset({".git"})))


def _measure(work_tree: Path, listed: bytes, before: dict[str, large_files.Signature]) -> large_files.Measured:
    """Measure what git lists, and what is in repositories inside, which it does not look into."""
    names = [os.fsdecode(name) for name in listed.split(b"\0") if name and not name.endswith(b"/")]
    inside = (path for root in _nested(work_tree) for path in _below(work_tree, root))
    measured = large_files.measure(work_tree, chain(names, islice(inside, large_files.TOTAL_FILES + 1)), before)
    measured.is_cut = len(listed) > _NAMES_BYTES
    return measured


def _nested(work_tree: Path) -> list[str]:
    """The outermost repositories below the work tree."""
    roots: list[str] = []
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with contextlib.suppress(OSError):
            entries = list(os.scandir(os.path.join(work_tree, inside)))
            if inside and any(entry.name == ".git" for entry in entries):
                roots.append(inside)
                continue
            waiting += [
                os.path.join(inside, entry.name)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and entry.name not in _SKIPPED
            ]
    return sorted(roots)


def _below(work_tree: Path, root: str) -> Iterator[str]:
    return (os.path.join(root, path) for path in large_files.files_below(work_tree / root, _SKIPPED))


def _files_of(work_tree: Path, roots: Sequence[str], left_out: Collection[str]) -> bytes:
    """The files of repositories inside that can be taken, each with a zero byte behind."""
    files = bytearray()
    for relative in (path for root in roots for path in _below(work_tree, root)):
        path = os.path.join(work_tree, relative)
        is_file = os.path.isfile(path) or os.path.islink(path)
        if is_file and relative not in left_out and os.path.basename(path) != ".git" and os.access(path, os.R_OK):
            files += os.fsencode(relative) + b"\0"
    return bytes(files)
