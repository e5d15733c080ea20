"""FairQueue: turns that wait with one worker, fair across sessions. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from codex_pool.wire import SessionId

T = TypeVar("T")


class _Lane(Generic[T]):
    """What one session has waiting, by thread. The lane with the lowest `due` is served next."""

    def __init__(self, weight: int, due: float) -> None:
        self.weight = weight
        self.due = due
        self.threads: dict[str, deque[T]] = {}
        self.size = 0


class FairQueue(Generic[T]):
    """Sessions are served in turn, each in proportion to its weight; none waits for ever.

    Within a session the items of one thread keep their order; its threads take turns.
    """

    def __init__(self) -> None:
        self._lanes: dict[SessionId, _Lane[T]] = {}
        # What the lane that was served last was due at: who comes anew has no claim to what was before.
        self._clock = 0.0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        for lane in self._lanes.values():
            for items in lane.threads.values():
                yield from items

    def count(self, session: SessionId) -> int:
        """How many items of this session wait."""
        lane = self._lanes.get(session)
        return lane.size if lane is not None else 0

    def put(self, session: SessionId, weight: int, thread: str, item: T) -> None:
        lane = self._lanes.get(session)
        if lane is None:
            lane = self._lanes[session] = _Lane(weight, self._clock)
        lane.threads.setdefault(thread, deque()).append(item)
        lane.size += 1
        self._size += 1

    def take(self, is_free: Callable[[str], bool]) -> T | None:
        """The item whose turn it is, of a thread that is free; None when there is none."""
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
        """Take this item out; whether it was there."""
        lane = self._lanes.get(session)
        items = lane.threads.get(thread) if lane is not None else None
        if lane is None or items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del lane.threads[thread]
        lane.size -= 1
        self._size -= 1
        self._forget_lanes()
        return True

    def remove_session(self, session: SessionId) -> list[T]:
        """Take out all that this session has waiting."""
        lane = self._lanes.pop(session, None)
        if lane is None:
            return []
        self._size -= lane.size
        return [item for items in lane.threads.values() for item in items]

    def remove_all(self) -> list[T]:
        """Take out everything, each session's items in their order."""
        items = list(self)
        self._lanes.clear()
        self._size = 0
        return items

    def _forget_lanes(self) -> None:
        """An empty lane is kept until it would be due, so that who comes back at once is not served before others."""
        for session in [s for s, lane in self._lanes.items() if not lane.size and lane.due <= self._clock]:
            del self._lanes[session]
        if not self._size:
            self._lanes.clear()
