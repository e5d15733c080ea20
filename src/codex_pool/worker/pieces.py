"""Long answers in pieces, so that what is shorter passes between them, here and in the broker. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from codex_app_server.envelope import RESPONSE
from codex_pool import rpc, wire

PIECE_BYTES = 512 * 1024


def pieces_of(line: bytes, request_id: bytes) -> Iterator[tuple[wire.Piece, bytes | memoryview]]:
    """A response under another request id (given as JSON), without a copy of the whole."""
    found = RESPONSE.match(line)
    if found is None:
        head, rest = b"", memoryview(rpc.with_id(line, request_id))
    else:
        head, rest = line[: found.start(1)] + request_id, memoryview(line)[found.end(1) :]
    count = max(1, -(-len(rest) // PIECE_BYTES))
    for number in range(count):
        part: bytes | memoryview = rest[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]
        if not number:
            part = head + bytes(part)
        yield wire.Piece(request_id.decode(), number, number == count - 1), part
