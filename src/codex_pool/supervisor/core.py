"""The supervisor's state machine: desired slots against actual workers. Pure: events in, effects out.

    starting --ready--> ready --exited--> waiting --its time has come--> starting ...
       `--exited, or not ready in time--> waiting

A slot that fails again and again waits longer each time (exponential, with jitter passed in); with a worker that has
finished a turn, or was ready for STABLE_S, it starts afresh. When workers keep dying before they are ready, or before
any turn has finished, and no other worker serves, the pool gives up with the reason: a binary that cannot work must not
spin. While a worker serves, starts that fail are tried again with a delay and shown in `states`, without end.

A worker that is worn (options `recycle_...`) is replaced without a gap; one successor starts at a time:

    its successor starting beside it --ready--> it drains, the successor has the slot --drained--> it stops --exited
      `--exited, or not ready in time--> the worker goes on; another successor after a delay

    ready --the operator drains or removes its slot--> draining --drained--> it stops --exited--> the slot stays empty

It drains for as long as its turns run. A slot has one worker that drains: until that has ended, its next recycling
waits. None of this is counted as a failure of the slot's worker. A worker whose app-server has what is out of date in
memory (`renew`) is replaced in the same way, and before those that are worn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from codex_app_server._runtime.backoff import backoff_s

from ..options import PoolOptions
from . import recycling
from .effects import Changed, Drain, Effect, GiveUp, Kill, PoolReady, ReportLost, Spawn, Stop
from .fruitless_deaths import FruitlessDeaths
from .handover import KeptCore
from .reasons import RECYCLE_REASONS, RESTART_REASONS, reason_of_recycling, reason_of_restart
from .slots import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    STABLE_S,
    START_LIMIT_S,
    STOP_LIMIT_S,
    SUCCESSOR_BACKOFF_MAX_S,
    Held,
    Slot,
    Worker,
    deadline_of,
    find,
    serves,
)


class SupervisorCore:
    """See the module's docstring. `nonce` makes the names of workers unique across restarts of the pool.

    `one_first`: the other workers start once the first one is ready (see `system_skills`).
    """

    def __init__(self, options: PoolOptions, *, nonce: str, one_first: bool = False) -> None:
        self._nonce = nonce
        self._slots = [Slot(number) for number in range(options.workers)]
        # How many workers each slot has had, also after it was removed: no two have one name.
        self._generations: Counter[int] = Counter()
        # Those that get no worker yet.
        self._later = self._slots[1:] if one_first else []
        # Of slots that are added.
        self.build = 0
        self._options = options
        self._fruitless = FruitlessDeaths()
        self._pool_ready = False
        self._gave_up = False
        # How many workers were replaced after a death, and because they were worn, by reason.
        self._restarts = Counter(dict.fromkeys(RESTART_REASONS, 0))
        self._recycles = Counter(dict.fromkeys(RECYCLE_REASONS, 0))

    def kept(self) -> KeptCore:
        """Return the state that the next supervisor needs to go on with the slots."""
        return KeptCore(
            nonce=self._nonce,
            slots=self._slots,
            generations={str(number): count for number, count in self._generations.items()},
            build=self.build,
            restarts=dict(self._restarts),
            recycles=dict(self._recycles),
        )

    def restore(self, kept: KeptCore) -> None:
        """Go on with the slots of a pool that has been ready."""
        self._nonce, self._slots, self._later, self.build = kept.nonce, kept.slots, [], kept.build
        self._generations = Counter({int(number): count for number, count in kept.generations.items()})
        self._restarts.update(kept.restarts)
        self._recycles.update(kept.recycles)
        self._pool_ready = True

    def start(self, now: float) -> list[Effect]:
        """Fill all slots, or the first one."""
        out: list[Effect] = []
        for slot in self._slots:
            if slot not in self._later:
                slot.worker = self._spawn(slot, now, out)
        return out

    def ready(self, name: str, now: float) -> list[Effect]:
        """A worker's app-server has answered, and the broker knows it."""
        slot, worker = find(self._slots, name)
        if slot is not None and worker is not None and worker.state in ("draining", "stopping"):
            # It has just registered with a new broker.
            return [Drain(name, slot.recycling, not slot.held)]
        if slot is None or worker is None or worker.state != "starting":
            return []
        worker.state, worker.since, worker.ready_at = "ready", now, now
        slot.was_ready, slot.failed_starts, slot.problem = True, 0, ""
        out: list[Effect] = []
        if worker is slot.successor:
            slot.retired, slot.worker, slot.successor, slot.renewal = slot.worker, worker, None, ""
            if slot.retired is not None and slot.retired.state == "ready":
                _drain(slot, slot.retired, now, out)
        if slot.held:
            _drain(slot, worker, now, out)
        out.append(Changed())
        later, self._later = self._later, []
        for each in later:
            each.worker = self._spawn(each, now, out)
        if not self._pool_ready:
            self._fruitless.clear()
            if all(slot.was_ready for slot in self._slots):
                self._pool_ready = True
                out.append(PoolReady())
        return out

    def load(self, name: str, *, turns: int, threads: int, now: float, running: int = 0) -> list[Effect]:
        """A worker reports how many turns have finished and are running on it, and how many threads it has loaded."""
        _, worker = find(self._slots, name)
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
        _, worker = find(self._slots, name)
        if worker is None:
            return []
        worker.memory_bytes = memory_bytes
        return self._recycle_one(now)

    def renew(self, name: str, reason: str, now: float) -> list[Effect]:
        """The broker reports that a worker must be replaced; it gets no turn until then. May come again."""
        slot, worker = find(self._slots, name)
        if slot is None or worker is None or worker is not slot.worker or slot.successor is not None:
            return []
        slot.renewal = reason
        return self._recycle_one(now)

    def keep(self, slots: Iterable[Slot]) -> None:
        """Have the workers of these slots go on, whose successors do not start."""
        for slot in slots:
            slot.renewal, slot.failed_starts, slot.problem = "", 0, ""
            if slot.retired is None and not slot.held:
                slot.recycling = ""

    def suspect(self, name: str, reason: str) -> list[Effect]:
        """The broker reports that a worker does not answer."""
        _, worker = find(self._slots, name)
        if worker is None or worker.killing:
            return []
        worker.killing = reason
        return [Kill(name, reason)]

    def drained(self, name: str, now: float) -> list[Effect]:
        """The broker reports that a draining worker has nothing to do any more. May come again."""
        _, worker = find(self._slots, name)
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
        slot, worker = find(self._slots, name)
        if slot is None or worker is None:
            return []
        if worker.killing:
            reason = f"{worker.killing}; {reason}"
        recycling = slot.recycling
        if worker is slot.retired:
            reason = f"recycled: {slot.recycling}" if worker.state == "stopping" else reason
            slot.retired, slot.recycling = None, "" if not slot.held else slot.recycling
            slot.recycles += 1
            self._recycles[reason_of_recycling(recycling)] += 1
            self._remove_empty()
            return [ReportLost(name, reason), Changed(), *self._recycle_one(now)]
        out: list[Effect] = [ReportLost(name, reason), Changed()]
        if worker.state == "starting" and worker.build == slot.build:
            # Of another build no further one is started.
            slot.failed_starts += 1
            slot.problem = reason
        if worker is slot.successor:
            slot.successor = None
            slot.due = now + backoff_s(slot.failed_starts - 1, BACKOFF_FIRST_S, SUCCESSOR_BACKOFF_MAX_S, jitter)
            if slot.retired is None and not slot.held:
                slot.recycling = ""
            return out
        if slot.held or worker.state in ("draining", "stopping"):
            # Its end was asked for.
            slot.worker, slot.successor, slot.renewal, slot.due = slot.successor, None, "", now
            if slot.retired is None and slot.worker is None:
                slot.recycling = ""
            self._remove_empty()
            return out
        if worker.turns or (worker.state == "ready" and now - worker.ready_at >= STABLE_S):
            # It works; what ended it came from outside.
            slot.failures = 0
        slot.failures += 1
        slot.restarts += 1
        self._restarts[reason_of_restart(worker)] += 1
        slot.last_reason, slot.last_build = reason, worker.build
        slot.due = now + backoff_s(slot.failures - 1, BACKOFF_FIRST_S, BACKOFF_MAX_S, jitter)
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
        """Start workers, and kill those that are late. Call it at `next_deadline`."""
        out: list[Effect] = []
        if self._gave_up:
            return out
        for slot in self._slots:
            if slot.worker is None and not slot.held and now >= slot.due and slot not in self._later:
                slot.worker = self._spawn(slot, now, out)
            for worker in slot.workers:
                deadline = deadline_of(worker)
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
        empty = (slot for slot in self._slots if slot.worker is None and not slot.held)
        deadlines = [slot.due for slot in empty if slot not in self._later]
        workers = [worker for slot in self._slots for worker in slot.workers if not worker.killing]
        deadlines += [at for at in map(deadline_of, workers) if at is not None]
        deadlines += [at for at, _, _ in self._recycling()]
        return min(deadlines, default=None)

    @property
    def registered(self) -> list[str]:
        """The workers that a broker must know."""
        workers = [worker for slot in self._slots for worker in slot.workers]
        return [worker.name for worker in workers if worker.state != "starting"]

    def states(self) -> list[dict[str, object]]:
        """The slots as status shows them."""
        return [slot.row() for slot in self._slots]

    @property
    def replaced(self) -> dict[str, dict[str, int]]:
        """Numbers of workers that were restarted and recycled, by reason, for metrics."""
        return {"restarts": dict(self._restarts), "recycles": dict(self._recycles)}

    # The operator.

    def set_options(self, options: PoolOptions, now: float) -> list[Effect]:
        """Have other limits of recycling from now on; `scale` changes the number of workers."""
        self._options = options
        return self._recycle_one(now)

    @property
    def is_ready(self) -> bool:
        """True once every slot has been ready."""
        return self._pool_ready

    @property
    def slots(self) -> list[Slot]:
        """The slots, also those that are removed once their workers have ended."""
        return self._slots

    @property
    def wanted(self) -> int:
        """Number of slots that there are to be."""
        return sum(slot.held != "removed" for slot in self._slots)

    def scale(self, workers: int, now: float) -> list[Effect]:
        """Have so many slots: further ones start at once, the last ones drain, and are removed once they are empty."""
        out: list[Effect] = []
        known = {slot.number: slot for slot in self._slots}
        for number, slot in known.items():
            if number >= workers and slot.held != "removed":
                out += self.hold(slot, "removed", f"scaled down to {workers}", now)
        for number in range(workers):
            if number not in known:
                slot = Slot(number, self.build)
                self._slots.append(slot)
                slot.worker = self._spawn(slot, now, out)
            elif known[number].held == "removed":
                out += self.refill(known[number], now)
        self._slots.sort(key=lambda slot: slot.number)
        self._remove_empty()
        return [*out, Changed()]

    def hold(self, slot: Slot, held: Held, why: str, now: float) -> list[Effect]:
        """Let the workers of a slot finish what they run, and end; the slot gets no further one."""
        out: list[Effect] = []
        slot.held, slot.recycling, slot.renewal = held, why, ""
        if slot.worker is not None and slot.worker.state == "ready":
            _drain(slot, slot.worker, now, out)
        return [*out, Changed()]

    def refill(self, slot: Slot, now: float) -> list[Effect]:
        """Give a slot a worker again that was held. One that drains goes on doing so beside it."""
        out: list[Effect] = []
        slot.held, slot.renewal = "", ""
        if slot.worker is not None and slot.worker.state in ("draining", "stopping") and slot.retired is None:
            slot.retired, slot.worker = slot.worker, None
        if slot.worker is None:
            slot.worker = self._spawn(slot, now, out)
        return [*out, Changed()]

    def _remove_empty(self) -> None:
        self._slots = [slot for slot in self._slots if slot.held != "removed" or slot.workers]

    # Recycling.

    def _recycle_one(self, now: float) -> list[Effect]:
        """Replace the oldest worker that must be renewed, or is worn, unless another slot is at it."""
        out: list[Effect] = []
        due = [
            (not slot.renewal, worker.ready_at, slot.number, why)
            for at, slot, why in self._recycling()
            if (worker := slot.worker) and now >= at
        ]
        if due:
            *_, number, why = min(due)
            slot = next(slot for slot in self._slots if slot.number == number)
            slot.recycling = why
            slot.successor = self._spawn(slot, now, out)
        return out

    # The rest.

    def _count_fruitless(self, worker: Worker, last: GiveUp, now: float, out: list[Effect]) -> None:
        if serves(self._slots, pool_ready=self._pool_ready) or (worker.state != "starting" and not self._pool_ready):
            return
        gives_up = self._fruitless.add(last, now, slots=len(self._slots), pool_ready=self._pool_ready)
        if gives_up is not None and not self._gave_up:
            self._gave_up = True
            out.append(gives_up)

    def _recycling(self) -> Iterator[tuple[float, Slot, str]]:
        """Yield from when on a slot is to have another worker, and why."""
        if not self._gave_up:
            yield from recycling.due(self._slots, self._options, pool_ready=self._pool_ready)

    def _spawn(self, slot: Slot, now: float, out: list[Effect]) -> Worker:
        self._generations[slot.number] += 1
        worker = Worker(f"w{slot.number}.{self._generations[slot.number]}-{self._nonce}", now, slot.build)
        out += [Spawn(slot.number, worker.name, slot.build), Changed()]
        return worker


def _drain(slot: Slot, worker: Worker, now: float, out: list[Effect]) -> None:
    worker.state, worker.since = "draining", now
    out.append(Drain(worker.name, slot.recycling, not slot.held))
