"""Effects of the supervisor's state machine: what its loop is to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a worker for this slot, with this build of codex. Another one of the slot may be running."""

    slot: int
    worker: str
    build: int = 0


@dataclass(frozen=True, slots=True)
class Kill:
    """End this worker by the ladder; its exit comes as an event."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """The broker is to give this worker nothing new, and to report when it is idle.

    `is_replaced`: there is another one in its slot, or will be.
    """

    worker: str
    reason: str
    is_replaced: bool = True


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask this worker to end once its turns are over and its clients have got all that it has for them.

    Its exit comes as an event.
    """

    worker: str


@dataclass(frozen=True, slots=True)
class ReportLost:
    """The broker is to know that this worker, and all below it, is dead."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Changed:
    """The states of the slots are others than before."""


@dataclass(frozen=True, slots=True)
class PoolReady:
    """Reports that every slot has been ready once: the pool may be used."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The parent is to end the pool, once its turns are over unless `at_once`."""

    at_once: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The pool cannot work; `stderr` holds the last lines of the app-server, with the reason."""

    reason: str
    stderr: tuple[str, ...]
    # As of StartError.
    kind: str | None = None


Effect = Spawn | Kill | Drain | Stop | ReportLost | Changed | PoolReady | StopAsked | GiveUp
