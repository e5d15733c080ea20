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

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

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


def untrusting(*directories: str) -> dict[str, Any]:
    """Make the `config` of thread/start, resume and fork for a thread that works in one of these absolute paths.

    Each level is named by its whole path: a client must not choose how many there are, see MAX_LEVELS.
    """
    return {
        _KEY: {path: _UNTRUSTED for directory in dict.fromkeys(directories) for path in _with_parents(directory)},
        "skills.include_instructions": False,
        "features.skill_mcp_dependency_install": False,
    }


def _with_parents(directory: str) -> Iterator[str]:
    path = str(PurePosixPath(directory))
    yield path
    # Two slashes at the beginning are a root of their own (POSIX).
    root = path[: len(path) - len(path.lstrip("/"))]
    while len(path) > len(root):
        path = path.rpartition("/")[0]
        path = path if len(path) > len(root) else root
        yield path or "."


def is_untrusting(config: bytes, cwd: str | None) -> bool:
    """True for a `config`, as JSON, that marks `cwd` untrusted."""
    try:
        projects = _decode(config).projects
    except msgspec.MsgspecError:
        return False
    return cwd is not None and projects.get(str(PurePosixPath(cwd)), {}) == _UNTRUSTED


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
    try:
        found = _decode(config)
    except msgspec.MsgspecError:
        return False
    return any(depth == 0 and depth is not False for depth in (found.depth, found.agents.max_depth))


_decode = msgspec.json.Decoder(_Config).decode


def skills_off(files: Iterable[str]) -> dict[str, Any]:
    """`config` that switches off the skills of these SKILL.md files: a prompt with their `$name` brings in no text."""
    return {"skills.config": [{"path": path, "enabled": False} for path in files]}
