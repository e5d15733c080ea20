"""FairQueue: a queue that is fair across sessions, each with a weight. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ..protocol.wire import SessionId

T = TypeVar("T")


class _Lane(Generic[T]):
    """The items of one session, by thread. The lane with the lowest `due` is served next."""

    def __init__(self, weight: int, due: float) -> None:
        self.weight = weight
        self.due = due
        self.threads: dict[str, deque[T]] = {}
        self.size = 0


class FairQueue(Generic[T]):
    """Sessions are served in turn, each in proportion to its weight; none waits without end.

    Within a session the items of one thread keep their order; its threads take turns.
    """

    def __init__(self) -> None:
        self._lanes: dict[SessionId, _Lane[T]] = {}
        # The time at which the lane that was served last was due; new lanes begin there.
        self._clock = 0.0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        for lane in self._lanes.values():
            for items in lane.threads.values():
                yield from items

    def in_order(self) -> Iterator[T]:
        """The items in the order in which they would be served if every thread were free."""
        lanes = [(lane.due, number, lane) for number, lane in enumerate(self._lanes.values()) if lane.size]
        heapq.heapify(lanes)
        left = {number: deque(deque(items) for items in lane.threads.values()) for _, number, lane in lanes}
        while lanes:
            due, number, lane = heapq.heappop(lanes)
            threads = left[number]
            items = threads.popleft()
            yield items.popleft()
            if items:
                threads.append(items)
            if threads:
                heapq.heappush(lanes, (due + 1 / lane.weight, number, lane))

    def put(self, session: SessionId, weight: int, thread: str, item: T) -> None:
        lane = self._lanes.get(session)
        if lane is None:
            lane = self._lanes[session] = _Lane(weight, self._clock)
        lane.threads.setdefault(thread, deque()).append(item)
        lane.size += 1
        self._size += 1

    def take(self, is_free: Callable[[str], bool]) -> T | None:
        """Take the item whose turn it is, of a thread that is free; None when there is none."""
        waiting = [lane for lane in self._lanes.values() if lane.size]
        for lane in sorted(waiting, key=lambda lane: lane.due):
            thread = next((thread for thread in lane.threads if is_free(thread)), None)
            if thread is None:
                continue
            items = lane.threads.pop(thread)
            item = items.popleft()
            if items:
                lane.threads[thread] = items
            lane.size -= 1
            self._size -= 1
            # A lane that could not be served for long has no claim to what it missed.
            self._clock = max(self._clock, lane.due)
            lane.due = self._clock + 1 / lane.weight
            self._forget_lanes()
            return item
        return None

    def remove(self, session: SessionId, thread: str, item: T) -> bool:
        """Take this item out; True if it was there."""
        lane = self._lanes.get(session)
        items = lane.threads.get(thread) if lane is not None else None
        if lane is None or items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del lane.threads[thread]
        lane.size -= 1
        self._size -= 1
        if not lane.size and lane.due <= self._clock:
            del self._lanes[session]
        if not self._size:
            self._lanes.clear()
        return True

    def remove_all(self) -> list[T]:
        """Take out everything, each session's items in their order."""
        items = list(self)
        self._lanes.clear()
        self._size = 0
        return items

    def _forget_lanes(self) -> None:
        """Drop empty lanes, but not before they would be due: a session that comes back at once has no advantage."""
        for session in [s for s, lane in self._lanes.items() if not lane.size and lane.due <= self._clock]:
            del self._lanes[session]
        if not self._size:
            self._lanes.clear()
