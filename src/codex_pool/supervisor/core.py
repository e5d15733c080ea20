"""The supervisor's state machine: desired slots against actual workers. Pure: events in, effects out.

    starting --ready--> ready --exited--> waiting --its time has come--> starting ...
       `--exited, or not ready in time--> waiting

A slot that fails again and again waits longer each time (exponential, with jitter passed in) and starts afresh after
STABLE_S of readiness. When workers keep dying before they are ready, the pool gives up with the reason: a binary that
cannot start must not spin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

START_LIMIT_S = 30.0
STABLE_S = 30.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
# Deaths before ready, in a row over the whole pool, after which it gives up: at the pool's start, and later.
FAILED_STARTS_AT_FIRST = 2
FAILED_STARTS_LATER = 8

State = Literal["starting", "ready", "waiting"]


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a worker for this slot."""

    slot: int
    worker: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End this worker by the ladder; its exit comes as an event."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class TellLost:
    """The broker is to know that this worker, and all below it, is dead."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Changed:
    """The states of the slots are others than before."""


@dataclass(frozen=True, slots=True)
class PoolReady:
    """Every slot has been ready once: the pool may be used."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The pool cannot work; `stderr` holds the last lines of the app-server that says why."""

    reason: str
    stderr: tuple[str, ...]


Effect = Spawn | Kill | TellLost | Changed | PoolReady | GiveUp


@dataclass(slots=True)
class Slot:
    """One place of the pool."""

    number: int
    state: State = "waiting"
    worker: str = ""
    since: float = 0.0
    failures: int = 0
    restarts: int = 0
    generation: int = 0
    was_ready: bool = False
    last_reason: str = ""
    killing: bool = field(default=False)


class SupervisorCore:
    """See the module's docstring. `nonce` makes the names of workers unique across restarts of the pool."""

    def __init__(self, *, slots: int, nonce: str) -> None:
        self._nonce = nonce
        self._slots = [Slot(number) for number in range(slots)]
        self._failed_starts = 0
        self._pool_ready = False
        self._gave_up = False

    def start(self, now: float) -> list[Effect]:
        """Fill all slots."""
        out: list[Effect] = []
        for slot in self._slots:
            self._spawn(slot, now, out)
        return out

    def ready(self, worker: str, now: float) -> list[Effect]:
        """A worker's app-server has answered, and the broker knows it."""
        slot = self._slot_of(worker)
        if slot is None or slot.state != "starting":
            return []
        slot.state, slot.since, slot.was_ready = "ready", now, True
        self._failed_starts = 0
        out: list[Effect] = [Changed()]
        if not self._pool_ready and all(slot.was_ready for slot in self._slots):
            self._pool_ready = True
            out.append(PoolReady())
        return out

    def suspect(self, worker: str, reason: str) -> list[Effect]:
        """The broker says that a worker does not answer."""
        slot = self._slot_of(worker)
        if slot is None or slot.killing:
            return []
        slot.killing = True
        return [Kill(worker, reason)]

    def exited(self, worker: str, reason: str, stderr: tuple[str, ...], now: float, *, jitter: float) -> list[Effect]:
        """A worker has ended and everything below it is gone. `jitter` in [0, 1)."""
        slot = self._slot_of(worker)
        if slot is None:
            return []
        out: list[Effect] = [TellLost(worker, reason), Changed()]
        if slot.state == "starting":
            self._failed_starts += 1
            limit = FAILED_STARTS_LATER if self._pool_ready else FAILED_STARTS_AT_FIRST
            if self._failed_starts >= limit and not self._gave_up:
                self._gave_up = True
                out.append(
                    GiveUp(f"{self._failed_starts} workers in a row died before they were ready: {reason}", stderr)
                )
        if slot.state == "ready" and now - slot.since >= STABLE_S:
            slot.failures = 0
        slot.failures += 1
        delay_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (slot.failures - 1)) * (0.5 + jitter / 2)
        slot.state, slot.since, slot.worker, slot.killing = "waiting", now + delay_s, "", False
        slot.restarts += 1
        slot.last_reason = reason
        return out

    def tick(self, now: float) -> list[Effect]:
        """Whose time has come. Call it at `next_deadline`."""
        out: list[Effect] = []
        if self._gave_up:
            return out
        for slot in self._slots:
            if slot.state == "waiting" and now >= slot.since:
                self._spawn(slot, now, out)
            elif slot.state == "starting" and now - slot.since >= START_LIMIT_S and not slot.killing:
                slot.killing = True
                out.append(Kill(slot.worker, f"not ready within {START_LIMIT_S:.0f} s"))
        return out

    @property
    def next_deadline(self) -> float | None:
        deadlines = [slot.since for slot in self._slots if slot.state == "waiting"]
        deadlines += [
            slot.since + START_LIMIT_S for slot in self._slots if slot.state == "starting" and not slot.killing
        ]
        return min(deadlines, default=None)

    def states(self) -> list[dict[str, object]]:
        """The slots as status shows them."""
        return [
            {"slot": slot.number, "state": slot.state, "restarts": slot.restarts, "lastReason": slot.last_reason}
            for slot in self._slots
        ]

    def _spawn(self, slot: Slot, now: float, out: list[Effect]) -> None:
        slot.generation += 1
        slot.worker = f"w{slot.number}.{slot.generation}-{self._nonce}"
        slot.state, slot.since = "starting", now
        out += [Spawn(slot.number, slot.worker), Changed()]

    def _slot_of(self, worker: str) -> Slot | None:
        return next((slot for slot in self._slots if worker and slot.worker == worker), None)
