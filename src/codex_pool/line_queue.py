"""Lines on their way to a descriptor that may not take them: bounded in bytes; lost ones are counted. Pure.

    add(line)      it waits, or is lost when there is no room
    head()         the bytes to write next; empty when there are none
    wrote(n)       the first n of them were written
    failed()       they cannot be written: their line is lost

Lines keep their order. Where some were lost, a marker with their number is written before the next line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class LineQueue:
    """See the module's docstring. `marker(n)` makes the line that says that n lines were lost; None: nothing says so.

    `add` may be called within any other call, by a signal handler or a finaliser that runs in the same thread.
    """

    def __init__(self, max_bytes: int, marker: Callable[[int], bytes] | None = None) -> None:
        self._max_bytes = max_bytes
        self._marker = marker
        # Lines, and between them the number of those that were lost there.
        self._waiting: deque[bytes | int] = deque()
        self._bytes = 0
        # Lost behind the last line that waits; and before the first one, of which no marker was written.
        self._lost_behind = 0
        self._unsaid = 0
        # What is being written: of a line, its size; of a marker, the number in it; of the end of half a line, neither.
        self._head = b""
        self._size = self._said = 0
        self._is_begun = False
        # Whether the destination ends in half a line, which was given up.
        self._torn = False
        self.lost = 0
        """How many lines were lost so far."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes of lines that are not written yet."""
        return self._bytes

    @property
    def has_unsaid(self) -> bool:
        """Return True while lines were lost of which no marker was written."""
        return self._marker is not None and bool(self._unsaid or self._lost_behind)

    def add(self, line: bytes) -> bool:
        """Queue a line, with its end; return False if it is lost. Text without an end of line counts as a line."""
        if not line:
            return True
        if self._bytes + len(line) > self._max_bytes:
            lines = _lines_in(line)
            self._lost_behind += lines
            self.lost += lines
            return False
        self._bytes += len(line)
        lost, self._lost_behind = self._lost_behind, 0
        if lost:
            self._waiting.append(lost)
        self._waiting.append(line)
        return True

    def head(self) -> bytes:
        """Return what is to be written next."""
        if self._head:
            return self._head
        line = self._pop(peek=True)
        self._size = self._said = 0
        self._is_begun = False
        if self._unsaid and self._marker is not None:
            self._said, self._head = self._unsaid, self._marker(self._unsaid)
        elif line:
            self._size, self._head = len(line), line
        if self._head and self._torn:
            self._size = self._said = 0
            self._head = b"\n"
        elif self._size:
            self._pop()
        return self._head

    def wrote(self, count: int) -> None:
        """Take away the first `count` bytes of the head."""
        if count:
            self._is_begun = True
            self._torn = self._torn and not self._is_end
            self._head = self._head[count:]
            if not self._head:
                self._done()

    def failed(self) -> None:
        """Give up the head. If it is a marker, the line behind it is given up too, which would fail as well."""
        if not self._head:
            return
        self._torn = self._torn or self._is_begun
        line, self._head = self._head, b""
        if line == b"\n" and self._is_begun:
            # Only the end of the line is missing, and comes before the next one.
            self._done()
            return
        if self._size:
            self._bytes -= self._size
        else:
            line = self._pop()
            self._bytes -= len(line)
        lines = _lines_in(line) if line else 0
        self.lost += lines
        self._unsaid += lines

    @property
    def _is_end(self) -> bool:
        """Return True if the head is the end of half a line."""
        return not self._size and not self._said

    def _pop(self, *, peek: bool = False) -> bytes:
        """The first line that waits, or empty; the numbers before it are taken away."""
        while self._waiting:
            first = self._waiting[0] if peek and isinstance(self._waiting[0], bytes) else self._waiting.popleft()
            if isinstance(first, bytes):
                return first
            self._unsaid += first
        lost, self._lost_behind = self._lost_behind, 0
        self._unsaid += lost
        return b""

    def _done(self) -> None:
        self._unsaid -= self._said
        self._bytes -= self._size


def _lines_in(text: bytes) -> int:
    return max(1, text.count(b"\n"))
