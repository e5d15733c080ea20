"""The routing header of a raw line - method, id, thread and turn - without decoding the rest.

In real notifications the ids may stand after a huge body (`item/completed` writes them last), so the whole line is
walked, but nothing else of it is built. Where the ids live is known per method from `generated.routing`; a method that
is not known may have them wherever a known one has.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from ..generated.routing import NOTIFICATIONS, SERVER_REQUESTS, Notification, ServerRequest

RequestId = int | str


class Envelope(NamedTuple):
    """The header of one line: a response has an id and no method, a request both, a notification only a method."""

    id: RequestId | None
    method: str | None
    thread_id: str | None
    turn_id: str | None
    is_error: bool


_NULL = msgspec.Raw(b"null")


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
    error: msgspec.Raw = _NULL


class _LooseHeader(msgspec.Struct, gc=False):
    id: RequestId | None = None
    method: str | None = None
    params: Any = None
    error: msgspec.Raw = _NULL


_decode = msgspec.json.Decoder(_Header).decode
_decode_loosely = msgspec.json.Decoder(_LooseHeader).decode

# Where the ids live, per method: the path below params, as routing writes it.
_INCOMING: dict[str, Notification | ServerRequest] = {**NOTIFICATIONS, **SERVER_REQUESTS}
_THREAD_PATH = {name: entry.thread for name, entry in _INCOMING.items()}
_TURN_PATH = {name: entry.turn for name, entry in _INCOMING.items()}
_FAST_PATHS = {None, "threadId", "turnId", "thread.id", "turn.id"}
_SLOW_METHODS = frozenset(name for name in _THREAD_PATH if not {_THREAD_PATH[name], _TURN_PATH[name]} <= _FAST_PATHS)
# Most methods, and by assumption the unknown ones, carry both ids at the top of their params: they need no look-up.
_ELSEWHERE = {
    name: (_THREAD_PATH[name], _TURN_PATH[name])
    for name in _THREAD_PATH
    if (_THREAD_PATH[name], _TURN_PATH[name]) != ("threadId", "turnId")
}


# The beginning of a response: enough to tell whose answer it is.
RESPONSE = re.compile(
    rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(-?\d{1,18}|"[^"\\]*")\s*,\s*"(result|error)"\s*:'
)
LONG_BYTES = 1024 * 1024


def scan(line: bytes) -> Envelope:
    """The header of `line`. Raises ValueError when the line is not a JSON object of this protocol.

    A response of more than LONG_BYTES is not walked: its beginning is enough.
    """
    if len(line) > LONG_BYTES and (found := RESPONSE.match(line)) is not None:
        return Envelope(_scalar(found[1]), None, None, None, found[2] == b"error")
    try:
        header = _decode(line)
    except msgspec.ValidationError:
        return _scan_loosely(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a JSON object: {error}") from None
    method = header.method
    if method is None:
        if header.id is None:
            raise ValueError("neither a method nor an id")
        return Envelope(header.id, None, None, None, bytes(header.error) != b"null")
    params = header.params
    if params is None:
        return Envelope(header.id, method, None, None, False)
    paths = _ELSEWHERE.get(method)
    if paths is None:
        thread_id, turn_id = params.threadId, params.turnId
        if (thread_id is None or turn_id is None) and method not in _INCOMING:
            # One that is not known yet may name its thread and turn as any of the others does.
            if thread_id is None and params.thread is not None:
                thread_id = params.thread.id
            if turn_id is None and params.turn is not None:
                turn_id = params.turn.id
        return Envelope(header.id, method, thread_id, turn_id, False)
    if method in _SLOW_METHODS:
        return _scan_loosely(line)
    thread_path, turn_path = paths
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


# How most lines of a turn begin. Strings without escapes: what stands there is what is meant.
_BEGINNING = re.compile(rb'\{"method":"([^"\\]+)","params":\{"threadId":"[^"\\]*","turnId":"[^"\\]*"')
_BEGINNING_BYTES = 512
_TURN_ID = b'"turnId":"'
# How they end: after this, a time of 13 digits.
_EMITTED = b'},"emittedAtMs":'
_REMEMBERED = 256
_OF_A_TURN = {
    name.encode() for name, entry in NOTIFICATIONS.items() if (entry.thread, entry.turn) == ("threadId", "turnId")
}


# From the end of the params on: the time in milliseconds has 13 digits.
END_BYTES = 30


def is_whole(line: bytes) -> bool:
    """True if the line ends as the app-server ends notifications: nothing but their time stands behind the params."""
    return is_end(line[-END_BYTES:])


def is_end(end: bytes) -> bool:
    """True for the last END_BYTES of a line that `is_whole`."""
    return end[:-14] == _EMITTED and end[-14:-1].isdigit() and end[-1:] == b"}"


class Scanner:
    """`scan` with a memory: most lines of a turn begin alike, and their header stands in that beginning.

    A line of a known notification that begins, byte for byte, with the method, thread and turn of one seen before and
    ends as notifications do is not walked again. So what is in between is not looked at, and a member that comes twice
    would count where it stands first; the app-server writes none twice.
    """

    def __init__(self) -> None:
        self._headers: dict[bytes, Envelope] = {}
        # Of the last line that had one: ids are of one length, so that most others of its method have it too.
        self.beginning_bytes = 0

    def scan(self, line: bytes) -> tuple[Envelope, bytes | None]:
        """The header of `line`, and the beginning that any other line of the same header may have.

        That holds for lines that are `is_whole`. Raises ValueError as `scan`.
        """
        beginning = line[: self.beginning_bytes]
        header = self._headers.get(beginning)
        if header is None:
            beginning = line[: line.find(b'"', line.find(_TURN_ID, 0, _BEGINNING_BYTES) + len(_TURN_ID)) + 1]
            header = self._headers.get(beginning)
        if header is not None and is_whole(line):
            self.beginning_bytes = len(beginning)
            return header, beginning
        header = scan(line)
        found = _BEGINNING.match(line)
        if found is None or found[1] not in _OF_A_TURN or header.id is not None:
            return header, None
        if len(self._headers) >= _REMEMBERED:
            self._headers.clear()
        beginning = found[0]
        self._headers[beginning] = header
        self.beginning_bytes = len(beginning)
        return header, beginning


def _scan_loosely(line: bytes) -> Envelope:
    """The same for a line in which something of the header has an unexpected type: that id counts as absent."""
    try:
        header = _decode_loosely(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a message of this protocol: {error}") from None
    method = header.method
    if method is None:
        if header.id is None:
            raise ValueError("neither a method nor an id")
        return Envelope(header.id, None, None, None, bytes(header.error) != b"null")
    if method in _INCOMING:
        thread_id, turn_id = _at(header.params, _THREAD_PATH[method]), _at(header.params, _TURN_PATH[method])
    else:
        thread_id = _first_at(header.params, "threadId", "thread.id")
        turn_id = _first_at(header.params, "turnId", "turn.id")
    return Envelope(header.id, method, thread_id, turn_id, False)


def _first_at(value: Any, *paths: str) -> str | None:
    return next((found for found in (_at(value, path) for path in paths) if found is not None), None)


def _at(value: Any, path: str | None) -> str | None:
    if path is None:
        return None
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


_STRING = rb'"(?:[^"\\]|\\.)*"'
_SCALAR = rb"(?:" + _STRING + rb"|-?\d[\d.eE+-]*|true|false|null)"
_TOKEN = rb"\s*(?:(?P<key>" + _STRING + rb")\s*:|(?P<value>" + _SCALAR + rb")|(?P<open>[{\[])|(?P<close>[}\]])|,)"
_MEMBER = rb'\s*"(\w+)"\s*:\s*(' + _SCALAR + rb")\s*,?"
_ANY_MEMBERS = rb'(?:\s*,?\s*"\w+"\s*:\s*' + _SCALAR + rb")*"
# Only scalars stand between the last ids of the params and the end of the line.
_TAIL = rb"(?P<params>" + _ANY_MEMBERS + rb")\s*\}" + _ANY_MEMBERS + rb"\s*\}\s*$"
_TAIL_BYTES = 2048


def scan_truncated(head: bytes, tail: bytes) -> Envelope:
    """The routing header of an over-long line, without what stands in its cut middle."""
    members = _first_members(head)
    for name, value in _last_params(tail).items():
        members.setdefault(("params", name), value)
    id, method = members.get(("id",)), members.get(("method",))
    if not isinstance(method, str):
        return Envelope(_request_id(id), None, None, None, False)
    thread_path, turn_path = _THREAD_PATH.get(method, "threadId"), _TURN_PATH.get(method, "turnId")
    thread_id = members.get(("params", *thread_path.split("."))) if thread_path is not None else None
    turn_id = members.get(("params", *turn_path.split("."))) if turn_path is not None else None
    return Envelope(
        _request_id(id),
        method,
        thread_id if isinstance(thread_id, str) else None,
        turn_id if isinstance(turn_id, str) else None,
        False,
    )


def _first_members(head: bytes) -> dict[tuple[str, ...], Any]:
    """The scalar members at the start of a cut JSON object, by their path."""
    found: dict[tuple[str, ...], Any] = {}
    path: list[str] = []
    key = ""
    position = 0
    # Compiled when a long line comes, which is rare, and takes as long as all else here.
    match = re.compile(_TOKEN).match
    while (token := match(head, position)) is not None:
        position = token.end()
        if token["key"] is not None:
            key = str(_scalar(token["key"]))
        elif token["value"] is not None:
            # A number that touches the end may go on behind it.
            if position < len(head):
                member = (*path[1:], key)
                found[member] = _scalar(token["value"])
        elif token["open"] is not None:
            path.append(key if token["open"] == b"{" else f"{key}[]")
        elif token["close"] is not None:
            if not path:
                break
            path.pop()
    return found


def _last_params(tail: bytes) -> dict[str, Any]:
    """The scalar members that end the params of a line."""
    end = re.search(_TAIL, tail[-_TAIL_BYTES:])
    if end is None:
        return {}
    return {name.decode(): _scalar(value) for name, value in re.findall(_MEMBER, end["params"])}


def _scalar(json: bytes) -> Any:
    try:
        return msgspec.json.decode(json)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _request_id(value: Any) -> RequestId | None:
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None
