"""Heads and routes of the messages between a worker and the broker; `wire` encodes and decodes them. Pure."""

from __future__ import annotations

import msgspec

from .wire_types import (
    Interest,
    Position,
    RunningTurn,
    SessionId,
    TaggedHead,
    ThreadRecord,
    Tokens,
    TurnActivity,
    TurnCounts,
)

# worker -> broker: routes


class Register(TaggedHead, frozen=True):
    """The first message of a worker, and its answer to RegisterRequest.

    Bodies: the result of `initialize` as JSON; the worker's state (`encode_worker_state`). `as_of` is the time
    (CLOCK_MONOTONIC, which all processes of a machine share) of the account that its app-server uses: when the
    app-server was started, or the last change that it was given.
    """

    slot: int
    worker: str
    pid: int
    app_server_pid: int
    as_of: float = 0.0
    # Time of the last log-in on this app-server that others do not see.
    changed_at: float = 0.0
    # When the app-server was started; 0.0 if not known.
    started_at: float = 0.0


class ToSessions(TaggedHead, frozen=True):
    """Pass the rest of the message on to these sessions; to all of them when the list is empty."""

    sessions: list[SessionId]


class Stack(TaggedHead, frozen=True):
    """Several messages of this worker, in their order; see `packs`. Body: one, all their frames joined.

    `sizes` are those of the frames of each in bytes, its route first.
    """

    sizes: list[list[int]]


class Answered(TaggedHead, frozen=True):
    """The answer to a Dispatch; the rest of the message goes to its session.

    `record` is set when the answer brought a thread into being or into this worker, `started` when it began a turn.
    """

    call: int
    ok: bool
    record: ThreadRecord | None = None
    started: RunningTurn | None = None


class ThreadLoaded(TaggedHead, frozen=True, tag="held"):
    """A Dispatch has loaded this thread in this worker; its Answered, which is long, comes later without the record."""

    call: int
    record: ThreadRecord


class TurnStarted(TaggedHead, frozen=True):
    """A turn runs that no answer reports; `sessions` follow it. `by_itself`: no running turn has begun it, such as the
    turn of a goal."""

    thread_id: str
    turn_id: str
    sessions: list[SessionId]
    by_itself: bool = False


class TurnWaits(TaggedHead, frozen=True):
    """A turn that runs waits for the answer of a person, for example to a request for an approval.

    `since` is the time (CLOCK_MONOTONIC) from which on it has waited; None: it goes on. `method` is that of the oldest
    request of the app-server that has no answer.
    """

    turn_id: str
    since: float | None
    method: str = ""


class TurnEnded(TaggedHead, frozen=True):
    """A turn is over. The rest of the message, its last notifications, goes to these sessions; others have them.

    `status` is the app-server's, or the kind of end that the worker has given it; `tokens` as in TurnActivity.
    `counts` are those that the worker has added to its tally.
    """

    thread_id: str
    turn_id: str
    status: str
    sessions: list[SessionId] = msgspec.field(default_factory=list)
    tokens: Tokens | None = None
    counts: TurnCounts | None = None


class Activity(TaggedHead, frozen=True):
    """The activity of running turns of which something has come since the last report; at most one a second."""

    turns: list[TurnActivity]


class ThreadChanged(TaggedHead, frozen=True):
    """The record of a thread is now this."""

    record: ThreadRecord


class ThreadGone(TaggedHead, frozen=True):
    """The worker no longer holds this thread. With `keep` it is only unloaded, to be resumed at its next request."""

    thread_id: str
    keep: bool = False


class Children(TaggedHead, frozen=True):
    """The app-server has made these threads for sub-agents of a turn on this thread."""

    thread_id: str
    children: list[str]


class Limited(TaggedHead, frozen=True):
    """The account's rate limit was met. `resets_at` is when it ends, in Unix seconds, where that is known."""

    kind: str
    resets_at: int | None = None


class LoginEnded(TaggedHead, frozen=True):
    """A log-in by browser, by device code or of a gateway has ended; the rest of the message goes to these sessions.

    `changed`: the account may be another now. `mcp` is set for a log-in to an MCP server.
    """

    login_id: str
    sessions: list[SessionId]
    changed: bool = False
    mcp: bool = False


class TokensWanted(TaggedHead, frozen=True):
    """Body: the app-server's request for new external tokens, under the id that its ServerRequestAnswer must have."""


class Progress(TaggedHead, frozen=True):
    """A worker's beat, from a thread and socket of its own.

    `lines` counts all lines read from the app-server so far, `in_flight` open requests to it, `loops` turns of the
    worker's loop: which of them increase tells a live worker, a slow one and a stuck one apart. `dropped`: as of Tally.
    """

    worker: str
    loops: int
    lines: int
    in_flight: int
    dropped: int = 0


class Unbound(TaggedHead, frozen=True):
    """An object of a session is over here (see `bound_methods`): its id is free.

    With `replaced` the session has another one of this id here.
    """

    session: SessionId
    kind: str
    name: str
    replaced: bool = False


class StartNotices(TaggedHead, frozen=True):
    """Body: the notifications that the app-server sends to each new connection, such as `configWarning`, as lines."""


# broker -> worker


class Dispatch(TaggedHead, frozen=True):
    """Body: one request line of a session. Answered by Answered with the same `call`.

    `adopt` is the record of a thread that this app-server must resume first; `archived` says that it must be taken
    out of the archive before. `queued_ms` is how long the request waited in the broker. `again` and `timeout_s` as
    in Call. A thread that comes into being belongs to the principal of the session.
    """

    call: int
    session: SessionId
    interest: Interest = "full"
    adopt: ThreadRecord | None = None
    queued_ms: int = 0
    again: bool = False
    archived: bool = False
    timeout_s: int = 60
    # A long answer may be sent to the session in parts.
    accepts_parts: bool = False


class Release(TaggedHead, frozen=True):
    """Put this idle thread away (archive it), so that another worker can take it. Answered by Answered.

    `children` are the threads of its sub-agents, which are archived with it.
    """

    call: int
    thread_id: str
    children: list[str] = msgspec.field(default_factory=list)


class Interrupt(TaggedHead, frozen=True):
    """Interrupt this turn. There is no answer: the end of the turn reports it."""

    thread_id: str
    turn_id: str


class Apply(TaggedHead, frozen=True):
    """Body: a request line for the app-server, whose state it changes. Answered by Answered with the same `call`.

    The lines of that answer: the response, then the notifications about the account that followed it. They are not sent
    to the sessions otherwise.
    """

    call: int


class SharedState(TaggedHead, frozen=True, tag="current"):
    """State of the app-server: it uses the account as of this time, and has been given the requests in the bodies.

    The worker reports the bodies, `replayed_at` and `as_of` to the next broker in Register and WorkerState.
    """

    as_of: float
    replayed_at: float


class Acked(TaggedHead, frozen=True):
    """Reports how much of these turns a session has received."""

    session: SessionId
    positions: list[Position]


class SessionResumed(TaggedHead, frozen=True, tag="back"):
    """Reports that a session has reconnected: send what it has not received, and its open requests of the app-server.

    It does not know those of its turns that are not named here: they are sent from their beginning.
    """

    session: SessionId
    positions: list[Position]


class ServerRequestAnswer(TaggedHead, frozen=True, tag="tell"):
    """Body: one line for the app-server's stdin: the answer of this session to a request of the app-server.

    Without a session it is the broker's own answer, to TokensWanted.
    """

    session: SessionId | None = None


class Follow(TaggedHead, frozen=True):
    """Subscribes this session to the thread's notifications."""

    session: SessionId
    thread_id: str


class SessionGone(TaggedHead, frozen=True, tag="gone"):
    """Reports that a session is over: interrupt its turns, forget it. With `keep` its turns go on unfollowed."""

    session: SessionId
    keep: bool = False


class Rebind(TaggedHead, frozen=True):
    """Make a watch or a search of this session again, which another worker had.

    Bodies: the request that made it, and its latest update if it has one.
    """

    session: SessionId
    kind: str
    name: str


class Unbind(TaggedHead, frozen=True):
    """End a watch or a search of this session: another worker has it now."""

    session: SessionId
    kind: str
    name: str


class EndProcesses(TaggedHead, frozen=True):
    """End the commands and processes of all sessions; their clients get `reason`."""

    reason: str


class DefaultSession(TaggedHead, frozen=True, tag="holder"):
    """Names the session that gets requests of the app-server that belong to no thread; None: no session."""

    session: SessionId | None


class RegisterRequest(TaggedHead, frozen=True, tag="whoareyou"):
    """Asks a worker that the broker does not know to register."""
