"""Configuration of threads that take nothing from the directory that they work in. Pure.

Measured on codex 0.163.0. Starting a thread with write access makes codex trust its directory, or the root of the git
repository around it: it writes that into the home's config.toml, and runs what `.codex/config.toml` there names outside
of every sandbox. `projects.DIR.trust_level = "untrusted"` in the `config` of thread/start, resume or fork prevents this
and keeps configuration, MCP servers, roles, rules, hooks and AGENTS.md of the project out of the thread. It

- must name the working directory itself, by the path that is sent or by its real path: a parent covers nothing below;
- must name all parents as well, because the home may trust one that is the root of a repository;
- is not inherited by resume and fork, so it is sent with each; sub-agents, reviews and later turns have it;
- leaves the skills, which have settings of their own;
- makes a home without `sandbox_mode` turn read-only into workspace-write, unless the request names a sandbox.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import msgspec

MAX_LEVELS = 64
_KEY = "projects"
_UNTRUSTED = {"trust_level": "untrusted"}
# What may be switched off.
_OFF = frozenset(
    {
        "skills.include_instructions",
        "features.skill_mcp_dependency_install",
        "features.multi_agent",
        "features.multi_agent_v2",
    }
)
# Measured on codex 0.163.0: the setting that leaves a thread no tools for sub-agents, whenever it is loaded with it.
AGENTS_DEPTH = "agents.max_depth"


class Narrowing(NamedTuple):
    """Parts of a thread that a `config` takes away: the project of its directory, and the tools for sub-agents."""

    is_untrusting: bool
    is_without_agents: bool


def untrusting(*directories: str) -> dict[str, Any]:
    """Make the `config` of thread/start, resume and fork for a thread that works in one of these absolute paths.

    Each level is named by its whole path: a client must not choose how many there are, see MAX_LEVELS.
    """
    projects: dict[str, Any] = {}
    for directory in dict.fromkeys(directories):
        path = str(PurePosixPath(directory))
        parent = path.rpartition("/")[0]
        projects |= {path: _UNTRUSTED, **_marked(parent)} if parent.strip("/") else _marked(path)
    return {
        _KEY: projects,
        "skills.include_instructions": False,
        "features.skill_mcp_dependency_install": False,
    }


@lru_cache(maxsize=256)
def _marked(path: str) -> dict[str, Any]:
    """A directory and all its parents, marked untrusted. Samples of a run share theirs."""
    found = [path]
    # Two slashes at the beginning are a root of their own (POSIX).
    root = path[: len(path) - len(path.lstrip("/"))]
    while len(path) > len(root):
        path = path.rpartition("/")[0]
        path = path if len(path) > len(root) else root
        found.append(path or ".")
    return dict.fromkeys(found, _UNTRUSTED)


def is_untrusting(config: bytes, cwd: str | None) -> bool:
    """True for a `config`, as JSON, that marks `cwd` untrusted."""
    return narrowing(config, cwd).is_untrusting


def narrowing(config: bytes, cwd: str | None) -> Narrowing:
    """Return what a `config`, as JSON, takes from a thread that works in `cwd`."""
    try:
        found = _decode(config)
    except msgspec.MsgspecError:
        return Narrowing(False, False)
    is_untrusting = cwd is not None and found.projects.get(str(PurePosixPath(cwd)), {}) == _UNTRUSTED
    depths = (found.depth, found.agents.max_depth)
    return Narrowing(is_untrusting, any(depth == 0 and depth is not False for depth in depths))


def narrows(name: str, value: Any) -> bool:
    """True for a setting of `config` that takes something from a thread and gives nothing."""
    if name == _KEY:
        return isinstance(value, dict) and bool(value) and all(each == _UNTRUSTED for each in value.values())
    if name == "skills.config":
        return isinstance(value, list) and all(
            isinstance(each, dict) and set(each) == {"path", "enabled"} and each["enabled"] is False for each in value
        )
    if name == "project_doc_max_bytes":
        return value == 0 and value is not False
    if name == AGENTS_DEPTH:
        return value == 0 and value is not False
    return name in _OFF and value is False


class _Agents(msgspec.Struct, frozen=True):
    max_depth: Any = None


class _Config(msgspec.Struct):
    projects: dict[str, Any] = {}
    agents: _Agents = _Agents()
    depth: Any = msgspec.field(name=AGENTS_DEPTH, default=None)


def is_without_agents(config: bytes) -> bool:
    """True for a `config`, as JSON, that leaves a thread no tools for sub-agents."""
    return narrowing(config, None).is_without_agents


_decode = msgspec.json.Decoder(_Config).decode


def skills_off(files: Iterable[str]) -> dict[str, Any]:
    """`config` that switches off the skills of these SKILL.md files: a prompt with their `$name` brings in no text."""
    return {"skills.config": [{"path": path, "enabled": False} for path in files]}
