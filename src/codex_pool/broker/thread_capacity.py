"""ThreadCapacity: how many processes workers may have, and requests that wait until one may load a thread. Pure.

An app-server starts the MCP servers of each thread that it loads, and those of an ephemeral thread stay for half an
hour after the thread was let go, or until the app-server ends. So a worker that can take no further thread within
`limit` is renewed, and all workers together, those that drain included, stay within `limit` for each slot: what would
go beyond waits.

    expected(worker) = servers and left commands, as the worker has counted them; servers of threads that it has just
                       loaded may have yet to come
                       + cost * threads that were loaded since, or are being loaded
    cost             = servers that a thread brings, on the worker where it is most; UNKNOWN_COST before any report

A worker that has nothing takes a thread whatever it brings. A worker whose threads are mostly in use is not renewed:
they would come back. Limits give way to work: a worker that has drained for PATIENCE_S is not counted any more, and
when no request has got capacity for so long, those that wait do. That is longer than it takes to drain a worker whose
threads wait for their clients (workers.LEASE_IDLE_S).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .entities import Worker
from .request import Request
from .request_queues import FairRequestQueue
from .state import BrokerState

PATIENCE_S = 75.0
UNKNOWN_COST = 4
# A thread that is followed is in use for so long after its last request.
IN_USE_S = 10.0
# Requests that wait are looked at every second (wire.BEAT_S); after so long without, none has waited.
FORGOTTEN_S = 5.0
# A worker that has been full for so long is renewed for a single thread that is not in use.
FULL_S = 10.0


class ThreadCapacity:
    """See the module's docstring. `limit` is a count of processes, 0 is none; `waiting` the requests that wait."""

    def __init__(self, state: BrokerState, limit: int) -> None:
        self._state = state
        self._limit = limit
        self.waiting = FairRequestQueue("thread capacity")
        # Since when no request that waits has got capacity, and when one was last known to wait.
        self._denied_since: float | None = None
        self._denied_at = 0.0
        self._last_cost: int | None = None

    def set_limit(self, limit: int) -> None:
        """Have another limit from now on."""
        self._limit = limit

    # Capacity.

    def has_capacity(self, worker: Worker) -> bool:
        """True if the worker may load a thread now."""
        return self._fits(worker) or self._denied_for_s > PATIENCE_S

    def load_started(self, worker: Worker) -> None:
        """Note that a thread is about to be loaded by this worker."""
        if self._denied_since is not None and self._fits(worker):
            self._denied_since = None

    def note_denied(self) -> None:
        """Note that a request waits because of this."""
        now = self._state.now
        if self._denied_since is None or now - self._denied_at > FORGOTTEN_S:
            self._denied_since = now
        self._denied_at = now

    @property
    def _denied_for_s(self) -> float:
        now = self._state.now
        if self._denied_since is None or now - self._denied_at > FORGOTTEN_S:
            return 0.0
        return now - self._denied_since

    def reason_to_renew(self, worker: Worker) -> str:
        """Return why a worker that has reported its processes is to be renewed, "" if it is not."""
        tree, now = worker.tree, self._state.now
        cost = self._learned()
        # No worker is renewed because of a guess.
        young = (cost or 0) * (tree.young + _fresh(worker)) if tree is not None else 0
        descendants = tree.settled + young + tree.left if tree is not None else 0
        if not self._limit or tree is None or descendants + (cost or 1) <= self._limit:
            worker.full_since = None
            return ""
        worker.full_since = now if worker.full_since is None else worker.full_since
        # Of a single thread another worker would have as many.
        of_threads = tree.threads > 1 and self._is_worth_it(worker, tree.threads)
        if worker.leaving or not (of_threads or 2 * tree.left >= self._limit):
            return ""
        return f"{descendants} descendants, the limit is {self._limit}"

    def _is_worth_it(self, worker: Worker, loaded: int) -> bool:
        state = self._state
        threads = (thread for name in worker.threads if (thread := state.threads.get(name)) is not None)
        in_use = sum(
            thread.busy or (bool(thread.followers) and state.now - thread.used_at <= IN_USE_S) for thread in threads
        )
        full_for_s = state.now - (worker.full_since if worker.full_since is not None else state.now)
        return 2 * in_use <= loaded or (in_use < loaded and full_for_s >= FULL_S)

    def _fits(self, worker: Worker) -> bool:
        if not self._limit or worker.tree is None:
            # No limit, or a platform that reports nothing of processes.
            return True
        cost, workers = self._cost(), self._state.workers.values()
        total = sum(self._expected(each, cost) for each in workers if not self._is_overdue(each))
        if total + cost > self._limit * self._state.slots:
            return False
        expected = self._expected(worker, cost)
        return not expected or expected + cost <= self._limit

    def _expected(self, worker: Worker, cost: int) -> int:
        tree, coming = worker.tree, cost * (_fresh(worker) + len(worker.loading))
        if tree is None:
            return coming
        return max(tree.servers, tree.settled + cost * tree.young) + tree.left + coming

    def _cost(self) -> int:
        learned = self._learned()
        return UNKNOWN_COST if learned is None else learned

    def _learned(self) -> int | None:
        """Servers that a thread brings, as far as any worker knows, or has known."""
        trees = (worker.tree for worker in self._state.workers.values())
        reported = [tree.each for tree in trees if tree is not None and tree.each is not None]
        if reported:
            self._last_cost = max(reported)
        return self._last_cost

    def _is_overdue(self, worker: Worker) -> bool:
        return worker.draining_since is not None and self._state.now - worker.draining_since > PATIENCE_S

    # Requests that wait.

    def take(self, may_go: Callable[[str], bool]) -> Iterator[Request]:
        """Requests to route again, fair across sessions, each at most once; `may_go` selects their threads."""
        for _ in range(len(self.waiting)):
            request = self.waiting.take(may_go)
            if request is None:
                self.note_denied()
                return
            yield request


def _fresh(worker: Worker) -> int:
    """Count the threads loaded since the last look; archived and deleted ones took their servers with them."""
    reported = worker.tree.fresh if worker.tree is not None else 0
    return min(worker.fresh, max(len(worker.threads), reported))
