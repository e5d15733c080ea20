"""Checks of long requests that cost CPU, done before the broker sees them. Pure.

A line of megabytes takes tens of milliseconds to count, check and encode again. Done here, only the connections of TCP
wait for it, and the broker reads what is known to be sound: no more values or levels than it bears, valid text, no
member twice, an id of bounded length.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from codex_app_server._protocol import envelope

from ..auth.policy import NOT_ALLOWED
from ..auth.principal import MAX_ID_CHARS, Identity, size_problem
from ..protocol import jsonrpc, wire

_LINES = wire.encode(wire.Lines())
# Shorter ones cost the broker less than a millisecond.
SCREENED_BYTES = 16 * 1024


class InvalidRequest(NamedTuple):
    """Refusal of a request: its id as JSON, and a message for the client."""

    id_json: bytes
    message: str

    @property
    def frames(self) -> list[bytes]:
        """The answer that its client gets."""
        data = {"kind": "refused", "what": "message"}
        return [_LINES, jsonrpc.error_line(self.id_json, NOT_ALLOWED, self.message, data)]


def is_long(frames: list[bytes]) -> bool:
    """Return True for a message that is screened: a head, and one body that is long."""
    return len(frames) == 2 and len(frames[1]) > SCREENED_BYTES


def screened(frames: list[bytes], identity: Identity) -> list[bytes] | InvalidRequest:
    """Return the message to go on with, or the refusal of the request that it holds."""
    if not is_long(frames):
        return frames
    try:
        head = wire.decode_from_client(frames[0])
    except wire.WireError:
        # The broker reports it.
        return [frames[0]]
    if not isinstance(head, wire.Call):
        return frames
    line = screen(frames[1], identity)
    return line if isinstance(line, InvalidRequest) else [frames[0], line]


def screen(line: bytes, identity: Identity) -> bytes | InvalidRequest:
    """Return the line to go on with, or why it is refused. In that of a limited client no member stands twice."""
    problem = size_problem(identity, line)
    if problem is not None:
        return InvalidRequest(_id_of(line), problem)
    request_id = b"null"
    try:
        jsonrpc.check_line(line)
        message = msgspec.json.decode(line)
        if not isinstance(message, dict):
            raise ValueError("not a JSON object")
        shown = message.get("id")
        if isinstance(shown, str | int):
            request_id = jsonrpc.encode(shown)
        if len(request_id) > MAX_ID_CHARS + 2 and len(str(shown)) > MAX_ID_CHARS:
            raise ValueError(f"a request id of {len(str(shown))} characters; expected at most {MAX_ID_CHARS}")
        return line if identity.admin else jsonrpc.encode(message)
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        return InvalidRequest(request_id, f"not a request of this protocol: {error}")


def _id_of(line: bytes) -> bytes:
    try:
        request_id = envelope.scan(line).id
    except ValueError:
        return b"null"
    return jsonrpc.encode(request_id)
