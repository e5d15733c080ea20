"""Placement: the worker that a request goes to. Pure."""

from __future__ import annotations

from ..protocol import thread_records
from .busy_order import Busy, busy
from .entities import Thread, Worker
from .request import Request
from .state import BrokerState
from .thread_capacity import ThreadCapacity

# So many workers that cannot take a request are passed over before all are looked at.
LOOKED_AT = 8


class Placement:
    """The worker that has the thread or the turn of a request, else the one with the least to do."""

    def __init__(self, state: BrokerState, capacity: ThreadCapacity) -> None:
        self._state = state
        self._capacity = capacity

    def worker_for(self, request: Request, thread: Thread | None) -> Worker | None:
        """The worker for a request on this thread; None if no worker takes it now."""
        workers, turn = self._state.workers, self._state.turns.get(request.turn_id or "")
        if thread is not None and thread.worker is None:
            # All that wait for a thread to be adopted wait with the same worker.
            owner = workers.get(thread.chosen)
        elif thread is not None:
            owner = workers.get(thread.worker or "")
        elif turn is not None:
            owner = workers.get(turn.worker)
        else:
            owner = self._by_family(request.thread_id or "")
        if owner is not None and not owner.takes_work and (turn is None and (thread is None or thread.worker is None)):
            owner = None
        return owner or self.least_busy(loads=loads_thread(request, thread))

    def _by_family(self, thread_id: str) -> Worker | None:
        """The worker that has archived the thread, or that has a thread which this one is a sub-agent of."""
        threads = self._state.threads
        for each in (thread_id, *threads.ancestors(thread_id)):
            thread = threads.get(each)
            name = thread.worker if thread is not None else threads.archived.get(each)
            if name is not None:
                return self._state.workers.get(name)
        return None

    def least_busy(self, *, loads: bool = False) -> Worker | None:
        """The worker that new work goes to; with `loads` one that has capacity for a thread, if there is any."""
        state = self._state
        if not state.account.logins:

            def fits(worker: Worker) -> bool:
                is_ready = worker.takes_work and not worker.is_silent(state.now)
                return is_ready and (not loads or self._capacity.has_capacity(worker))

            found = state.busy.first(fits, LOOKED_AT)
            if found is not None:
                return found
        return self._least_busy_of_all(loads=loads)

    def _least_busy_of_all(self, *, loads: bool) -> Worker | None:
        """As `least_busy`, by a look at all workers."""
        state, ready = self._state, self._state.ready()
        if loads:
            ready = [worker for worker in ready if self._capacity.has_capacity(worker)] or ready
        # A log-in that succeeds fails the turns beside it.
        with_login = {name for name, _ in state.account.logins.values()}

        def order(worker: Worker) -> Busy:
            turns, others, slot = busy(worker)
            return turns + (state.turns_per_worker if worker.name in with_login else 0), others, slot

        return min(ready, key=order, default=None)

    def for_account(self) -> Worker | None:
        """The worker with a log-in under way, because a second one takes its place; else the one with the least to do.

        codex fails the turns that run in an app-server where a log-in succeeds.
        """
        with_login = {worker for worker, _ in self._state.account.logins.values()}
        return min(self._state.ready(), key=lambda w: (w.name not in with_login, w.load, w.slot), default=None)


def loads_thread(request: Request, thread: Thread | None) -> bool:
    """True for a request that makes its app-server load a thread."""
    if thread is not None and thread.worker is None:
        return thread.stored and not reads_stored(request, thread)
    return request.method in thread_records.LOADS_THREAD and (thread is None or request.method == "thread/fork")


def reads_stored(request: Request, thread: Thread) -> bool:
    """True for a request that any worker can answer from what is stored of a thread, without loading it."""
    return request.method in thread_records.READS_HISTORY and thread.stored and not thread.archived
