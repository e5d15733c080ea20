"""What an agent may not read: answers, scorers, other samples, what a run has recorded.

codex's sandbox denies it: a permission profile of the thread's own, given with thread/start. Without a sandbox
(danger-full-access) nothing does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..dataset import Sample

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
    Give turns after the first the same `permissions`.
    """
    if sandbox not in _EXTENDS:
        return {"sandbox": sandbox}
    cwd = cwd.resolve()
    filesystem: list[Path] = []
    for path in (path.resolve() for path in private):
        if path == cwd:
            continue
        # codex opens a denied directory for what may be written inside of it, not for what may only be read.
        paths = _around(path, cwd, changing or {}) if sandbox == "read-only" and cwd.is_relative_to(path) else [path]
        filesystem += paths
    config: dict[str, Any] = {f"permissions.{_name(sandbox)}": _profile(sandbox, filesystem)}
    if own:
        config |= _of_its_own(cwd)
    return {"permissions": _name(sandbox), "config": config}


def config_overrides(
    private: Iterable[Path], changing: Mapping[Path, Sequence[Path]], of_samples: Iterable[Path] = ()
) -> tuple[str, ...]:
    """The same profiles for a whole app-server, with what is private of every sample: `--config` options.

    A thread whose worker died finds its profile with the next worker; without it, it is refused there. `of_samples`:
    what is private of single samples; of very many, nothing, for an argument of a program must not be long.
    """
    private = [path.resolve() for path in private]
    besides = {path.resolve() for path in of_samples}
    besides = {path for path in besides if not any(path.is_relative_to(outer) for outer in private)}
    private += sorted(besides) if len(besides) <= MAX_ENTRIES else []
    staying: list[Path] = []
    for path in private:
        # Who may only read is not granted a workspace inside of what is denied.
        way = next((place for place in changing if place.is_relative_to(path)), None)
        staying += [path] if way is None else [*_around(path, way, changing), *changing[way]]
    denied = {"read-only": [path for path in staying if path.exists()], "workspace-write": private}
    return tuple(f"permissions.{_name(sandbox)}={_toml(_profile(sandbox, denied[sandbox]))}" for sandbox in _EXTENDS)


def _name(sandbox: str) -> str:
    return f"codex-pool-{sandbox}"


def _profile(sandbox: str, denied: Iterable[Path]) -> dict[str, Any]:
    # What lies in a denied directory is denied with it, and the sandbox cannot deny it once more.
    paths = list(denied)
    outermost = [path for path in paths if not any(path != other and path.is_relative_to(other) for other in paths)]
    filesystem: dict[str, Any] = {str(path): "deny" for path in outermost}
    if sandbox == "workspace-write":
        filesystem[":workspace_roots"] = {".": "write", ".git": "write"}
    return {"extends": _EXTENDS[sandbox], "filesystem": filesystem}


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}={_toml(part)}" for key, part in value.items()) + "}"
    return json.dumps(value)


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
