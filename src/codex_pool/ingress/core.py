"""Connections of clients over TCP, and what each may cost. Pure: bytes and the clock come in with each event.

    event        from           what follows
    accepted     a stranger     a connection with a number of its own; beyond the limit another stranger has to go
    received     a client       the handshake; messages, which wait until the link takes them
    gone         a client       the broker hears of it
    send, end    the broker     encrypted, and kept until the client takes it
    allow        the keys       connections whose key is not allowed any more end
    tick         the clock      limits of time

The loop around it reads from the connections for which `may_read` says so, passes `next_for_broker` on as the link has
room, writes what is in a connection's `outgoing`, and closes those in `over`.

Bounds, in bytes and in time as well as in number:

    strangers     the handshake's own bounds (`zmtp`), HANDSHAKE_LIMIT_S; of too many the one that came first goes
    clients       the first message is a Hello, within HELLO_LIMIT_S; IDLE_LIMIT_S between two messages; per key
                  connections for its sessions and as many that are being replaced
    to the broker per connection QUEUE_MESSAGES or QUEUE_BYTES: then nothing is read from it. An incomplete message of
                  more than FREE_BYTES needs room among those of its key (KEY_BYTES) and of all (ALL_BYTES), and has
                  MESSAGE_LIMIT_S to be complete. Keys take turns, SHARE_BYTES at a time. A key sends RATE_BYTES
                  and RATE_MESSAGES a second, BURST_BYTES and BURST_MESSAGES before that counts; long requests are
                  screened (see `screen`)
    to clients    per key OUT_KEY_BYTES, of all OUT_ALL_BYTES, and STALL_LIMIT_S without any progress: the connection
                  ends, and its client gets what it has missed on another one
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from codex_pool import link, wire
from codex_pool.broker.identity import MAX_MESSAGE_BYTES, Identity
from codex_pool.ingress import z85
from codex_pool.ingress.allowance import Allowance
from codex_pool.ingress.refusals import Refusals
from codex_pool.ingress.screen import Unsound, is_long, screened
from codex_pool.ingress.zmtp import ServerConnection, ZmtpError

MIB = 1024 * 1024
HANDSHAKE_LIMIT_S = 5.0
HELLO_LIMIT_S = 10.0
IDLE_LIMIT_S = 60.0
MESSAGE_LIMIT_S = 60.0
STALL_LIMIT_S = 60.0
CLOSING_LIMIT_S = 2.0
TICK_S = 0.25

QUEUE_MESSAGES = 64
QUEUE_BYTES = 256 * 1024
FREE_BYTES = 64 * 1024
KEY_BYTES = 40 * MIB
ALL_BYTES = 96 * MIB
SHARE_BYTES = 8 * 1024
SHARE_MESSAGES = 16
# A message of megabytes costs the broker some 10 ms, a short one 0.25 ms.
RATE_BYTES = 8 * MIB
BURST_BYTES = 16 * MIB
RATE_MESSAGES = 1000
BURST_MESSAGES = 2000
# Up to here what is too long for a key is passed on, so that the broker can answer the request.
ANSWERED_BYTES = MIB

MAX_TO_CLIENT_BYTES = 64 * MIB
OUT_KEY_BYTES = 64 * MIB
OUT_ALL_BYTES = 128 * MIB
# While more waits for a client, its PINGs are not answered.
PONG_BYTES = 64 * 1024


class ServerKeys(NamedTuple):
    """The server's CURVE pair, 32 bytes each."""

    public_key: bytes
    secret_key: bytes


@dataclass(eq=False, slots=True)
class Principal:
    """All connections that one key has, and what they cost."""

    key: bytes
    public_key: str
    identity: Identity
    connections: set[int] = field(default_factory=set)
    # What waits for the broker: messages and their sizes, None for the end of a connection.
    queue: deque[tuple[Connection, list[bytes] | None, int]] = field(default_factory=deque)
    reserved: int = 0
    # Below zero nothing is read of it.
    may_send: Allowance = field(default_factory=lambda: Allowance(RATE_BYTES, BURST_BYTES, 0.0))
    may_ask: Allowance = field(default_factory=lambda: Allowance(RATE_MESSAGES, BURST_MESSAGES, 0.0))
    outgoing_bytes: int = 0


@dataclass(eq=False, slots=True)
class Connection:
    """One connection. `principal` is None until its handshake is done."""

    number: int
    zmtp: ServerConnection
    since: float
    principal: Principal | None = None
    heard_at: float = 0.0
    said_hello: bool = False
    # False while as much waits as may; it is read again once little does.
    reads: bool = True
    queued: int = 0
    queued_bytes: int = 0
    reserved: int = 0
    # Since when a message that holds a reservation has been incomplete.
    partial_since: float | None = None
    outgoing: deque[bytes | memoryview] = field(default_factory=deque)
    outgoing_bytes: int = 0
    progress_at: float = 0.0
    # Nothing more is read from it; it ends once what waits for it has left, or at this time.
    closing_until: float | None = None
    revoked: bool = False


class IngressCore:
    """See the module's docstring.

    `look` is called before a key is judged: it calls `allow` if the allow-list has changed.
    """

    def __init__(self, server: ServerKeys, *, max_connections: int, look: Callable[[], None] = lambda: None) -> None:
        self._look = look
        self._server = server
        self._max_connections = max_connections
        self._allowed: Mapping[bytes, Identity] = {}
        self._last_number = 0
        self._strangers: dict[int, Connection] = {}
        self._principals: dict[bytes, Principal] = {}
        self._turns: deque[Principal] = deque()
        self._share = (0, 0)
        self._reserved = 0
        self._waiters: dict[int, Connection] = {}
        self._throttled: dict[bytes, Principal] = {}
        self._outgoing_bytes = 0
        self.refusals = Refusals()
        self.connections: dict[int, Connection] = {}
        # Numbers of connections for the loop: to be closed; with something to send; readable again.
        self.over: list[int] = []
        self.dirty: set[int] = set()
        self.resumed: set[int] = set()
        # News for the broker that go before all messages.
        self.news: deque[link.ToBroker] = deque()

    @property
    def held(self) -> dict[str, int]:
        """Counts of what is kept, by kind, for leak checks."""
        return {
            "connections": len(self.connections),
            "strangers": len(self._strangers),
            "principals": len(self._principals),
            "queued": sum(len(principal.queue) for principal in self._principals.values()),
            "reserved": self._reserved,
            "waiters": len(self._waiters),
            "outgoing": self._outgoing_bytes,
        }

    # Strangers and clients.

    def accepted(self, now: float) -> int:
        """A connection has come in; its number. 0 when it must be closed at once."""
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
        self._look()
        identity = self._allowed.get(key)
        if identity is None:
            return None
        principal = self._principals.get(key)
        if principal is None:
            principal = self._principals[key] = Principal(key, z85.encode(key), identity)
        connection = self._strangers.pop(number)
        connection.principal = principal
        principal.connections.add(number)
        return _most_bytes(identity)

    def may_read(self, connection: Connection) -> bool:
        """True while something of it may be read."""
        return (
            connection.closing_until is None
            and connection.queued < (QUEUE_MESSAGES if connection.reads else QUEUE_MESSAGES // 4)
            and connection.queued_bytes < QUEUE_BYTES
            and connection.number not in self._waiters
            and (connection.principal is None or connection.principal.key not in self._throttled)
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
            principal = connection.principal
            assert principal is not None
            if len(principal.connections) > 2 * principal.identity.max_sessions + 2:
                self.refusals.add("too many connections of one key")
                self._end(connection)
                return
        for frames in messages:
            if not self._on_message(connection, frames, now):
                return
        if connection.principal is not None:
            self._reserve_for_partial(connection, now)
            self._charge(connection.principal, len(data), len(messages), now)

    def _charge(self, principal: Principal, size: int, messages: int, now: float) -> None:
        principal.may_send.take(size, now)
        principal.may_ask.take(messages, now)
        is_over = principal.may_send.left < 0 or principal.may_ask.left < 0
        if is_over and principal.key not in self._throttled:
            self._throttled[principal.key] = principal
            self.resumed |= principal.connections
        elif not is_over and self._throttled.pop(principal.key, None) is not None:
            self.resumed |= principal.connections

    def _on_message(self, connection: Connection, frames: list[bytes], now: float) -> bool:
        principal = connection.principal
        assert principal is not None
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
        found = screened(frames, principal.identity)
        if isinstance(found, Unsound):
            self.refusals.add("message")
            connection.partial_since = None
            self.send(connection.number, found.frames, now)
            return connection.number in self.connections
        # What waits was complete: it takes the place of what was reserved for it.
        connection.partial_since = None
        connection.queued += 1
        connection.queued_bytes += size
        connection.reads = connection.queued < QUEUE_MESSAGES
        self._enqueue(principal, connection, found, size)
        return True

    def _enqueue(self, principal: Principal, connection: Connection, frames: list[bytes] | None, size: int) -> None:
        if not principal.queue:
            self._turns.append(principal)
        principal.queue.append((connection, frames, size))

    def _reserve_for_partial(self, connection: Connection, now: float) -> None:
        """Room for what is incomplete and what waits, if that is much; until there is some, nothing more is read."""
        expects = connection.zmtp.expects
        wanted = (expects if expects > FREE_BYTES else 0) + max(0, connection.queued_bytes - QUEUE_BYTES)
        principal = connection.principal
        assert principal is not None
        more = wanted - connection.reserved
        if more <= 0:
            self._release(connection, -more)
        elif (principal.reserved + more <= KEY_BYTES or principal.reserved == connection.reserved) and (
            self._reserved + more <= ALL_BYTES or self._reserved == connection.reserved
        ):
            connection.reserved += more
            principal.reserved += more
            self._reserved += more
        else:
            self._waiters[connection.number] = connection
            return
        if expects > FREE_BYTES:
            if connection.partial_since is None:
                connection.partial_since = now
        else:
            connection.partial_since = None

    def _release(self, connection: Connection, size: int) -> None:
        principal = connection.principal
        if principal is None or not size:
            return
        connection.reserved -= size
        principal.reserved -= size
        self._reserved -= size

    def _retry_waiters(self, now: float) -> None:
        for number, connection in list(self._waiters.items()):
            del self._waiters[number]
            self._reserve_for_partial(connection, now)
            if number not in self._waiters:
                self.resumed.add(number)

    def gone(self, number: int) -> None:
        """The client has closed its connection, or the network has."""
        connection = self.connections.get(number)
        if connection is not None:
            if connection.principal is None:
                self.refusals.add("no handshake")
            self._end(connection)

    # Towards the broker.

    def next_for_broker(self, now: float) -> link.ToBroker | None:
        """The next frame for the broker, None if there is none. Keys take turns."""
        if self.news:
            return self.news.popleft()
        if not self._turns:
            return None
        principal = self._turns[0]
        connection, frames, size = principal.queue.popleft()
        messages, taken = self._share[0] + 1, self._share[1] + size
        if not principal.queue:
            self._turns.popleft()
            self._share = (0, 0)
        elif messages >= SHARE_MESSAGES or taken >= SHARE_BYTES:
            self._turns.rotate(-1)
            self._share = (0, 0)
        else:
            self._share = (messages, taken)
        if frames is None:
            self._forget_unused(principal)
            return link.Ended(connection.number, connection.revoked)
        connection.queued -= 1
        connection.queued_bytes -= size
        connection.reads = connection.reads or connection.queued < QUEUE_MESSAGES // 4
        if connection.number in self.connections:
            if connection.reserved:
                self._reserve_for_partial(connection, now)
                self._retry_waiters(now)
            self.resumed.add(connection.number)
        who = principal.identity.principal
        return link.Message(connection.number, who, principal.public_key, frames, screened=is_long(frames))

    def _forget_unused(self, principal: Principal) -> None:
        has_all = principal.may_send.is_full and principal.may_ask.is_full
        if not principal.connections and not principal.queue and has_all:
            self._principals.pop(principal.key, None)

    # Towards clients.

    def send(self, number: int, frames: list[bytes], now: float) -> None:
        """A message of the broker for a client."""
        connection = self.connections.get(number)
        if connection is None or connection.principal is None or connection.closing_until is not None:
            return
        size = sum(map(len, frames))
        if size > MAX_TO_CLIENT_BYTES:
            self.refusals.add("an answer too long")
            text = f"an answer of {size} bytes; over TCP it may have {MAX_TO_CLIENT_BYTES}: ask for less at a time"
            self._close_with(connection, wire.encode(wire.Closed(text)), now)
            return
        if connection.outgoing_bytes and (
            connection.principal.outgoing_bytes + size > OUT_KEY_BYTES or self._outgoing_bytes + size > OUT_ALL_BYTES
        ):
            # Of one key it is the one that is sent to; of all the one for which the most waits.
            over_all = connection.principal.outgoing_bytes + size <= OUT_KEY_BYTES
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
        if connection.principal is not None:
            connection.principal.outgoing_bytes += size

    def _flush_zmtp(self, connection: Connection, now: float) -> None:
        output = connection.zmtp.output
        if output:
            if not connection.zmtp.is_open or connection.outgoing_bytes < PONG_BYTES:
                self._queue(connection, [bytes(output)], now)
            output.clear()

    def sent(self, number: int, size: int, now: float) -> None:
        """So many bytes of what is first in `outgoing` have left."""
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
        principal = connection.principal
        if error.size and principal is not None and connection.said_hello:
            identity = principal.identity
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
        self._waiters.pop(number, None)
        self._count_outgoing(connection, -connection.outgoing_bytes)
        connection.outgoing.clear()
        self._release(connection, connection.reserved)
        self.dirty.discard(number)
        self.resumed.discard(number)
        self.over.append(number)
        principal = connection.principal
        if principal is None:
            return
        principal.connections.discard(number)
        if connection.said_hello:
            # Behind what it has said: `bye` may be among that.
            self._enqueue(principal, connection, None, 0)
        self._forget_unused(principal)

    def allow(self, allowed: Mapping[bytes, Identity], now: float) -> None:
        """The allow-list has changed. Connections whose key is not on it any more end."""
        self._allowed = allowed
        self.news.append(link.Keys())
        for principal in list(self._principals.values()):
            identity = allowed.get(principal.key)
            if identity is not None:
                principal.identity = identity
                continue
            # What it has said, and the broker has not heard, is not listened to any more.
            kept = [entry for entry in principal.queue if entry[1] is None]
            principal.queue.clear()
            if principal in self._turns:
                self._turns.remove(principal)
                self._share = (0, 0)
            for connection, frames, size in kept:
                self._enqueue(principal, connection, frames, size)
            for number in list(principal.connections):
                self.refusals.add("revoked key")
                self.connections[number].revoked = True
                self._close_with(self.connections[number], link.REVOKED, now)

    def disconnect_all(self) -> None:
        """The broker is gone, or another: all connections end, and nothing that waited is kept."""
        for connection in list(self.connections.values()):
            self._end(connection)
        self.news.clear()
        self._turns.clear()
        self._principals.clear()
        self._throttled.clear()
        self._share = (0, 0)

    def tick(self, now: float) -> None:
        """Limits of time. Call it every TICK_S."""
        for connection in list(self.connections.values()):
            reason = _overdue(connection, now, connection.number in self._waiters)
            if reason:
                self.refusals.add(reason)
            if reason is not None:
                self._end(connection)
        self._retry_waiters(now)
        for principal in list(self._principals.values()):
            self._charge(principal, 0, 0, now)
            self._forget_unused(principal)


def _most_bytes(identity: Identity) -> int:
    """The longest message that is read of this key: its limit, or what is answered anyway, and a head."""
    return min(max(identity.max_message_bytes, ANSWERED_BYTES), MAX_MESSAGE_BYTES) + wire.MAX_HEAD_BYTES


def _overdue(connection: Connection, now: float, is_waiting: bool) -> str | None:
    """The limit of time that it is beyond, "" for one that need not be counted."""
    if connection.closing_until is not None:
        return "" if now >= connection.closing_until else None
    if connection.principal is None:
        return "no handshake" if now - connection.since >= HANDSHAKE_LIMIT_S else None
    if not connection.said_hello and now - connection.since >= HELLO_LIMIT_S:
        return "no hello"
    if connection.partial_since is not None and now - connection.partial_since >= MESSAGE_LIMIT_S:
        return "too slow a message"
    busy = connection.queued or connection.partial_since is not None or is_waiting
    if now - connection.heard_at >= IDLE_LIMIT_S and not busy:
        return "idle"
    if connection.outgoing and now - connection.progress_at >= STALL_LIMIT_S:
        return "too slow a reader"
    return None
