"""Files that an agent may not read: answers, scorers, other samples, the records of a run.

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
from codex_app_server._runtime.files import resolved
from codex_pool.configuration import Configuration
from codex_pool.sandbox_modes import FULL_ACCESS, READ_ONLY, WORKSPACE_WRITE

from ..dataset import Sample
from ..dataset.fields import quote
from ..store import layout

MAX_ENTRIES = 256
# In a CODEX_HOME: working trees of codex, which are made for agents.
_WORKTREES = "worktrees"
# Read access stays where a denied path has one of these (measured on codex 0.163.0).
_UNDENIABLE = re.compile(r"[*?\[\]\x00-\x1f\x7f]")


class Base(NamedTuple):
    """Profile that a guard extends: `name` is that of the guard's own, `extends` that of the one below it.

    `granted`: paths that the one below lets commands write to.
    """

    name: str
    extends: str
    writes: bool
    granted: tuple[str, ...] = ()


_EXTENDS: dict[str, tuple[str, bool]] = {READ_ONLY: (":read-only", False), WORKSPACE_WRITE: (":workspace", True)}


def base_of(configuration: Configuration, sandbox: str | None) -> Base | None:
    """Base of the guard for threads that ask for `sandbox`, or for the configured one; None: no sandbox."""
    mode = sandbox or configuration.sandbox
    if mode is None:
        assert configuration.profile is not None
        name = _free("configured", configuration)
        return Base(name, configuration.profile, configuration.writes_workspace, configuration.granted)
    return None if mode == FULL_ACCESS else Base(_free(mode, configuration), *_EXTENDS[mode])


def _free(name: str, configuration: Configuration) -> str:
    """A name for a guard that is none of the user's profiles: codex would make one profile of both."""
    name = f"codex-pool-{name}"
    while name in configuration.profiles:
        name += "-guard"
    return name


def thread_options(
    base: Base,
    cwd: Path,
    private: Iterable[Path],
    changing: Mapping[Path, Sequence[Path]] | None = None,
    *,
    own: bool = True,
    linked: Iterable[Path] = (),
) -> dict[str, Any]:
    """Options for thread/start that give what `base` gives and deny to read what is `private`.

    `linked`: what links in private directories lead to, denied as well, but for `cwd` itself.
    `changing`: of directories in which things come and go, what stays; only that can be denied one by one.
    `own`: `cwd` was made for the sample, so that it is no part of a project around it.
    Give turns after the first the same `permissions`. Raises InvalidInputError for what cannot be denied.
    """
    cwd = resolved(cwd)
    filesystem: list[Path] = []
    private = [resolved(path) for path in private]
    if cwd in private:
        raise InvalidInputError(f"the agent would work in {cwd}, which is private; name another cwd, or --unguarded")
    for path in (*private, *(path for path in map(resolved, linked) if path != cwd)):
        # codex opens a denied directory for what may be written inside of it, not for what may only be read.
        inside = not base.writes and cwd.is_relative_to(path)
        filesystem += _around(path, cwd, changing or {}) if inside else [path]
    config: dict[str, Any] = {f"permissions.{base.name}": _profile(base, filesystem)}
    if own:
        config |= _of_its_own(cwd)
    return {"permissions": base.name, "config": config}


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
    private = [resolved(path) for path in private]
    besides = {resolved(path) for path in of_samples}
    besides = {path for path in besides if not any(path.is_relative_to(outer) for outer in private)}
    private += sorted(besides) if len(besides) <= MAX_ENTRIES else []
    lasting_files: list[Path] = []
    for path in private:
        # Who may only read is not granted a workspace inside of what is denied.
        way = next((place for place in changing if place.is_relative_to(path)), None)
        lasting_files += [path] if way is None else [*_around(path, way, changing), *changing[way]]
    lasting_files = [path for path in lasting_files if path.exists()]
    found = (base_of(configuration, mode) for mode in (*_EXTENDS, None))
    bases = dict.fromkeys(base for base in found if base is not None)
    overrides = [
        f"permissions.{base.name}={_toml(_profile(base, private if base.writes else lasting_files))}" for base in bases
    ]
    if not configuration.names_default:
        overrides.append(f"default_permissions={_toml(_EXTENDS[READ_ONLY][0])}")
    return tuple(overrides)


def _profile(base: Base, denied: Iterable[Path]) -> dict[str, Any]:
    # What lies in a denied directory is denied with it, and the sandbox cannot deny it once more.
    paths = list(denied)
    for path in paths:
        if _UNDENIABLE.search(str(path)):
            raise InvalidInputError(
                f"{str(path)!r} cannot be denied to agents: codex takes *, ?, [ and ] for a pattern, and no control "
                "characters; use a path without them, or --unguarded"
            )
    for granted in base.granted:
        inside = next((path for path in paths if granted != str(path) and resolved(granted).is_relative_to(path)), None)
        if inside is not None:
            raise InvalidInputError(
                f"the permission profile {base.extends!r} grants to write {granted}, in {inside}, which agents are not "
                "to read, and codex would let them; take that out of the profile, or --unguarded"
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
    """Return the private files of a sample beside its dataset: those of its scorers, the repository it comes from."""
    private = []
    for scorer in sample.scorers or ():
        files = scorer.get("files") if isinstance(scorer, dict) else None
        if isinstance(files, dict) and sample.directory is not None:
            private += [Path(sample.directory, source) for source in files.values() if isinstance(source, str)]
    repository = Path((sample.workspace or {}).get("git", ""))
    return [*private, repository] if repository.is_absolute() else private


def _around(directory: Path, cwd: Path, changing: Mapping[Path, Sequence[Path]]) -> list[Path]:
    """Return the entries beside the path from a directory down to `cwd`, none of a directory of very many entries.

    A path that is gone when a command begins makes the sandbox fail, so entries that come and go are left out.
    """
    beside: list[Path] = []
    while directory != cwd:
        way = directory / cwd.relative_to(directory).parts[0]
        listed = sorted(directory.iterdir()) if directory not in changing and directory.is_dir() else []
        entries = changing.get(directory, listed if len(listed) <= MAX_ENTRIES else ())
        beside += [entry for entry in entries if entry != way and entry.exists()]
        directory = way
    return beside


def cwd_problem(
    sample: Sample, run: Path, dataset: Path | None, homes: Iterable[Path], private: Iterable[Path]
) -> str | None:
    """Return why a sample cannot work in its `cwd` without reading what is private; None if it can.

    codex opens a denied directory for the one that a thread works in, with all that is in that one. `private`: files
    and directories of scorers. All paths are without links.
    """
    if sample.cwd is None:
        return None
    cwd = resolved(sample.cwd)
    what = next((f"is in {path}, which a scorer keeps from it" for path in private if cwd.is_relative_to(path)), None)
    for home in homes:
        if cwd == home or (cwd.is_relative_to(home) and cwd.relative_to(home).parts[0] != _WORKTREES):
            what = f"is in the CODEX_HOME {home}, with its login and threads"
    if cwd == run or any(cwd.is_relative_to(path) for path in (*layout.lasting_files(run), run / layout.WORK)):
        what = f"is in the run directory {run}, with the records of the run"
    if dataset is not None and dataset in (cwd, cwd.parent) and not cwd.name.startswith((".", "_")):
        what = f"holds what is private of the dataset {dataset}"
    if what is None:
        return None
    return (
        f"{sample.cwd} of sample {quote(sample.id)} {what}: the agent could read all of it; expected a directory "
        "that holds nothing private, or --unguarded"
    )
