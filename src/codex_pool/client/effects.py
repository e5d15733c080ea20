"""Effects of a session: what its loop has to do."""

from __future__ import annotations

import msgspec

from codex_app_server._protocol.framing import LongLine
from codex_app_server._protocol.turn_lines import TurnLines


class Connect(msgspec.Struct, frozen=True):
    """Make a new connection under this identity."""

    identity: str


class Disconnect(msgspec.Struct, frozen=True):
    """Close the connection; what was not sent yet is of no use."""


class Send(msgspec.Struct, frozen=True):
    """Send these frames on the connection."""

    frames: list[bytes]


class Deliver(msgspec.Struct, frozen=True):
    """Deliver this batch to the client."""

    batch: list[bytes | LongLine | TurnLines]


class Welcomed(msgspec.Struct, frozen=True):
    """The session has begun."""


class Failed(msgspec.Struct, frozen=True):
    """The session is over; nothing follows. With `again` the pool may come back, and take another session."""

    message: str
    again: bool = False


Effect = Connect | Disconnect | Send | Deliver | Welcomed | Failed
