"""What an agent may not read: answers, scorers, other samples, what a run has recorded.

codex's sandbox denies it: a permission profile of the thread's own, given with thread/start. It extends what the thread
would have without it: a sandbox mode, or a permission profile of the user's configuration. Without a sandbox
(danger-full-access) nothing denies anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from codex_app_server import InvalidInputError
from codex_pool.configuration import FULL_ACCESS, READ_ONLY, WORKSPACE_WRITE, Configuration

from ..dataset import Sample

MAX_ENTRIES = 256
# Read access stays where a denied path has one of these (measured on codex 0.163.0).
_UNDENIABLE = re.compile(r"[*?\[\]\x00-\x1f\x7f]")


class Base(NamedTuple):
    """Profile that a guard extends: `name` ends the name of the guard's own, `extends` names the one below it."""

    name: str
    extends: str
    writes: bool


_OF_MODE = {
    READ_ONLY: Base(READ_ONLY, ":read-only", False),
    WORKSPACE_WRITE: Base(WORKSPACE_WRITE, ":workspace", True),
}


def base_of(configuration: Configuration, sandbox: str | None) -> Base | None:
    """Base of the guard for threads that ask for `sandbox`, or for the configured one; None: no sandbox."""
    mode = sandbox or configuration.sandbox
    if mode is None:
        assert configuration.profile is not None
        return Base("configured", configuration.profile, configuration.writes_workspace)
    return None if mode == FULL_ACCESS else _OF_MODE[mode]


def thread_options(
    base: Base,
    cwd: Path,
    private: Iterable[Path],
    changing: Mapping[Path, Sequence[Path]] | None = None,
    *,
    own: bool = True,
) -> dict[str, Any]:
    """Options for thread/start that give what `base` gives and deny to read what is `private`, but for `cwd` itself.

    `changing`: of directories in which things come and go, what stays; only that can be denied one by one.
    `own`: `cwd` was made for the sample, so that it is no part of a project around it.
    Give turns after the first the same `permissions`.
    """
    cwd = cwd.resolve()
    filesystem: list[Path] = []
    for path in (path.resolve() for path in private):
        if path == cwd:
            continue
        # codex opens a denied directory for what may be written inside of it, not for what may only be read.
        inside = not base.writes and cwd.is_relative_to(path)
        filesystem += _around(path, cwd, changing or {}) if inside else [path]
    config: dict[str, Any] = {f"permissions.{_name(base)}": _profile(base, filesystem)}
    if own:
        config |= _of_its_own(cwd)
    return {"permissions": _name(base), "config": config}


def config_overrides(
    configuration: Configuration,
    private: Iterable[Path],
    changing: Mapping[Path, Sequence[Path]],
    of_samples: Iterable[Path] = (),
) -> tuple[str, ...]:
    """The same profiles for a whole app-server, with what is private of every sample: `--config` options.

    A thread whose worker died finds its profile with the next worker; without it, it is refused there. `of_samples`:
    what is private of single samples; of very many, nothing, for an argument of a program must not be long.
    A configuration with profiles has to name a default one, or codex does not start: where the user's names neither a
    profile nor a sandbox mode, it is read-only, which is what such a configuration means.
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
    staying = [path for path in staying if path.exists()]
    bases = list(_OF_MODE.values())
    configured = base_of(configuration, None)
    if configured is not None and configured not in bases:
        bases.append(configured)
    overrides = [
        f"permissions.{_name(base)}={_toml(_profile(base, private if base.writes else staying))}" for base in bases
    ]
    if not configuration.names_default:
        overrides.append(f"default_permissions={_toml(_OF_MODE[READ_ONLY].extends)}")
    return tuple(overrides)


def _name(base: Base) -> str:
    return f"codex-pool-{base.name}"


def _profile(base: Base, denied: Iterable[Path]) -> dict[str, Any]:
    # What lies in a denied directory is denied with it, and the sandbox cannot deny it once more.
    paths = list(denied)
    for path in paths:
        if _UNDENIABLE.search(str(path)):
            raise InvalidInputError(
                f"{str(path)!r} cannot be denied to agents: codex takes *, ?, [ and ] for a pattern, and no control "
                "characters; use a path without them, or --unguarded"
            )
    outermost = [path for path in paths if not any(path != other and path.is_relative_to(other) for other in paths)]
    filesystem: dict[str, Any] = {str(path): "deny" for path in outermost}
    if base.writes:
        filesystem[":workspace_roots"] = {".": "write", ".git": "write"}
    return {"extends": base.extends, "filesystem": filesystem}


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}={_toml(part)}" for key, part in value.items()) + "}"
    # TOML has no surrogates, as JSON writes other planes' characters in ASCII.
    return json.dumps(value, ensure_ascii=False)


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
