"""Keywords of the published SDK as options of this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from codex_app_server.errors import InvalidInputError

_NOT_OPTIONS = frozenset({"self", "__class__", "input", "thread_id"})
_OTHER_NAMES = {"turn_service_tier": "service_tier_for_turn", "source": "turn_trigger"}
# A turn that is to be joined may end first, again and again.
_ATTEMPTS = 5
# What thread/settings/update takes; the rest is of one turn.
_OF_THE_THREAD = (
    "approval_policy",
    "approvals_reviewer",
    "cwd",
    "effort",
    "model",
    "personality",
    "sandbox_policy",
    "service_tier",
    "summary",
)


class Sandbox(str, Enum):
    """Access to files: read only, write below the working directory, or without limits."""

    read_only = "read-only"
    workspace_write = "workspace-write"
    full_access = "full-access"


class ApprovalMode(str, Enum):
    """Decision on what the sandbox does not allow: always denied, or left to a reviewing model."""

    deny_all = "deny_all"
    auto_review = "auto_review"


def to_options(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `thread_start`, `turn` and so on, from the locals of a method with the published keywords.

    Raises InvalidInputError for a sandbox or an approval mode that is not a member of its enumeration.
    """
    options = {_OTHER_NAMES.get(name, name): value for name, value in keywords.items() if name not in _NOT_OPTIONS}
    include_turns = options.pop("include_turns", None)
    if include_turns is not None:
        options["exclude_turns"] = not include_turns
    sandbox = options.get("sandbox")
    if sandbox is not None:
        _check_member(Sandbox, "sandbox", sandbox)
        options["sandbox"] = "danger-full-access" if sandbox is Sandbox.full_access else sandbox.value
    mode = options.get("approval_mode")
    if mode is not None:
        _check_member(ApprovalMode, "approval_mode", mode)
        options["approval_mode"] = mode.value
    effort = options.get("effort")
    if isinstance(effort, Enum):
        options["effort"] = effort.value
    return options


def settings_of_thread(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Select the options of a turn that the runtime keeps for the next turns when this one joins another."""
    return {name: fields[name] for name in _OF_THE_THREAD if fields.get(name) is not None}


def joining() -> Iterator[bool]:
    """Attempts to start a turn or to join the one that runs: whether there is another one after it."""
    return (attempt < _ATTEMPTS for attempt in range(1, _ATTEMPTS + 1))


def _check_member(kind: type[Enum], name: str, value: Any) -> None:
    if not isinstance(value, kind):
        expected = ", ".join(f"{kind.__name__}.{member.name}" for member in kind)
        raise InvalidInputError(f"{name} is {value!r}; expected one of {expected}")
