"""Room for threads: how many processes workers may have, and who waits until one may load another thread. Pure.

An app-server starts the MCP servers of each thread that it loads, and those of an ephemeral thread stay for half an
hour after the thread was let go, or until the app-server ends. So a worker that can take no further thread within
`limit` is renewed, and all workers together, those that drain included, stay within `limit` for each slot: what would
go beyond waits.

    expected(worker) = servers and left commands, as the worker has counted them; servers of threads that it has just
                       loaded may have yet to come
                       + cost * threads that were loaded since, or are being loaded
    cost             = servers that a thread brings, on the worker where it is most; UNKNOWN_COST before any has told

A worker that has nothing takes a thread whatever it brings. A worker whose threads are mostly in use is not renewed:
they would come back. Limits give way to work: a worker that has drained for PATIENCE_S is not counted any more, and
when nobody has got room for so long, who waits does. That is longer than it takes to drain a worker whose threads wait
for their clients (workers.LEASE_IDLE_S).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from codex_pool.broker.books import Books
from codex_pool.broker.queue import FairQueue
from codex_pool.broker.records import WEIGHTS, Call, Session, Worker

PATIENCE_S = 75.0
UNKNOWN_COST = 4
# A thread that is followed is in use for so long after its last request.
IN_USE_S = 10.0
# Who waits is looked at every second (wire.BEAT_S); after so long without, nobody has waited.
FORGOTTEN_S = 5.0
# A worker that has been full for so long is renewed for a single thread that is not in use.
FULL_S = 10.0


class Room:
    """See the module's docstring. `limit` 0 is none."""

    def __init__(self, books: Books, limit: int) -> None:
        self._books = books
        self._limit = limit
        self._waiting: FairQueue[Call] = FairQueue()
        # Since when nobody who waits has got room, and when somebody was seen to wait last.
        self._denied_since: float | None = None
        self._denied_at = 0.0
        self._last_cost: int | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Call]:
        """The requests that wait."""
        return iter(self._waiting)

    # How much there is.

    def is_in(self, worker: Worker) -> bool:
        """True if the worker may load a thread now."""
        return self._fits(worker) or self._denied_for_s > PATIENCE_S

    def taken(self, worker: Worker) -> None:
        """A thread is about to be loaded by this worker."""
        if self._denied_since is not None and self._fits(worker):
            self._denied_since = None

    def denied(self) -> None:
        """A request waits because of this."""
        now = self._books.now
        if self._denied_since is None or now - self._denied_at > FORGOTTEN_S:
            self._denied_since = now
        self._denied_at = now

    @property
    def _denied_for_s(self) -> float:
        now = self._books.now
        if self._denied_since is None or now - self._denied_at > FORGOTTEN_S:
            return 0.0
        return now - self._denied_since

    def reason_to_renew(self, worker: Worker) -> str:
        """Why a worker that has told what is below it is to be renewed, "" if it is not."""
        tree, now = worker.tree, self._books.now
        cost = self._learned()
        # By guesses nobody is renewed.
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
        books = self._books
        threads = (thread for name in worker.threads if (thread := books.threads.get(name)) is not None)
        in_use = sum(
            thread.busy or (bool(thread.followers) and books.now - thread.used_at <= IN_USE_S) for thread in threads
        )
        full_for_s = books.now - (worker.full_since if worker.full_since is not None else books.now)
        return 2 * in_use <= loaded or (in_use < loaded and full_for_s >= FULL_S)

    def _fits(self, worker: Worker) -> bool:
        if not self._limit or worker.tree is None:
            # No limit, or a platform that tells nothing of processes.
            return True
        cost, workers = self._cost(), self._books.workers.values()
        total = sum(self._expected(each, cost) for each in workers if not self._is_overdue(each))
        if total + cost > self._limit * self._books.slots:
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
        trees = (worker.tree for worker in self._books.workers.values())
        told = [tree.each for tree in trees if tree is not None and tree.each is not None]
        if told:
            self._last_cost = max(told)
        return self._last_cost

    def _is_overdue(self, worker: Worker) -> bool:
        return worker.draining_since is not None and self._books.now - worker.draining_since > PATIENCE_S

    # Who waits.

    def wait(self, call: Call, session: Session) -> None:
        """Keep a request until a worker may load its thread."""
        self.denied()
        self._waiting.put(session.id, WEIGHTS[session.priority], call.thread_id or "", call)

    def take(self, may_go: Callable[[str], bool]) -> Iterator[Call]:
        """Requests to be routed again, fair across sessions, each at most once; `may_go` is asked by their thread."""
        for _ in range(len(self._waiting)):
            call = self._waiting.take(may_go)
            if call is None:
                self.denied()
                return
            yield call

    def remove(self, call: Call) -> bool:
        """Take a request out that is not wanted any more; whether it was there."""
        return call.session is not None and self._waiting.remove(call.session, call.thread_id or "", call)


def _fresh(worker: Worker) -> int:
    """Count the threads loaded since the last look; archived and deleted ones took their servers with them."""
    told = worker.tree.fresh if worker.tree is not None else 0
    return min(worker.fresh, max(len(worker.threads), told))
