"""One command, process, watch or search of a session, and the lines that the worker writes for it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from codex_app_server import errors

from ..protocol import jsonrpc, wire
from ..protocol.bound_methods import ANONYMOUS, COMMAND, PROCESS, Kind, exited_params
from .request import Request
from .turn_stream import Turn

# Session, kind and id at the client.
Key = tuple[wire.SessionId, str, str]


@dataclass(slots=True, eq=False)
class BoundObject:
    """One object. `name` is its id at the client, `wire_id` that at the app-server.

    A command that has no id at the client is `anonymous`: its name is the id of its request, in JSON.
    """

    kind: Kind
    session: wire.SessionId
    name: str
    wire_id: str
    stream: Turn
    anonymous: bool = False
    # Its number among turns and processes as they begin, for the census.
    number: int = 0
    # The requests that make it again, b"" for a process.
    begin: bytes = b""
    update: bytes = b""
    # Requests to begin it that are not answered; one has succeeded.
    pending: int = 0
    begun: bool = False
    # Of a command: the request that began it, while it is not answered, and its id in JSON.
    request: Request | None = None
    request_id: bytes = b"null"
    # Why the pool ends it; when the app-server is told so again, None if it is not to be.
    why: str = ""
    end_at: float | None = None
    # Its session is over; its last line has been published; the broker was informed that its id is free.
    gone: bool = False
    published: bool = False
    is_over: bool = False
    # The request of a command that is answered once the last line has been sent, and whether it has succeeded.
    answers: Request | None = None
    ok: bool = True

    @property
    def key(self) -> Key:
        return self.session, ANONYMOUS if self.anonymous else self.kind.name, self.name


ENDED = {"kind": "ended", "safeToRetry": False}


def text_of(raw: msgspec.Raw | None) -> str | None:
    """A parameter that is a text; None for one that is not, or is not there."""
    try:
        return jsonrpc.decode_text(raw) if raw is not None else None
    except jsonrpc.UNREADABLE:
        return None


def raw(value: Any) -> msgspec.Raw:
    """A value as a parameter."""
    return msgspec.Raw(jsonrpc.encode(value))


def inside(text: str) -> bytes:
    """A text as it stands within a JSON string."""
    return jsonrpc.encode(text)[1:-1]


def warning(message: str) -> bytes:
    """A `warning` notification, which clients display."""
    return jsonrpc.encode({"method": "warning", "params": {"message": message, "threadId": None}})


def lines_unread(bound: BoundObject, why: str) -> list[bytes]:
    """The last lines of a stream that its session does not read."""
    message = f"{bound.kind.name} {bound.name!r} was ended, because its client reads too slowly: {why}"
    if bound.kind is COMMAND:
        return [ended_line(bound, message)]
    if bound.kind is PROCESS:
        params = exited_params(bound.name, message)
        return [jsonrpc.encode({"method": PROCESS.last_notification, "params": params})]
    return [warning(message)]


def ended_line(bound: BoundObject, why: str) -> bytes:
    """The answer to the request of a command that the pool has ended."""
    return jsonrpc.error_line(bound.request_id, errors.TURN_LOST, why, ENDED)
