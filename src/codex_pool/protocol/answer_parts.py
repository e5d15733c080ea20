"""Long answers in parts, so that short messages pass between them; split by a worker, assembled by a client. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from codex_app_server._protocol.envelope import RESPONSE

from . import jsonrpc, wire

PART_BYTES = 512 * 1024


def parts_of(line: bytes, request_id: bytes) -> Iterator[tuple[wire.AnswerPart, bytes | memoryview]]:
    """Split a response, under another request id (given as JSON), without a copy of the whole."""
    found = RESPONSE.match(line)
    if found is None:
        head, rest = b"", memoryview(jsonrpc.with_id(line, request_id))
    else:
        head, rest = line[: found.start(1)] + request_id, memoryview(line)[found.end(1) :]
    count = max(1, -(-len(rest) // PART_BYTES))
    for number in range(count):
        part: bytes | memoryview = rest[number * PART_BYTES : (number + 1) * PART_BYTES]
        if not number:
            part = head + bytes(part)
        yield wire.AnswerPart(request_id.decode(), number, number == count - 1), part


class AnswerAssembler:
    """Assembles the answers of one connection. The length is the number of incomplete ones."""

    def __init__(self) -> None:
        # By the id of the request in JSON.
        self._parts: dict[str, list[bytes]] = {}

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, part: wire.AnswerPart, bodies: list[bytes]) -> bytes | None:
        """The line that this part completes, if it does."""
        if part.number == 0:
            self._parts[part.request_id] = []
        parts = self._parts.get(part.request_id)
        if parts is None or len(parts) != part.number:
            # Of an answer whose beginning was sent to a connection that is gone: the request is sent again.
            self.drop(part.request_id)
            return None
        parts.append(b"".join(bodies))
        if not part.last:
            return None
        del self._parts[part.request_id]
        return b"".join(parts)

    def drop(self, request_id: str) -> None:
        """Drop what has come of an answer, which has been given otherwise."""
        self._parts.pop(request_id, None)

    def clear(self) -> None:
        """Drop all parts: the connection is gone."""
        self._parts.clear()
