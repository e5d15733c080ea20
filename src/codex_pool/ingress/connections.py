"""Connections of clients over TCP, and what the connections of one key cost together. Data.

    state       event                                                    next
    stranger    the handshake names a key on the allow-list              client
    client      its first message is not hello, or there is a fault      closing
    client      the broker ends it, or its key is revoked                closing
    closing     what waits for it has left, or CLOSING_LIMIT_S is over   ended
    any         a limit of `limits` is passed, or the peer is gone       ended

A stranger has no `usage`; a connection is closing while it has a `closing_until`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ..auth.principal import Identity
from .limits import (
    BURST_BYTES,
    BURST_MESSAGES,
    HANDSHAKE_LIMIT_S,
    HELLO_LIMIT_S,
    IDLE_LIMIT_S,
    MESSAGE_LIMIT_S,
    RATE_BYTES,
    RATE_MESSAGES,
    STALL_LIMIT_S,
)
from .token_bucket import TokenBucket
from .zmtp import ServerConnection


@dataclass(eq=False, slots=True)
class KeyUsage:
    """Connections that one key has, and what they cost."""

    key: bytes
    public_key: str
    identity: Identity
    connections: set[int] = field(default_factory=set)
    # What waits for the broker: messages and their sizes, None for the end of a connection.
    queue: deque[tuple[Connection, list[bytes] | None, int]] = field(default_factory=deque)
    reserved_bytes: int = 0
    # Below zero nothing is read of it.
    byte_bucket: TokenBucket = field(default_factory=lambda: TokenBucket(RATE_BYTES, BURST_BYTES, 0.0))
    message_bucket: TokenBucket = field(default_factory=lambda: TokenBucket(RATE_MESSAGES, BURST_MESSAGES, 0.0))
    outgoing_bytes: int = 0


@dataclass(eq=False, slots=True)
class Connection:
    """One connection. `principal` is None until its handshake is done."""

    number: int
    zmtp: ServerConnection
    since: float
    usage: KeyUsage | None = None
    heard_at: float = 0.0
    said_hello: bool = False
    # False while as much waits as may; it is read again once little does.
    reads: bool = True
    queued_messages: int = 0
    queued_bytes: int = 0
    reserved_bytes: int = 0
    # Since when a message that holds a reservation has been incomplete.
    partial_since: float | None = None
    outgoing: deque[bytes | memoryview] = field(default_factory=deque)
    outgoing_bytes: int = 0
    progress_at: float = 0.0
    # Nothing more is read from it; it ends once what waits for it has left, or at this time.
    closing_until: float | None = None
    revoked: bool = False


def overdue(connection: Connection, now: float, is_waiting: bool) -> str | None:
    """The limit of time that it is beyond, "" for one that need not be counted."""
    if connection.closing_until is not None:
        return "" if now >= connection.closing_until else None
    if connection.usage is None:
        return "no handshake" if now - connection.since >= HANDSHAKE_LIMIT_S else None
    if not connection.said_hello and now - connection.since >= HELLO_LIMIT_S:
        return "no hello"
    if connection.partial_since is not None and now - connection.partial_since >= MESSAGE_LIMIT_S:
        return "too slow a message"
    busy = connection.queued_messages or connection.partial_since is not None or is_waiting
    if now - connection.heard_at >= IDLE_LIMIT_S and not busy:
        return "idle"
    if connection.outgoing and now - connection.progress_at >= STALL_LIMIT_S:
        return "too slow a reader"
    return None
