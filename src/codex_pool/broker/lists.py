"""Requests of clients with a limited key that the broker answers from what it keeps: lists of their own threads. Pure.

Each entry of a page of thread/list is the answer to a `thread/read` of its own, by the worker that has the thread, else
by the one with the least to do: a thread is read from the disk without being loaded.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from codex_pool import rpc, wire
from codex_pool.broker.books import Books
from codex_pool.broker.dispatch import Dispatcher
from codex_pool.broker.listing import Lists, Query, QueryError, query_of, thread_list
from codex_pool.broker.records import ENTRY, Call
from codex_pool.ownership import Row

INVALID_PARAMS = -32602


# Of the entries of a page, how many are read at once; and for one principal one page.
AT_ONCE = 8
# The session of what the broker reads for a list: no client can have it.
READER = wire.SessionId("", "")


@dataclass(slots=True, eq=False)
class _Reading:
    """A page that is being read: the rows that have not been asked for, and how many have not been answered."""

    call: Call
    rows: list[Row]
    next_cursor: str | None
    todo: list[Row]
    left: int
    answers: dict[str, bytes] = field(default_factory=dict)


class OwnLists:
    """See the module's docstring. `nonce` tells the requests of this broker from those of the one before it."""

    def __init__(self, books: Books, dispatcher: Dispatcher, *, secret: bytes, nonce: str) -> None:
        self._books = books
        self._dispatcher = dispatcher
        self._lists = Lists(secret)
        self._nonce = nonce
        self._numbers = 0
        self._readings: dict[str, _Reading] = {}
        # Principals with a page that is being read, and what waits for its end.
        self._waiting: dict[str, deque[Call]] = {}

    def __len__(self) -> int:
        return len(self._readings) + sum(map(len, self._waiting.values()))

    def answer(self, call: Call) -> None:
        """Answer thread/list or thread/loaded/list."""
        session = self._books.session(call)
        if session is not None and call.id_json in session.waiting:
            # It waits already: sent again, or the id of another.
            if not call.repeats(session.waiting[call.id_json]):
                self._dispatcher.refuse_id(call)
        elif call.who in self._waiting and call.method == "thread/list":
            if self._books.hold(call):
                self._waiting[call.who].append(call)
        else:
            self._begin(call)

    def _begin(self, call: Call) -> None:
        books = self._books
        try:
            query = query_of(call.line)
            if call.method == "thread/loaded/list":
                self._loaded(call, query)
                return
            page = self._lists.threads(call.who, query, books.owned.of(call.who))
        except QueryError as error:
            books.fail(call, INVALID_PARAMS, f"{call.method}: {error}")
            return
        reading = _Reading(call, page.rows, page.next_cursor, page.rows[::-1], len(page.rows))
        if not page.rows:
            self._say(call, reading)
            return
        self._waiting.setdefault(call.who, deque())
        for _ in range(min(AT_ONCE, len(page.rows))):
            self._read_next(reading)

    def _read_next(self, reading: _Reading) -> None:
        books, row = self._books, reading.todo.pop()
        self._numbers += 1
        request_id = f"{self._nonce}/{self._numbers}"
        params = {"threadId": row.thread_id, "includeTurns": False}
        line = rpc.encode({"id": request_id, "method": "thread/read", "params": params})
        timeout_s = reading.call.timeout_s
        entry = Call(READER, request_id, ENTRY, row.thread_id, line, "final", books.now, timeout_s=timeout_s)
        self._readings[request_id] = reading
        thread = books.threads.get(row.thread_id)
        holder = books.workers.get(thread.worker or "") if thread is not None else None
        worker = holder or self._dispatcher.least_busy()
        if worker is None:
            self.answered(entry, None)
        else:
            self._dispatcher.dispatch(entry, worker)

    def answered(self, entry: Call, line: bytes | None) -> None:
        """One thread was read; None if it could not be."""
        reading = self._readings.pop(str(entry.request_id), None)
        if reading is None:
            return
        if line is not None:
            reading.answers[entry.thread_id or ""] = line
        reading.left -= 1
        if reading.todo:
            self._read_next(reading)
        elif not reading.left:
            self._say(reading.call, reading)
            self._next(reading.call.who)

    def _next(self, who: str) -> None:
        """The page of this principal has been read: the next one that is still wanted."""
        waiting = self._waiting.pop(who, deque())
        while waiting and who not in self._waiting:
            call = waiting.popleft()
            if self._books.is_held(call):
                self._books.release(call)
                self._begin(call)
        if who in self._waiting:
            self._waiting[who].extend(waiting)

    def _loaded(self, call: Call, query: Query) -> None:
        threads = self._books.threads
        here = [row for row in self._books.owned.of(call.who) if row.thread_id in threads]
        page = self._lists.loaded(call.who, query, [row for row in here if threads[row.thread_id].worker is not None])
        result = {"data": [row.thread_id for row in page.rows], "nextCursor": page.next_cursor}
        self._books.answer(call, rpc.encode({"id": call.request_id, "result": result}))

    def _say(self, call: Call, reading: _Reading) -> None:
        result = thread_list(reading.rows, reading.answers, reading.next_cursor)
        self._books.answer(call, rpc.encode({"id": call.request_id, "result": result}))
