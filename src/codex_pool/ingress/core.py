"""Connections of clients over TCP, and what each may cost. Pure: bytes and the clock come in with each event.

    event        from           what follows
    accepted     a stranger     a connection with a number of its own; beyond the limit another stranger has to go
    received     a client       the handshake; messages, which wait until the link takes them
    gone         a client       reported to the broker
    send, end    the broker     encrypted, and kept until the client takes it
    allow        the keys       connections whose key is not allowed any more end
    tick         the clock      limits of time

The loop around it reads from the connections for which `may_read` is true, passes `next_for_broker` on as the link
takes it, writes what is in a connection's `outgoing`, and closes those in `over`.

`limits` has the bounds, in bytes and in time as well as in number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..auth import z85
from ..auth.principal import MAX_MESSAGE_BYTES, Identity
from ..protocol import ingress_frames, wire
from .broker_queue import BrokerQueue
from .connections import Connection, KeyUsage, overdue
from .limits import (
    ANSWERED_BYTES,
    CLOSING_LIMIT_S,
    MAX_TO_CLIENT_BYTES,
    OUT_ALL_BYTES,
    OUT_KEY_BYTES,
    PONG_BYTES,
    QUEUE_BYTES,
    QUEUE_MESSAGES,
)
from .refusals import Refusals
from .reservations import Reservations
from .screening import InvalidRequest, is_long, screened
from .zmtp import ServerConnection, ZmtpError


class ServerKeys(NamedTuple):
    """The server's CURVE pair, 32 bytes each."""

    public_key: bytes
    secret_key: bytes


class IngressCore:
    """See the module's docstring.

    `refresh_keys` is called before a key is checked: it calls `allow` if the allow-list has changed.
    """

    def __init__(
        self, server: ServerKeys, *, max_connections: int, refresh_keys: Callable[[], None] = lambda: None
    ) -> None:
        self._refresh_keys = refresh_keys
        self._server = server
        self._max_connections = max_connections
        self._allowed: Mapping[bytes, Identity] = {}
        self._last_number = 0
        self._strangers: dict[int, Connection] = {}
        self._usage_by_key: dict[bytes, KeyUsage] = {}
        self._queue_to_broker = BrokerQueue()
        self._reservations = Reservations()
        self._throttled: dict[bytes, KeyUsage] = {}
        self._outgoing_bytes = 0
        self.refusals = Refusals()
        self.connections: dict[int, Connection] = {}
        # Numbers of connections for the loop: to be closed; with something to send; readable again.
        self.over: list[int] = []
        self.dirty: set[int] = set()
        self.resumed: set[int] = set()
        # News for the broker that go before all messages.
        self.notices: deque[ingress_frames.ToBroker] = deque()

    @property
    def held(self) -> dict[str, int]:
        """Counts of what is kept, by kind, for leak checks."""
        return {
            "connections": len(self.connections),
            "strangers": len(self._strangers),
            "principals": len(self._usage_by_key),
            "queued": sum(len(usage.queue) for usage in self._usage_by_key.values()),
            "reserved": self._reservations.total_bytes,
            "waiters": len(self._reservations),
            "outgoing": self._outgoing_bytes,
        }

    # Strangers and clients.

    def accepted(self, now: float) -> int:
        """Add an incoming connection; return its number, 0 when it must be closed at once."""
        if len(self.connections) >= self._max_connections:
            self.refusals.add("too many connections")
            if not self._strangers:
                return 0
            # The one that has had the most time: a newcomer needs a few milliseconds.
            self._end(next(iter(self._strangers.values())))
        self._last_number += 1
        number = self._last_number
        zmtp = ServerConnection(*self._server, lambda key: self._admit(number, key))
        connection = Connection(number, zmtp, now)
        self.connections[number] = self._strangers[number] = connection
        self._flush_zmtp(connection, now)
        return number

    def _admit(self, number: int, key: bytes) -> int | None:
        self._refresh_keys()
        identity = self._allowed.get(key)
        if identity is None:
            return None
        usage = self._usage_by_key.get(key)
        if usage is None:
            usage = self._usage_by_key[key] = KeyUsage(key, z85.encode(key), identity)
        connection = self._strangers.pop(number)
        connection.usage = usage
        usage.connections.add(number)
        return _most_bytes(identity)

    def may_read(self, connection: Connection) -> bool:
        """True while something of it may be read."""
        return (
            connection.closing_until is None
            and connection.queued_messages < (QUEUE_MESSAGES if connection.reads else QUEUE_MESSAGES // 4)
            and connection.queued_bytes < QUEUE_BYTES
            and connection.number not in self._reservations
            and (connection.usage is None or connection.usage.key not in self._throttled)
        )

    def received(self, number: int, data: bytes, now: float) -> None:
        """Bytes of a connection, of one read."""
        connection = self.connections[number]
        if connection.closing_until is not None:
            return
        was_open = connection.zmtp.is_open
        try:
            messages = connection.zmtp.receive(data)
        except ZmtpError as error:
            self._on_fault(connection, error, now)
            return
        self._flush_zmtp(connection, now)
        if not was_open and connection.zmtp.is_open:
            connection.since = connection.heard_at = now
            usage = connection.usage
            assert usage is not None
            if len(usage.connections) > 2 * usage.identity.max_sessions + 2:
                self.refusals.add("too many connections of one key")
                self._end(connection)
                return
        for frames in messages:
            if not self._on_message(connection, frames, now):
                return
        if connection.usage is not None:
            self._reservations.update(connection, now)
            self._charge(connection.usage, len(data), len(messages), now)

    def _charge(self, usage: KeyUsage, size: int, messages: int, now: float) -> None:
        usage.byte_bucket.take(size, now)
        usage.message_bucket.take(messages, now)
        is_over = usage.byte_bucket.left < 0 or usage.message_bucket.left < 0
        if is_over and usage.key not in self._throttled:
            self._throttled[usage.key] = usage
            self.resumed |= usage.connections
        elif not is_over and self._throttled.pop(usage.key, None) is not None:
            self.resumed |= usage.connections

    def _on_message(self, connection: Connection, frames: list[bytes], now: float) -> bool:
        usage = connection.usage
        assert usage is not None
        connection.heard_at = now
        if not connection.said_hello:
            try:
                connection.said_hello = isinstance(wire.decode_from_client(frames[0]), wire.Hello)
                why = "the first message of a connection must be hello"
            except wire.WireError as error:
                why = str(error)
            if not connection.said_hello:
                self.refusals.add("no hello")
                self._close_with(connection, wire.encode(wire.Refused(why)), now)
                return False
        size = sum(map(len, frames))
        found = screened(frames, usage.identity)
        if isinstance(found, InvalidRequest):
            self.refusals.add("message")
            connection.partial_since = None
            self.send(connection.number, found.frames, now)
            return connection.number in self.connections
        # What waits was complete: it takes the place of what was reserved for it.
        connection.partial_since = None
        connection.queued_messages += 1
        connection.queued_bytes += size
        connection.reads = connection.queued_messages < QUEUE_MESSAGES
        self._queue_to_broker.add(usage, connection, found, size)
        return True

    def _retry_waiters(self, now: float) -> None:
        self.resumed |= self._reservations.retry(now)

    def gone(self, number: int) -> None:
        """Handle the end of a connection, closed by the client or lost by the network."""
        connection = self.connections.get(number)
        if connection is not None:
            if connection.usage is None:
                self.refusals.add("no handshake")
            self._end(connection)

    # Towards the broker.

    def next_for_broker(self, now: float) -> ingress_frames.ToBroker | None:
        """The next frame for the broker, None if there is none. Keys take turns."""
        if self.notices:
            return self.notices.popleft()
        entry = self._queue_to_broker.pop()
        if entry is None:
            return None
        usage, connection, frames, size = entry
        if frames is None:
            self._forget_unused(usage)
            return ingress_frames.Ended(connection.number, connection.revoked)
        connection.queued_messages -= 1
        connection.queued_bytes -= size
        connection.reads = connection.reads or connection.queued_messages < QUEUE_MESSAGES // 4
        if connection.number in self.connections:
            if connection.reserved_bytes:
                self._reservations.update(connection, now)
                self._retry_waiters(now)
            self.resumed.add(connection.number)
        principal = usage.identity.principal
        return ingress_frames.Message(connection.number, principal, usage.public_key, frames, screened=is_long(frames))

    def _forget_unused(self, usage: KeyUsage) -> None:
        has_all = usage.byte_bucket.is_full and usage.message_bucket.is_full
        if not usage.connections and not usage.queue and has_all:
            self._usage_by_key.pop(usage.key, None)

    # Towards clients.

    def send(self, number: int, frames: list[bytes], now: float) -> None:
        """A message of the broker for a client."""
        connection = self.connections.get(number)
        if connection is None or connection.usage is None or connection.closing_until is not None:
            return
        size = sum(map(len, frames))
        if size > MAX_TO_CLIENT_BYTES:
            self.refusals.add("an answer too long")
            text = f"an answer of {size} bytes; over TCP it may have {MAX_TO_CLIENT_BYTES}: ask for less at a time"
            self._close_with(connection, wire.encode(wire.Closed(text)), now)
            return
        if connection.outgoing_bytes and (
            connection.usage.outgoing_bytes + size > OUT_KEY_BYTES or self._outgoing_bytes + size > OUT_ALL_BYTES
        ):
            # Of one key it is the one that is sent to; of all the one for which the most waits.
            over_all = connection.usage.outgoing_bytes + size <= OUT_KEY_BYTES
            worst = max(self.connections.values(), key=lambda each: each.outgoing_bytes) if over_all else connection
            self.refusals.add("too slow a reader")
            self._end(worst)
            if worst is connection:
                return
        self._queue(connection, connection.zmtp.send(frames), now)

    def end(self, number: int, now: float) -> None:
        """The broker wants this connection to end once it has got everything."""
        connection = self.connections.get(number)
        if connection is not None:
            self._close(connection, now)

    def _queue(self, connection: Connection, pieces: list[bytes], now: float) -> None:
        if not connection.outgoing:
            connection.progress_at = now
        connection.outgoing += pieces
        self._count_outgoing(connection, sum(map(len, pieces)))
        self.dirty.add(connection.number)

    def _count_outgoing(self, connection: Connection, size: int) -> None:
        connection.outgoing_bytes += size
        self._outgoing_bytes += size
        if connection.usage is not None:
            connection.usage.outgoing_bytes += size

    def _flush_zmtp(self, connection: Connection, now: float) -> None:
        output = connection.zmtp.output
        if output:
            if not connection.zmtp.is_open or connection.outgoing_bytes < PONG_BYTES:
                self._queue(connection, [bytes(output)], now)
            output.clear()

    def sent(self, number: int, size: int, now: float) -> None:
        """Drop `size` bytes from the front of `outgoing`: they have been sent."""
        connection = self.connections[number]
        self._count_outgoing(connection, -size)
        connection.progress_at = now
        while size:
            first = connection.outgoing.popleft()
            if len(first) > size:
                connection.outgoing.appendleft(memoryview(first)[size:])
                break
            size -= len(first)
        if not connection.outgoing and connection.closing_until is not None:
            self._end(connection)

    # Ends.

    def _on_fault(self, connection: Connection, error: ZmtpError, now: float) -> None:
        self.refusals.add(error.reason)
        usage = connection.usage
        if error.size and usage is not None and connection.said_hello:
            identity = usage.identity
            text = (
                f"a message of {error.size} bytes; the key of {identity.name} allows {identity.max_message_bytes} "
                "bytes a message: send less, or ask the pool's owner for a higher --max-message-bytes"
            )
            self._close_with(connection, wire.encode(wire.Closed(text)), now)
            return
        self._flush_zmtp(connection, now)
        self._close(connection, now)

    def _close_with(self, connection: Connection, head: bytes, now: float) -> None:
        """End it with this as the last message."""
        self._queue(connection, connection.zmtp.send([head]), now)
        self._close(connection, now)

    def _close(self, connection: Connection, now: float) -> None:
        """Read nothing more of it, and end it once what waits for it has left."""
        if connection.closing_until is None:
            connection.closing_until = now + CLOSING_LIMIT_S
        if not connection.outgoing:
            self._end(connection)

    def _end(self, connection: Connection) -> None:
        number = connection.number
        if self.connections.pop(number, None) is None:
            return
        self._strangers.pop(number, None)
        self._reservations.remove(connection)
        self._count_outgoing(connection, -connection.outgoing_bytes)
        connection.outgoing.clear()
        self.dirty.discard(number)
        self.resumed.discard(number)
        self.over.append(number)
        usage = connection.usage
        if usage is None:
            return
        usage.connections.discard(number)
        if connection.said_hello:
            # Behind what it has sent: `bye` may be among that.
            self._queue_to_broker.add(usage, connection, None, 0)
        self._forget_unused(usage)

    def allow(self, allowed: Mapping[bytes, Identity], now: float) -> None:
        """Replace the allow-list. Connections whose key is not on it any more end."""
        self._allowed = allowed
        self.notices.append(ingress_frames.Keys())
        for usage in list(self._usage_by_key.values()):
            identity = allowed.get(usage.key)
            if identity is not None:
                usage.identity = identity
                continue
            # What it has sent, and the broker has not received, is dropped.
            kept = [entry for entry in usage.queue if entry[1] is None]
            usage.queue.clear()
            self._queue_to_broker.remove(usage)
            for connection, frames, size in kept:
                self._queue_to_broker.add(usage, connection, frames, size)
            for number in list(usage.connections):
                self.refusals.add("revoked key")
                self.connections[number].revoked = True
                self._close_with(self.connections[number], ingress_frames.REVOKED, now)

    def disconnect_all(self) -> None:
        """End all connections, and drop all that waited: the broker is gone, or was replaced."""
        for connection in list(self.connections.values()):
            self._end(connection)
        self.notices.clear()
        self._queue_to_broker.clear()
        self._usage_by_key.clear()
        self._throttled.clear()

    def tick(self, now: float) -> None:
        """Limits of time. Call it every TICK_S."""
        for connection in list(self.connections.values()):
            reason = overdue(connection, now, connection.number in self._reservations)
            if reason:
                self.refusals.add(reason)
            if reason is not None:
                self._end(connection)
        self._retry_waiters(now)
        for usage in list(self._usage_by_key.values()):
            self._charge(usage, 0, 0, now)
            self._forget_unused(usage)


def _most_bytes(identity: Identity) -> int:
    """The longest message that is read of this key: its limit, or what is answered anyway, and a head."""
    return min(max(identity.max_message_bytes, ANSWERED_BYTES), MAX_MESSAGE_BYTES) + wire.MAX_HEAD_BYTES
