"""The routing header of a raw line - method, id, thread and turn - without decoding the rest.

In real notifications the ids may stand after a huge body (`item/completed` writes them last), so the whole line is
walked, but nothing else of it is built. Where the ids live is known per method from `generated.routing`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from .generated.routing import NOTIFICATIONS, SERVER_REQUESTS

RequestId = int | str


class Envelope(NamedTuple):
    """The header of one line: a response has an id and no method, a request both, a notification only a method."""

    id: RequestId | None
    method: str | None
    thread_id: str | None
    turn_id: str | None
    is_error: bool


class _Ids(msgspec.Struct, gc=False):
    id: str | None = None


class _Params(msgspec.Struct, gc=False):
    threadId: str | None = None
    turnId: str | None = None
    turn: _Ids | None = None
    thread: _Ids | None = None


class _Header(msgspec.Struct, gc=False):
    id: RequestId | None = None
    method: str | None = None
    params: _Params | None = None
    error: Any = None


class _LooseHeader(msgspec.Struct, gc=False):
    id: RequestId | None = None
    method: str | None = None
    params: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Header).decode
_decode_loosely = msgspec.json.Decoder(_LooseHeader).decode

# Where the ids live, per method: the path below params, as routing writes it.
_THREAD_PATH = {name: entry.thread for name, entry in {**NOTIFICATIONS, **SERVER_REQUESTS}.items()}
_TURN_PATH = {name: entry.turn for name, entry in {**NOTIFICATIONS, **SERVER_REQUESTS}.items()}
_FAST_PATHS = {None, "threadId", "turnId", "thread.id", "turn.id"}
_SLOW_METHODS = frozenset(name for name in _THREAD_PATH if not {_THREAD_PATH[name], _TURN_PATH[name]} <= _FAST_PATHS)


def scan(line: bytes) -> Envelope:
    """The header of `line`. Raises ValueError when the line is not a JSON object of this protocol."""
    try:
        header = _decode(line)
    except msgspec.ValidationError:
        return _scan_loosely(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a JSON object: {error}") from None
    method = header.method
    if method is None:
        if header.id is None:
            raise ValueError("neither a method nor an id")
        return Envelope(header.id, None, None, None, header.error is not None)
    if method in _SLOW_METHODS:
        return _scan_loosely(line)
    params = header.params
    if params is None:
        return Envelope(header.id, method, None, None, False)
    thread_path = _THREAD_PATH.get(method, "threadId")
    turn_path = _TURN_PATH.get(method, "turnId")
    thread_id = turn_id = None
    if thread_path == "threadId":
        thread_id = params.threadId
    elif thread_path is not None and params.thread is not None:
        thread_id = params.thread.id
    if turn_path == "turnId":
        turn_id = params.turnId
    elif turn_path is not None and params.turn is not None:
        turn_id = params.turn.id
    return Envelope(header.id, method, thread_id, turn_id, False)


def _scan_loosely(line: bytes) -> Envelope:
    """The same for a line in which something of the header has an unexpected type: that id counts as absent."""
    try:
        header = _decode_loosely(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a message of this protocol: {error}") from None
    method = header.method
    if method is None:
        if header.id is None:
            raise ValueError("neither a method nor an id")
        return Envelope(header.id, None, None, None, header.error is not None)
    thread_id = _at(header.params, _THREAD_PATH.get(method, "threadId"))
    turn_id = _at(header.params, _TURN_PATH.get(method, "turnId"))
    return Envelope(header.id, method, thread_id, turn_id, False)


def _at(value: Any, path: str | None) -> str | None:
    if path is None:
        return None
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


_ID_FIELD = re.compile(rb'"(id|method|threadId|turnId)"\s*:\s*("(?:[^"\\]|\\.)*"|\d+)')


def scan_truncated(head: bytes, tail: bytes) -> Envelope:
    """What can be told of an over-long line from its first and last bytes; the ids may be missing.

    The head is searched from its start and the tail from its end, because the header stands outside the body.
    """
    found: dict[bytes, Any] = {}
    for key, value in _ID_FIELD.findall(head[:512]):
        found.setdefault(key, msgspec.json.decode(value))
    for key, value in reversed(_ID_FIELD.findall(tail[-512:])):
        if key in (b"threadId", b"turnId"):
            found.setdefault(key, msgspec.json.decode(value))
    method = found.get(b"method")
    is_request_or_response = head[:64].lstrip(b"{ ").startswith(b'"id"')
    return Envelope(
        found.get(b"id") if is_request_or_response else None,
        method if isinstance(method, str) else None,
        found.get(b"threadId"),
        found.get(b"turnId"),
        False,
    )
