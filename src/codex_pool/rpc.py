"""The JSON lines that broker and worker read and write by themselves. Pure; only the parts they need are decoded."""

from __future__ import annotations

from typing import Any

import msgspec

from codex_app_server._last_error import said
from codex_app_server.envelope import LONG_BYTES, RESPONSE, RequestId
from codex_pool import json_bounds
from codex_pool.trust import AGENTS_DEPTH, is_untrusting, is_without_agents, untrusting
from codex_pool.wire import ThreadRecord

SANDBOX_MODES = {"readOnly": "read-only", "workspaceWrite": "workspace-write", "dangerFullAccess": "danger-full-access"}

# After these the app-server that answered holds the thread; others that answer with a thread only read it.
LOADS_THREAD = frozenset({"thread/start", "thread/resume", "thread/fork"})

# The app-server gives up on a line beyond 128 levels.
MAX_DEPTH = 100

_NULL = msgspec.Raw(b"null")


class RequestLine(msgspec.Struct, omit_defaults=True):
    """A request or notification, its parameters as they came."""

    method: str
    id: msgspec.Raw = _NULL
    params: dict[str, msgspec.Raw] | None = None

    def encode(self, others: dict[str, msgspec.Raw] | None = None) -> bytes:
        """The line, with the other members that it had, such as `trace`."""
        line = encode(self)
        return line[:-1] + b"," + encode(others)[1:] if others else line


class _Result(msgspec.Struct):
    result: msgspec.Raw = _NULL
    error: Any = None


class _Thread(msgspec.Struct):
    id: str
    ephemeral: bool = False
    name: str | None = None


class _Profile(msgspec.Struct):
    id: str = ""


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


class _CompletedTurn(msgspec.Struct):
    status: str = "failed"


class _CompletedParams(msgspec.Struct):
    turn: _CompletedTurn


class _Completed(msgspec.Struct):
    params: _CompletedParams


class _StartedTurn(msgspec.Struct, rename="camel"):
    id: str = ""
    root_turn_id: str | None = None


class _StartedParams(msgspec.Struct):
    turn: _StartedTurn


class _Started(msgspec.Struct):
    params: _StartedParams


class _Login(msgspec.Struct, rename="camel"):
    login_id: str | None = None


class _LoginLine(msgspec.Struct):
    result: _Login | None = None
    params: _Login | None = None


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


class _Initialized(msgspec.Struct, rename="camel"):
    user_agent: str = ""


_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

encode = msgspec.json.encode
decode_request = msgspec.json.Decoder(RequestLine).decode
_decode_result = msgspec.json.Decoder(_Result).decode
_decode_thread_line = msgspec.json.Decoder(_ThreadLine).decode
_decode_notification = msgspec.json.Decoder(_Notification).decode
_decode_completed = msgspec.json.Decoder(_Completed).decode
_decode_started = msgspec.json.Decoder(_Started).decode
_decode_login = msgspec.json.Decoder(_LoginLine).decode
_decode_review = msgspec.json.Decoder(_ReviewLine).decode
_decode_named = msgspec.json.Decoder(_NamedLine).decode
_decode_policy = msgspec.json.Decoder(_PolicyType).decode
_decode_initialized = msgspec.json.Decoder(_Initialized).decode


_MEMBERS = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Id(msgspec.Struct):
    id: RequestId | None = None


_decode_id = msgspec.json.Decoder(_Id).decode


def check_line(line: bytes) -> None:
    """Raises ValueError for a line of a client that the app-server could not read, and so would never answer.

    The line is known to be JSON, but for text inside that has only been skipped so far.
    """
    if b"\n" in line:
        raise ValueError("a message is one line")
    line.decode()
    if json_bounds.is_deeper(line, MAX_DEPTH):
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def decode_request_id(line: bytes) -> str | None:
    """The id of a response, if it is a string."""
    request_id = _decode_id(line).id
    return request_id if isinstance(request_id, str) else None


def others_of(line: bytes) -> dict[str, msgspec.Raw]:
    """The members of a message that this protocol has no use for here, such as a request's `trace`."""
    members = _decode_members(line)
    return {name: value for name, value in members.items() if name not in _MEMBERS}


def with_id(line: bytes, request_id: bytes) -> bytes:
    """A response under another request id (given as JSON); all else that it has is kept.

    A long one is copied once, and not looked at.
    """
    if len(line) > LONG_BYTES and (found := RESPONSE.match(line)) is not None:
        return b"".join((line[: found.start(1)], request_id, memoryview(line)[found.end(1) :]))
    members = _decode_members(line)
    error = members.get("error", _NULL)
    name, value = ("error", error) if bytes(error) != b"null" else ("result", members.get("result", _NULL))
    if len(members) > 2 and (others := {key: each for key, each in members.items() if key not in _MEMBERS}):
        return encode({"id": msgspec.Raw(request_id), name: value, **others})
    return b'{"id":%s,"%s":%s}' % (request_id, name.encode(), bytes(value))


def result_of(line: bytes) -> bytes:
    """The result of a response, as JSON."""
    return bytes(_decode_result(line).result)


def error_of(line: bytes) -> str:
    """The message of an error response."""
    error = _decode_result(line).error
    return str(error.get("message")) if isinstance(error, dict) else str(error)


def turns_of(line: bytes) -> tuple[str, str]:
    """The turn that a turn/started line is about, and the turn that it is part of; of itself, if of no other."""
    try:
        turn = _decode_started(line).params.turn
    except msgspec.MsgspecError:
        return "", ""
    return turn.id, turn.root_turn_id or turn.id


def login_id_of(line: bytes) -> str | None:
    """The id of the log-in that an answer or a notification names; None if it names none."""
    try:
        login = _decode_login(line)
    except msgspec.MsgspecError:
        return None
    named = login.result or login.params
    return named.login_id if named is not None else None


def error_line(request_id: bytes, code: int, message: str, data: Any = None) -> bytes:
    """An error response; `request_id` is JSON."""
    error = {"code": code, "message": message, "data": data}
    return b'{"id":%s,"error":%s}' % (request_id, encode(error))


def user_agent_of(result: bytes) -> str:
    """The userAgent in the result of `initialize`, `NAME/VERSION ...`; "" if there is none to read."""
    try:
        return _decode_initialized(result).user_agent
    except _UNREADABLE:
        return ""


def record_of(line: bytes, turns: int, *, asked_profile: str = "") -> ThreadRecord | None:
    """The record of the thread that thread/start, resume or fork answered with; None if there is none to read.

    An answer that says nothing of a permission profile leaves the one that was asked for.
    """
    try:
        answer = _decode_thread_line(line).result
    except _UNREADABLE:
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
    except _UNREADABLE:
        return ""
    return answer.review_thread_id if answer is not None else ""


def name_in(line: bytes) -> str:
    """The name that a request thread/name/set gives."""
    try:
        return _decode_named(line).params.name or ""
    except _UNREADABLE:
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
    """A permission profile that somebody has defined; one of codex's own, `:workspace`, says what the sandbox says."""
    if profile is msgspec.UNSET:
        return unsaid
    return "" if profile is None or profile.id.startswith(":") else profile.id


def resume_params(record: ThreadRecord) -> dict[str, Any]:
    """Parameters that bring a thread back with its settings: resume alone falls back to the configured sandbox."""
    params: dict[str, Any] = {"threadId": record.thread_id, "excludeTurns": True}
    mode = SANDBOX_MODES.get(sandbox_type(record.sandbox))
    if record.profile:
        # What it denies no sandbox policy says; where it is not known, the app-server refuses.
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
        asked = msgspec.json.decode((request.params or {}).get("permissions", _NULL), type=str | None)
    except _UNREADABLE:
        return ""
    return "" if asked is None or asked.startswith(":") else asked


def asks_untrusted(request: RequestLine) -> bool:
    """True for thread/start, resume or fork with a `cwd` that its `config` marks untrusted."""
    params = request.params or {}
    try:
        cwd = msgspec.json.decode(params.get("cwd", _NULL), type=str | None)
    except msgspec.MsgspecError:
        return False
    return is_untrusting(bytes(params.get("config", b"{}")), cwd)


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


def status_of(line: bytes) -> str:
    """The status in a turn/completed line."""
    try:
        return _decode_completed(line).params.turn.status
    except msgspec.MsgspecError:
        return "failed"


def ended_lines(
    thread_id: str,
    turn_id: str,
    kind: str,
    message: str,
    *,
    safe_to_retry: bool,
    completed: bytes = b"",
    last_error: dict[str, Any] | None = None,
) -> list[bytes]:
    """The end of a turn that the pool ends, the same for every client: what happened, then a completion.

    `completed`: the turn/completed of the app-server, if there is one; what else it says of the turn is kept. The kind
    also stands in the error of the completion, as its additional details. `last_error`: parameters of the last `error`
    of the turn, whose reason the completion gets.
    """
    ended: dict[str, Any] = {"threadId": thread_id, "turnId": turn_id, "kind": kind, "safeToRetry": safe_to_retry}
    ended["message"] = message
    error = {"message": message, "codexErrorInfo": "other", "additionalDetails": kind}
    if last_error is not None:
        ended["lastError"] = last_error
        error["codexErrorInfo"] = last_error["error"].get("codexErrorInfo") or "other"
    turn = {"items": [], "itemsView": "notLoaded", **_turn_of(completed)}
    turn |= {"id": turn_id, "status": "failed", "error": error}
    return [
        encode({"method": "pool/turn/ended", "params": ended}),
        encode({"method": "turn/completed", "params": {"threadId": thread_id, "turn": turn}}),
    ]


def stalled_lines(
    thread_id: str, turn_id: str, reason: str, *, error: bytes = b"", completed: bytes = b""
) -> list[bytes]:
    """The end of a turn that came to a standstill; `error` is its last `error` line, if there was one."""
    message = f"turn {turn_id} was stalled: {reason}"
    last_error = _params_of(error)
    if last_error is not None:
        message += f"; its last error: {said(last_error['error'])}"
    return ended_lines(
        thread_id, turn_id, "stalled", message, safe_to_retry=False, completed=completed, last_error=last_error
    )


def _params_of(error: bytes) -> dict[str, Any] | None:
    """The parameters of an `error` line; None without one that can be read."""
    try:
        params = msgspec.json.decode(error)["params"]
    except (*_UNREADABLE, KeyError, TypeError):
        return None
    return params if isinstance(params, dict) and isinstance(params.get("error"), dict) else None


def _turn_of(completed: bytes) -> dict[str, Any]:
    """The turn in a turn/completed line; {} without one that can be read."""
    try:
        turn = msgspec.json.decode(completed)["params"]["turn"]
    except (*_UNREADABLE, KeyError, TypeError):
        return {}
    return turn if isinstance(turn, dict) else {}


def _text(raw: msgspec.Raw) -> str:
    text = bytes(raw).decode()
    return "" if text == "null" else text
