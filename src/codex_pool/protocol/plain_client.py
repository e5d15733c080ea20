"""Lines of a client that knows the app-server's protocol and nothing of a pool, on their way in and out. Pure.

A pool lets its clients send requests at once, and answers what is no message. One app-server does neither (measured on
codex 0.163.0 over stdio), and neither does this side of a pool:

    from the client                                      answer
    a request before `initialize`                        error -32600, Not initialized
    `initialize` without name and version of the client  error -32600, Invalid request: missing field ...
    a second `initialize`                                error -32600, Already initialized
    a notification or an answer before `initialize`      none
    what is no JSON object with a method or an id        none
    an id that is neither a string nor a 64-bit integer  none

To the client goes everything but the notifications that only pools send. The one that says why the pool has ended a
turn becomes an `error`, which the app-server sends before the completion of a turn that has failed. Where the client
works in the same file system as the pool, what an app-server takes from its working directory is filled in as that of
the client.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from codex_app_server import errors

from . import jsonrpc

NOT_INITIALIZED = "Not initialized"
ALREADY_INITIALIZED = "Already initialized"

# Requests whose `cwd` is by default the app-server's working directory, and those whose `cwds` are.
DEFAULT_CWD = frozenset({"thread/start", "command/exec"})
DEFAULT_CWDS = frozenset({"skills/list", "hooks/list"})
# Those whose `cwd` may be relative to it.
RELATIVE_CWD = DEFAULT_CWD | {"thread/resume", "thread/fork", "turn/start", "config/read"}

OF_POOLS = (b'{"method":"pool/', b'{"method":"sdk/')
_TURN_ENDED = b'{"method":"pool/turn/ended"'
_MIN_ID, _MAX_ID = -(2**63), 2**63 - 1
_NULL = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    id: Any = msgspec.UNSET
    method: Any = None
    params: msgspec.Raw = _NULL


class TurnEnd(msgspec.Struct, rename="camel"):
    """Parameters of `pool/turn/ended`."""

    thread_id: str
    turn_id: str
    kind: str
    message: str
    last_error: dict[str, Any] | None = None


class _TurnEndLine(msgspec.Struct):
    params: TurnEnd


_decode = msgspec.json.Decoder(_Line).decode
_decode_turn_end = msgspec.json.Decoder(_TurnEndLine).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Received(NamedTuple):
    """A line of the client: what goes on to the pool, and what is answered instead; None for nothing."""

    to_pool: bytes | None = None
    to_client: bytes | None = None


class PlainClient:
    """See the module's docstring.

    `cwd`: the client's working directory, None where the pool may be on another machine. `start_config`: values of the
    configuration that `thread/start` gets for each key that the client does not set itself in its `config`;
    `thread_config`: the same for `thread/start`, `thread/resume` and `thread/fork`. Values are those of JSON.
    """

    def __init__(
        self,
        cwd: str | None = None,
        *,
        start_config: Mapping[str, Any] | None = None,
        thread_config: Mapping[str, Any] | None = None,
    ) -> None:
        self._cwd = cwd
        of_all = dict(thread_config or {})
        self._configs = {
            "thread/start": {**of_all, **(start_config or {})},
            "thread/resume": of_all,
            "thread/fork": of_all,
        }
        self._is_initialized = False

    def receive(self, line: bytes) -> Received:
        """Look at a line of the client."""
        try:
            message = _decode(line)
        except jsonrpc.UNREADABLE:
            return Received()
        request_id, method = message.id, message.method
        if not (method is None or isinstance(method, str)):
            return Received()
        if request_id is msgspec.UNSET:
            # A notification, or nothing at all.
            return Received(line if method is not None and self._is_initialized else None)
        if not _is_id(request_id):
            return Received()
        if method is None:
            return Received(line if self._is_initialized else None)
        if method == "initialize":
            problem = ALREADY_INITIALIZED if self._is_initialized else _problem_of(message.params)
            if problem is None:
                self._is_initialized = True
                return Received(line)
            return _refused(request_id, problem)
        if not self._is_initialized:
            return _refused(request_id, NOT_INITIALIZED)
        return Received(self._completed(method, line))

    def _completed(self, method: str, line: bytes) -> bytes:
        """The request with what its app-server would take from its own working directory and start options."""
        config = self._configs.get(method)
        where = self._cwd if method in RELATIVE_CWD or method in DEFAULT_CWDS else None
        if where is None and not config:
            return line
        try:
            members = _decode_members(line)
            params = _decode_members(members.get("params", _NULL))
        except jsonrpc.UNREADABLE:
            # The app-server says what is wrong with them.
            return line
        changed: dict[str, Any] = _directories(method, params, where) if where is not None else {}
        if config:
            given = _members_of(params.get("config"))
            if given is not None and not config.keys() <= given.keys():
                changed["config"] = {**config, **given}
        if not changed:
            return line
        return jsonrpc.encode({**members, "params": {**params, **changed}})


def to_client(line: bytes) -> bytes | None:
    """A line of the pool, or a run of deltas, as the client gets it; None for what it does not get."""
    if not line.startswith(OF_POOLS):
        return line
    end = turn_end_of(line)
    return error_of(end) if end is not None else None


def turn_end_of(line: bytes) -> TurnEnd | None:
    """Return why the pool has ended a turn; None if this notification does not say so."""
    return _decode_turn_end(line).params if line.startswith(_TURN_ENDED) else None


def error_of(end: TurnEnd) -> bytes:
    """Make the `error` that says why the pool has ended a turn."""
    error = {"message": end.message, "codexErrorInfo": "other", "additionalDetails": end.kind}
    if end.last_error is not None and isinstance(last := end.last_error.get("error"), dict):
        error["codexErrorInfo"] = last.get("codexErrorInfo") or "other"
    params = {"error": error, "willRetry": False, "threadId": end.thread_id, "turnId": end.turn_id}
    return jsonrpc.encode({"method": "error", "params": params})


def _directories(method: str, params: Mapping[str, msgspec.Raw], where: str) -> dict[str, Any]:
    """The directories of a request as they are meant, where that is not what stands there."""
    if method in DEFAULT_CWDS:
        return {"cwds": [where]} if _value_of(params.get("cwds")) in (None, []) else {}
    cwd = _value_of(params.get("cwd"))
    if cwd is None:
        return {"cwd": where} if method in DEFAULT_CWD else {}
    if isinstance(cwd, str) and not os.path.isabs(cwd):
        return {"cwd": os.path.normpath(os.path.join(where, cwd))}
    return {}


def _members_of(raw: msgspec.Raw | None) -> dict[str, msgspec.Raw] | None:
    """The members of an object, none of null; None for anything else."""
    if raw is None or bytes(raw) == b"null":
        return {}
    try:
        return _decode_members(raw)
    except jsonrpc.UNREADABLE:
        return None


def _value_of(raw: msgspec.Raw | None) -> Any:
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except jsonrpc.UNREADABLE:
        return ""


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, int) and not isinstance(value, bool) and _MIN_ID <= value <= _MAX_ID


def _problem_of(params: msgspec.Raw) -> str | None:
    """The fault in the parameters of `initialize`, as the app-server words it; None if there is none."""
    if bytes(params) == b"null":
        return "Invalid request: missing field `params`"
    try:
        info = _decode_members(params).get("clientInfo")
        if info is None:
            return "Invalid request: missing field `clientInfo`"
        names = _decode_members(info)
    except jsonrpc.UNREADABLE:
        return "Invalid request: invalid type: expected struct ClientInfo"
    for name in ("name", "version"):
        if name not in names:
            return f"Invalid request: missing field `{name}`"
        if not isinstance(_value_of(names[name]), str):
            return f"Invalid request: invalid type: expected a string as `{name}`"
    return None


def _refused(request_id: int | str, message: str) -> Received:
    # Members in the order, and without the `data`, of the app-server.
    error = {"error": {"code": errors.INVALID_REQUEST, "message": message}, "id": request_id}
    return Received(to_client=jsonrpc.encode(error))
