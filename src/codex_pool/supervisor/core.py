"""The supervisor's state machine: desired slots against actual workers. Pure: events in, effects out.

    starting --ready--> ready --exited--> waiting --its time has come--> starting ...
       `--exited, or not ready in time--> waiting

A slot that fails again and again waits longer each time (exponential, with jitter passed in); with a worker that has
finished a turn, or was ready for STABLE_S, it starts afresh. When workers keep dying before they are ready, or before
any turn has finished, and no other worker serves, the pool gives up with the reason: a binary that cannot work must not
spin. While a worker serves, starts that fail are tried again with a delay and shown in `states`, without end.

A worker that is worn (`Recycle`) is replaced without a gap; one successor starts at a time:

    its successor starting beside it --ready--> it drains, the successor has the slot --drained--> it stops --exited
      `--exited, or not ready in time--> the worker goes on; another successor after a delay

It drains for as long as its turns run. A slot has one worker that drains: until that has ended, its next recycling
waits. None of this is counted as a failure of the slot's worker. A worker whose app-server has what is out of date in
memory (`renew`) is replaced in the same way, and before those that are worn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# Longer than a worker waits for an app-server that is overloaded: it is to say so itself.
START_LIMIT_S = 40.0
STABLE_S = 30.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
# Of a successor, while the worker that it is to replace goes on.
SUCCESSOR_BACKOFF_MAX_S = 60.0
# Deaths before ready after which a pool gives up that has never been ready.
FAILED_STARTS_AT_FIRST = 2
# Deaths before ready or before any finished turn, while no worker serves, after which it gives up later.
FRUITLESS_WINDOW_S = 300.0
FRUITLESS_DEATHS = 8
FRUITLESS_DEATHS_PER_SLOT = 3
# A worker waits up to 25 s for its clients to acknowledge what they got of it, before it stops. While it still runs a
# turn that time has not begun.
STOP_LIMIT_S = 40.0
# A bound below what a fresh app-server takes must not spin.
MEMORY_MIN_AGE_S = 10.0

State = Literal["starting", "ready", "draining", "stopping"]


@dataclass(frozen=True, slots=True)
class Recycle:
    """Limits at which a worker is worn; 0 is none. `turns` finished, `threads` loaded, `memory_bytes` of its tree.

    Of `descendants` the broker takes care, which lets no worker load threads beyond it: it asks for a renewal.
    """

    turns: int = 0
    threads: int = 0
    age_s: float = 0.0
    memory_bytes: int = 0
    descendants: int = 0


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a worker for this slot. Another one of the slot may be running."""

    slot: int
    worker: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End this worker by the ladder; its exit comes as an event."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """The broker is to give this worker nothing new, and to say when it is idle. `reason`: of the recycling."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask this worker to end once its turns are over and its clients have got all that it has for them.

    Its exit comes as an event.
    """

    worker: str


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
    # As of StartError.
    kind: str | None = None


Effect = Spawn | Kill | Drain | Stop | TellLost | Changed | PoolReady | GiveUp


@dataclass(slots=True)
class Worker:
    """One process that fills a slot, or is about to, or did. `since` is when it came into its state."""

    name: str
    since: float
    state: State = "starting"
    ready_at: float = 0.0
    turns: int = 0
    running: int = 0
    threads: int = 0
    memory_bytes: int = 0
    # Why it is being killed, "" if it is not.
    killing: str = ""


@dataclass(slots=True)
class Slot:
    """One place of the pool. `due`: while it has no worker, when it gets one; else the earliest recycling.

    `failed_starts` in a row, the last one for the reason `problem`; 0 and "" once a worker of the slot is ready.
    """

    number: int
    worker: Worker | None = None
    successor: Worker | None = None
    retired: Worker | None = None
    due: float = 0.0
    failures: int = 0
    failed_starts: int = 0
    problem: str = ""
    restarts: int = 0
    recycles: int = 0
    # Why its worker must be replaced whatever it has done, "" if it need not be.
    renewal: str = ""
    generation: int = 0
    was_ready: bool = False
    last_reason: str = ""
    recycling: str = ""

    @property
    def workers(self) -> list[Worker]:
        return [worker for worker in (self.worker, self.successor, self.retired) if worker is not None]


class SupervisorCore:
    """See the module's docstring. `nonce` makes the names of workers unique across restarts of the pool."""

    def __init__(self, *, slots: int, nonce: str, recycle: Recycle | None = None) -> None:
        self._nonce = nonce
        self._slots = [Slot(number) for number in range(slots)]
        self._recycle = recycle or Recycle()
        # When workers died that had done nothing, since a turn finished last.
        self._fruitless: deque[float] = deque()
        self._pool_ready = False
        self._gave_up = False

    def start(self, now: float) -> list[Effect]:
        """Fill all slots."""
        out: list[Effect] = []
        for slot in self._slots:
            slot.worker = self._spawn(slot, now, out)
        return out

    def ready(self, name: str, now: float) -> list[Effect]:
        """A worker's app-server has answered, and the broker knows it."""
        slot, worker = self._find(name)
        if slot is not None and worker is not None and worker.state in ("draining", "stopping"):
            # A new broker has just heard of it.
            return [Drain(name, slot.recycling)]
        if slot is None or worker is None or worker.state != "starting":
            return []
        worker.state, worker.since, worker.ready_at = "ready", now, now
        slot.was_ready, slot.failed_starts, slot.problem = True, 0, ""
        out: list[Effect] = []
        if worker is slot.successor:
            slot.retired, slot.worker, slot.successor, slot.renewal = slot.worker, worker, None, ""
            if slot.retired is not None:
                slot.retired.state, slot.retired.since = "draining", now
                out.append(Drain(slot.retired.name, slot.recycling))
        out.append(Changed())
        if not self._pool_ready:
            self._fruitless.clear()
            if all(slot.was_ready for slot in self._slots):
                self._pool_ready = True
                out.append(PoolReady())
        return out

    def load(self, name: str, *, turns: int, threads: int, now: float, running: int = 0) -> list[Effect]:
        """A worker says how many turns have finished and are running on it, and how many threads it has loaded."""
        _, worker = self._find(name)
        if worker is None:
            return []
        if turns > worker.turns:
            self._fruitless.clear()
        if worker.state == "stopping" and worker.running and not running:
            # From now on it waits for its clients only.
            worker.since = now
        worker.turns, worker.threads, worker.running = turns, threads, running
        return self._recycle_one(now)

    def memory(self, name: str, memory_bytes: int, now: float) -> list[Effect]:
        """Note the memory of a worker and all below it, without tool commands of turns that run."""
        _, worker = self._find(name)
        if worker is None:
            return []
        worker.memory_bytes = memory_bytes
        return self._recycle_one(now)

    def renew(self, name: str, reason: str, now: float) -> list[Effect]:
        """The broker says that a worker must be replaced; it gets no turn until then. May come again."""
        slot, worker = self._find(name)
        if slot is None or worker is None or worker is not slot.worker or slot.successor is not None:
            return []
        slot.renewal = reason
        return self._recycle_one(now)

    def suspect(self, name: str, reason: str) -> list[Effect]:
        """The broker says that a worker does not answer."""
        _, worker = self._find(name)
        if worker is None or worker.killing:
            return []
        worker.killing = reason
        return [Kill(name, reason)]

    def drained(self, name: str, now: float) -> list[Effect]:
        """The broker says that a draining worker has nothing to do any more. May come again."""
        _, worker = self._find(name)
        if worker is None or worker.state != "draining":
            return []
        worker.state, worker.since = "stopping", now
        return [Stop(name)]

    def exited(
        self,
        name: str,
        reason: str,
        stderr: tuple[str, ...],
        now: float,
        *,
        jitter: float,
        kind: str | None = None,
        counts: bool = True,
    ) -> list[Effect]:
        """A worker has ended and everything below it is gone. `jitter` in [0, 1).

        `kind`: as of StartError, when its app-server could not be started. `counts`: whether it may be a reason for the
        pool to give up.
        """
        slot, worker = self._find(name)
        if slot is None or worker is None:
            return []
        if worker.killing:
            reason = f"{worker.killing}; {reason}"
        if worker is slot.retired:
            reason = f"recycled: {slot.recycling}" if worker.state == "stopping" else reason
            slot.retired, slot.recycling = None, ""
            slot.recycles += 1
            return [TellLost(name, reason), Changed(), *self._recycle_one(now)]
        out: list[Effect] = [TellLost(name, reason), Changed()]
        if worker.state == "starting":
            slot.failed_starts += 1
            slot.problem = reason
        if worker is slot.successor:
            slot.successor = None
            slot.due = now + _backoff_s(slot.failed_starts, SUCCESSOR_BACKOFF_MAX_S, jitter)
            if slot.retired is None:
                slot.recycling = ""
            return out
        if worker.turns or (worker.state == "ready" and now - worker.ready_at >= STABLE_S):
            # It works; what ended it came from outside.
            slot.failures = 0
        slot.failures += 1
        slot.restarts += 1
        slot.last_reason = reason
        slot.due = now + _backoff_s(slot.failures, BACKOFF_MAX_S, jitter)
        # A successor that is on its way need not wait.
        slot.worker, slot.successor, slot.renewal = slot.successor, None, ""
        if slot.retired is None:
            slot.recycling = ""
        if counts and (worker.state == "starting" or not worker.turns):
            self._count_fruitless(worker, GiveUp(reason, stderr, kind), now, out)
        return out

    def unreachable(self, now: float) -> None:
        """Workers cannot come to the broker for now: those that start get more time."""
        for slot in self._slots:
            for worker in slot.workers:
                if worker.state == "starting":
                    worker.since = now

    def tick(self, now: float) -> list[Effect]:
        """Whose time has come. Call it at `next_deadline`."""
        out: list[Effect] = []
        if self._gave_up:
            return out
        for slot in self._slots:
            if slot.worker is None and now >= slot.due:
                slot.worker = self._spawn(slot, now, out)
            for worker in slot.workers:
                deadline = _deadline(worker)
                if deadline is None or now < deadline or worker.killing:
                    continue
                verb, limit_s = ("ready", START_LIMIT_S) if worker.state == "starting" else ("gone", STOP_LIMIT_S)
                worker.killing = f"not {verb} within {limit_s:.0f} s"
                out.append(Kill(worker.name, worker.killing))
        return out + self._recycle_one(now)

    @property
    def next_deadline(self) -> float | None:
        if self._gave_up:
            return None
        deadlines = [slot.due for slot in self._slots if slot.worker is None]
        for slot in self._slots:
            for worker in slot.workers:
                deadline = None if worker.killing else _deadline(worker)
                if deadline is not None:
                    deadlines.append(deadline)
        deadlines += [at for at, _, _ in (*self._renewals(), *self._worn())]
        return min(deadlines, default=None)

    @property
    def registered(self) -> list[str]:
        """The workers that a broker must know."""
        workers = [worker for slot in self._slots for worker in slot.workers]
        return [worker.name for worker in workers if worker.state != "starting"]

    def states(self) -> list[dict[str, object]]:
        """The slots as status shows them."""
        return [
            {
                "slot": slot.number,
                "state": slot.worker.state if slot.worker is not None else "waiting",
                "restarts": slot.restarts,
                "lastReason": slot.last_reason,
                "recycles": slot.recycles,
                # Why its worker is being replaced, "" if it is not.
                "recycling": slot.recycling,
                # Starts of a worker, or of a successor beside one, that have failed in a row; why the last one has.
                "failedStarts": slot.failed_starts,
                "problem": slot.problem,
                # When the next one is due (CLOCK_MONOTONIC, seconds), None if none has failed.
                "retryAt": slot.due if slot.failed_starts else None,
            }
            for slot in self._slots
        ]

    # Recycling.

    def _recycle_one(self, now: float) -> list[Effect]:
        """Replace the oldest worker that must be renewed, or is worn, unless another slot is at it."""
        out: list[Effect] = []
        due = [
            (not slot.renewal, worker.ready_at, slot.number, why)
            for at, slot, why in (*self._renewals(), *self._worn())
            if (worker := slot.worker) and now >= at
        ]
        if due:
            *_, number, why = min(due)
            slot = self._slots[number]
            slot.recycling = why
            slot.successor = self._spawn(slot, now, out)
        return out

    def _renewals(self) -> Iterator[tuple[float, Slot, str]]:
        """From when on a slot is to be renewed, and why. One successor starts at a time; the old one may take long."""
        if self._gave_up or any(slot.successor for slot in self._slots):
            return
        for slot in self._slots:
            worker = slot.worker
            if slot.renewal and slot.retired is None and worker is not None and worker.state == "ready":
                yield slot.due, slot, slot.renewal

    def _worn(self) -> Iterator[tuple[float, Slot, str]]:
        """From when on a slot is to be recycled, and why. None while a successor, or the pool, starts."""
        if self._gave_up or not self._pool_ready or any(slot.successor for slot in self._slots):
            return
        recycle = self._recycle
        for slot in self._slots:
            worker = slot.worker
            if worker is None or worker.state != "ready" or worker.killing or slot.retired is not None:
                continue
            if recycle.turns and worker.turns >= recycle.turns:
                yield slot.due, slot, f"{worker.turns} turns, the limit is {recycle.turns}"
            elif recycle.threads and worker.threads >= recycle.threads:
                yield slot.due, slot, f"{worker.threads} threads, the limit is {recycle.threads}"
            elif recycle.memory_bytes and worker.memory_bytes >= recycle.memory_bytes:
                why = f"{worker.memory_bytes} bytes of memory, the limit is {recycle.memory_bytes}"
                yield max(slot.due, worker.ready_at + MEMORY_MIN_AGE_S), slot, why
            elif recycle.age_s:
                at = worker.ready_at + recycle.age_s
                yield max(slot.due, at), slot, f"it has run for {recycle.age_s:g} s, the limit"

    # The rest.

    def _count_fruitless(self, worker: Worker, last: GiveUp, now: float, out: list[Effect]) -> None:
        if self._serves() or (worker.state != "starting" and not self._pool_ready):
            return
        deaths = self._fruitless
        deaths.append(now)
        while deaths[0] < now - FRUITLESS_WINDOW_S:
            deaths.popleft()
        limit = max(FRUITLESS_DEATHS, FRUITLESS_DEATHS_PER_SLOT * len(self._slots))
        if self._gave_up or len(deaths) < (limit if self._pool_ready else FAILED_STARTS_AT_FIRST):
            return
        self._gave_up = True
        what = f"{len(deaths)} workers in a row died before they were ready"
        if self._pool_ready:
            seconds = now - deaths[0]
            what = f"{len(deaths)} workers died within {seconds:.0f} s, before they were ready or had finished a turn"
        if last.kind is not None and not self._pool_ready:
            # It says all that there is to know.
            out.append(last)
            return
        out.append(GiveUp(f"{what}: {last.reason}", last.stderr, last.kind))

    def _serves(self) -> bool:
        """Whether a worker is of use to somebody: nothing that happens to the others ends it.

        Before the pool is ready only one that has run a turn is: else nobody has been given the pool yet, and its start
        fails.
        """
        workers = [worker for slot in self._slots for worker in slot.workers]
        return any(
            worker.state != "starting" and not worker.killing and (self._pool_ready or worker.turns or worker.running)
            for worker in workers
        )

    def _spawn(self, slot: Slot, now: float, out: list[Effect]) -> Worker:
        slot.generation += 1
        worker = Worker(f"w{slot.number}.{slot.generation}-{self._nonce}", now)
        out += [Spawn(slot.number, worker.name), Changed()]
        return worker

    def _find(self, name: str) -> tuple[Slot | None, Worker | None]:
        for slot in self._slots:
            for worker in slot.workers:
                if worker.name == name:
                    return slot, worker
        return None, None


def _backoff_s(failures: int, limit_s: float, jitter: float) -> float:
    """The delay after so many failures in a row, in seconds."""
    delay_s: float = min(limit_s, BACKOFF_FIRST_S * 2 ** min(failures - 1, 30))
    return delay_s * (0.5 + jitter / 2)


def _deadline(worker: Worker) -> float | None:
    """When a worker has been in its state for too long; None while it may be for any time."""
    if worker.state == "starting":
        return worker.since + START_LIMIT_S
    if worker.state == "stopping" and not worker.running:
        return worker.since + STOP_LIMIT_S
    return None
