"""What comes out of the router for each read: answers, runs of notifications, questions, and what is wrong."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from .envelope import RequestId

# Whoever waits.
Token = Hashable


@dataclass(slots=True)
class Reply:
    """The answer to a request. `turn_id` is set when it started a turn; `forgotten` when nobody waits any more.

    `thread_id` is the thread of that turn, which for a detached review is not that of the request.
    """

    token: Token
    line: bytes
    is_error: bool
    turn_id: str | None = None
    thread_id: str | None = None
    forgotten: bool = False


@dataclass(slots=True)
class TurnRun:
    """Notifications of one turn, in order, for its followers. `methods` runs parallel to `lines`.

    `counts`: by their place in `lines` the stretches, and how many lines each has; every other place has one.
    """

    tokens: list[Token]
    thread_id: str | None
    turn_id: str
    lines: list[bytes] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    ended: bool = False
    counts: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class ThreadRun:
    """Notifications of a thread that belong to no followed turn, for the thread's followers."""

    tokens: list[Token]
    thread_id: str
    lines: list[bytes] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)


@dataclass(slots=True)
class GlobalRun:
    """Notifications that nobody in particular waits for."""

    lines: list[bytes] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Ask:
    """A request of the app-server to the client, e.g. for an approval."""

    id: RequestId
    method: str
    thread_id: str | None
    turn_id: str | None
    line: bytes


@dataclass(slots=True)
class LongAsk:
    """A request of the app-server that was too long to keep, so nobody can be asked; it must be declined."""

    ask: Ask
    reason: str


@dataclass(slots=True)
class TurnBroken:
    """This turn cannot be followed any further: a line was too long to keep, or, with `ended`, it is over already."""

    tokens: list[Token]
    thread_id: str | None
    turn_id: str
    reason: str
    ended: bool = False


@dataclass(slots=True)
class Malformed:
    """A line that is not of this protocol; it is reported and otherwise ignored."""

    line: bytes
    reason: str


Delivery = Reply | TurnRun | ThreadRun | GlobalRun | Ask | LongAsk | TurnBroken | Malformed
