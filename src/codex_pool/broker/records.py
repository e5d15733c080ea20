"""What the broker's core keeps - sessions, workers, threads, turns, calls - and the effects that it asks for."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from codex_app_server import envelope
from codex_pool import rpc, wire
from codex_pool.broker.gather import Gather
from codex_pool.broker.queue import FairQueue
from codex_pool.ownership import Row

# The session that sent a request, and the request's id in JSON.
CallKey = tuple[wire.SessionId | None, str]

# A thread that is read for a list.
ENTRY = "pool/entry"
# A page of a worker's threads, for a list of all.
PAGE = "pool/page"
WEIGHTS: dict[wire.Priority, int] = {"interactive": 4, "batch": 1}


@dataclass(frozen=True, slots=True)
class ToPeer:
    """Send to a client or to a worker, by the identity of its connection."""

    peer: bytes
    frames: list[bytes]


@dataclass(frozen=True, slots=True)
class ToClient(ToPeer):
    pass


@dataclass(frozen=True, slots=True)
class ToWorker(ToPeer):
    pass


@dataclass(frozen=True, slots=True)
class Forget:
    """This connection of a client is over: what waits for it is dropped."""

    peer: bytes


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
class Drained:
    """Tell the supervisor that nothing is left on this worker, and nothing new will come to it.

    Once; `BrokerCore.drained` says it to a supervisor that asks.
    """

    worker: str


@dataclass(frozen=True, slots=True)
class Renew:
    """Tell the supervisor that this worker's app-server has what is out of date in memory, and must be replaced."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class AccountChanged:
    """Tell the supervisor, which outlives this broker, as of when an app-server has the account.

    With `under_way` a change has begun: should the broker die now, every app-server is out of date.
    """

    changed_at: float
    under_way: bool


@dataclass(frozen=True, slots=True)
class Keep:
    """Write down, for the broker after this one, what these threads are now; None: forgotten."""

    threads: dict[str, wire.ThreadRecord | None]


@dataclass(frozen=True, slots=True)
class Own:
    """Write these rows to the ownership store, then tell the core, by the number, that this and all before is there."""

    number: int
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the log."""

    message: str


Effect = ToClient | ToWorker | Forget | Registered | Suspect | Drained | Renew | AccountChanged | Keep | Own | Note


@dataclass(slots=True)
class Session:
    """`identity` is that of its connection, b"" when it has none; `key` the public key that it came in with.

    `key` is "" over ipc, and for one that is known from a worker only.
    """

    id: wire.SessionId
    client: str
    identity: bytes
    seen_at: float
    key: str = ""
    priority: wire.Priority = "interactive"
    when_gone: wire.WhenGone = "interrupt"
    # It takes long answers in pieces.
    pieces: bool = False
    away_since: float | None = None
    # Until when it may stay away.
    away_until: float = 0.0
    # When a turn that it follows has last ended.
    turn_ended_at: float = -1.0
    # Something was not sent to it while it was away: only a new connection can make up for that.
    missed: bool = False
    # The connection that broke last, b"" once it has another: what was sent on it before may still come.
    broken: bytes = b""
    # Its calls that are held here, by their ids in JSON.
    waiting: dict[str, Call] = field(default_factory=dict)
    waiting_bytes: int = 0
    # How the notifications begin that it does not want.
    opted_out: tuple[bytes, ...] = ()

    @property
    def who(self) -> str:
        """Its principal; "" is the pool's owner."""
        return self.id.principal


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
    # How many of the calls count against the places of which principal.
    places: Counter[str] = field(default_factory=Counter)
    waiting: FairQueue[Call] = field(default_factory=FairQueue)
    threads: set[str] = field(default_factory=set)
    progress: wire.Progress | None = None
    # When its loop was seen to turn last.
    turned_at: float = 0.0
    suspected: bool = False
    draining_since: float | None = None
    drained: bool = False
    drained_at: float = 0.0
    told_drained: bool = False
    # What came for its threads when it was drained: routed anew once it is gone.
    parked: list[Call] = field(default_factory=list)
    # As of when its app-server has the account, and what is kept for all of them.
    as_of: float = 0.0
    kept_at: float = 0.0
    # Why its app-server must be renewed, "" if it need not be: it has an account that is none any more.
    stale: str = ""
    # It has yet to be given what is kept.
    behind: bool = False
    # What is below it, as it has told last, None if it never has; threads loaded since, and calls that load one.
    tree: wire.Tree | None = None
    fresh: int = 0
    loading: set[int] = field(default_factory=set)
    # Since when it has no room for a further thread.
    full_since: float | None = None

    @property
    def load(self) -> int:
        return len(self.turns) + len(self.starting)

    @property
    def draining(self) -> bool:
        return self.draining_since is not None

    @property
    def leaving(self) -> bool:
        """True when it is to be replaced: threads that can leave it do."""
        return self.draining or bool(self.stale)

    @property
    def takes_work(self) -> bool:
        return not self.leaving and not self.behind


@dataclass(slots=True)
class Thread:
    record: wire.ThreadRecord
    worker: str | None
    followers: dict[wire.SessionId, None] = field(default_factory=dict)
    starting: set[int] = field(default_factory=set)
    turns: set[str] = field(default_factory=set)
    used_at: float = 0.0
    # The worker with which turns wait that are to bring it back, once it is with none.
    chosen: str = ""
    # On its way from one worker to another: the calls that wait for that.
    moving: list[Call] | None = None
    # When a turn may begin that no request starts at that moment: a goal was set, say.
    begins_at: float = -math.inf
    # Its worker would not let it go.
    pinned: bool = False
    archived: bool = False

    @property
    def busy(self) -> bool:
        return bool(self.turns or self.starting or self.moving is not None)

    @property
    def stored(self) -> bool:
        """Whether another app-server can take it up."""
        return not self.record.ephemeral and self.record.turns > 0


@dataclass(slots=True)
class Turn:
    thread_id: str
    worker: str
    sessions: list[wire.SessionId]


@dataclass(slots=True, eq=False)
class Call:
    """A request of a session: held here, or under way in a worker. Without a session it is the pool's own."""

    session: wire.SessionId | None
    request_id: envelope.RequestId
    method: str
    thread_id: str | None
    line: bytes
    interest: wire.Interest
    came_at: float
    timeout_s: int = 60
    scope: str = "owner"
    starts_turn: bool = False
    turn_id: str | None = None
    # It was sent to a worker before, and no answer was seen.
    again: bool = False
    tries: int = 0
    worker: str = ""
    gather: Gather | None = None
    told: bool = False
    dropped: bool = False
    # The id in JSON; with its session it names the request.
    id_json: str = field(init=False)
    key: CallKey = field(init=False)

    def __post_init__(self) -> None:
        self.id_json = rpc.encode(self.request_id).decode()
        self.key = self.session, self.id_json

    def repeats(self, before: Call) -> bool:
        """Return True if this is the request `before`, sent again by its client."""
        return self.again and self.line == before.line

    @property
    def who(self) -> str:
        """Principal of its session."""
        return self.session.principal if self.session is not None else ""
