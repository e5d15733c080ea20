"""BusyOrder: workers in the order of how much they have to do, without a look at all of them. Pure.

A heap of what workers had to do when it was last looked at. One that has got more to do is found when it is taken out,
and put back where it belongs. One that has got less to do has to be named (`eased`) by whatever has taken it off.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping

from .entities import Worker

# Turns that run or wait, then threads with requests, then the slot.
Busy = tuple[int, int, int]


def busy(worker: Worker) -> Busy:
    """Return how much a worker has to do.

    Requests count beside threads, so that new threads are spread before any of them is answered.
    """
    return worker.load + len(worker.queue), len(worker.threads) + len(worker.requests), worker.slot


class BusyOrder:
    """See the module's docstring. `workers` is the table of those that there are, by name."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self._workers = workers
        self._heap: list[tuple[Busy, str]] = []
        # What each has in the heap; entries that differ are old.
        self._entry: dict[str, Busy] = {}

    def eased(self, worker: Worker) -> None:
        """Note that a worker is new, or has less to do than before."""
        now = busy(worker)
        if now < self._entry.get(worker.name, (now[0] + 1,)):
            self._put(worker.name, now)

    def first(self, fits: Callable[[Worker], bool], patience: int) -> Worker | None:
        """Return the worker with the least to do that fits; None if none of the first `patience` ones does."""
        seen: list[tuple[str, Busy]] = []
        try:
            for worker in self._in_order():
                seen.append((worker.name, self._entry.pop(worker.name)))
                if fits(worker):
                    return worker
                if len(seen) == patience:
                    break
            return None
        finally:
            for name, entry in seen:
                self._put(name, entry)

    def _in_order(self) -> Iterator[Worker]:
        """Take workers out of the heap, those with the least to do first."""
        while self._heap:
            entry, name = heapq.heappop(self._heap)
            if self._entry.get(name) != entry:
                continue
            worker = self._workers.get(name)
            if worker is None:
                del self._entry[name]
            elif (now := busy(worker)) != entry:
                self._put(name, now)
            else:
                yield worker

    def _put(self, name: str, entry: Busy) -> None:
        self._entry[name] = entry
        heapq.heappush(self._heap, (entry, name))
        if len(self._heap) > 64 + 4 * len(self._workers):
            self._heap = [(entry, name) for name, entry in self._entry.items() if name in self._workers]
            heapq.heapify(self._heap)
            self._entry = {name: entry for entry, name in self._heap}

    def faults(self) -> list[str]:
        """Return the workers that have less to do than this knows; looks at every one."""
        return [
            f"worker {worker.name} has {busy(worker)} to do, its place is that of {self._entry.get(worker.name)}"
            for worker in self._workers.values()
            if worker.name not in self._entry or self._entry[worker.name] > busy(worker)
        ]
