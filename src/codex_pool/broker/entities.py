"""Sessions, workers, threads and turns, as the broker's core knows them. Data; `request` has the requests."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from ..protocol import wire
from .request import Request
from .request_queues import OrderedQueue, TurnQueue

WEIGHTS: dict[wire.Priority, int] = {"interactive": 4, "batch": 1}
# Other workers are preferred to one that has sent nothing for so long.
WORKER_QUIET_S = 3 * wire.BEAT_S

SessionState = Literal["connected", "silent", "outdated", "disconnected", "ended"]


@dataclass(slots=True)
class Session:
    """A client's session; `sessions` has the table of its states.

    `identity` is that of its connection, b"" when it has none; `key` the public key that it came in with, "" over ipc,
    and for one that is known from a worker only.
    """

    id: wire.SessionId
    client: str
    identity: bytes
    seen_at: float
    key: str = ""
    priority: wire.Priority = "interactive"
    when_gone: wire.WhenGone = "interrupt"
    # It takes long answers in parts.
    takes_parts: bool = False
    # It takes messages of notifications in packs.
    takes_packs: bool = False
    # It sends and gets beats. One over the link of the gateway does not: it is alive as long as the link is.
    beats: bool = True
    # It gets every turn of the threads that it is subscribed to.
    all_turns: bool = False
    # It understands pool/queued and pool/dequeued.
    knows_queue: bool = True
    state: SessionState = "connected"
    # Unless it is connected: since when, and until when it may be so.
    away_since: float | None = None
    away_until: float = 0.0
    # It is over but for turns that it keeps and that wait to be started.
    lingers: bool = False
    # When a turn that it follows has last ended.
    turn_ended_at: float = -1.0
    # The connection that broke last, b"" once it has another: what was sent on it before may still come.
    broken: bytes = b""
    # Its requests that are held here, by their ids in JSON, and their bytes (see `in_flight`).
    held: dict[str, Request] = field(default_factory=dict)
    held_bytes: int = 0
    # It was sent the notifications that an app-server sends to each new connection.
    greeted: bool = False
    # The beginnings of notifications that it does not want.
    opted_out: tuple[bytes, ...] = ()
    # When it was first known here.
    began_at: float = 0.0
    # How it came in: "ipc", "tcp", "unix" or "ws"; "" for one that is known from a worker only.
    listener: str = ""
    # Name and version of its program, as of `initialize`; "" before.
    program: str = ""
    program_version: str = ""

    @property
    def principal(self) -> str:
        """The principal of the session; "" is the pool's owner."""
        return self.id.principal

    @property
    def options(self) -> wire.SessionOptions:
        """The part of it that workers must know."""
        return wire.SessionOptions(self.id, self.all_turns, self.when_gone == "keep")

    @property
    def is_away(self) -> bool:
        """True while nothing is sent to it."""
        return self.state != "connected"

    @property
    def weight(self) -> int:
        """The share of the session in fair queues."""
        return WEIGHTS[self.priority]


@dataclass(slots=True)
class Worker:
    """A worker that has registered. `requests`, `starting`, `loading` and the permits are indexes of `in_flight`."""

    name: str
    slot: int
    pid: int
    app_server_pid: int
    identity: bytes
    seen_at: float
    # When its app-server was started.
    started_at: float = 0.0
    # That its app-server has answered to initialize.
    codex_version: str | None = None
    turns: set[str] = field(default_factory=set)
    # Of its turns, those that wait for a person, and since when; those of them that hold no permit.
    waiting: dict[str, float] = field(default_factory=dict)
    without_permit: set[str] = field(default_factory=set)
    # The thread with the turn that runs beside the others (see `side_turns`), "" without one.
    side_thread: str = ""
    # Requests that are dispatched to it, by number; those that start a turn, and that load a thread.
    requests: dict[int, Request] = field(default_factory=dict)
    starting: set[int] = field(default_factory=set)
    loading: set[int] = field(default_factory=set)
    # Permits that the requests of a principal hold, and their bytes.
    permits: Counter[str] = field(default_factory=Counter)
    permit_bytes: Counter[str] = field(default_factory=Counter)
    # Turns that wait to be started here.
    queue: TurnQueue = field(default_factory=TurnQueue)
    # Requests for its threads that came when it had drained: routed again once it is gone.
    deferred: OrderedQueue = field(default_factory=lambda: OrderedQueue("worker's end"))
    threads: set[str] = field(default_factory=set)
    progress: wire.Progress | None = None
    # When its loop was last known to turn.
    turned_at: float = 0.0
    suspected: bool = False
    draining_since: float | None = None
    drained: bool = False
    drained_at: float = 0.0
    drained_reported: bool = False
    # While it drains: it was told to end the commands and processes of clients.
    processes_ended: bool = False
    # Since when its app-server has the account, and the replayed requests.
    as_of: float = 0.0
    kept_at: float = 0.0
    # Why its app-server must be renewed, "" if it need not be: it has a former account.
    stale: str = ""
    # It has yet to be given the replayed requests.
    behind: bool = False
    # The processes below it, as it has reported last, None if it never has; threads loaded since.
    tree: wire.ProcessTree | None = None
    fresh: int = 0
    # Since when it has no capacity for a further thread.
    full_since: float | None = None

    @property
    def load(self) -> int:
        """The number of turns that the worker runs or is about to run and that hold a permit."""
        return len(self.turns) + len(self.starting) - len(self.without_permit) - bool(self.side_thread)

    @property
    def draining(self) -> bool:
        return self.draining_since is not None

    @property
    def leaving(self) -> bool:
        """True when it is to be replaced: threads that can leave it do."""
        return self.draining_since is not None or bool(self.stale)

    @property
    def takes_work(self) -> bool:
        return not self.leaving and not self.behind

    def is_silent(self, now: float) -> bool:
        return now - self.seen_at > WORKER_QUIET_S


@dataclass(slots=True)
class Thread:
    """A thread that is known. `worker` is None while no worker has it."""

    record: wire.ThreadRecord
    worker: str | None
    followers: dict[wire.SessionId, None] = field(default_factory=dict)
    # Dispatched requests that start a turn on it, by number (see `in_flight`).
    starting: set[int] = field(default_factory=set)
    turns: set[str] = field(default_factory=set)
    used_at: float = 0.0
    # While no worker has it: the worker with which turns wait that are to bring it back.
    chosen: str = ""
    # On its way from one worker to another: the requests that wait for that.
    moving: OrderedQueue | None = None
    # When a turn may begin that no request starts at that moment: for example when a goal was set.
    begins_at: float = -math.inf
    # Its worker would not let it go.
    pinned: bool = False
    archived: bool = False

    @property
    def busy(self) -> bool:
        return bool(self.turns or self.starting or self.moving is not None)

    @property
    def stored(self) -> bool:
        """True if another app-server can load it."""
        return not self.record.ephemeral and self.record.turns > 0


@dataclass(slots=True)
class Turn:
    """A turn that runs, and the sessions that follow it."""

    thread_id: str
    worker: str
    sessions: list[wire.SessionId]
    began_at: float = 0.0
    # When its last notification came, as of the worker's last report, and its tokens, None before they are reported.
    heard_at: float = 0.0
    tokens: wire.Tokens | None = None
    # While it waits for a person: the method of the app-server's request.
    waits_for: str = ""


def bound(table: dict[Any, Any], limit: int) -> None:
    """Remove the oldest entries beyond the limit."""
    while len(table) > limit:
        del table[next(iter(table))]
