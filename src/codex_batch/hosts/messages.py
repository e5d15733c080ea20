"""Messages between a run and its hosts. They are MessagePack; what the run alone decides is not in them."""

from __future__ import annotations

from typing import Any

import msgspec

from ..store import RecordRow, Rollout

PROTOCOL = 2
COMPLETE = ("completed", "limit")


class Hello(msgspec.Struct, frozen=True):
    """The first answer of a host: what it is, before anything is started there."""

    protocol: int
    codex_pool: str
    python: str
    machine: str
    pid: int
    spool: str
    """Directory in which it keeps results until they are acknowledged."""
    trees: tuple[str, ...] = ()
    """Digests of the trees that it has already."""


class Opened(msgspec.Struct, frozen=True):
    """A host whose pool is ready: `places` samples at once; `effective` by variant, as JSON."""

    places: int
    codex_version: str | None
    effective: dict[str, dict[str, Any]]


class Lease(msgspec.Struct, frozen=True):
    """An attempt at a sample, or with a `record` the scoring of an answer that there is.

    `sample` is asked, with the run's defaults filled in; `spec` is what it names itself. `n` is its number in the run.
    """

    key: str
    n: int
    sample: dict[str, Any]
    spec: dict[str, Any]
    digest: str
    trees: tuple[str, ...] = ()
    record: RecordRow | None = None
    scores: tuple[dict[str, Any], ...] = ()
    artifacts: dict[str, bytes] = {}


class Spent(msgspec.Struct, frozen=True):
    """Tokens and money of one question of a judge; `cost` None where it is not known, for want of `unpriced`."""

    tokens: int
    cost: float | None = None
    unpriced: str | None = None


class Delivery(msgspec.Struct, frozen=True):
    """The result of a lease. Without a `record` no turn was started, because of `problem` or since it was halted.

    `end` is that of the attempt, as the store keeps it. `scores` are fields of `Score`.
    """

    key: str
    n: int
    record: RecordRow | None = None
    end: dict[str, Any] = {}
    note: str | None = None
    events: bytes | None = None
    rollouts: tuple[Rollout, ...] = ()
    artifacts: dict[str, bytes] = {}
    scores: tuple[dict[str, Any], ...] | None = None
    """None if the host has not scored it."""
    unpriced: str | None = None
    questions: tuple[Spent, ...] = ()
    problem: str | None = None

    @property
    def is_complete(self) -> bool:
        """True if the attempt ended by itself."""
        return self.record is not None and self.record.status in COMPLETE


class Collect(msgspec.Struct, frozen=True):
    """Asks for results: those of `acknowledged` keys are on the run's disk, and `halted` are to be interrupted.

    `waits_s`: seconds to wait for one.
    """

    acknowledged: tuple[str, ...] = ()
    halted: dict[str, str] = {}
    waits_s: float = 0.0


class Report(msgspec.Struct, frozen=True):
    """The answer to Collect. `held`: keys of all leases it has, results included; `assigned`: those whose turn runs."""

    held: tuple[str, ...]
    assigned: tuple[str, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    paused: str | None = None
    """Reason that nothing is to be started there: a full disk, no network, or a pool that is replaced."""
    free_bytes: int = 0
    slots: tuple[dict[str, Any], ...] = ()
    rate_limiter: dict[str, Any] = {}
    asked: tuple[str, ...] = ()
    """Tokens of a log-in that the run lends, which are to be renewed: see TokenRelay."""


class Renewed(msgspec.Struct, frozen=True):
    """The answer of the run to a refresh request with the token `asked`: HTTP status and body."""

    asked: str
    status: int
    body: bytes


def encode(message: msgspec.Struct) -> bytes:
    """Return a message as bytes."""
    return msgspec.msgpack.encode(message)


hello = msgspec.msgpack.Decoder(Hello).decode
opened = msgspec.msgpack.Decoder(Opened).decode
lease = msgspec.msgpack.Decoder(Lease).decode
delivery = msgspec.msgpack.Decoder(Delivery).decode
collect = msgspec.msgpack.Decoder(Collect).decode
report = msgspec.msgpack.Decoder(Report).decode
renewed = msgspec.msgpack.Decoder(Renewed).decode
