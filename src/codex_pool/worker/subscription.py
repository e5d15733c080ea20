"""Subscription, with its session and messages: what `subscriptions` keeps of a turn for one session. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from ..protocol import wire
from .turn_stream import Turn

MIB = 1024 * 1024

# What a message costs beside its frames.
MESSAGE_OVERHEAD_BYTES = 512


class Limits(NamedTuple):
    """Bounds in bytes, as of `subscriptions`."""

    window: int = 4 * MIB
    session_window: int = 16 * MIB
    waiting: int = 8 * MIB
    overflow: int = 64 * MIB
    total: int = 256 * MIB


LIMITS = Limits()


class Message(msgspec.Struct, frozen=True, eq=False, gc=False):
    """An Events message. `frames` are its head and bodies."""

    after: int
    last: int
    runs: list[wire.Run]
    frames: list[bytes]
    ended: bool
    size_bytes: int


@dataclass(slots=True, eq=False)
class Subscription:
    """One session's part in one turn. `covered` is the highest number that was published to it, `start` the one that
    it joined after."""

    turn: Turn
    session: Session
    interest: wire.Interest
    start: int
    covered: int
    sent: deque[Message] = field(default_factory=deque)
    waiting: deque[Message] = field(default_factory=deque)
    sent_bytes: int = 0
    waiting_bytes: int = 0
    # Nothing is published to it any more: the turn is over, or it is for this session.
    ended: bool = False
    overflowed: bool = False
    # Its end was sent and is no longer kept, for lack of room.
    given_up: bool = False

    @property
    def kept_bytes(self) -> int:
        return self.sent_bytes + self.waiting_bytes


@dataclass(slots=True, eq=False)
class Session:
    """`full`: a message could not be sent for lack of the session's credit, not of its subscription's."""

    id: wire.SessionId
    route: bytes
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    sent_bytes: int = 0
    full: bool = False
