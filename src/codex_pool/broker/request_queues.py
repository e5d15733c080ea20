"""Queues of held requests: in order of arrival, fair across principals and sessions, or of turns. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .fair_queue import FairQueue
from .request import Request


class OrderedQueue:
    """Requests in the order in which they came, for one that takes all of them at once."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self._requests: dict[Request, None] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def add(self, request: Request, weight: int) -> None:
        self._requests[request] = None

    def discard(self, request: Request) -> None:
        self._requests.pop(request, None)

    def take_all(self) -> list[Request]:
        """Take out everything, in order."""
        requests, self._requests = list(self._requests), {}
        for request in requests:
            request.queue = None
        return requests


class FairRequestQueue(FairQueue[Request]):
    """Requests of sessions, served as of FairQueue; those of a thread keep their order."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def add(self, request: Request, weight: int) -> None:
        _put(self, request, weight)

    def discard(self, request: Request) -> None:
        assert request.session is not None, "only requests of sessions are held"
        self.remove(request.session, request.thread_id or "", request)

    def take(self, is_free: Callable[[str], bool]) -> Request | None:
        request = super().take(is_free)
        if request is not None:
            request.queue = None
        return request

    def remove_all(self) -> list[Request]:
        requests = super().remove_all()
        for request in requests:
            request.queue = None
        return requests


def _put(queue: FairQueue[Request], request: Request, weight: int) -> None:
    assert request.session is not None, "only requests of sessions are held"
    principal, priority = request.principal, request.priority
    queue.put(request.session, weight, request.thread_id or "", request, principal=principal, priority=priority)


class TurnQueue:
    """Turns that wait to be started on a worker, fair across sessions; those on the side (`on_side`) after all others.

    `take` is given a function of a thread and of whether its turn is on the side.
    """

    reason = "turn"

    def __init__(self) -> None:
        self._turns: FairQueue[Request] = FairQueue()
        self._on_side: FairQueue[Request] = FairQueue()

    def __len__(self) -> int:
        return len(self._turns) + len(self._on_side)

    def __iter__(self) -> Iterator[Request]:
        yield from self._turns
        yield from self._on_side

    def in_order(self) -> Iterator[Request]:
        """The turns in the order in which they would be started if every thread were free."""
        yield from self._turns.in_order()
        yield from self._on_side.in_order()

    def _queue_of(self, request: Request) -> FairQueue[Request]:
        return self._on_side if request.on_side else self._turns

    def add(self, request: Request, weight: int) -> None:
        _put(self._queue_of(request), request, weight)

    def discard(self, request: Request) -> None:
        assert request.session is not None, "only requests of sessions are held"
        self._queue_of(request).remove(request.session, request.thread_id or "", request)

    def take(self, is_free: Callable[[str, bool], bool]) -> Request | None:
        request = self._turns.take(lambda thread_id: is_free(thread_id, False))
        if request is None and self._on_side:
            request = self._on_side.take(lambda thread_id: is_free(thread_id, True))
        if request is not None:
            request.queue = None
        return request

    def remove_all(self) -> list[Request]:
        requests = self._turns.remove_all() + self._on_side.remove_all()
        for request in requests:
            request.queue = None
        return requests
