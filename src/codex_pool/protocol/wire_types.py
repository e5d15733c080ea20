"""Types shared by the frames of the pool: identifiers, records and literals. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

VERSION = 1
MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 128 * 1024 * 1024
# Of turns in a Hello, and of the body that has them.
MAX_POSITIONS = 16_384
MAX_POSITIONS_BYTES = 4 * 1024 * 1024

BEAT_S = 1.0

Interest = Literal["full", "items", "final"]
Class = Literal["kept", "droppable", "dropped"]
# The ends of a turn that are counted: those of the app-server and those of the pool.
TURN_ENDS = ("completed", "failed", "interrupted", "lost", "stalled")
Priority = Literal["interactive", "batch"]
WhenGone = Literal["interrupt", "keep"]


def next_beat(now: float) -> float:
    """Return when the next beat is due: at full seconds of CLOCK_MONOTONIC.

    All processes of a machine beat at the same moment, so that the broker wakes up once for all of them.
    """
    return (now // BEAT_S + 1) * BEAT_S


class WireError(ValueError):
    """A message that is not of this protocol, or beyond its bounds."""


class SessionId(NamedTuple):
    """Key of a session in the pool: its principal, and the id that its client chose.

    `principal` is "" for the pool's owner, else the id of the holder of the key. Clients choose ids as they like, and
    never their principal: two fields cannot meet where one text made of both could.
    """

    principal: str
    session: str


class TaggedHead(msgspec.Struct, array_like=True, tag=str.lower, frozen=True, gc=False):
    """Base of every head and route: an array that begins with the lower-case class name."""


# Shared parts.


class Run(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One body of an Events message: how many lines, of which class."""

    count: int
    cls: Class


class ThreadRecord(msgspec.Struct, array_like=True, frozen=True):
    """Settings of a thread that are needed to resume it on another app-server as it was.

    `sandbox` and `approval_policy` are JSON as the app-server wrote them ("" when not known); `turns` counts finished
    turns: a thread without any is not on disk yet.
    """

    thread_id: str
    ephemeral: bool
    turns: int = 0
    name: str | None = None
    cwd: str | None = None
    model: str | None = None
    model_provider: str | None = None
    sandbox: str = ""
    approval_policy: str = ""
    # The principal whose client made it; "" is the pool's owner.
    owner: str = ""
    # The permission profile that it runs with, if that is user-defined.
    profile: str = ""
    # It was started with its directory marked untrusted (see `trust`), and is resumed so.
    untrusted: bool = False
    # It was started without tools for sub-agents, and is resumed so.
    without_agents: bool = False


class Position(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The highest number of a turn's notifications that a subscriber has received.

    In a Hello `thread_id` is the turn's thread: a turn that is no longer known is ended under that id.
    """

    turn_id: str
    last: int
    thread_id: str = ""


class RunningTurn(msgspec.Struct, array_like=True, frozen=True):
    """A turn that a worker runs, and the sessions that follow it.

    `waits_since` and `waits_for` as `since` and `method` of TurnWaits. `began_at`: CLOCK_MONOTONIC, 0.0 for now.
    """

    thread_id: str
    turn_id: str
    sessions: list[SessionId]
    waits_since: float | None = None
    waits_for: str = ""
    began_at: float = 0.0


class Tokens(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Tokens that a turn has used, by `thread/tokenUsage/updated` of codex; `cached` ones are part of `input`,
    `reasoning` ones part of `output`."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.input + other.input,
            self.cached + other.cached,
            self.output + other.output,
            self.reasoning + other.reasoning,
        )

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.input - other.input,
            self.cached - other.cached,
            self.output - other.output,
            self.reasoning - other.reasoning,
        )


class TurnTokens(Tokens, array_like=True, frozen=True, gc=False):
    """Tokens of turns that have ended, and how many turns these are."""

    turns: int = 0

    def __add__(self, other: Tokens) -> TurnTokens:
        return _with_turns(Tokens.__add__(self, other), self.turns + getattr(other, "turns", 0))

    def __sub__(self, other: Tokens) -> TurnTokens:
        return _with_turns(Tokens.__sub__(self, other), self.turns - getattr(other, "turns", 0))


def _with_turns(tokens: Tokens, turns: int) -> TurnTokens:
    return TurnTokens(tokens.input, tokens.cached, tokens.output, tokens.reasoning, turns)


class TurnActivity(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Activity of a turn so far: when its last notification came (CLOCK_MONOTONIC), and its tokens, None before the
    first report of them."""

    turn_id: str
    heard_at: float
    tokens: Tokens | None = None


class TurnCounts(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Counts of a turn that has ended, for metrics.

    `principal` is that of its thread, "" for the pool's owner. In milliseconds: `took_ms` from its beginning to its
    end; `queued_ms` from when its request came until it was sent to the worker, None for a turn without a request;
    `first_delta_ms` from its beginning to the first piece of its answer, None if there was none. `login_refused`:
    whether the provider refused the log-in, None if it has not answered.
    """

    principal: str = ""
    took_ms: int = 0
    queued_ms: int | None = None
    first_delta_ms: int | None = None
    login_refused: bool | None = None


class KnownCall(msgspec.Struct, array_like=True, frozen=True):
    """A request of a session, by its id in JSON, that a worker has taken: it is under way or was answered."""

    session: SessionId
    request_id: str


class SessionOptions(TaggedHead, frozen=True, tag="options"):
    """Options of a session's Hello that workers must know, where they are not the default.

    `all_turns`: it gets every turn of the threads that it is subscribed to; `keep`: its turns outlive it.
    """

    session: SessionId
    all_turns: bool = False
    keep: bool = False


class ProcessTree(TaggedHead, frozen=True, tag="tree"):
    """Processes below a worker: `servers` (MCP servers, with launchers and all below them), commands that are `left` of
    turns that are over, and `commands` of turns that run.

    `memory_bytes` is of all but the latter, the worker included. `is_pss`: all of it is PSS, else some is RSS, which is
    more. `threads` were loaded then, of which `young` have been for so short a time that not all of their servers may
    be there; `settled` servers are older. `each` is how many a thread brings, None where that is not known yet.
    `fresh` threads have been loaded since.
    """

    servers: int = 0
    settled: int = 0
    left: int = 0
    commands: int = 0
    memory_bytes: int = 0
    command_memory_bytes: int = 0
    is_pss: bool = True
    threads: int = 0
    young: int = 0
    each: int | None = None
    fresh: int = 0


class BoundRecord(msgspec.Struct, array_like=True, frozen=True):
    """An object of a session that a worker's app-server has (see `bound_methods`): its kind, and its id at the client.

    `begin` and `update` are the requests that make it again, b"" for a process.
    """

    session: SessionId
    kind: str
    name: str
    begin: bytes = b""
    update: bytes = b""


class WorkerState(msgspec.Struct, array_like=True, frozen=True):
    """State of a worker when it registers: all that a broker which has just started must know of it.

    `followers` are the sessions that follow each thread; `calls` those that may be sent again; `ended` the turns that
    are over, but kept for sessions that reconnect; `logins` the log-ins under way, by id, with the sessions that began
    them. `replayed_requests` are those that every app-server must have been given, as of the time `replayed_at`; they
    may contain credentials, so they are never written to disk. `tree` is None where the processes are not known.
    `options` are those of sessions that have others than the default; `bound` the objects that sessions have here.
    `tally` is what the worker has counted, encoded by `tally.encode`.
    """

    records: list[ThreadRecord]
    followers: dict[str, list[SessionId]] = {}
    turns: list[RunningTurn] = []
    calls: list[KnownCall] = []
    ended: list[str] = []
    logins: dict[str, SessionId] = {}
    replayed_requests: list[bytes] = []
    replayed_at: float = 0.0
    tree: ProcessTree | None = None
    options: list[SessionOptions] = []
    bound: list[BoundRecord] = []
    tally: bytes = b""
