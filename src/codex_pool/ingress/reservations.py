"""Reservations: memory for messages that are incomplete or wait for the broker, bounded by key and in all. Pure."""

from __future__ import annotations

from .connections import Connection
from .limits import ALL_BYTES, FREE_BYTES, KEY_BYTES, QUEUE_BYTES


class Reservations:
    """See the module's docstring. A connection for which there is no memory waits, and is not read."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self._waiting: dict[int, Connection] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, number: int) -> bool:
        """True for the number of a connection that waits."""
        return number in self._waiting

    def update(self, connection: Connection, now: float) -> None:
        """Reserve what the messages of a connection need beyond what is free to all, or have it wait."""
        expects = connection.zmtp.expects
        wanted = (expects if expects > FREE_BYTES else 0) + max(0, connection.queued_bytes - QUEUE_BYTES)
        usage = connection.usage
        assert usage is not None, "only clients have messages"
        more = wanted - connection.reserved_bytes
        if more <= 0 or (
            (usage.reserved_bytes + more <= KEY_BYTES or usage.reserved_bytes == connection.reserved_bytes)
            and (self.total_bytes + more <= ALL_BYTES or self.total_bytes == connection.reserved_bytes)
        ):
            self._add(connection, more)
        else:
            self._waiting[connection.number] = connection
            return
        if expects > FREE_BYTES:
            if connection.partial_since is None:
                connection.partial_since = now
        else:
            connection.partial_since = None

    def remove(self, connection: Connection) -> None:
        """Release all that a connection has, which has ended."""
        self._waiting.pop(connection.number, None)
        self._add(connection, -connection.reserved_bytes)

    def retry(self, now: float) -> set[int]:
        """Reserve for connections that wait; the numbers of those that wait no longer."""
        resumed = set()
        for number, connection in list(self._waiting.items()):
            del self._waiting[number]
            self.update(connection, now)
            if number not in self._waiting:
                resumed.add(number)
        return resumed

    def _add(self, connection: Connection, size: int) -> None:
        usage = connection.usage
        if usage is None or not size:
            return
        connection.reserved_bytes += size
        usage.reserved_bytes += size
        self.total_bytes += size
