"""Frames between the broker and a process that accepts clients for it: the ingress or the gateway. Pure.

They are sent over a Unix socket on which the broker listens. Each frame is its length (4 bytes, big-endian) and a
msgpack array [tag, field...]. The first frame is `join`, with the secret of its kind, which the supervisor has given to
both ends; without it nothing else is read. After it the broker trusts the principals that the process names. Only the
gateway may name the pool's owner.

    process -> broker    join, message, ended, refused, keys, beat, ask
    broker -> process    joined, took, send, end, beat, report

Connections of the gateway's clients are alive as long as the link is: no client sends beats, and none are sent to it.
The broker sends one beat on the link every BEAT_S instead, and the gateway returns each. A link on which nothing has
come for SILENT_S is cut, from either side.

`connection` is a number that the process gives to a connection of a client, never twice on one socket. When the socket
is closed all its client connections end; the clients connect again, and their sessions go on.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from . import wire

# A message to a client: its longest body, and what stands around it. From a client far less comes.
MAX_FRAME_BYTES = wire.MAX_BODY_BYTES + 1024 * 1024
MAX_JOIN_BYTES = 1024
# Messages that may be on the way to the broker, and how often it reports those that it has taken.
WINDOW = 24
TAKEN_EVERY = 8

# Kinds of processes.
INGRESS = "tcp"
GATEWAY = "gateway"
SILENT_S = 3 * wire.BEAT_S

REVOKED = wire.encode(wire.Closed("the key of this client has been revoked; ask the pool's owner for a new one"))

_LENGTH = struct.Struct(">I")


class FrameError(ValueError):
    """Input that is not of this protocol: the socket must be closed."""


class _Frame(msgspec.Struct, array_like=True, tag=str.lower, frozen=True, gc=False):
    """Base of every frame: an array that begins with its tag, by default the lower-case class name."""


class Join(_Frame, frozen=True):
    """The first frame. `kind` is that of the process, and stands in front of its connections.

    `instance` is unique to the process. The ids of a gateway's sessions begin with it and a slash.
    """

    secret: str
    kind: str
    instance: str = ""


class Message(_Frame, frozen=True):
    """A message of a client of this principal, which has authenticated with this public key.

    With `screened` its line has been checked and encoded again (see `ingress.screening`).
    """

    connection: int
    principal: str
    key: str
    frames: list[bytes]
    screened: bool = False


class Ended(_Frame, frozen=True):
    """Reports that a connection is closed. Messages sent to it that have not arrived are lost.

    With `revoked` its key is no longer allowed, and its session has ended too.
    """

    connection: int
    revoked: bool = False


class Refused(_Frame, frozen=True):
    """Numbers of connections refused since the last frame of this kind, by reason."""

    counts: dict[str, int]


class Keys(_Frame, frozen=True):
    """The allow-list has changed: it is to be read before the frames that follow."""


class Ask(_Frame, frozen=True):
    """The gateway asks for the state of the pool, for probes and metrics; answered by Report with the same number."""

    number: int


class Joined(_Frame, frozen=True):
    """The secret is right: messages may be sent."""


class Taken(_Frame, frozen=True, tag="took"):
    """Number of messages taken since the last frame of this kind, which is sent every TAKEN_EVERY messages.

    At most WINDOW may be on the way, so that the next one, of any client, does not wait behind many.
    """

    messages: int


class Send(_Frame, frozen=True):
    """Send this message to the client of this connection."""

    connection: int
    frames: list[bytes]


class End(_Frame, frozen=True):
    """End this connection once what was sent to it before has left."""

    connection: int


class Beat(_Frame, frozen=True):
    """Sign of life of a link of the gateway, in both directions."""


class Report(_Frame, frozen=True):
    """The state of the pool, encoded by `pool_report.encode`."""

    number: int
    body: bytes


ToBroker = Join | Message | Ended | Refused | Keys | Beat | Ask
FromBroker = Joined | Taken | Send | End | Beat | Report

_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_encode = msgspec.msgpack.Encoder().encode


def encode(frame: ToBroker | FromBroker) -> bytes:
    """Encode a frame, with its length."""
    body = _encode(frame)
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Splits the bytes of one direction into frames.

    `union` is ToBroker or FromBroker; `limit` is the longest frame in bytes.
    """

    def __init__(self, union: Any, limit: int = MAX_FRAME_BYTES) -> None:
        self._decode = msgspec.msgpack.Decoder(union).decode
        self._buffer = bytearray()
        self.limit = limit

    def feed(self, data: bytes) -> None:
        """Add bytes that were received."""
        self._buffer += data

    def only(self, data: bytes) -> Any | None:
        """The frame that `data` consists of, if it is one and nothing precedes it; None, and nothing is taken, if not.

        Raises FrameError.
        """
        size = len(data) - _LENGTH.size
        if self._buffer or not 0 < size <= self.limit or int.from_bytes(data[: _LENGTH.size], "big") != size:
            return None
        try:
            return self._decode(data[_LENGTH.size :])
        except _UNDECODABLE as error:
            raise FrameError(f"a frame that does not fit: {error}") from None

    @property
    def expects(self) -> int:
        """Number of bytes that the incomplete frame still needs; 0 when there is none."""
        if len(self._buffer) < _LENGTH.size:
            return 0
        (size,) = _LENGTH.unpack_from(self._buffer)
        return max(0, _LENGTH.size + int(size) - len(self._buffer))

    def next(self) -> Any | None:
        """The next frame, None while it is not complete. Raises FrameError."""
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(buffer)
        if size > self.limit:
            raise FrameError(f"a frame of {size} bytes; the limit is {self.limit}")
        end = _LENGTH.size + size
        if len(buffer) < end:
            return None
        try:
            with memoryview(buffer)[_LENGTH.size : end] as view:
                frame = self._decode(view)
        except _UNDECODABLE as error:
            raise FrameError(f"a frame that does not fit: {error}") from None
        del buffer[:end]
        return frame
