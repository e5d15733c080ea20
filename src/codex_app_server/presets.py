"""Presets for what most threads and turns want, besides the wire types: sandboxes and approval modes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from .errors import InvalidInputError
from .generated.options import ThreadForkOptions, ThreadResumeOptions, ThreadStartOptions, TurnStartOptions

if TYPE_CHECKING:
    from typing import Literal


class Sandbox(str, Enum):
    """The rights of commands: read only, write below the working directory, or anything."""

    read_only = "read-only"
    workspace_write = "workspace-write"
    full_access = "danger-full-access"


class ApprovalMode(str, Enum):
    """The decision on what the sandbox does not allow: none, so it is denied; a reviewing model; or the handler."""

    deny_all = "deny_all"
    auto_review = "auto_review"
    ask = "ask"


_POLICY_TYPES = {
    Sandbox.read_only: "readOnly",
    Sandbox.workspace_write: "workspaceWrite",
    Sandbox.full_access: "dangerFullAccess",
}
_APPROVALS = {
    ApprovalMode.deny_all: {"approval_policy": "never"},
    ApprovalMode.auto_review: {"approval_policy": "on-request", "approvals_reviewer": "auto_review"},
    ApprovalMode.ask: {"approval_policy": "on-request", "approvals_reviewer": "user"},
}


class ThreadStartKeywords(ThreadStartOptions, total=False):
    """Keywords of `thread_start`."""

    approval_mode: ApprovalMode | Literal["deny_all", "auto_review", "ask"] | None
    sub_agents: bool | None


class ThreadResumeKeywords(ThreadResumeOptions, total=False):
    """Keywords of `thread_resume`."""

    approval_mode: ApprovalMode | Literal["deny_all", "auto_review", "ask"] | None
    sub_agents: bool | None


class ThreadForkKeywords(ThreadForkOptions, total=False):
    """Keywords of `thread_fork`."""

    approval_mode: ApprovalMode | Literal["deny_all", "auto_review", "ask"] | None
    sub_agents: bool | None


class TurnKeywords(TurnStartOptions, total=False):
    """Keywords of `run` and `turn`."""

    approval_mode: ApprovalMode | Literal["deny_all", "auto_review", "ask"] | None
    sandbox: Sandbox | Literal["read-only", "workspace-write", "danger-full-access"] | None


# Keywords that stand beside the generated ones.
PRESETS = {
    "ThreadStartOptions": frozenset({"approval_mode", "sub_agents"}),
    "ThreadResumeOptions": frozenset({"approval_mode", "sub_agents"}),
    "ThreadForkOptions": frozenset({"approval_mode", "sub_agents"}),
    "TurnStartOptions": frozenset({"approval_mode", "sandbox"}),
}


def expand(options: Mapping[str, Any], *, of_turn: bool = False) -> dict[str, Any]:
    """Options with presets replaced by the protocol's own fields. Raises InvalidInputError.

    `approval_mode` becomes approval_policy and approvals_reviewer; a turn's `sandbox` becomes sandbox_policy; a
    thread's `sub_agents` becomes settings in `config`.
    """
    expanded = dict(options)
    mode = expanded.pop("approval_mode", None)
    if mode is not None:
        fields = _APPROVALS[_member(ApprovalMode, "approval_mode", mode)]
        given = sorted(name for name in fields if expanded.get(name) is not None)
        if given:
            raise InvalidInputError(f"approval_mode says what {', '.join(given)} says too; give one of them")
        expanded.update(fields)
    if not of_turn and (agents := expanded.pop("sub_agents", None)) is not None:
        expanded["config"] = _with_sub_agents(expanded.get("config") or {}, agents)
    if of_turn and (sandbox := expanded.pop("sandbox", None)) is not None:
        if expanded.get("sandbox_policy") is not None:
            raise InvalidInputError("sandbox says what sandbox_policy says too; give one of them")
        expanded["sandbox_policy"] = {"type": _POLICY_TYPES[_member(Sandbox, "sandbox", sandbox)]}
    return expanded


# Measured on codex 0.163.0: a thread is given its tools for sub-agents when it is started, and keeps them when it is
# resumed or forked, whatever these features are then. A depth of none takes them away there too, but for those of
# multi_agent_v2, which is off unless it is configured.
_WITHOUT_AGENTS = {
    ("features", "multi_agent"): False,
    ("features", "multi_agent_v2"): False,
    ("agents", "max_depth"): 0,
}
_WITH_AGENTS = {("features", "multi_agent"): True}


def _with_sub_agents(config: Any, agents: Any) -> dict[str, Any]:
    """`config` with the settings that give a thread sub-agents, or none. Raises InvalidInputError."""
    if not isinstance(agents, bool):
        raise InvalidInputError(f"sub_agents is {agents!r}; expected True, False or None (as configured)")
    if not isinstance(config, Mapping):
        raise InvalidInputError(f"config is {config!r}; expected a dict")
    found = dict(config)
    for (table, name), value in (_WITH_AGENTS if agents else _WITHOUT_AGENTS).items():
        inside = found.get(table)
        if f"{table}.{name}" in found or (isinstance(inside, Mapping) and name in inside):
            raise InvalidInputError(f"sub_agents says what {table}.{name} in config says too; give one of them")
        # Beside a table of the user's own a dotted name would replace it, or be replaced.
        if isinstance(inside, Mapping):
            found[table] = {**inside, name: value}
        else:
            found[f"{table}.{name}"] = value
    return found


def _member(kind: Any, name: str, value: Any) -> Any:
    try:
        return kind(value)
    except ValueError:
        expected = ", ".join(repr(member.value) for member in kind)
        raise InvalidInputError(f"{name} is {value!r}; expected one of {expected}") from None
