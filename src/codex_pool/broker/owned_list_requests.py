"""Requests of clients with a limited key that the broker answers from what it keeps: lists of their own threads. Pure.

Each entry of a page of thread/list is the answer to a `thread/read` of its own, by the worker that has the thread, else
by the one with the least to do: a thread is read from the disk without being loaded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from codex_app_server import errors

from ..auth.ownership import Row
from ..protocol import jsonrpc, wire
from .dispatch import Dispatcher
from .owned_lists import OwnedLists, Page, Query, QueryError, query_of, thread_list
from .request import ENTRY, Request
from .state import BrokerState

# Of the entries of a page, how many are read at once; and for one principal one page.
AT_ONCE = 8
# The session of what the broker reads for a list: no client can have it.
READER = wire.SessionId("", "")


@dataclass(slots=True, eq=False)
class _Reading:
    """A page that is being read: its rows that have not been asked for, and how many have not been answered."""

    request: Request
    page: Page
    todo: list[Row]
    left: int
    answers: dict[str, bytes] = field(default_factory=dict)


class OwnedListRequests:
    """See the module's docstring. `nonce` tells the requests of this broker from those of the one before it."""

    def __init__(self, state: BrokerState, dispatcher: Dispatcher, *, secret: bytes, nonce: str) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._lists = OwnedLists(secret)
        self._nonce = nonce
        self._numbers = 0
        self._readings: dict[str, _Reading] = {}
        # Principals with a page that is being read, and what waits for its end.
        self._waiting: dict[str, deque[Request]] = {}
        state.requests.queues.append(lambda: (self,))

    def __len__(self) -> int:
        return len(self._readings) + sum(map(len, self._waiting.values()))

    # The requests that wait for another list of their principal, as a queue of `in_flight`.

    @property
    def reason(self) -> str:
        return "list before it"

    def __iter__(self) -> Iterator[Request]:
        for queue in self._waiting.values():
            yield from queue

    def add(self, request: Request, weight: int) -> None:
        self._waiting[request.principal].append(request)

    def discard(self, request: Request) -> None:
        queue = self._waiting.get(request.principal)
        if queue is not None and request in queue:
            queue.remove(request)

    def answer(self, request: Request) -> None:
        """Answer thread/list or thread/loaded/list."""
        session = self._state.session(request)
        if session is not None and request.id_json in session.held:
            # It waits already: sent again, or the id of another.
            if not request.repeats(session.held[request.id_json]):
                self._state.refuse_id(request)
        elif request.principal in self._waiting and request.method == "thread/list":
            self._state.requests.hold(request, self)
        else:
            self._begin(request)

    def _begin(self, request: Request) -> None:
        state = self._state
        try:
            query = query_of(request.line)
            if request.method == "thread/loaded/list":
                self._loaded(request, query)
                return
            page = self._lists.threads(request.principal, query, state.owners.of(request.principal))
        except QueryError as error:
            state.fail(request, errors.INVALID_PARAMS, f"{request.method}: {error}")
            return
        state.requests.execute(request)
        reading = _Reading(request, page, page.rows[::-1], len(page.rows))
        if not page.rows:
            self._say(request, reading)
            return
        self._waiting.setdefault(request.principal, deque())
        for _ in range(min(AT_ONCE, len(page.rows))):
            self._read_next(reading)

    def _read_next(self, reading: _Reading) -> None:
        state, row = self._state, reading.todo.pop()
        self._numbers += 1
        request_id = f"{self._nonce}/{self._numbers}"
        params = {"threadId": row.thread_id, "includeTurns": False}
        others = jsonrpc.others_of(reading.request.line)
        line = jsonrpc.encode({"id": request_id, "method": "thread/read", "params": params, **others})
        timeout_s = reading.request.timeout_s
        entry = Request(READER, request_id, ENTRY, row.thread_id, line, "final", state.now, timeout_s=timeout_s)
        self._readings[request_id] = reading
        thread = state.threads.get(row.thread_id)
        holder = state.workers.get(thread.worker or "") if thread is not None else None
        worker = holder or self._dispatcher.placement.least_busy()
        if worker is None:
            self.answered(entry, None)
        else:
            self._dispatcher.dispatch(entry, worker)

    def answered(self, entry: Request, line: bytes | None) -> None:
        """Add the answer to the read of one thread, None if it could not be read."""
        reading = self._readings.pop(str(entry.request_id), None)
        if reading is None:
            return
        if line is not None:
            reading.answers[entry.thread_id or ""] = line
        reading.left -= 1
        if reading.todo:
            self._read_next(reading)
        elif not reading.left:
            self._say(reading.request, reading)
            self._next(reading.request.principal)

    def _next(self, principal: str) -> None:
        """Begin with the next page of this principal: one has been read."""
        waiting = self._waiting.pop(principal, deque())
        while waiting and principal not in self._waiting:
            request = waiting.popleft()
            request.queue = None
            self._begin(request)
        if principal in self._waiting:
            self._waiting[principal].extend(waiting)

    def _loaded(self, request: Request, query: Query) -> None:
        threads = self._state.threads
        here = [row for row in self._state.owners.of(request.principal) if row.thread_id in threads]
        page = self._lists.loaded(
            request.principal, query, [row for row in here if threads[row.thread_id].worker is not None]
        )
        result = {"data": [row.thread_id for row in page.rows], "nextCursor": page.next_cursor}
        self._state.answer(request, jsonrpc.encode({"id": request.request_id, "result": result}))

    def _say(self, request: Request, reading: _Reading) -> None:
        result = thread_list(reading.page, reading.answers)
        self._state.answer(request, jsonrpc.encode({"id": request.request_id, "result": result}))
