"""What the broker's core keeps - sessions, workers, threads, turns, calls - and the effects that it asks for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from codex_app_server import envelope
from codex_pool import wire


@dataclass(frozen=True, slots=True)
class ToPeer:
    """Send to a client (by the identity of its connection) or to a worker (by name)."""

    peer: bytes
    frames: list[bytes]


@dataclass(frozen=True, slots=True)
class ToClient(ToPeer):
    pass


@dataclass(frozen=True, slots=True)
class ToWorker(ToPeer):
    pass


@dataclass(frozen=True, slots=True)
class Registered:
    """Tell the supervisor that this worker gets requests from now on."""

    worker: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """Tell the supervisor that this worker does not answer."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the log."""

    message: str


Effect = ToClient | ToWorker | Registered | Suspect | Note


@dataclass(slots=True)
class Session:
    id: str
    client: str
    identity: bytes
    seen_at: float


@dataclass(slots=True)
class Worker:
    name: str
    slot: int
    pid: int
    app_server_pid: int
    identity: bytes
    seen_at: float
    turns: set[str] = field(default_factory=set)
    calls: set[int] = field(default_factory=set)
    # Those of the calls that start a turn.
    starting: set[int] = field(default_factory=set)
    waiting: deque[Call] = field(default_factory=deque)
    threads: set[str] = field(default_factory=set)
    progress: wire.Progress | None = None
    suspected: bool = False

    @property
    def load(self) -> int:
        return len(self.turns) + len(self.starting)


@dataclass(slots=True)
class Thread:
    record: wire.ThreadRecord
    worker: str | None
    followers: dict[str, None] = field(default_factory=dict)
    starting: set[int] = field(default_factory=set)
    turns: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Turn:
    thread_id: str
    worker: str
    sessions: list[str]


@dataclass(slots=True, eq=False)
class Call:
    """A request of a session: waiting with a worker, or under way there."""

    session: str
    request_id: envelope.RequestId
    method: str
    thread_id: str | None
    line: bytes
    interest: wire.Interest
    came_at: float
    worker: str = ""
    gather: Gather | None = None
    told: bool = False


@dataclass(slots=True)
class Gather:
    """A request that every worker answers: one answer goes back, an error if there was any."""

    left: int
    failed: bool = False
