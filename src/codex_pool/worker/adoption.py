"""Checks of the answer to thread/resume, without which a thread is not adopted. Pure.

`thread/resume` alone brings a thread back with the configured sandbox (measured on codex 0.163.0). So the sandbox or
the permission profile that the thread had is asked for, and the answer must name it: an absent field proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from codex_app_server._protocol import runtime_version

from ..protocol import thread_records, wire


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields of an answer to thread/resume with the sandbox policy and permission profile in force."""

    sandbox: str
    profile: str


# By the first version of codex that answers so, oldest first. From the schemas of 0.133.0, 0.144.4 and 0.163.0, which
# have the profile with the capability experimentalApi only. A version before the first one, or that cannot be read,
# must answer as the last one does.
FIELDS: tuple[tuple[runtime_version.Number, Fields], ...] = (
    ((0, 133, 0), Fields(sandbox="sandbox", profile="activePermissionProfile")),
)

_ABSENT = object()
_NULL = msgspec.Raw(b"null")


class _Thread(msgspec.Struct):
    id: Any = None


_decode_thread = msgspec.json.Decoder(_Thread | None).decode


def fields_of(user_agent: str) -> Fields:
    """The fields that an app-server with this userAgent, as in its answer to `initialize`, has to answer."""
    number = runtime_version.number_of(runtime_version.version_of(user_agent))
    if number is not None:
        for since, fields in reversed(FIELDS):
            if number >= since:
                return fields
    return FIELDS[-1][1]


def problem_of(wanted: wire.ThreadRecord, result: bytes, user_agent: str) -> str | None:
    """Difference between the thread resumed with this result (JSON) and the one wanted; None if there is none."""
    try:
        members = msgspec.json.decode(result, type=dict[str, msgspec.Raw])
        thread = _decode_thread(members.pop("thread", _NULL))
        # The history is in the thread, and may be of 60 MB; the rest is short.
        answer: dict[str, Any] = {name: msgspec.json.decode(value) for name, value in members.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "the answer to thread/resume cannot be read"
    if thread is None or thread.id != wanted.thread_id:
        return "the answer to thread/resume does not name the thread"
    fields, sandbox = fields_of(user_agent), thread_records.sandbox_type(wanted.sandbox)
    if not wanted.profile and not sandbox:
        return "its sandbox is not known"
    if sandbox and (said := _named(answer, fields.sandbox, "type")) != sandbox:
        return _mismatch("sandbox", fields.sandbox, sandbox, said)
    said = _named(answer, fields.profile, "id")
    if wanted.profile:
        return None if said == wanted.profile else _mismatch("permission profile", fields.profile, wanted.profile, said)
    # A profile of codex's own is equivalent to the sandbox.
    if isinstance(said, str) and not said.startswith(":"):
        return _mismatch("permission profile", fields.profile, "none", said)
    return None


def _named(answer: dict[str, Any], field: str, name: str) -> object:
    value = answer.get(field, _ABSENT)
    return value.get(name, _ABSENT) if isinstance(value, dict) else value


def _mismatch(what: str, field: str, wanted: str, said: object) -> str:
    came = "is missing" if said is _ABSENT else f"is {said!r}"
    return f"its {what} was not restored: `{field}` in the answer to thread/resume {came}, expected {wanted!r}"
