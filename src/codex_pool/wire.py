"""The frames between clients, broker and workers. Pure: bytes in, values out.

A message is a head and bodies:

    client <-> broker     [head][body]...
    broker -> worker      [head][body]...
    worker -> broker      [route][head][body]...      head and bodies go on to clients as they are

    head, route := version (1 byte, 0x01) + msgpack array [tag, field...]       at most 64 KiB from a client
    body        := JSON lines of the app-server protocol joined by "\\n"         at most MAX_BODY_BYTES each

The broker decodes heads, routes and the envelopes of client requests; never a body that comes from a worker.
What does not fit is a `WireError`, whoever sent it. Heads of the pool's own processes have no bound but the body's:
thread records stand in them, which a client can make long; refused, they would leave a call without an answer.

Numbers. A worker numbers the notifications of a turn from 1. An `Events` message says which numbers it covers:
(`after`, `last`]. It is made of runs, one body each and one class each - `kept`, or `droppable` (deltas) - so that
whoever is short of room can leave a whole droppable run out and say so, without looking inside. A subscriber checks
that `after` is the `last` that it saw before; numbers that its interest leaves out are covered all the same. A run
of class `dropped` has an empty body: so many lines stood there.

Receipt. A subscriber tells the worker how far it has come (`Ack`, passed on as `Acked`); the worker keeps what it has
sent until then. Who comes back on a new connection says in its Hello how far it came in each turn, and sends its
unanswered calls again, marked so: the worker knows what it has seen, and answers it without doing it twice.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

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
# The ends of a turn that are counted from the beginning, those of the app-server and those of the pool.
TURN_ENDS = ("completed", "failed", "interrupted", "lost", "stalled")
Priority = Literal["interactive", "batch"]
WhenGone = Literal["interrupt", "keep"]


class WireError(ValueError):
    """A message that is not of this protocol, or beyond its bounds."""


class SessionId(NamedTuple):
    """Key of a session in the pool: the principal whose it is, and the id that its client chose.

    `principal` is "" for the pool's owner, else the id of who holds the key. Clients choose ids as they like, and
    never their principal: two fields cannot meet where one text made of both could.
    """

    principal: str
    session: str


class _Head(msgspec.Struct, array_like=True, tag=str.lower, frozen=True, gc=False):
    """Base of every head and route: an array that begins with the lower-case class name."""


# Shared parts.


class Run(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One body of an Events message: how many lines, of which class."""

    count: int
    cls: Class


class ThreadRecord(msgspec.Struct, array_like=True, frozen=True):
    """What must be known of a thread to bring it back on another app-server as it was.

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
    # The permission profile that it runs with, if that is one that somebody has defined.
    profile: str = ""
    # It was asked for with its directory marked untrusted, see `trust`; so it is whenever it comes back.
    untrusted: bool = False
    # It was asked for without tools for sub-agents; so it is whenever it comes back.
    without_agents: bool = False


class Position(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How far a subscriber has come in a turn: the highest number that it got.

    In a Hello `thread_id` says whose turn it is: should nobody know the turn any more, it is ended under that name.
    """

    turn_id: str
    last: int
    thread_id: str = ""


class TurnHeld(msgspec.Struct, array_like=True, frozen=True):
    """A turn that a worker runs, and the sessions that follow it."""

    thread_id: str
    turn_id: str
    sessions: list[SessionId]


class CallSeen(msgspec.Struct, array_like=True, frozen=True):
    """A request of a session, by its id in JSON, that a worker has taken: it is under way or was answered."""

    session: SessionId
    request_id: str


class Tree(_Head, frozen=True):
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


class Holdings(msgspec.Struct, array_like=True, frozen=True):
    """What a worker holds when it registers: all that a broker which has just started must know of it.

    `followers` are the sessions that follow each thread; `calls` those that may be sent again; `ended` the turns that
    are over, but kept for those who come back; `logins` the log-ins under way, by id, with the sessions that began
    them. `kept` are the requests that every app-server must have been given, as of the time `kept_at`; credentials may
    stand in them, so they are never written down. `tree` is what is below it, None where that is not known.
    """

    records: list[ThreadRecord]
    followers: dict[str, list[SessionId]] = {}
    turns: list[TurnHeld] = []
    calls: list[CallSeen] = []
    ended: list[str] = []
    logins: dict[str, SessionId] = {}
    kept: list[bytes] = []
    kept_at: float = 0.0
    tree: Tree | None = None


# client -> broker


class Hello(_Head, frozen=True):
    """The first message of a connection: who I am. Answered by Welcome or Refused.

    Body: nothing for a new session; for one that comes back, `encode_positions` of the turns that it follows.
    `when_gone` says what is to become of its turns should it stay away; `priority` is that of its turns in the queue.
    """

    session: str
    client: str
    priority: Priority = "interactive"
    when_gone: WhenGone = "interrupt"
    # This client puts long answers together that come as Pieces.
    pieces: bool = False


class Call(_Head, frozen=True):
    """Body: one line - a request, a notification, or the answer to a request of the app-server.

    `interest` says which notifications of a turn that this starts are wanted. `again` marks a request that was sent
    before, on a connection that is gone, and has not been answered.
    """

    interest: Interest = "full"
    again: bool = False
    # How long the client waits for the answer, from when the request leaves the queue; 0 is for ever.
    timeout_s: int = 60


class Ack(_Head, frozen=True):
    """I have got this much of the turns that this worker runs."""

    worker: str
    positions: list[Position]


class Beat(_Head, frozen=True):
    """I am alive. Either way, at least every BEAT_S; any other message counts as well."""


class Bye(_Head, frozen=True):
    """The session is over: its running turns are interrupted."""


# broker -> client


class Welcome(_Head, frozen=True):
    """Body: the result of `initialize`, as JSON. `workers` is how many app-servers are ready.

    `resumed` says that the session was known, here or to a worker: its turns go on where they were.
    """

    workers: int
    resumed: bool = False


class Refused(_Head, frozen=True):
    """No session. `message` says why and what to do."""

    message: str


class Lines(_Head, frozen=True):
    """Body: lines to be routed by what they say - answers, requests, notifications outside of turns."""


class Piece(_Head, frozen=True):
    """Body: a part of one line, which is the answer to a request of this id (in JSON); `number` counts from 0.

    A long answer comes in pieces, so that others pass between them. Those of one answer come in order; a number that
    does not follow belongs to an answer that is sent again, from 0.
    """

    request_id: str
    number: int
    last: bool = False


class Events(_Head, frozen=True):
    """Bodies: one per run of notifications of one turn; see the module's docstring."""

    thread_id: str
    turn_id: str
    after: int
    last: int
    runs: list[Run]
    ended: bool = False
    # Who runs the turn, for `Ack`.
    worker: str = ""


class Ended(_Head, frozen=True):
    """Bodies: one, the last lines of a turn whose worker cannot number them any more, because it died."""

    thread_id: str
    turn_id: str


class Closed(_Head, frozen=True):
    """The session is over, and not by its own wish. `message` says why.

    With `again` only this connection is: say Hello on a new one.
    """

    message: str
    again: bool = False


# worker -> broker: routes


class Register(_Head, frozen=True):
    """The first message of a worker, and its answer to WhoAreYou.

    Bodies: the result of `initialize` as JSON; what it holds (`encode_holdings`). `as_of` is the time (CLOCK_MONOTONIC,
    which all processes of a machine share) of the account that its app-server uses: when the app-server was started, or
    the last change that it was given.
    """

    slot: int
    worker: str
    pid: int
    app_server_pid: int
    as_of: float = 0.0
    # When somebody has logged in on this app-server in a way that others do not see.
    changed_at: float = 0.0


class ToSessions(_Head, frozen=True):
    """Pass the rest of the message on to these sessions; to all of them when the list is empty."""

    sessions: list[SessionId]


class Answered(_Head, frozen=True):
    """The answer to a Dispatch; the rest of the message goes to its session.

    `record` is set when the answer brought a thread into being or into this worker, `started` when it began a turn.
    """

    call: int
    ok: bool
    record: ThreadRecord | None = None
    started: TurnHeld | None = None


class Held(_Head, frozen=True):
    """A Dispatch has brought this thread into this worker; its Answered, which is long, comes later without it."""

    call: int
    record: ThreadRecord


class TurnStarted(_Head, frozen=True):
    """A turn is running that no answer tells of; `sessions` follow it. `by_itself`: nothing that runs has begun it, as
    one of a goal."""

    thread_id: str
    turn_id: str
    sessions: list[SessionId]
    by_itself: bool = False


class TurnEnded(_Head, frozen=True):
    """A turn is over. The rest of the message, its last notifications, goes to these sessions; others have them.

    `status` is the app-server's, or the kind of the end that the worker has given it.
    """

    thread_id: str
    turn_id: str
    status: str
    sessions: list[SessionId] = []


class ThreadChanged(_Head, frozen=True):
    """The record of a thread is now this."""

    record: ThreadRecord


class ThreadGone(_Head, frozen=True):
    """The worker no longer holds this thread. With `keep` it is only unloaded, to be resumed at its next request."""

    thread_id: str
    keep: bool = False


class Children(_Head, frozen=True):
    """The app-server has made these threads for sub-agents of a turn on this thread."""

    thread_id: str
    children: list[str]


class Limited(_Head, frozen=True):
    """The account's rate limit was met. `resets_at` is when it ends, in Unix seconds, where that is known."""

    kind: str
    resets_at: int | None = None


class LoginEnded(_Head, frozen=True):
    """A log-in by browser, by device code or of a gateway has ended; the rest of the message goes to these sessions.

    `changed` says that the account may be another now. `mcp` is set for a log-in to an MCP server.
    """

    login_id: str
    sessions: list[SessionId]
    changed: bool = False
    mcp: bool = False


class TokensWanted(_Head, frozen=True):
    """Body: the app-server's request for new external tokens, under the id that the answer (Tell) is to have."""


class Progress(_Head, frozen=True):
    """A worker's beat, from a thread and socket of its own.

    `lines` counts all lines read from the app-server so far, `in_flight` open requests to it, `loops` turns of the
    worker's loop: alive, slow and wedged are told apart by which of them move.
    """

    worker: str
    loops: int
    lines: int
    in_flight: int


# broker -> worker


class Dispatch(_Head, frozen=True):
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
    # A long answer may go to the session in pieces.
    pieces: bool = False


class Release(_Head, frozen=True):
    """Put this idle thread away (archive it), so that another worker can take it. Answered by Answered.

    `children` are the threads of its sub-agents, which are archived with it.
    """

    call: int
    thread_id: str
    children: list[str] = []


class Interrupt(_Head, frozen=True):
    """Interrupt this turn. There is no answer: its end tells."""

    thread_id: str
    turn_id: str


class Apply(_Head, frozen=True):
    """Body: a request line for the app-server, whose state it changes. Answered by Answered with the same `call`.

    The lines of that answer: the response, then the notifications about the account that followed it. They are not sent
    to the sessions otherwise.
    """

    call: int


class Current(_Head, frozen=True):
    """The app-server uses the account as of this time, and has been given the requests in the bodies.

    The bodies, `kept_at` and `as_of` are told to the next broker by Register and Holdings.
    """

    as_of: float
    kept_at: float


class Acked(_Head, frozen=True):
    """This session has got so much of these turns."""

    session: SessionId
    positions: list[Position]


class Back(_Head, frozen=True):
    """This session has come back on a new connection: send what it has not got, and what it was asked.

    Turns of it that are not named here it knows nothing of yet: they begin anew.
    """

    session: SessionId
    positions: list[Position]


class Tell(_Head, frozen=True):
    """Body: one line for the app-server's stdin: the answer of this session to a request that it was passed.

    Without a session it is the broker's own answer, to TokensWanted.
    """

    session: SessionId | None = None


class Follow(_Head, frozen=True):
    """This session is to get the thread's notifications from now on (or no longer)."""

    session: SessionId
    thread_id: str
    on: bool = True


class Gone(_Head, frozen=True):
    """This session is over: interrupt its turns, forget it. With `keep` they go on to their end, unfollowed."""

    session: SessionId
    keep: bool = False


class Holder(_Head, frozen=True):
    """From now on questions of the app-server that belong to no thread go to this session; None is nobody."""

    session: SessionId | None


class WhoAreYou(_Head, frozen=True):
    """The broker does not know this worker: register."""


FromClient = Hello | Call | Ack | Beat | Bye
ToClient = Welcome | Refused | Lines | Piece | Events | Ended | Beat | Closed
FromWorker = (
    Register
    | ToSessions
    | Answered
    | Held
    | TurnStarted
    | TurnEnded
    | ThreadChanged
    | ThreadGone
    | Children
    | Limited
    | LoginEnded
    | TokensWanted
    | Tree
    | Progress
)
ToWorker = Dispatch | Release | Interrupt | Apply | Current | Tell | Follow | Acked | Back | Gone | Holder | WhoAreYou
Head = FromClient | ToClient | FromWorker | ToWorker

_VERSION_BYTE = bytes([VERSION])
_encode = msgspec.msgpack.Encoder().encode
# msgspec lets the second pass through for text that is not UTF-8, the third for endless nesting.
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_decode_holdings = msgspec.msgpack.Decoder(Holdings).decode
_decode_positions = msgspec.msgpack.Decoder(list[Position]).decode


def encode(head: Head) -> bytes:
    """A head as one frame."""
    return _VERSION_BYTE + _encode(head)


def encode_holdings(holdings: Holdings) -> bytes:
    """What a worker holds as one body."""
    return _encode(holdings)


def decode_holdings(body: bytes) -> Holdings:
    """The opposite of `encode_holdings`. Raises WireError."""
    try:
        return _decode_holdings(body)
    except _UNDECODABLE as error:
        raise WireError(f"a worker's holdings that do not fit: {error}") from None


def encode_positions(positions: list[Position]) -> bytes:
    """Positions as one body."""
    return _encode(positions)


def decode_positions(body: bytes) -> list[Position]:
    """The opposite of `encode_positions`. Raises WireError, before decoding where there are too many."""
    count = _array_length(body)
    if len(body) > MAX_POSITIONS_BYTES or count > MAX_POSITIONS:
        limits = f"at most {MAX_POSITIONS} in {MAX_POSITIONS_BYTES} bytes"
        raise WireError(f"{count} positions in {len(body)} bytes; expected {limits}")
    try:
        return _decode_positions(body)
    except _UNDECODABLE as error:
        raise WireError(f"positions that do not fit: {error}") from None


def _array_length(body: bytes) -> int:
    """Return the length that a MessagePack array declares; 0 for anything else."""
    kind = body[:1]
    if kind in (b"\xdc", b"\xdd"):
        return int.from_bytes(body[1 : 3 if kind == b"\xdc" else 5], "big")
    return body[0] & 0x0F if kind and body[0] & 0xF0 == 0x90 else 0


class _Decoder:
    """Decodes heads of one direction."""

    def __init__(self, union: Any, direction: str, limit: int = MAX_BODY_BYTES) -> None:
        self._decode = msgspec.msgpack.Decoder(union).decode
        self._direction = direction
        self._limit = limit

    def __call__(self, frame: bytes) -> Head:
        if len(frame) > self._limit:
            raise WireError(f"a head {self._direction} of {len(frame)} bytes; the limit is {self._limit}")
        if not frame or frame[0] != VERSION:
            what = f"version {frame[0]}" if frame else "an empty frame"
            raise WireError(f"{what} {self._direction}; this side speaks version {VERSION}")
        try:
            head: Head = self._decode(frame[1:])
        except _UNDECODABLE as error:
            raise WireError(f"a head {self._direction} that does not fit: {error}") from None
        return head


decode_from_client = _Decoder(FromClient, "from a client", MAX_HEAD_BYTES)
decode_to_client = _Decoder(ToClient, "to a client")
decode_from_worker = _Decoder(FromWorker, "from a worker")
decode_to_worker = _Decoder(ToWorker, "to a worker")
