"""Slots of a pool, and the workers that fill them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# Longer than a worker waits for an app-server that is overloaded: it reports that itself.
START_LIMIT_S = 40.0
STABLE_S = 30.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
# Of a successor, while the worker that it is to replace goes on.
SUCCESSOR_BACKOFF_MAX_S = 60.0
# A worker waits up to 25 s for its clients to acknowledge what they got of it, before it stops. While it still runs a
# turn that time has not begun.
STOP_LIMIT_S = 40.0
State = Literal["starting", "ready", "draining", "stopping"]
# A slot that gets no worker: until the operator resumes it, or because it is removed once it is empty.
Held = Literal["", "drained", "removed"]


@dataclass(frozen=True, slots=True)
class Build:
    """A codex binary by its path and what tells its file from another one at that path; "" if that is not known."""

    path: str
    file: str = ""


@dataclass(slots=True)
class Worker:
    """A process that fills a slot, or is about to, or did. `since` is when it came into its state.

    `build`: the number of the codex that it was started with (see `upgrade`).
    """

    name: str
    since: float
    build: int = 0
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
    """A slot of the pool. `due`: while it has no worker, when it gets one; else the earliest recycling.

    `failed_starts` in a row, the last one for the reason `problem`; 0 and "" once a worker of the slot is ready.
    `build`: of its next worker. `last_build`: of the worker that was restarted last.
    """

    number: int
    build: int = 0
    last_build: int = 0
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
    held: Held = ""
    was_ready: bool = False
    last_reason: str = ""
    recycling: str = ""

    @property
    def workers(self) -> list[Worker]:
        return [worker for worker in (self.worker, self.successor, self.retired) if worker is not None]

    def row(self) -> dict[str, object]:
        """The slot as status shows it."""
        return {
            "slot": self.number,
            "state": self.worker.state if self.worker is not None else "drained" if self.held else "waiting",
            "restarts": self.restarts,
            "lastReason": self.last_reason,
            "recycles": self.recycles,
            # Why it gets no worker, "" if it does.
            "held": self.held,
            # Why its worker is being replaced, "" if it is not.
            "recycling": self.recycling,
            # Starts of a worker, or of a successor beside one, that have failed in a row; why the last one has.
            "failedStarts": self.failed_starts,
            "problem": self.problem,
            # When the next one is due (CLOCK_MONOTONIC, seconds), None if none has failed.
            "retryAt": self.due if self.failed_starts else None,
        }


def find(slots: Sequence[Slot], name: str) -> tuple[Slot | None, Worker | None]:
    """Return the worker of this name with its slot; None for both if there is none."""
    for slot in slots:
        for worker in slot.workers:
            if worker.name == name:
                return slot, worker
    return None, None


def serves(slots: Sequence[Slot], *, pool_ready: bool) -> bool:
    """Return True if a worker is of use to a client: nothing that happens to the others ends it.

    Before the pool is ready only one that has run a turn is: else no client has the pool yet, and its start fails.
    """
    workers = [worker for slot in slots for worker in slot.workers]
    return any(
        worker.state != "starting" and not worker.killing and (pool_ready or worker.turns or worker.running)
        for worker in workers
    )


def deadline_of(worker: Worker) -> float | None:
    """Return when a worker will have been in its state for too long; None while it may be for any time."""
    if worker.state == "starting":
        return worker.since + START_LIMIT_S
    if worker.state == "stopping" and not worker.running:
        return worker.since + STOP_LIMIT_S
    return None
