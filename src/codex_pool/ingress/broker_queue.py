"""BrokerQueue: messages that wait for the broker; keys take turns, SHARE_BYTES or SHARE_MESSAGES at a time. Pure."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from .connections import Connection, KeyUsage
from .limits import SHARE_BYTES, SHARE_MESSAGES


class Entry(NamedTuple):
    """A message of a connection and its size in bytes; without frames it is the end of the connection."""

    usage: KeyUsage
    connection: Connection
    frames: list[bytes] | None
    size: int


class BrokerQueue:
    """See the module's docstring."""

    def __init__(self) -> None:
        # Keys that have something waiting; the first one has its turn.
        self._rotation: deque[KeyUsage] = deque()
        # Messages and bytes that it has had in this turn.
        self._served = (0, 0)

    def add(self, usage: KeyUsage, connection: Connection, frames: list[bytes] | None, size: int) -> None:
        """Add a message, or the end of a connection."""
        if not usage.queue:
            self._rotation.append(usage)
        usage.queue.append((connection, frames, size))

    def pop(self) -> Entry | None:
        """Take out what comes next."""
        if not self._rotation:
            return None
        usage = self._rotation[0]
        connection, frames, size = usage.queue.popleft()
        messages, taken = self._served[0] + 1, self._served[1] + size
        if not usage.queue:
            self._rotation.popleft()
            self._served = (0, 0)
        elif messages >= SHARE_MESSAGES or taken >= SHARE_BYTES:
            self._rotation.rotate(-1)
            self._served = (0, 0)
        else:
            self._served = (messages, taken)
        return Entry(usage, connection, frames, size)

    def remove(self, usage: KeyUsage) -> None:
        """Take a key out whose queue was cleared."""
        if usage in self._rotation:
            self._rotation.remove(usage)
            self._served = (0, 0)

    def clear(self) -> None:
        """Take everything out."""
        self._rotation.clear()
        self._served = (0, 0)
