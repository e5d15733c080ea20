"""FairQueue: a queue that is fair across principals, and across the sessions of each. Pure.

Each principal has a share, its priority, and each session a weight. A principal is served next whose time is due first;
being served puts it off by 1 / (priority * weight of the session), so over time principals are served in proportion to
their priorities, and none waits without end: one of priority p waits for at most as many of another one of priority q
as q / p says, times the ratio of the weights. Within a principal the same holds for its sessions. A session within a
principal's share takes from its own principal only, however many sessions there are.
"""

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


class _Share(Generic[T]):
    """The lanes of one principal. The share with the lowest `due` is served next; `clock` is when its last lane was."""

    def __init__(self, due: float) -> None:
        self.priority = 1
        self.due = due
        self.lanes: dict[SessionId, _Lane[T]] = {}
        self.clock = 0.0
        self.size = 0


class FairQueue(Generic[T]):
    """See the module's docstring. Within a session the items of one thread keep their order; its threads take turns."""

    def __init__(self) -> None:
        self._shares: dict[str, _Share[T]] = {}
        # The principal of each session that has a lane.
        self._principals: dict[SessionId, str] = {}
        # The time at which the share that was served last was due; new shares begin there.
        self._clock = 0.0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        for share in self._shares.values():
            for lane in share.lanes.values():
                for items in lane.threads.values():
                    yield from items

    def in_order(self) -> Iterator[T]:
        """The items in the order in which they would be served if every thread were free."""
        shares = [(share.due, number, share) for number, share in enumerate(self._shares.values()) if share.size]
        heapq.heapify(shares)
        left = {number: _in_order(share) for _, number, share in shares}
        while shares:
            due, number, share = heapq.heappop(shares)
            found = next(left[number], None)
            if found is not None:
                weight, item = found
                yield item
                heapq.heappush(shares, (due + 1 / (share.priority * weight), number, share))

    def put(
        self,
        session: SessionId,
        weight: int,
        thread: str,
        item: T,
        *,
        principal: str = "",
        priority: int = 1,
    ) -> None:
        """Add an item. The priority of a principal is the one that came last."""
        share = self._shares.get(principal)
        if share is None:
            share = self._shares[principal] = _Share(self._clock)
        share.priority = priority
        lane = share.lanes.get(session)
        if lane is None:
            lane = share.lanes[session] = _Lane(weight, share.clock)
            self._principals[session] = principal
        lane.threads.setdefault(thread, deque()).append(item)
        lane.size += 1
        share.size += 1
        self._size += 1

    def take(self, is_free: Callable[[str], bool]) -> T | None:
        """Take the item whose turn it is, of a thread that is free; None when there is none."""
        for share in sorted((each for each in self._shares.values() if each.size), key=lambda each: each.due):
            for lane in sorted((each for each in share.lanes.values() if each.size), key=lambda each: each.due):
                thread = next((thread for thread in lane.threads if is_free(thread)), None)
                if thread is not None:
                    return self._take(share, lane, thread)
        return None

    def _take(self, share: _Share[T], lane: _Lane[T], thread: str) -> T:
        items = lane.threads.pop(thread)
        item = items.popleft()
        if items:
            lane.threads[thread] = items
        for each in (lane, share):
            each.size -= 1
        self._size -= 1
        # What could not be served for long has no claim to what it missed.
        share.clock = max(share.clock, lane.due)
        lane.due = share.clock + 1 / lane.weight
        self._clock = max(self._clock, share.due)
        share.due = self._clock + 1 / (share.priority * lane.weight)
        self._forget()
        return item

    def remove(self, session: SessionId, thread: str, item: T) -> bool:
        """Take this item out; True if it was there."""
        share = self._shares.get(self._principals.get(session, ""))
        lane = share.lanes.get(session) if share is not None else None
        items = lane.threads.get(thread) if lane is not None else None
        if share is None or lane is None or items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del lane.threads[thread]
        lane.size -= 1
        share.size -= 1
        self._size -= 1
        self._forget()
        return True

    def remove_all(self) -> list[T]:
        """Take out everything, each session's items in their order."""
        items = list(self)
        self._clear()
        return items

    def _forget(self) -> None:
        """Drop what is empty, but not before it would be due: who comes back at once has no advantage."""
        if not self._size:
            self._clear()
            return
        for principal, share in list(self._shares.items()):
            over = not share.size and share.due <= self._clock
            for session in [
                s for s, lane in share.lanes.items() if over or (not lane.size and lane.due <= share.clock)
            ]:
                del share.lanes[session], self._principals[session]
            if over:
                del self._shares[principal]

    def _clear(self) -> None:
        self._shares.clear()
        self._principals.clear()
        self._size = 0


def _in_order(share: _Share[T]) -> Iterator[tuple[int, T]]:
    """The items of a share in the order in which they would be served, with the weights of their sessions."""
    lanes = [(lane.due, number, lane) for number, lane in enumerate(share.lanes.values()) if lane.size]
    heapq.heapify(lanes)
    left = {number: deque(deque(items) for items in lane.threads.values()) for _, number, lane in lanes}
    while lanes:
        due, number, lane = heapq.heappop(lanes)
        threads = left[number]
        items = threads.popleft()
        yield lane.weight, items.popleft()
        if items:
            threads.append(items)
        if threads:
            heapq.heappush(lanes, (due + 1 / lane.weight, number, lane))
