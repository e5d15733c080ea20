"""JSON-RPC lines that broker and worker read and write; only the members that they need are decoded. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from codex_app_server._protocol.envelope import LONG_BYTES, RESPONSE, RequestId

from . import json_bounds

# The app-server does not read a line that is nested more than 128 levels deep.
MAX_DEPTH = 100

_NULL = msgspec.Raw(b"null")


class RequestLine(msgspec.Struct, omit_defaults=True):
    """A request or notification, with its parameters as they were received."""

    method: str
    id: msgspec.Raw = _NULL
    params: dict[str, msgspec.Raw] | None = None

    def encode(self, others: dict[str, msgspec.Raw] | None = None) -> bytes:
        """Encode the line, with the other members that it had, such as `trace`."""
        line = encode(self)
        return line[:-1] + b"," + encode(others)[1:] if others else line


class _Result(msgspec.Struct):
    result: msgspec.Raw = _NULL
    error: Any = None


class _Login(msgspec.Struct, rename="camel"):
    login_id: str | None = None


class _LoginLine(msgspec.Struct):
    result: _Login | None = None
    params: _Login | None = None


class _Initialized(msgspec.Struct, rename="camel"):
    user_agent: str = ""


UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

encode = msgspec.json.encode
decode_request = msgspec.json.Decoder(RequestLine).decode
decode_text = msgspec.json.Decoder(str).decode
_decode_result = msgspec.json.Decoder(_Result).decode
_decode_login = msgspec.json.Decoder(_LoginLine).decode
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
    """Members of a message that are passed on without being read, such as a request's `trace`."""
    members = _decode_members(line)
    return {name: value for name, value in members.items() if name not in _MEMBERS}


def with_id(line: bytes, request_id: bytes) -> bytes:
    """A response under another request id (given as JSON); its other members are kept.

    A long one is copied once, and not decoded.
    """
    if len(line) > LONG_BYTES and (found := RESPONSE.match(line)) is not None:
        return b"".join((line[: found.start(1)], request_id, memoryview(line)[found.end(1) :]))
    members = _decode_members(line)
    error = members.get("error", _NULL)
    name, value = ("error", error) if bytes(error) != b"null" else ("result", members.get("result", _NULL))
    if len(members) > 2 and (others := {key: each for key, each in members.items() if key not in _MEMBERS}):
        return encode({"id": msgspec.Raw(request_id), name: value, **others})
    return b'{"id":%s,"%s":%s}' % (request_id, name.encode(), bytes(value))


def replace_id(line: bytes, request_id: bytes) -> bytes:
    """A response of the app-server under another id; one that begins as the app-server writes them is not decoded."""
    if (found := RESPONSE.match(line)) is None:
        return with_id(line, request_id)
    return b"".join((line[: found.start(1)], request_id, memoryview(line)[found.end(1) :]))


def result_of(line: bytes) -> bytes:
    """The result of a response, as JSON."""
    return bytes(_decode_result(line).result)


def error_of(line: bytes) -> str:
    """The message of an error response."""
    error = _decode_result(line).error
    return str(error.get("message")) if isinstance(error, dict) else str(error)


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
    except UNREADABLE:
        return ""
