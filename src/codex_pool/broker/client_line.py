"""Lines of clients, decoded once: the routing header, and the parameters of a request as raw JSON. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from codex_app_server._protocol import envelope

from ..auth.principal import MAX_ID_CHARS
from ..protocol import jsonrpc


class _Trace(msgspec.Struct):
    traceparent: str | None = None
    tracestate: str | None = None


class ClientMessage(msgspec.Struct):
    """A request or notification of a client, its parameters as raw JSON.

    Of the id and of `trace` it has the types that codex 0.163.0 accepts: a request with others it never answers.
    """

    method: str
    id: envelope.RequestId | None = None
    params: dict[str, msgspec.Raw] | None = None
    trace: _Trace | list[str | None] | None = None


class ClientLine(NamedTuple):
    """The header of a line, and the request or notification that it is; None for a response."""

    header: envelope.Envelope
    message: ClientMessage | None


class _Named(msgspec.Struct):
    id: str | None = None


decode_message = msgspec.json.Decoder(ClientMessage).decode
_decode_text = msgspec.json.Decoder(str | None).decode
_decode_named = msgspec.json.Decoder(_Named | None).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read(line: bytes) -> ClientLine:
    """Decode a line. Raises ValueError for one that is not a JSON object of this protocol.

    A request that is not valid, such as one whose parameters are no object, has a header and no message.
    """
    if len(line) > envelope.LONG_BYTES and envelope.RESPONSE.match(line) is not None:
        return ClientLine(envelope.scan(line), None)
    try:
        message = decode_message(line)
    except _UNREADABLE:
        return ClientLine(envelope.scan(line), None)
    thread_id = turn_id = None
    if params := message.params:
        try:
            thread_id = _decode_text(params["threadId"]) if "threadId" in params else None
            turn_id = _decode_text(params["turnId"]) if "turnId" in params else None
        except _UNREADABLE:
            return ClientLine(envelope.scan(line), message)
        # A method that is not known may name them as an object.
        if thread_id is None and "thread" in params:
            thread_id = _id_of(params["thread"])
        if turn_id is None and "turn" in params:
            turn_id = _id_of(params["turn"])
    return ClientLine(envelope.Envelope(message.id, message.method, thread_id, turn_id, False), message)


def id_of(line: bytes) -> bytes:
    """The id of a line that is refused before it is decoded, as JSON; null if there is none to read."""
    try:
        request_id = envelope.scan(line).id
    except ValueError:
        return b"null"
    return jsonrpc.encode(request_id) if len(str(request_id)) <= MAX_ID_CHARS else b"null"


def _id_of(raw: msgspec.Raw) -> str | None:
    try:
        named = _decode_named(raw)
    except _UNREADABLE:
        return None
    return named.id if named is not None else None
