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

from codex_app_server import errors
from codex_app_server._core.thread_walk import STUCK, Stage, ThreadWalk
from codex_app_server._core.thread_walk import Listed as WalkEntry
from codex_app_server.errors import TURN_LOST, ThreadListError

from ..protocol import jsonrpc
from .dispatch import Dispatcher
from .entities import Worker
from .owned_list_requests import READER
from .request import PAGE, Request
from .state import BrokerState
from .thread_index import METHODS, PREFIX, CursorError, Index, Query, answer_of, first_page, query_of

MAX_BUILDS = 4
# How often an index is begun again because a worker has died.
MAX_TRIES = 3
MAX_INDEX_BYTES = 64 * 1024 * 1024
# Of all that are kept; the one that was used last may be larger.
MAX_KEPT_BYTES = 64 * 1024 * 1024
KEPT_S = 300.0


@dataclass(slots=True, eq=False)
class _Build:
    """An index that is being made for a request. `walks` are those of workers that have not reported all, by name."""

    request: Request
    query: Query
    index: Index
    tries: int = 1
    walks: dict[str, ThreadWalk] = field(default_factory=dict)


class ThreadLists:
    """See the module's docstring. `nonce` tells the requests of this broker from those of the one before it."""

    def __init__(self, state: BrokerState, dispatcher: Dispatcher, *, nonce: str) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._nonce = nonce
        self._numbers = 0
        self._kept: dict[str, tuple[Index, float]] = {}
        # Which build a request is of, and the worker that was asked.
        self._asked: dict[str, tuple[_Build, str]] = {}
        self._builds: list[_Build] = []
        self._queue: deque[tuple[Request, Query]] = deque()

    def __len__(self) -> int:
        return len(self._asked) + len(self._queue)

    def takes(self, request: Request) -> bool:
        """True for a page that is read from an index."""
        query = query_of(request.method, request.message) if request.method in METHODS else None
        if query is None or not query.is_ordered:
            return False
        return query.cursor.startswith(PREFIX) if query.cursor is not None else query.from_database

    def answer(self, request: Request) -> None:
        """Answer with a page of an index, which may have to be made first."""
        query = query_of(request.method, request.message)
        assert query is not None, "only what can be read is taken"
        try:
            cursor = query.open()
        except CursorError as error:
            self._state.fail(request, errors.INVALID_PARAMS, f"{request.method}: {error}")
            return
        index = self._find(request, query)
        if index is not None:
            self._say(request, index, query)
        elif cursor is not None and cursor.index and query.changes:
            # Another index may have threads before this place that were behind it.
            message = f"the cursor of this list by {query.sort_key} was kept for {KEPT_S:.0f} s; begin again without it"
            self._state.fail(request, errors.INVALID_PARAMS, f"{request.method}: {message}")
        elif len(self._builds) < MAX_BUILDS:
            self._begin(request, query)
        else:
            self._queue.append((request, query))

    def first_page(self, request: Request, line: bytes) -> bytes:
        """The answer of the app-servers, with a cursor that loses nothing."""
        query = query_of(request.method, request.message) if request.method in METHODS else None
        return first_page(query, line) if query is not None else line

    def tick(self) -> None:
        """Forget indexes that have not been read for long."""
        now = self._state.now
        for id in [id for id, (_, used_at) in self._kept.items() if now - used_at > KEPT_S]:
            del self._kept[id]

    def answered(self, entry: Request, line: bytes | None, *, ok: bool) -> None:
        """Handle a worker's page; None if it died before it answered."""
        build, worker = self._asked.pop(str(entry.request_id), (None, ""))
        if build is None or build not in self._builds:
            return
        if line is None:
            if build.tries < MAX_TRIES and self._workers():
                self._builds.remove(build)
                self._begin(build.request, build.query, build.tries + 1)
                return
            message = f"worker {worker} died while it listed its threads; ask again"
            self._fail(build, TURN_LOST, message, {"kind": "lost", "safeToRetry": True})
        elif not ok:
            self._end(build)
            self._state.answer(build.request, jsonrpc.with_id(line, build.request.id_json.encode()))
        else:
            self._add(build, worker, line)

    def _find(self, request: Request, query: Query) -> Index | None:
        """The index that the cursor is of; it may be another one only where the order never changes."""
        cursor = query.open()
        if cursor is None:
            return None
        index, _ = self._kept.get(cursor.index, (None, 0.0))
        if index is None or index.principal != request.principal:
            return None
        self._kept[index.id] = self._kept.pop(index.id)[0], self._state.now
        return index

    def _workers(self) -> list[Worker]:
        return sorted((each for each in self._state.workers.values() if not each.drained), key=lambda each: each.slot)

    def _begin(self, request: Request, query: Query, tries: int = 1) -> None:
        workers = self._workers()
        self._numbers += 1
        index = Index(query, f"{self._nonce}/{self._numbers}", request.principal)
        build = _Build(request, query, index, tries)
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
        others = jsonrpc.others_of(build.request.line)
        line = jsonrpc.encode({"id": request_id, "method": build.query.method, "params": params, **others})
        entry = Request(
            READER, request_id, PAGE, None, line, "final", self._state.now, timeout_s=build.request.timeout_s
        )
        self._asked[request_id] = build, worker.name
        self._dispatcher.dispatch(entry, worker)

    def _add(self, build: _Build, name: str, line: bytes) -> None:
        state, walk = self._state, build.walks[name]
        try:
            answer = answer_of(build.query.method, line)
            entries = [each for each in answer.entries if state.may_touch(build.request.principal, each.id)]
            walk.add([WalkEntry(each.id, each.times[1]) for each in answer.entries], answer.next_cursor)
        except ThreadListError as error:
            data = {"kind": STUCK, "sortKey": error.sort_key, "cursor": error.cursor, "seen": error.seen}
            self._fail(build, errors.INTERNAL_ERROR, str(error), data)
            return
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._fail(build, errors.INTERNAL_ERROR, f"a page of worker {name} cannot be read: {error}")
            return
        build.index.add(entries, answer.read_states, lambda thread_id: state.threads.holder_of(thread_id) == name)
        worker = state.workers.get(name)
        if build.index.size_bytes > MAX_INDEX_BYTES:
            message = f"the list has more than {MAX_INDEX_BYTES} bytes; narrow it, e.g. by cwd or sourceKinds"
            self._fail(build, errors.INTERNAL_ERROR, message, {"kind": "listTooLong"})
        elif state.session(build.request) is None:
            self._end(build)
        elif walk.request is None:
            del build.walks[name]
            if not build.walks:
                self._finish(build)
        elif worker is not None:
            self._ask(build, worker)

    def _finish(self, build: _Build) -> None:
        index = build.index
        index.close()
        self._kept[index.id] = index, self._state.now
        while len(self._kept) > 1 and sum(each.size_bytes for each, _ in self._kept.values()) > MAX_KEPT_BYTES:
            del self._kept[next(iter(self._kept))]
        self._say(build.request, index, build.query)
        self._end(build)

    def _say(self, request: Request, index: Index, query: Query) -> None:
        result = index.page(query.open(), query.limit, self._name_of)
        self._state.answer(request, jsonrpc.encode({"id": request.request_id, "result": result}))

    def _name_of(self, thread_id: str) -> str | None:
        record = self._state.threads.record(thread_id)
        return record.name if record is not None else None

    def _fail(self, build: _Build, code: int, message: str, data: object = None) -> None:
        self._state.fail(build.request, code, f"{build.query.method}: {message}", data)
        self._end(build)

    def _end(self, build: _Build) -> None:
        self._builds.remove(build)
        self._state.requests.finish(build.request)
        while self._queue and len(self._builds) < MAX_BUILDS:
            request, query = self._queue.popleft()
            if self._state.session(request) is not None:
                self._begin(request, query)
            else:
                self._state.requests.finish(request)
