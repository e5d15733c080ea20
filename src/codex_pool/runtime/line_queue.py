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

# What a pipe takes at once (PIPE_BUF on Linux).
AT_ONCE_BYTES = 4096


class LineQueue:
    """See the module's docstring. `marker(n)` makes the line that reports n lost lines; None: there is none.

    `add` may be called within any other call, by a signal handler or a finaliser that runs in the same thread.
    """

    def __init__(self, max_bytes: int, marker: Callable[[int], bytes] | None = None) -> None:
        self._max_bytes = max_bytes
        self._marker = marker
        # Lines, and between them the number of those that were lost there; how much of the first line is written.
        self._waiting: deque[bytes | int] = deque()
        self._offset = 0
        self._bytes = 0
        # Lost behind the last line that waits; and before the first one, of which no marker was written.
        self._lost_behind = 0
        self._unsaid = 0
        # What is being written before the next line: a marker, and the number in it; or the end of half a line.
        self._extra = b""
        self._extra_is_begun = False
        self._said = 0
        # Whether the destination ends in half a line, which was given up.
        self._torn = False
        self.lost = 0
        """Number of lines lost so far."""

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
        """Return what is to be written next: a marker, or whole lines that together fit AT_ONCE_BYTES, or one line."""
        if self._extra:
            return self._extra
        if not self._offset:
            self._count_lost()
            self._extra_is_begun, self._said = False, 0
            if self._torn and (self._waiting or self.has_unsaid):
                self._extra = b"\n"
            elif self._marker is not None and self._unsaid:
                self._extra, self._said = self._marker(self._unsaid), self._unsaid
            if self._extra:
                return self._extra
        lines: list[bytes] = []
        size = 0
        # By index: `add` may be called meanwhile.
        for number in range(len(self._waiting)):
            line = self._waiting[number]
            if not isinstance(line, bytes) or (lines and size + len(line) > AT_ONCE_BYTES):
                break
            lines.append(line)
            size += len(line)
        return b"".join(lines)[self._offset :]

    def wrote(self, count: int) -> None:
        """Take away the first `count` bytes of the head."""
        if not count:
            return
        if self._extra:
            self._extra = self._extra[count:]
            self._extra_is_begun = True
            self._torn = self._torn and self._said > 0
            if not self._extra:
                self._unsaid -= self._said
            return
        count += self._offset
        while count and count >= (size := len(self._first())):
            self._take()
            count -= size
        self._offset = count

    def failed(self) -> None:
        """Give up the first line of the head. If that is a marker, the line behind it would fail as well."""
        if self._extra:
            rest, self._extra, is_begun = self._extra, b"", self._extra_is_begun
        elif self._waiting and isinstance(line := self._waiting[0], bytes):
            rest, is_begun = line[self._offset :], self._offset > 0
        else:
            return
        self._torn = self._torn or is_begun
        if is_begun and rest == b"\n":
            # It is whole once its end is written, before what comes next.
            if self._offset:
                self._take()
            else:
                self._unsaid -= self._said
            return
        if self._waiting and isinstance(self._waiting[0], bytes):
            lines = _lines_in(self._first()[self._offset :])
            self._take()
            self.lost += lines
            self._unsaid += lines

    def _first(self) -> bytes:
        line = self._waiting[0]
        assert isinstance(line, bytes)
        return line

    def _take(self) -> None:
        self._bytes -= len(self._first())
        self._waiting.popleft()
        self._offset = 0

    def _count_lost(self) -> None:
        """Take away the numbers before the first line."""
        while self._waiting and isinstance(lost := self._waiting[0], int):
            self._unsaid += lost
            self._waiting.popleft()
        if not self._waiting:
            lost, self._lost_behind = self._lost_behind, 0
            self._unsaid += lost


def _lines_in(text: bytes) -> int:
    return max(1, text.count(b"\n"))
