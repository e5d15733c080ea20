"""Thread records: read from the app-server's answers and notifications, and written as requests to resume. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from ..trust import AGENTS_DEPTH, Narrowing, is_without_agents, narrowing, untrusting
from .jsonrpc import UNREADABLE, RequestLine
from .wire_types import ThreadRecord

SANDBOX_MODES = {"readOnly": "read-only", "workspaceWrite": "workspace-write", "dangerFullAccess": "danger-full-access"}

# After these the app-server that answered holds the thread; others that answer with a thread only read it.
# These read what is stored of a thread, which need not be loaded for it.
READS_HISTORY = frozenset(
    {
        "thread/turns/list",
        "thread/items/list",
        "thread/items/read",
        "thread/timeline/list",
        "thread/searchOccurrences",
    }
)
LOADS_THREAD = frozenset({"thread/start", "thread/resume", "thread/fork"})

_NULL = msgspec.Raw(b"null")


class _Profile(msgspec.Struct):
    id: str = ""


class _Thread(msgspec.Struct):
    id: str
    ephemeral: bool = False
    name: str | None = None


class _ThreadResult(msgspec.Struct, rename="camel"):
    thread: _Thread
    cwd: str | None = None
    model: str | None = None
    model_provider: str | None = None
    sandbox: msgspec.Raw = _NULL
    approval_policy: msgspec.Raw = _NULL
    active_permission_profile: _Profile | msgspec.UnsetType | None = msgspec.UNSET


class _ThreadLine(msgspec.Struct):
    result: _ThreadResult | None = None


class _Settings(msgspec.Struct, rename="camel"):
    cwd: str | None = None
    model: str | None = None
    model_provider: str | None = None
    sandbox_policy: msgspec.Raw = _NULL
    approval_policy: msgspec.Raw = _NULL
    active_permission_profile: _Profile | msgspec.UnsetType | None = msgspec.UNSET


class _Params(msgspec.Struct, rename="camel"):
    thread_id: str = ""
    thread_name: str | None = None
    thread_settings: _Settings | None = None


class _Notification(msgspec.Struct):
    params: _Params


class _PolicyType(msgspec.Struct):
    type: str = ""


class _Review(msgspec.Struct, rename="camel"):
    review_thread_id: str = ""


class _ReviewLine(msgspec.Struct):
    result: _Review | None = None


class _NamedParams(msgspec.Struct):
    name: str | None = None


class _NamedLine(msgspec.Struct):
    params: _NamedParams


_decode_thread_line = msgspec.json.Decoder(_ThreadLine).decode
_decode_notification = msgspec.json.Decoder(_Notification).decode
_decode_review = msgspec.json.Decoder(_ReviewLine).decode
_decode_named = msgspec.json.Decoder(_NamedLine).decode
_decode_policy = msgspec.json.Decoder(_PolicyType).decode
_decode_text = msgspec.json.Decoder(str | None).decode


def record_of(line: bytes, turns: int, *, asked_profile: str = "") -> ThreadRecord | None:
    """The record of the thread that thread/start, resume or fork answered with; None if there is none to read.

    An answer without a permission profile leaves the one that was asked for.
    """
    try:
        answer = _decode_thread_line(line).result
    except UNREADABLE:
        return None
    if answer is None:
        return None
    return ThreadRecord(
        thread_id=answer.thread.id,
        ephemeral=answer.thread.ephemeral,
        turns=turns,
        name=answer.thread.name,
        cwd=answer.cwd,
        model=answer.model,
        model_provider=answer.model_provider,
        sandbox=_text(answer.sandbox),
        approval_policy=_text(answer.approval_policy),
        profile=_named(answer.active_permission_profile, asked_profile),
    )


def review_thread_of(line: bytes) -> str:
    """The thread that a response to review/start names; "" if there is none to read."""
    try:
        answer = _decode_review(line).result
    except UNREADABLE:
        return ""
    return answer.review_thread_id if answer is not None else ""


def name_in(line: bytes) -> str:
    """The name that a request thread/name/set gives."""
    try:
        return _decode_named(line).params.name or ""
    except UNREADABLE:
        return ""


def updated_record(record: ThreadRecord, method: str, line: bytes) -> ThreadRecord:
    """The record after a notification about the thread's settings or name."""
    try:
        params = _decode_notification(line).params
    except msgspec.MsgspecError:
        return record
    if method == "thread/name/updated":
        return msgspec.structs.replace(record, name=params.thread_name)
    settings = params.thread_settings
    if settings is None:
        return record
    return msgspec.structs.replace(
        record,
        cwd=settings.cwd or record.cwd,
        model=settings.model or record.model,
        model_provider=settings.model_provider or record.model_provider,
        sandbox=_text(settings.sandbox_policy) or record.sandbox,
        approval_policy=_text(settings.approval_policy) or record.approval_policy,
        profile=_named(settings.active_permission_profile, record.profile),
    )


def _named(profile: _Profile | msgspec.UnsetType | None, unsaid: str) -> str:
    """A user-defined permission profile; one of codex's own, `:workspace`, means the same as the sandbox."""
    if profile is msgspec.UNSET:
        return unsaid
    return "" if profile is None or profile.id.startswith(":") else profile.id


def resume_params(record: ThreadRecord) -> dict[str, Any]:
    """Parameters that bring a thread back with its settings: resume alone falls back to the configured sandbox."""
    params: dict[str, Any] = {"threadId": record.thread_id, "excludeTurns": True}
    mode = SANDBOX_MODES.get(sandbox_type(record.sandbox))
    if record.profile:
        # No sandbox policy can express what it denies; where it is not known, the app-server refuses.
        params["permissions"] = record.profile
    elif mode is not None:
        params["sandbox"] = mode
    if record.approval_policy:
        params["approvalPolicy"] = msgspec.Raw(record.approval_policy.encode())
    for key, value in (("cwd", record.cwd), ("model", record.model), ("modelProvider", record.model_provider)):
        if value is not None:
            params[key] = value
    config: dict[str, Any] = {}
    if record.untrusted and record.cwd is not None:
        # Not inherited: without it the next app-server takes what lies in the directory.
        config |= untrusting(record.cwd)
    if record.without_agents:
        config[AGENTS_DEPTH] = 0
    return {**params, "config": config} if config else params


def asked_profile(request: RequestLine) -> str:
    """The permission profile that thread/start, resume or fork asks for; "" for none, and for one of codex's own."""
    try:
        asked = _decode_text((request.params or {}).get("permissions", _NULL))
    except UNREADABLE:
        return ""
    return "" if asked is None or asked.startswith(":") else asked


def asked_narrowing(request: RequestLine) -> Narrowing:
    """Read what the `config` of thread/start, resume or fork takes from a thread in the `cwd` of the same request."""
    params = request.params or {}
    config = params.get("config")
    if config is None:
        return Narrowing(False, False)
    try:
        cwd = _decode_text(params.get("cwd", _NULL))
    except msgspec.MsgspecError:
        cwd = None
    return narrowing(bytes(config), cwd)


def asks_without_agents(request: RequestLine) -> bool:
    """True for thread/start, resume or fork whose `config` leaves the thread no tools for sub-agents."""
    return is_without_agents(bytes((request.params or {}).get("config", b"{}")))


def sandbox_type(policy: str) -> str:
    """`readOnly`, `workspaceWrite`, ... of a sandbox policy in JSON; "" when there is none."""
    if not policy:
        return ""
    try:
        return _decode_policy(policy.encode()).type
    except msgspec.MsgspecError:
        return ""


def _text(raw: msgspec.Raw) -> str:
    text = bytes(raw).decode()
    return "" if text == "null" else text
