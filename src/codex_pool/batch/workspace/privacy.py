"""What an agent may not read: answers, scorers, other samples, what a run has recorded.

codex's sandbox denies it: a permission profile of the thread's own, given with thread/start. Without a sandbox
(danger-full-access) nothing does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..dataset import Sample

PROFILE = "codex-pool-sample"
MAX_ENTRIES = 256
_EXTENDS = {"read-only": ":read-only", "workspace-write": ":workspace"}


def thread_options(
    sandbox: str,
    cwd: Path,
    private: Iterable[Path],
    changing: Mapping[Path, Sequence[Path]] | None = None,
    *,
    own: bool = True,
) -> dict[str, Any]:
    """Options for thread/start that give `sandbox` and deny to read what is `private`, but for `cwd` itself.

    `changing`: of directories in which things come and go, what stays; only that can be denied one by one.
    `own`: `cwd` was made for the sample, so that it is no part of a project around it.
    Give turns after the first the same `permissions`: on a thread that came from a dead worker they fail, rather than
    see more.
    """
    parent = _EXTENDS.get(sandbox)
    if parent is None:
        return {"sandbox": sandbox}
    cwd = cwd.resolve()
    filesystem: dict[str, Any] = {}
    for path in (path.resolve() for path in private):
        if path == cwd:
            continue
        # codex opens a denied directory for what may be written inside of it, not for what may only be read.
        paths = _around(path, cwd, changing or {}) if sandbox == "read-only" and cwd.is_relative_to(path) else [path]
        filesystem |= {str(one): "deny" for one in paths}
    # What lies in a denied directory is denied with it, and the sandbox cannot deny it once more.
    denied = [Path(path) for path in filesystem]
    filesystem = {str(path): "deny" for path in denied if not any(path.is_relative_to(o) for o in denied if o != path)}
    if sandbox == "workspace-write":
        filesystem[":workspace_roots"] = {".": "write", ".git": "write"}
    profile = {"extends": parent, "filesystem": filesystem}
    config: dict[str, Any] = {f"permissions.{PROFILE}": profile}
    if own:
        config |= _of_its_own(cwd)
    return {"permissions": PROFILE, "config": config}


def _of_its_own(cwd: Path) -> dict[str, Any]:
    """Configuration that has codex look for AGENTS.md in `cwd` alone, and only if there is any such file.

    Not only because one around it is not meant: under a profile that denies, each look starts a sandbox.
    """
    nowhere_else: dict[str, Any] = {"project_root_markers": []}
    return nowhere_else if any(cwd.glob("*.md")) else {**nowhere_else, "project_doc_max_bytes": 0}


def private_of(sample: Sample) -> list[Path]:
    """What is private of one sample beside its dataset: the files of its scorers, the repository it comes from."""
    private = []
    for scorer in sample.scorers or ():
        files = scorer.get("files") if isinstance(scorer, dict) else None
        if isinstance(files, dict) and sample.directory is not None:
            private += [Path(sample.directory, source) for source in files.values() if isinstance(source, str)]
    repository = Path((sample.workspace or {}).get("git", ""))
    return [*private, repository] if repository.is_absolute() else private


def _around(directory: Path, cwd: Path, changing: Mapping[Path, Sequence[Path]]) -> list[Path]:
    """What lies beside the way from a directory down to `cwd`. Of a directory of very many entries, nothing.

    What is gone when a command begins makes the sandbox fail, so nothing that comes and goes is among it.
    """
    beside: list[Path] = []
    while directory != cwd:
        way = directory / cwd.relative_to(directory).parts[0]
        listed = sorted(directory.iterdir()) if directory not in changing and directory.is_dir() else []
        entries = changing.get(directory, listed if len(listed) <= MAX_ENTRIES else ())
        beside += [entry for entry in entries if entry != way and entry.exists()]
        directory = way
    return beside
