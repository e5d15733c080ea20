"""Lists of the threads of the whole pool, for clients that may see those of others. Pure.

The first page of a list is what the app-servers answer. From the second on - and at once where the answer comes from
the database of an app-server, which has but a part of the threads - it is read from an index: each worker is asked for
all that it lists, page by page, and the index is kept for the pages that follow. Names are known only where they were
set, so all workers are asked; the files of the home, which all share, are read by the first one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec

from codex_app_server._thread_walk import STUCK, Stage, ThreadWalk
from codex_app_server._thread_walk import Listed as WalkEntry
from codex_app_server.errors import TURN_LOST, ThreadListError
from codex_pool import rpc
from codex_pool.broker.books import Books
from codex_pool.broker.dispatch import Dispatcher
from codex_pool.broker.lists import READER
from codex_pool.broker.records import PAGE, Call, Worker
from codex_pool.broker.thread_index import METHODS, PREFIX, CursorError, Index, Query, answer_of, first_page, query_of

INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

MAX_BUILDS = 4
# How often an index is begun anew because a worker has died.
MAX_TRIES = 3
MAX_INDEX_BYTES = 64 * 1024 * 1024
# Of all that are kept; the one that was used last may be larger.
MAX_KEPT_BYTES = 64 * 1024 * 1024
KEPT_S = 300.0


@dataclass(slots=True, eq=False)
class _Build:
    """An index that is being made for a call. `walks` are the workers that have not said all, by the name of each."""

    call: Call
    query: Query
    index: Index
    tries: int = 1
    walks: dict[str, ThreadWalk] = field(default_factory=dict)


class ThreadLists:
    """See the module's docstring. `nonce` tells the requests of this broker from those of the one before it."""

    def __init__(self, books: Books, dispatcher: Dispatcher, *, nonce: str) -> None:
        self._books = books
        self._dispatcher = dispatcher
        self._nonce = nonce
        self._numbers = 0
        self._kept: dict[str, tuple[Index, float]] = {}
        # Which build a request is of, and the worker that was asked.
        self._asked: dict[str, tuple[_Build, str]] = {}
        self._builds: list[_Build] = []
        self._queue: deque[tuple[Call, Query]] = deque()

    def __len__(self) -> int:
        return len(self._asked) + len(self._queue)

    def takes(self, call: Call) -> bool:
        """True for a page that is read from an index."""
        query = query_of(call.method, call.line) if call.method in METHODS else None
        if query is None or not query.is_ordered:
            return False
        return query.cursor.startswith(PREFIX) if query.cursor is not None else query.from_database

    def answer(self, call: Call) -> None:
        """Answer with a page of an index, which may have to be made first."""
        query = query_of(call.method, call.line)
        assert query is not None, "only what can be read is taken"
        try:
            cursor = query.open()
        except CursorError as error:
            self._books.fail(call, INVALID_PARAMS, f"{call.method}: {error}")
            return
        index = self._find(call, query)
        if index is not None:
            self._say(call, index, query)
        elif cursor is not None and cursor.after is not None and query.changes:
            # Another index may have threads before this place that were behind it.
            message = f"the cursor of this list by {query.sort_key} was kept for {KEPT_S:.0f} s; begin again without it"
            self._books.fail(call, INVALID_PARAMS, f"{call.method}: {message}")
        elif len(self._builds) < MAX_BUILDS:
            self._begin(call, query)
        else:
            self._queue.append((call, query))

    def first_page(self, call: Call, line: bytes) -> bytes:
        """The answer of the app-servers, with a cursor that loses nothing."""
        query = query_of(call.method, call.line) if call.method in METHODS else None
        return first_page(query, line) if query is not None else line

    def tick(self) -> None:
        """Forget indexes that nobody has read for long."""
        now = self._books.now
        for id in [id for id, (_, used_at) in self._kept.items() if now - used_at > KEPT_S]:
            del self._kept[id]

    def answered(self, entry: Call, line: bytes | None, *, ok: bool) -> None:
        """A worker has answered with a page; None if it died before."""
        build, worker = self._asked.pop(str(entry.request_id), (None, ""))
        if build is None or build not in self._builds:
            return
        if line is None:
            if build.tries < MAX_TRIES and self._workers():
                self._builds.remove(build)
                self._begin(build.call, build.query, build.tries + 1)
                return
            message = f"worker {worker} died while it listed its threads; ask again"
            self._fail(build, TURN_LOST, message, {"kind": "lost", "safeToRetry": True})
        elif not ok:
            self._end(build)
            self._books.answer(build.call, rpc.with_id(line, build.call.id_json.encode()))
        else:
            self._add(build, worker, line)

    def _find(self, call: Call, query: Query) -> Index | None:
        """The index that the cursor is of; it may be another one only where the order never changes."""
        cursor = query.open()
        if cursor is None:
            return None
        index, _ = self._kept.get(cursor.index, (None, 0.0))
        if index is None or index.who != call.who:
            return None
        self._kept[index.id] = self._kept.pop(index.id)[0], self._books.now
        return index

    def _workers(self) -> list[Worker]:
        return sorted((each for each in self._books.workers.values() if not each.drained), key=lambda each: each.slot)

    def _begin(self, call: Call, query: Query, tries: int = 1) -> None:
        workers = self._workers()
        self._numbers += 1
        index = Index(query, f"{self._nonce}/{self._numbers}", call.who)
        build = _Build(call, query, index, tries)
        self._builds.append(build)
        for worker in workers:
            stages: list[Stage] = ["state"] if query.method == "thread/list" else []
            if worker is workers[0] and not query.state_db_only:
                stages.append("files")
            if stages:
                build.walks[worker.name] = ThreadWalk(stages)
        for worker in workers:
            if worker.name in build.walks and build in self._builds:
                self._ask(build, worker)

    def _ask(self, build: _Build, worker: Worker) -> None:
        request = build.walks[worker.name].request
        assert request is not None, "a walk that is over is not asked on"
        self._numbers += 1
        request_id = f"{self._nonce}/{self._numbers}"
        params: dict[str, object] = {
            **build.query.filters,
            "limit": request.limit,
            "sortKey": request.sort_key,
            "sortDirection": "desc",
        }
        if request.cursor is not None:
            params["cursor"] = request.cursor
        if request.use_state_db_only:
            params["useStateDbOnly"] = True
        line = rpc.encode({"id": request_id, "method": build.query.method, "params": params})
        entry = Call(READER, request_id, PAGE, None, line, "final", self._books.now, timeout_s=build.call.timeout_s)
        self._asked[request_id] = build, worker.name
        self._dispatcher.dispatch(entry, worker)

    def _add(self, build: _Build, name: str, line: bytes) -> None:
        books, walk = self._books, build.walks[name]
        try:
            answer = answer_of(build.query.method, line)
            entries = [each for each in answer.entries if books.may_touch(build.call.who, each.id)]
            walk.add([WalkEntry(each.id, each.times[1]) for each in answer.entries], answer.next_cursor)
        except ThreadListError as error:
            data = {"kind": STUCK, "sortKey": error.sort_key, "cursor": error.cursor, "seen": error.seen}
            self._fail(build, INTERNAL_ERROR, str(error), data)
            return
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._fail(build, INTERNAL_ERROR, f"a page of worker {name} cannot be read: {error}")
            return
        build.index.add(entries, answer.read_states, lambda thread_id: self._holds(name, thread_id))
        worker = books.workers.get(name)
        if build.index.size_bytes > MAX_INDEX_BYTES:
            message = f"the list has more than {MAX_INDEX_BYTES} bytes; narrow it, e.g. by cwd or sourceKinds"
            self._fail(build, INTERNAL_ERROR, message, {"kind": "listTooLong"})
        elif books.session(build.call) is None:
            self._end(build)
        elif walk.request is None:
            del build.walks[name]
            if not build.walks:
                self._finish(build)
        elif worker is not None:
            self._ask(build, worker)

    def _holds(self, worker: str, thread_id: str) -> bool:
        thread = self._books.threads.get(thread_id)
        return thread is not None and thread.worker == worker

    def _finish(self, build: _Build) -> None:
        index = build.index
        index.close()
        self._kept[index.id] = index, self._books.now
        while len(self._kept) > 1 and sum(each.size_bytes for each, _ in self._kept.values()) > MAX_KEPT_BYTES:
            del self._kept[next(iter(self._kept))]
        self._say(build.call, index, build.query)
        self._end(build)

    def _say(self, call: Call, index: Index, query: Query) -> None:
        result = index.page(query.open(), query.limit, self._name_of)
        self._books.answer(call, rpc.encode({"id": call.request_id, "result": result}))

    def _name_of(self, thread_id: str) -> str | None:
        record = self._books.record(thread_id)
        return record.name if record is not None else None

    def _fail(self, build: _Build, code: int, message: str, data: object = None) -> None:
        self._books.fail(build.call, code, f"{build.query.method}: {message}", data)
        self._end(build)

    def _end(self, build: _Build) -> None:
        self._builds.remove(build)
        while self._queue and len(self._builds) < MAX_BUILDS:
            call, query = self._queue.popleft()
            if self._books.session(call) is not None:
                self._begin(call, query)
