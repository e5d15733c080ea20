"""The deliveries of the router for each read: answers, runs of notifications, server requests, and faults."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from .._protocol.envelope import RequestId

# A listener.
Token = Hashable


@dataclass(slots=True)
class Reply:
    """The answer to a request. `turn_id` is set when it started a turn; `forgotten` when it is no longer waited for.

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
    """Notifications of one turn, in order, for its followers. `methods` runs parallel to `lines`."""

    tokens: list[Token]
    thread_id: str | None
    turn_id: str
    lines: list[bytes] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    ended: bool = False


@dataclass(slots=True)
class ThreadRun:
    """Notifications of a thread that belong to no followed turn, for the thread's followers."""

    tokens: list[Token]
    thread_id: str
    lines: list[bytes] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)


@dataclass(slots=True)
class GlobalRun:
    """Notifications that no particular listener waits for."""

    lines: list[bytes] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ServerRequest:
    """A request of the app-server to the client, e.g. for an approval."""

    id: RequestId
    method: str
    thread_id: str | None
    turn_id: str | None
    line: bytes


@dataclass(slots=True)
class OversizedServerRequest:
    """A request of the app-server that was too long to keep, so no handler can be asked; it must be declined."""

    request: ServerRequest
    reason: str


@dataclass(slots=True)
class TurnBroken:
    """A turn that cannot be followed any further: a line was too long to keep, or, with `ended`, it is over already."""

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


Delivery = Reply | TurnRun | ThreadRun | GlobalRun | ServerRequest | OversizedServerRequest | TurnBroken | Malformed


class ReadDeliveries:
    """The deliveries of one read, and the runs among them that may still grow.

    `known`: by how a line begins, what adds it and its method to the run of its turn, and that method.
    """

    __slots__ = ("known", "others", "out", "turns")

    def __init__(self, out: list[Delivery]) -> None:
        self.out = out
        self.turns: dict[str, TurnRun] = {}
        self.known: dict[bytes, tuple[Callable[[bytes], None], Callable[[str], None], str]] = {}
        # By thread; None is all listeners.
        self.others: dict[str | None, ThreadRun | GlobalRun] = {}

    def cut_turn(self, turn_id: str) -> None:
        """Close the run of this turn, if there is one."""
        self.turns.pop(turn_id, None)
        self.known.clear()

    def cut_turns(self, thread_id: str | None) -> None:
        """Close the runs of the turns of this thread."""
        for turn_id in [turn_id for turn_id, run in self.turns.items() if run.thread_id == thread_id]:
            self.cut_turn(turn_id)

    def cut_thread(self, thread_id: str | None) -> None:
        """Close the runs that lines of this thread outside of its turns may be in."""
        self.others.pop(thread_id, None)
        self.others.pop(None, None)

    def cut(self) -> None:
        """Close all runs: what comes next must not join one that stands before it."""
        self.turns.clear()
        self.known.clear()
        self.others.clear()
