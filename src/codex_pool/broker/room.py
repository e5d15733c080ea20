"""Room for threads: how many processes workers may have, and who waits until one may load another thread. Pure.

An app-server starts the MCP servers of each thread that it loads, and those of an ephemeral thread stay until it ends,
whoever has let the thread go. So a worker that can take no further thread within `limit` is renewed, and all workers
together, those that drain included, stay within `limit` for each slot: what would go beyond waits.

    expected(worker) = servers and left commands, as the worker has counted them
                       + cost * threads that were loaded since, or are being loaded
    cost             = servers a loaded thread, where most; 1 before any worker has told

A worker that has nothing takes a thread whatever it brings. Limits give way to work after PATIENCE_S: of a worker that
has been full for so long and not been replaced, and what a worker that has drained for so long has is not counted. That
is longer than it takes to drain one whose threads wait for their clients (workers.LEASE_IDLE_S).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from codex_pool.broker.queue import FairQueue
from codex_pool.broker.records import WEIGHTS, Call, Renew, Session, Worker

PATIENCE_S = 75.0


class Room:
    """See the module's docstring. `workers` are the living ones by name; `limit` 0 is none."""

    def __init__(self, workers: dict[str, Worker], *, slots: int, limit: int) -> None:
        self._workers = workers
        self._most = slots * limit
        self._limit = limit
        self._waiting: FairQueue[Call] = FairQueue()

    def __len__(self) -> int:
        return len(self._waiting)

    # How much there is.

    def is_in(self, worker: Worker, now: float) -> bool:
        """True if the worker may load a thread now."""
        if not self._limit or worker.tree is None:
            # No limit, or a platform that tells nothing of processes.
            return True
        if worker.full_since is not None and now - worker.full_since > PATIENCE_S:
            return True
        cost = self._cost()
        counted = (each for each in self._workers.values() if not self._is_overdue(each, now))
        if sum(self._expected(each, cost) for each in counted) + cost > self._most:
            return False
        expected = self._expected(worker, cost)
        return not expected or expected + cost <= self._limit

    def counted(self, worker: Worker, now: float) -> list[Renew]:
        """A worker has told what is below it: whether it has to be renewed."""
        tree = worker.tree
        if not self._limit or tree is None:
            return []
        descendants = tree.servers + tree.left
        # Of a single thread another worker would have as many.
        if descendants + max(1, self._cost()) <= self._limit or (tree.threads < 2 and not tree.left):
            worker.full_since = None
            return []
        worker.full_since = now if worker.full_since is None else worker.full_since
        if worker.leaving:
            return []
        return [Renew(worker.name, f"{descendants} descendants, the limit is {self._limit}")]

    def _expected(self, worker: Worker, cost: int) -> int:
        tree = worker.tree
        counted = tree.servers + tree.left if tree is not None else 0
        return counted + cost * (worker.fresh + len(worker.loading))

    def _cost(self) -> int:
        trees = [tree for worker in self._workers.values() if (tree := worker.tree) is not None and tree.threads]
        return max((-(-tree.servers // tree.threads) for tree in trees), default=1)

    def _is_overdue(self, worker: Worker, now: float) -> bool:
        return worker.draining_since is not None and now - worker.draining_since > PATIENCE_S

    # Who waits.

    def wait(self, call: Call, session: Session) -> None:
        """Keep a request until a worker may load its thread."""
        self._waiting.put(session.id, WEIGHTS[session.priority], call.thread_id or "", call)

    def take(self, may_go: Callable[[str], bool]) -> Iterator[Call]:
        """Requests to be routed again, fair across sessions, each at most once; `may_go` is asked by their thread."""
        for _ in range(len(self._waiting)):
            call = self._waiting.take(may_go)
            if call is None:
                return
            yield call

    def remove(self, call: Call) -> bool:
        """Take a request out that is not wanted any more; whether it was there."""
        return call.session is not None and self._waiting.remove(call.session, call.thread_id or "", call)
