"""Frames between clients, broker and workers. Pure: bytes in, values out.

A message is a head and bodies:

    client <-> broker     [head][body]...
    broker -> worker      [head][body]...
    worker -> broker      [route][head][body]...      head and bodies go on to clients as they are

    head, route := version (1 byte, 0x01) + msgpack array [tag, field...]       at most 64 KiB from a client
    body        := JSON lines of the app-server protocol joined by "\\n"         at most MAX_BODY_BYTES each

The broker decodes heads, routes and the envelopes of client requests; never a body that comes from a worker.
Input that does not fit is a `WireError`, from every sender. Heads of the pool's own processes are bounded as bodies
are: they contain thread records, which a client can make long; if they were refused, a call would stay unanswered.

Sequence numbers. A worker numbers the notifications of a turn from 1. An `Events` message states the numbers that it
covers: (`after`, `last`]. It consists of runs, each of one body and one class - `kept`, or `droppable` (deltas) - so
that a process without room for it can leave out a whole droppable run and report that, without decoding it. A
subscriber checks that `after` is the `last` of the message before; numbers that its interest leaves out are covered all
the same. A run of class `dropped` has an empty body: its count is the number of lines left out.

Acknowledgements. A subscriber acknowledges the numbers that it has received (`Ack`, passed on as `Acked`); the worker
keeps what it has sent until then. A client that reconnects states in its Hello the number that it has reached in each
turn, and sends its unanswered calls again, marked so: the worker deduplicates them and answers each once.

The parts of the protocol: `client_heads` and `worker_heads` (messages), `wire_types` (what they consist of). The tag of
a head is part of the protocol; the name of its class is not.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .client_heads import (
    Ack,
    AnswerPart,
    Beat,
    Bye,
    Call,
    Closed,
    Ended,
    Events,
    Hello,
    Lines,
    Pack,
    Refused,
    Welcome,
)
from .wire_types import (
    BEAT_S,
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    MAX_POSITIONS,
    MAX_POSITIONS_BYTES,
    TURN_ENDS,
    VERSION,
    BoundRecord,
    Class,
    Interest,
    KnownCall,
    Position,
    Priority,
    ProcessTree,
    Run,
    RunningTurn,
    SessionId,
    SessionOptions,
    TaggedHead,
    ThreadRecord,
    Tokens,
    TurnActivity,
    TurnCounts,
    TurnTokens,
    WhenGone,
    WireError,
    WorkerState,
    next_beat,
)
from .worker_heads import (
    Acked,
    Activity,
    Answered,
    Apply,
    Children,
    DefaultSession,
    Dispatch,
    EndProcesses,
    Follow,
    Interrupt,
    Limited,
    LoginEnded,
    Progress,
    Rebind,
    Register,
    RegisterRequest,
    Release,
    ServerRequestAnswer,
    SessionGone,
    SessionResumed,
    SharedState,
    Stack,
    StartNotices,
    ThreadChanged,
    ThreadGone,
    ThreadLoaded,
    TokensWanted,
    ToSessions,
    TurnEnded,
    TurnStarted,
    TurnWaits,
    Unbind,
    Unbound,
)

__all__ = [
    "BEAT_S",
    "EVENTS",
    "MAX_BODY_BYTES",
    "MAX_HEAD_BYTES",
    "MAX_POSITIONS",
    "MAX_POSITIONS_BYTES",
    "TURN_ENDS",
    "VERSION",
    "Ack",
    "Acked",
    "Activity",
    "AnswerPart",
    "Answered",
    "Apply",
    "Beat",
    "BoundRecord",
    "Bye",
    "Call",
    "Children",
    "Class",
    "Closed",
    "DefaultSession",
    "Dispatch",
    "EndProcesses",
    "Ended",
    "Events",
    "Follow",
    "FromClient",
    "FromWorker",
    "Head",
    "Hello",
    "Interest",
    "Interrupt",
    "KnownCall",
    "Limited",
    "Lines",
    "LoginEnded",
    "Pack",
    "Position",
    "Priority",
    "ProcessTree",
    "Progress",
    "Rebind",
    "Refused",
    "Register",
    "RegisterRequest",
    "Release",
    "Run",
    "RunningTurn",
    "ServerRequestAnswer",
    "SessionGone",
    "SessionId",
    "SessionOptions",
    "SessionResumed",
    "SharedState",
    "Stack",
    "StartNotices",
    "TaggedHead",
    "ThreadChanged",
    "ThreadGone",
    "ThreadLoaded",
    "ThreadRecord",
    "ToClient",
    "ToSessions",
    "ToWorker",
    "Tokens",
    "TokensWanted",
    "TurnActivity",
    "TurnCounts",
    "TurnEnded",
    "TurnStarted",
    "TurnTokens",
    "TurnWaits",
    "Unbind",
    "Unbound",
    "Welcome",
    "WhenGone",
    "WireError",
    "WorkerState",
    "decode_events",
    "decode_from_client",
    "decode_from_worker",
    "decode_positions",
    "decode_to_client",
    "decode_to_worker",
    "decode_worker_state",
    "encode",
    "encode_positions",
    "encode_worker_state",
    "next_beat",
]

FromClient = Hello | Call | Ack | Beat | Bye
ToClient = Welcome | Refused | Lines | AnswerPart | Events | Pack | Ended | Beat | Closed
FromWorker = (
    Register
    | ToSessions
    | Stack
    | Answered
    | ThreadLoaded
    | TurnStarted
    | TurnWaits
    | TurnEnded
    | Activity
    | ThreadChanged
    | ThreadGone
    | Children
    | Limited
    | LoginEnded
    | TokensWanted
    | Unbound
    | StartNotices
    | ProcessTree
    | Progress
)
ToWorker = (
    Dispatch
    | Release
    | Interrupt
    | Apply
    | SharedState
    | ServerRequestAnswer
    | Follow
    | Acked
    | SessionResumed
    | SessionGone
    | SessionOptions
    | Rebind
    | Unbind
    | EndProcesses
    | DefaultSession
    | RegisterRequest
)
Head = FromClient | ToClient | FromWorker | ToWorker

_VERSION_BYTE = bytes([VERSION])
_encode = msgspec.msgpack.Encoder().encode
# msgspec lets the second pass through for text that is not UTF-8, the third for endless nesting.
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_decode_worker_state = msgspec.msgpack.Decoder(WorkerState).decode
_decode_positions = msgspec.msgpack.Decoder(list[Position]).decode


def encode(head: Head) -> bytes:
    """Encode a head as one frame."""
    return _VERSION_BYTE + _encode(head)


def encode_worker_state(state: WorkerState) -> bytes:
    """Encode the state of a worker as one body."""
    return _encode(state)


def decode_worker_state(body: bytes) -> WorkerState:
    """Decode what `encode_worker_state` has encoded. Raises WireError."""
    try:
        return _decode_worker_state(body)
    except _UNDECODABLE as error:
        raise WireError(f"a worker's state that do not fit: {error}") from None


def encode_positions(positions: list[Position]) -> bytes:
    """Encode positions as one body."""
    return _encode(positions)


def decode_positions(body: bytes) -> list[Position]:
    """Decode what `encode_positions` has encoded. Raises WireError, before decoding where there are too many."""
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
        self._union = union
        self._direction = direction
        self._limit = limit

    def __getattr__(self, name: str) -> Any:
        # Built when the first frame comes: a process decodes one or two directions of four.
        if name != "_decode":
            raise AttributeError(name)
        found = self._decode = msgspec.msgpack.Decoder(self._union).decode
        return found

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


# How a head of notifications begins; the rest of it, behind the version, is for `decode_events`, which raises what
# msgspec does.
EVENTS = encode(Events("", "", 0, 0, []))[: len(b"\x01\x99\xa6events")]
decode_events = msgspec.msgpack.Decoder(Events).decode

decode_from_client = _Decoder(FromClient, "from a client", MAX_HEAD_BYTES)
decode_to_client = _Decoder(ToClient, "to a client")
decode_from_worker = _Decoder(FromWorker, "from a worker")
decode_to_worker = _Decoder(ToWorker, "to a worker")
