"""Chunks of bytes to whole lines, bounded."""

from __future__ import annotations

from typing import NamedTuple

MAX_LINE_BYTES = 64 * 1024 * 1024
_KEPT_BYTES = 64 * 1024


class LongLine(NamedTuple):
    """A line beyond the cap: its first and last bytes, where the routing header stands, and its whole size."""

    head: bytes
    tail: bytes
    size_bytes: int


class LineSplitter:
    """Splits a stream into lines without their newline; empty lines are left out.

    Holds at most `max_line_bytes` of an unfinished line. Of a longer one the head and the tail are kept.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_line_bytes
        # No more than the cap: what is kept of a line must not depend on how it was cut into chunks.
        self._kept = min(max_line_bytes, _KEPT_BYTES)
        self._parts: list[bytes] = []
        self._size = 0
        self._long: tuple[bytes, bytes] | None = None

    @property
    def held_bytes(self) -> int:
        """Length of the unfinished line so far, in bytes."""
        return self._size

    def feed(self, chunk: bytes) -> list[bytes | LongLine]:
        """The lines that `chunk` completes."""
        pieces = chunk.split(b"\n")
        last = pieces.pop()
        lines: list[bytes | LongLine] = []
        if pieces and self._size:
            self._hold(pieces[0])
            pieces[0] = b""
            lines.append(self._release())
        whole = filter(None, pieces)
        lines += map(self._capped, whole) if len(chunk) > self._max else whole
        self._hold(last)
        return lines

    def rest(self) -> bytes:
        """The bytes after the last newline; of more than the cap the head."""
        return self._long[0] if self._long is not None else b"".join(self._parts)

    def _hold(self, part: bytes) -> None:
        if not part:
            return
        self._size += len(part)
        if self._long is not None:
            head, tail = self._long
            self._long = head, (tail + part)[-self._kept :]
            return
        self._parts.append(part)
        if self._size > self._max:
            whole = b"".join(self._parts)
            self._long = whole[: self._kept], whole[-self._kept :]
            self._parts = []

    def _release(self) -> bytes | LongLine:
        line: bytes | LongLine
        line = LongLine(*self._long, self._size) if self._long is not None else b"".join(self._parts)
        self._parts, self._size, self._long = [], 0, None
        return line

    def _capped(self, line: bytes) -> bytes | LongLine:
        if len(line) <= self._max:
            return line
        return LongLine(line[: self._kept], line[-self._kept :], len(line))
