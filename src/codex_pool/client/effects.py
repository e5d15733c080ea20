"""What a session wants done by the loop around it."""

from __future__ import annotations

from dataclasses import dataclass

from codex_app_server.lines import LongLine
from codex_app_server.transport import TurnLines


@dataclass(frozen=True, slots=True)
class Connect:
    """Make a new connection under this identity."""

    identity: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection; what was not sent yet is of no use."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send these frames on the connection."""

    frames: list[bytes]


@dataclass(frozen=True, slots=True)
class Deliver:
    """For the client."""

    batch: list[bytes | LongLine | TurnLines]


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The session has begun."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The session is over; nothing follows."""

    message: str


Effect = Connect | Disconnect | Send | Deliver | Welcomed | Failed
