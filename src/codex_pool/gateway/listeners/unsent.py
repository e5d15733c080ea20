"""Messages that are not sent to a client yet, as frames of WebSocket, and the budget for those of all clients. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from . import limits


def header(size: int) -> bytes:
    """The header of a text frame from a server, with a message of `size` bytes in one piece (RFC 6455, 5.2)."""
    if size < 126:
        return bytes((0x81, size))
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big")
    return b"\x81\x7f" + size.to_bytes(8, "big")


class Budget:
    """Bytes that are not sent, of all clients together."""

    def __init__(self, limit_bytes: int = limits.ALL_UNSENT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self.bytes = 0

    @property
    def is_exceeded(self) -> bool:
        """True if the client with the most has to go."""
        return self.bytes > self._limit_bytes


class Unsent:
    """Frames for one client, in order. `bytes` and `messages` count those that are here or in the socket's buffer.

    `in_buffer` of them wait in the buffer of the connection, as far as that is congested.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._frames: deque[bytes] = deque()
        self._in_buffer = 0
        self.bytes = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    @property
    def messages(self) -> int:
        """Number of messages that are here."""
        return len(self._frames)

    @property
    def is_too_much(self) -> bool:
        """True if the client has to go."""
        return len(self._frames) > limits.UNSENT_MESSAGES or self.bytes > limits.UNSENT_BYTES

    def add(self, lines: Iterable[bytes]) -> None:
        """Add messages."""
        before = self.bytes
        for line in lines:
            frame = header(len(line)) + line
            self._frames.append(frame)
            self.bytes += len(frame)
        self._budget.bytes += self.bytes - before

    def take(self) -> bytes:
        """Take what is to be written next: frames of WRITE_BYTES together, or one that is longer."""
        frames = self._frames
        taken = [frames.popleft()]
        size = len(taken[0])
        while frames and size + len(frames[0]) <= limits.WRITE_BYTES:
            taken.append(frames.popleft())
            size += len(taken[-1])
        self._count(-size)
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def buffered(self, size: int) -> None:
        """Note how many bytes the buffer of the connection holds."""
        self._count(size - self._in_buffer)
        self._in_buffer = size

    def clear(self) -> None:
        """Forget all of it: the client is gone."""
        self._frames.clear()
        self._in_buffer = 0
        self._count(-self.bytes)

    def _count(self, change: int) -> None:
        self.bytes += change
        self._budget.bytes += change
