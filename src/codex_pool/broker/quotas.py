"""Quotas: how much of the pool the principals with keys may take, and how much they take. Pure.

    turns       running, about to run, or waiting; bounded by the key (`max_turns`), and all keys together leave some
                turns of each worker to the pool's owner
    waiting     turns that wait for an approval hold no permit to run, up to a bound of each worker, of which a
    turns       principal has a quarter
    permits     requests that a worker has and has not answered: PERMITS for one principal, KEY_PERMITS for all of
                them, and no further one beyond PERMIT_BYTES; a request without one waits, and principals take turns
    waiting     requests that are held here: MAX_WAITING and MAX_WAITING_BYTES for one principal
    log lines   LOG_LINES for one principal in LOG_S; the others are counted

Interrupting and steering need no permit: a worker reserves some of its own for them. Nor do commands, which may run for
long (see `bound_objects` for their bounds).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from ..protocol.bound_methods import COMMAND
from .entities import Worker
from .request import Request

# Of the 56 that a worker has for requests; how many app-servers answer at once is far less.
PERMITS = 16
KEY_PERMITS = 40
PERMIT_BYTES = 4 * 1024 * 1024
MAX_WAITING = 1024
MAX_WAITING_BYTES = 16 * 1024 * 1024
LOG_LINES = 10
LOG_S = 60.0
# How long after a goal was set, or a turn of it has ended, the next one may take to begin.
NEXT_TURN_S = 5.0

CONTROL = frozenset({"turn/interrupt", "turn/steer"})
_WITHOUT_PERMIT = CONTROL | {COMMAND.begin}


def reserved_turns(turns_per_worker: int) -> int:
    """Count the turns of each worker that no key can take."""
    return max(1, turns_per_worker // 8) if turns_per_worker > 1 else 0


def waiting_turns_of_key(waiting_turns_per_worker: int) -> int:
    """Count the turns of one principal that may wait for a person on a worker beside those that run there."""
    return max(1, waiting_turns_per_worker // 4)


def needs_permit(request: Request) -> bool:
    """Return True if this request counts against the permits of its principal."""
    return bool(request.principal) and not request.starts_turn and request.method not in _WITHOUT_PERMIT


class Permits:
    """Queue of requests that wait for a permit of their principal with a worker."""

    reason = "permit"

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Request]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Request]:
        for queue in self._waiting.values():
            yield from queue

    def are_free(self, request: Request, workers: list[Worker]) -> bool:
        """Return True if each of these workers has a permit for it, and no request of its principal waits already."""
        if not needs_permit(request):
            return True
        if self._waiting.get(request.principal):
            return False
        return all(_has_permit(request.principal, worker) for worker in workers)

    def add(self, request: Request, weight: int) -> None:
        self._waiting.setdefault(request.principal, deque()).append(request)

    def discard(self, request: Request) -> None:
        queue = self._waiting.get(request.principal)
        if queue is not None and request in queue:
            queue.remove(request)
            if not queue:
                del self._waiting[request.principal]

    def take(self, worker: Worker) -> Iterator[Request]:
        """Requests to route again because this worker has a permit: one of each principal, in turn.

        One that finds no permit, as it has to go to another worker, is added again and stays the first.
        """
        for principal in list(self._waiting):
            if not _has_permit(principal, worker) or principal not in self._waiting:
                continue
            queue = self._waiting.pop(principal)
            request = queue.popleft()
            request.queue = None
            yield request
            if again := self._waiting.pop(principal, None):
                queue.extendleft(reversed(again))
            if queue:
                self._waiting[principal] = queue


def _has_permit(principal: str, worker: Worker) -> bool:
    return (
        worker.permits[principal] < PERMITS
        and worker.permit_bytes[principal] < PERMIT_BYTES
        and worker.permits.total() < KEY_PERMITS
    )


class LogQuotas:
    """Rate limiter of log lines, by principal."""

    def __init__(self) -> None:
        self._since = 0.0
        self._lines: Counter[str] = Counter()

    def admit(self, principal: str) -> bool:
        """Count a line that this principal causes; return True if it may be written."""
        self._lines[principal] += 1
        return self._lines[principal] <= LOG_LINES

    def tick(self, now: float) -> list[tuple[str, int]]:
        """Report, once in LOG_S, the principals whose lines were left out, and how many."""
        if now - self._since < LOG_S:
            return []
        self._since = now
        beyond = [(principal, lines - LOG_LINES) for principal, lines in self._lines.items() if lines > LOG_LINES]
        self._lines.clear()
        return beyond
