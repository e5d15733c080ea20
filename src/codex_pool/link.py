"""The link between the broker and a process that lets clients in for it, such as the ingress. Pure.

A stream: a Unix socket on which the broker listens, beside its others. Each frame is its length (4 bytes, big-endian)
and a msgpack array [tag, field...]. The first frame is `join`, with the secret that the supervisor has given to both
ends; without it nothing else is read. After it the broker believes what the link says of principals.

    process -> broker    join, message, ended, refused, keys
    broker -> process    joined, took, send, end

`connection` is a number that the process gives to a connection of a client, never twice on one link. A link that ends
ends all its connections; their clients connect again, and their sessions go on.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from codex_pool import wire

# A message to a client: its longest body, and what stands around it. From a client far less comes.
MAX_FRAME_BYTES = wire.MAX_BODY_BYTES + 1024 * 1024
MAX_JOIN_BYTES = 1024
WINDOW = 24
TOOK_EVERY = 8

REVOKED = wire.encode(wire.Closed("the key of this client has been revoked; ask the pool's owner for a new one"))

_LENGTH = struct.Struct(">I")


class LinkError(ValueError):
    """Input that is not of this protocol: the link must end."""


class _Frame(msgspec.Struct, array_like=True, tag=str.lower, frozen=True, gc=False):
    """Base of every frame: an array that begins with the lower-case class name."""


class Join(_Frame, frozen=True):
    """The first frame. `kind` names the process, and stands in front of its connections, such as `tcp`."""

    secret: str
    kind: str


class Message(_Frame, frozen=True):
    """A message of a client of this principal, which has come in with this public key.

    With `screened` its line has been checked and written anew (see `ingress.screen`).
    """

    connection: int
    principal: str
    key: str
    frames: list[bytes]
    screened: bool = False


class Ended(_Frame, frozen=True):
    """This connection is over. What was sent to it and has not arrived is lost.

    With `revoked` its key is not allowed any more, and so its session is over too.
    """

    connection: int
    revoked: bool = False


class Refused(_Frame, frozen=True):
    """So many were refused since the last frame of this kind, by reason."""

    counts: dict[str, int]


class Keys(_Frame, frozen=True):
    """The allow-list has changed: read it before what follows."""


class Joined(_Frame, frozen=True):
    """The secret is right: messages may be sent."""


class Took(_Frame, frozen=True):
    """So many messages were taken since the last frame of this kind, which comes every TOOK_EVERY of them.

    At most WINDOW may be on the way, so that the next one, of whichever client, does not wait for many.
    """

    messages: int


class Send(_Frame, frozen=True):
    """Send this message to the client of this connection."""

    connection: int
    frames: list[bytes]


class End(_Frame, frozen=True):
    """End this connection once what was sent to it before has left."""

    connection: int


ToBroker = Join | Message | Ended | Refused | Keys
FromBroker = Joined | Took | Send | End

_encode = msgspec.msgpack.Encoder().encode


def encode(frame: ToBroker | FromBroker) -> bytes:
    """A frame with its length."""
    body = _encode(frame)
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Takes the bytes of one direction apart. `union` is ToBroker or FromBroker; `limit` the longest frame in bytes."""

    def __init__(self, union: Any, limit: int = MAX_FRAME_BYTES) -> None:
        self._decode = msgspec.msgpack.Decoder(union).decode
        self._buffer = bytearray()
        self.limit = limit

    def feed(self, data: bytes) -> None:
        """Add what has come."""
        self._buffer += data

    @property
    def expects(self) -> int:
        """How many bytes of the frame that has begun are still to come, 0 when none has."""
        if len(self._buffer) < _LENGTH.size:
            return 0
        (size,) = _LENGTH.unpack_from(self._buffer)
        return max(0, _LENGTH.size + int(size) - len(self._buffer))

    def next(self) -> Any | None:
        """The next frame, None while it is not complete. Raises LinkError."""
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(buffer)
        if size > self.limit:
            raise LinkError(f"a frame of {size} bytes; the limit is {self.limit}")
        end = _LENGTH.size + size
        if len(buffer) < end:
            return None
        try:
            with memoryview(buffer)[_LENGTH.size : end] as view:
                frame = self._decode(view)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise LinkError(f"a frame that does not fit: {error}") from None
        del buffer[:end]
        return frame
