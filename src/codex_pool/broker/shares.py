"""What clients with keys take of the pool, by principal, and how much of it they may take. Pure.

    turns       running, about to run, or waiting; bounded by the key (`max_turns`), and all keys together leave some
                turns of each worker to the pool's own user
    places      requests that a worker has and has not answered: PLACES for one principal, KEY_PLACES for all of them;
                what finds none waits, and principals take turns
    waiting     requests that are held here: MAX_WAITING and MAX_WAITING_BYTES for one principal
    log lines   LOG_LINES for one principal in LOG_S; the others are counted

Interrupting and steering need no place: a worker keeps some for them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from codex_pool.broker.records import Call, Worker

# Of the 56 that a worker has for requests; how many app-servers answer at once is far less.
PLACES = 16
KEY_PLACES = 40
MAX_WAITING = 1024
MAX_WAITING_BYTES = 16 * 1024 * 1024
LOG_LINES = 10
LOG_S = 60.0
# How long after a goal was set, or a turn of it has ended, the next one may take to begin.
NEXT_TURN_S = 5.0

CONTROL = frozenset({"turn/interrupt", "turn/steer"})


def reserved_turns(turns_per_worker: int) -> int:
    """Count the turns of each worker that no key can take."""
    return max(1, turns_per_worker // 8) if turns_per_worker > 1 else 0


def needs_place(call: Call) -> bool:
    """Return True if this request counts against the places of its principal."""
    return bool(call.who) and not call.starts_turn and call.method not in CONTROL


class Places:
    """Requests of principals that wait for a place with a worker."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Call]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def are_free(self, call: Call, workers: list[Worker]) -> bool:
        """Return True if each of these workers has a place for it, and no request of its principal waits already."""
        if not needs_place(call):
            return True
        if self._waiting.get(call.who):
            return False
        return all(_has_place(call.who, worker) for worker in workers)

    def wait(self, call: Call) -> None:
        self._waiting.setdefault(call.who, deque()).append(call)

    def remove(self, call: Call) -> None:
        """It is not wanted any more."""
        queue = self._waiting.get(call.who)
        if queue is not None and call in queue:
            queue.remove(call)
            if not queue:
                del self._waiting[call.who]

    def take(self, worker: Worker) -> Iterator[Call]:
        """Requests to try again because this worker has a place: one of each principal, in turn.

        One that finds no place, as it has to go to another worker, comes back to the end of its queue's line by `wait`.
        """
        for who in list(self._waiting):
            if not _has_place(who, worker):
                continue
            queue = self._waiting.pop(who)
            call = queue.popleft()
            yield call
            if again := self._waiting.pop(who, None):
                # It has found no place: it stays the first.
                queue.extendleft(reversed(again))
            if queue:
                self._waiting[who] = queue


def _has_place(who: str, worker: Worker) -> bool:
    return worker.places[who] < PLACES and worker.places.total() < KEY_PLACES


class LogShares:
    """Rate limiter of log lines, by principal."""

    def __init__(self) -> None:
        self._since = 0.0
        self._lines: Counter[str] = Counter()

    def admit(self, who: str) -> bool:
        """Count a line that this principal causes; return True if it may be written."""
        self._lines[who] += 1
        return self._lines[who] <= LOG_LINES

    def tick(self, now: float) -> list[tuple[str, int]]:
        """Report, once in LOG_S, the principals whose lines were left out, and how many."""
        if now - self._since < LOG_S:
            return []
        self._since = now
        beyond = [(who, lines - LOG_LINES) for who, lines in self._lines.items() if lines > LOG_LINES]
        self._lines.clear()
        return beyond
