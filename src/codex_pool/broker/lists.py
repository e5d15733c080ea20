"""Requests of clients with a limited key that the broker answers from what it keeps: lists of their own threads. Pure.

Each entry of a page of thread/list is the answer to a `thread/read` of its own, by the worker that has the thread, else
by the one with the least to do: a thread is read from the disk without being loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from codex_pool import rpc
from codex_pool.broker.books import Books
from codex_pool.broker.dispatch import MAX_OUTSTANDING, Dispatcher
from codex_pool.broker.listing import Lists, Query, QueryError, query_of, thread_list
from codex_pool.broker.records import ENTRY, Call
from codex_pool.ownership import Row

INVALID_PARAMS = -32602


@dataclass(slots=True, eq=False)
class _Reading:
    """A page that is being read: the calls that are still to be answered."""

    call: Call
    rows: list[Row]
    next_cursor: str | None
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

    def __len__(self) -> int:
        return len(self._readings)

    def answer(self, call: Call) -> None:
        """Answer thread/list or thread/loaded/list."""
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
        if not page.rows:
            self._say(call, _Reading(call, [], None, 0))
            return
        worker = self._dispatcher.least_busy()
        if worker is None or len(worker.calls) + len(page.rows) > MAX_OUTSTANDING:
            books.overloaded(call, f"{call.method}: no app-server has room for it")
            return
        reading = _Reading(call, page.rows, page.next_cursor, len(page.rows))
        for row in page.rows:
            self._numbers += 1
            request_id = f"{self._nonce}/{self._numbers}"
            line = rpc.encode(
                {
                    "id": request_id,
                    "method": "thread/read",
                    "params": {"threadId": row.thread_id, "includeTurns": False},
                }
            )
            entry = Call("", request_id, ENTRY, row.thread_id, line, "final", books.now, timeout_s=call.timeout_s)
            self._readings[request_id] = reading
            thread = books.threads.get(row.thread_id)
            holder = books.workers.get(thread.worker or "") if thread is not None else None
            self._dispatcher.dispatch(entry, holder or worker)

    def answered(self, entry: Call, line: bytes | None) -> None:
        """One thread was read; None if it could not be."""
        reading = self._readings.pop(str(entry.request_id), None)
        if reading is None:
            return
        if line is not None:
            reading.answers[entry.thread_id or ""] = line
        reading.left -= 1
        if not reading.left:
            self._say(reading.call, reading)

    def _loaded(self, call: Call, query: Query) -> None:
        threads = self._books.threads
        here = [row for row in self._books.owned.of(call.who) if row.thread_id in threads]
        page = self._lists.loaded(call.who, query, [row for row in here if threads[row.thread_id].worker is not None])
        result = {"data": [row.thread_id for row in page.rows], "nextCursor": page.next_cursor}
        self._books.say(call.session, rpc.encode({"id": call.request_id, "result": result}))

    def _say(self, call: Call, reading: _Reading) -> None:
        result = thread_list(reading.rows, reading.answers, reading.next_cursor)
        self._books.say(call.session, rpc.encode({"id": call.request_id, "result": result}))
