"""What an app-server must answer to thread/resume for a thread to be adopted. Pure.

`thread/resume` alone brings a thread back with the configured sandbox (measured on codex 0.163.0). So the sandbox or
the permission profile that the thread had is asked for, and the answer must name it: an absent field says nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from codex_pool import rpc, wire

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Fields:
    """Where an answer to thread/resume names the sandbox policy and the permission profile that are in force."""

    sandbox: str
    profile: str


# By the first version of codex that answers so, oldest first. From the schemas of 0.133.0, 0.144.4 and 0.163.0, which
# have the profile with the capability experimentalApi only. A version before the first one, or that cannot be read,
# must answer as the last one does.
FIELDS: tuple[tuple[Version, Fields], ...] = (
    ((0, 133, 0), Fields(sandbox="sandbox", profile="activePermissionProfile")),
)

_VERSION = re.compile(r"[^/]*/(\d+)\.(\d+)\.(\d+)")
_ABSENT = object()
_NULL = msgspec.Raw(b"null")


class _Thread(msgspec.Struct):
    id: Any = None


_decode_thread = msgspec.json.Decoder(_Thread | None).decode


def fields_of(user_agent: str) -> Fields:
    """The fields that an app-server with this userAgent, as in its answer to `initialize`, has to answer."""
    found = _VERSION.match(user_agent)
    if found is not None:
        major, minor, patch = (int(part) for part in found.groups())
        for since, fields in reversed(FIELDS):
            if (major, minor, patch) >= since:
                return fields
    return FIELDS[-1][1]


def problem_of(wanted: wire.ThreadRecord, result: bytes, user_agent: str) -> str | None:
    """Why a thread that was resumed with this result, as JSON, is not the thread that was wanted; None if it is."""
    try:
        members = msgspec.json.decode(result, type=dict[str, msgspec.Raw])
        thread = _decode_thread(members.pop("thread", _NULL))
        # The history is in the thread, and may be of 60 MB; the rest is short.
        answer: dict[str, Any] = {name: msgspec.json.decode(value) for name, value in members.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "the answer to thread/resume cannot be read"
    if thread is None or thread.id != wanted.thread_id:
        return "the answer to thread/resume does not name the thread"
    fields, sandbox = fields_of(user_agent), rpc.sandbox_type(wanted.sandbox)
    if not wanted.profile and not sandbox:
        return "its sandbox is not known"
    if sandbox and (said := _named(answer, fields.sandbox, "type")) != sandbox:
        return _unlike("sandbox", fields.sandbox, sandbox, said)
    said = _named(answer, fields.profile, "id")
    if wanted.profile:
        return None if said == wanted.profile else _unlike("permission profile", fields.profile, wanted.profile, said)
    # One of codex's own says what the sandbox says.
    if isinstance(said, str) and not said.startswith(":"):
        return _unlike("permission profile", fields.profile, "none", said)
    return None


def _named(answer: dict[str, Any], field: str, name: str) -> object:
    value = answer.get(field, _ABSENT)
    return value.get(name, _ABSENT) if isinstance(value, dict) else value


def _unlike(what: str, field: str, wanted: str, said: object) -> str:
    came = "is missing" if said is _ABSENT else f"is {said!r}"
    return f"its {what} was not restored: `{field}` in the answer to thread/resume {came}, expected {wanted!r}"
