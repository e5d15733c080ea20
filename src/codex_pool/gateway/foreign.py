"""Lines between the pool and clients that know only the app-server's own protocol. Pure.

Notifications that only clients of this project know (`pool/...`, `sdk/...`) are left out. The one that says why a turn
was ended by the pool becomes an `error`, which the app-server sends before the completion of a turn that has failed.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from codex_app_server._protocol.framing import LongLine
from codex_app_server.transport import TurnLines

from ..protocol import jsonrpc
from ..protocol.plain_client import OF_POOLS, error_of, turn_end_of

INTERNAL_ERROR = -32603
MAX_NAME_CHARS = 200


class _ClientInfo(msgspec.Struct):
    name: str
    version: str


class _InitializeParams(msgspec.Struct):
    client_info: _ClientInfo = msgspec.field(name="clientInfo")


class _InitializeLine(msgspec.Struct):
    params: _InitializeParams


_decode_initialize = msgspec.json.Decoder(_InitializeLine).decode


class ForeignLines(NamedTuple):
    """Lines for a client. `overflow`: it gets no more of a turn that runs, because it has not taken what came before.

    The lines end there: that turn has not failed.
    """

    lines: list[bytes]
    overflow: str = ""


def to_client(batch: list[bytes | LongLine | TurnLines]) -> ForeignLines:
    """Return the lines of a batch that a client of the app-server's protocol knows, in their order."""
    lines: list[bytes] = []
    for each in batch:
        assert not isinstance(each, LongLine), "lines of a pool are whole"
        for line in each.lines if isinstance(each, TurnLines) else (each,):
            if not line.startswith(OF_POOLS):
                lines.append(line)
            elif (end := turn_end_of(line)) is not None:
                if end.kind == "overflow":
                    return ForeignLines(lines, end.message)
                lines.append(error_of(end))
    return ForeignLines(lines)


def client_name(initialize: bytes) -> str:
    """Return name and version of the client that sends this `initialize`. Raises ValueError as the app-server would."""
    try:
        info = _decode_initialize(initialize).params.client_info
    except jsonrpc.UNREADABLE as error:
        raise ValueError(f"Invalid request: {error}") from None
    return f"{info.name} {info.version}"[:MAX_NAME_CHARS]


def one_line(message: bytes) -> bytes:
    """Return a message without newlines: in a WebSocket frame there may be some between its members."""
    return msgspec.json.format(message, indent=-1) if b"\n" in message or b"\r" in message else message
