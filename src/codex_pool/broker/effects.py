"""Effects: what the broker's core asks its loop to do. Immutable values, carried out in order."""

from __future__ import annotations

from typing import Any

import msgspec

from ..auth.ownership import Row
from ..auth.usage_store import Change
from ..protocol import wire


class ToPeer(msgspec.Struct, frozen=True, gc=False):
    """Send to a client or to a worker, by the identity of its connection."""

    peer: bytes
    frames: list[bytes]


class ToClient(ToPeer, frozen=True, gc=False):
    """Send to a client."""


class ToWorker(ToPeer, frozen=True, gc=False):
    """Send to a worker."""


class DropConnection(msgspec.Struct, frozen=True, gc=False):
    """Drop what waits to be sent on this connection of a client: the connection is over."""

    peer: bytes


class Registered(msgspec.Struct, frozen=True, gc=False):
    """Report to the supervisor that this worker gets requests from now on."""

    worker: str


class Suspect(msgspec.Struct, frozen=True, gc=False):
    """Report to the supervisor that this worker does not answer."""

    worker: str
    reason: str


class Drained(msgspec.Struct, frozen=True, gc=False):
    """Report to the supervisor, once, that nothing is left on this worker and nothing new will come to it.

    `BrokerCore.drained` repeats it to a supervisor that asks.
    """

    worker: str


class Renew(msgspec.Struct, frozen=True, gc=False):
    """Report to the supervisor that this worker must be replaced, and why.

    Its app-server has something out of date in memory, or cannot load further threads.
    """

    worker: str
    reason: str


class AccountChanged(msgspec.Struct, frozen=True, gc=False):
    """Report to the supervisor, which outlives this broker, since when an app-server must have started to be current.

    With `under_way` a change has begun: if the broker dies now, every app-server is out of date.
    """

    changed_at: float
    under_way: bool


class SaveThreads(msgspec.Struct, frozen=True, gc=False):
    """Write the records of these threads to the checkpoint for the next broker; None removes one."""

    threads: dict[str, wire.ThreadRecord | None]


class SaveOwners(msgspec.Struct, frozen=True, gc=False):
    """Write these rows to the ownership store, then report the number to the core: this and all before is on disk."""

    number: int
    rows: list[Row]


class SaveUsage(msgspec.Struct, frozen=True, gc=False):
    """Write this to the usage store, now or once that is possible."""

    change: Change


class ReadUsage(msgspec.Struct, frozen=True, gc=False):
    """Read the usage store from a day on, of one principal or of all, and give the core what was found."""

    number: int
    since: int
    principal: str | None


class Audit(msgspec.Struct, frozen=True, gc=False):
    """Write a record to the audit log (see `audit`)."""

    record: dict[str, Any]


class SaveCounts(msgspec.Struct, frozen=True, gc=False):
    """Have the supervisor keep what was counted, for the next broker; `lost`: workers whose loss it covers."""

    kept: dict[str, Any]
    lost: list[str]


class Command(msgspec.Struct, frozen=True, gc=False):
    """Have the supervisor carry out a command of a client; its result comes back with the number."""

    number: int
    command: str
    params: dict[str, Any]


class DrainProgress(msgspec.Struct, frozen=True, gc=False):
    """Report to the supervisor how many turns run while the whole pool drains, and when that changes.

    `clients`: how many by the name of the client. `waiting`: those that wait for a person. `stopping`: as of Mode.
    """

    stopping: bool
    turns: int
    clients: dict[str, int]
    waiting: int


class LogLine(msgspec.Struct, frozen=True, gc=False):
    """Write a line to the log."""

    message: str


Effect = (
    ToClient
    | ToWorker
    | DropConnection
    | Registered
    | Suspect
    | Drained
    | Renew
    | AccountChanged
    | SaveThreads
    | SaveOwners
    | SaveCounts
    | SaveUsage
    | ReadUsage
    | Audit
    | Command
    | DrainProgress
    | LogLine
)
