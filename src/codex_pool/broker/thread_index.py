"""The list of threads of a whole pool: all that its workers list for a query, in one order, and pages of it. Pure.

The order is the query's sort key, in seconds as the app-server gives it, then the id, which grows with the time of
creation. A cursor names the place after an entry in it, so nothing is lost between two pages, however many threads have
the same time. The first page comes from the app-servers as it is; its cursor names the threads on it, because their
order may be another one.
"""

from __future__ import annotations

import base64
import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from ..protocol import jsonrpc
from .client_line import ClientMessage

PREFIX = "pool:"
DEFAULT_LIMIT = 25
MAX_LIMIT = 100
METHODS = frozenset({"thread/list", "thread/search"})

_SORT_KEYS = {"created_at": "createdAt", "updated_at": "updatedAt", "recency_at": "recencyAt"}
# With these the answer comes from the app-server's database: each worker knows of others' threads by chance only.
_FROM_DATABASE = ("searchTerm", "useStateDbOnly", "parentThreadId", "ancestorThreadId", "projectId", "sectionId")

Position = tuple[float, str]


class CursorError(ValueError):
    """A cursor that is not of this list; the message has the remedy."""


class Cursor(msgspec.Struct, array_like=True, frozen=True):
    """`query` is that of the list, `index` the index that `after` is a place in, "" as long as there is none.

    `given` are threads of the first page that come no more.
    """

    query: str
    index: str = ""
    after: Position | None = None
    given: list[str] = []

    def encode(self) -> str:
        return PREFIX + base64.urlsafe_b64encode(jsonrpc.encode(self)).decode()


class Query(NamedTuple):
    """A request for a list: `filters` are its parameters but for cursor, limit and order; `name` stands for all.

    `reverse` is the name of the same list in the opposite direction.
    """

    method: str
    name: str
    reverse: str
    filters: dict[str, msgspec.Raw]
    sort_key: str
    direction: str
    limit: int
    cursor: str | None
    from_database: bool
    state_db_only: bool

    @property
    def is_ordered(self) -> bool:
        """True if its order is one that this module knows."""
        return self.sort_key in _SORT_KEYS

    @property
    def changes(self) -> bool:
        """True if a thread may move in its order while it is read."""
        return self.sort_key != "created_at"

    def open(self) -> Cursor | None:
        """Decode the cursor of the query; None if it has none, or one of the app-server's. Raises CursorError."""
        if self.cursor is None or not self.cursor.startswith(PREFIX):
            return None
        try:
            raw = base64.b64decode(self.cursor[len(PREFIX) :].encode(), b"-_", validate=True)
            cursor = msgspec.json.decode(raw, type=Cursor)
        except (ValueError, msgspec.MsgspecError):
            raise CursorError("the cursor is damaged; begin again without it") from None
        if cursor.query != self.name:
            raise CursorError("the cursor is not of this list; begin again without it")
        return cursor


_decode_text = msgspec.json.Decoder(str | None).decode
_decode_number = msgspec.json.Decoder(int | None).decode
_NULL = msgspec.Raw(b"null")


def query_of(method: str, message: ClientMessage) -> Query | None:
    """The query in a request; None if it cannot be read, which the app-server reports."""
    filters = dict(message.params or {})
    try:
        cursor = _decode_text(filters.pop("cursor", _NULL))
        limit = _decode_number(filters.pop("limit", _NULL))
        sort_key = _decode_text(filters.pop("sortKey", _NULL)) or "created_at"
        direction = _decode_text(filters.pop("sortDirection", _NULL)) or "desc"
    except msgspec.MsgspecError:
        return None
    if direction not in ("asc", "desc"):
        return None
    given = {name: value for name, value in filters.items() if bytes(value) not in (b"null", b"false", b'""', b"[]")}
    about = [method, sorted((name, bytes(value).decode()) for name, value in given.items()), sort_key]
    names = {each: hashlib.sha256(jsonrpc.encode([*about, each])).hexdigest()[:16] for each in ("asc", "desc")}
    return Query(
        method,
        names[direction],
        names["asc" if direction == "desc" else "desc"],
        filters,
        sort_key,
        direction,
        DEFAULT_LIMIT if limit is None else min(max(limit, 1), MAX_LIMIT),
        cursor,
        method == "thread/list" and (sort_key == "recency_at" or any(name in given for name in _FROM_DATABASE)),
        "useStateDbOnly" in given,
    )


class Listed(NamedTuple):
    """An entry as an app-server has listed it; `entry` is its JSON."""

    id: str
    name: str | None
    times: tuple[float, float, float]
    entry: bytes


class _Thread(msgspec.Struct, rename="camel"):
    id: str
    name: str | None = None
    created_at: float = 0
    updated_at: float = 0
    recency_at: float | None = None


class _Found(msgspec.Struct):
    thread: _Thread


class _Result(msgspec.Struct, rename="camel"):
    data: list[msgspec.Raw]
    next_cursor: str | None = None
    read_states: dict[str, msgspec.Raw] | None = None


class _ResultLine(msgspec.Struct):
    result: _Result


class Answer(NamedTuple):
    """A page as an app-server has answered it."""

    entries: list[Listed]
    next_cursor: str | None
    read_states: dict[str, msgspec.Raw] | None


_decode_result = msgspec.json.Decoder(_ResultLine).decode
_decode_thread = msgspec.json.Decoder(_Thread).decode
_decode_found = msgspec.json.Decoder(_Found).decode


def answer_of(method: str, line: bytes) -> Answer:
    """Take a page that an app-server has answered. Raises MsgspecError for an answer of another shape."""
    result = _decode_result(line).result
    entries = []
    for raw in result.data:
        thread = _decode_thread(raw) if method == "thread/list" else _decode_found(raw).thread
        times = thread.created_at, thread.updated_at, thread.recency_at or thread.updated_at
        entries.append(Listed(thread.id, thread.name, times, bytes(raw)))
    return Answer(entries, result.next_cursor, result.read_states)


def first_page(query: Query, line: bytes) -> bytes:
    """The answer of the app-servers to a query without a cursor, with a cursor that loses nothing."""
    if query.cursor is not None or not query.is_ordered:
        return line
    try:
        answer = answer_of(query.method, line)
        whole = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return line
    if answer.next_cursor is None:
        return line
    whole["result"]["nextCursor"] = Cursor(query.name, given=[entry.id for entry in answer.entries]).encode()
    return jsonrpc.encode(whole)


class Index:
    """Index of a query's threads that the principal may see, as the workers list them. `id` names it in cursors."""

    def __init__(self, query: Query, id: str, principal: str) -> None:
        self.query = query
        self.id = id
        self.principal = principal
        self.size_bytes = 0
        self._listed: dict[str, Listed] = {}
        self._names: dict[str, str] = {}
        # None unless the workers answer with any.
        self._read_states: dict[str, msgspec.Raw] | None = None
        self._positions: list[Position] = []

    def __len__(self) -> int:
        return len(self._listed)

    def add(
        self, entries: Iterable[Listed], read_states: dict[str, msgspec.Raw] | None, is_holder: Callable[[str], bool]
    ) -> None:
        """Take what a worker lists. Of a thread that it has (`is_holder`) it knows best."""
        for each in entries:
            if each.name:
                self._names.setdefault(each.id, each.name)
            known = self._listed.get(each.id)
            if known is not None and not is_holder(each.id):
                continue
            self.size_bytes += len(each.entry) - (len(known.entry) if known is not None else 0)
            self._listed[each.id] = each
        if read_states is not None:
            known_states = self._read_states = self._read_states or {}
            for thread_id, state in read_states.items():
                if thread_id not in known_states or is_holder(thread_id):
                    known_states[thread_id] = state

    def close(self) -> None:
        """Sort the entries: all workers have reported what they list."""
        which = [*_SORT_KEYS].index(self.query.sort_key)
        self._positions = sorted((each.times[which], each.id) for each in self._listed.values())

    def page(self, cursor: Cursor | None, limit: int, name_of: Callable[[str], str | None]) -> dict[str, Any]:
        """The result for a page."""
        cursor = cursor or Cursor(self.query.name)
        given = set(cursor.given)
        rest = [position for position in self._after(cursor.after) if position[1] not in given]
        found = rest[:limit]
        next_cursor = None
        if len(rest) > limit:
            ahead = [thread_id for _, thread_id in self._after(found[-1]) if thread_id in given]
            next_cursor = Cursor(self.query.name, self.id, found[-1], ahead).encode()
        data = [self._entry(thread_id, name_of) for _, thread_id in found]
        result: dict[str, Any] = {"data": data, "nextCursor": next_cursor, "backwardsCursor": self._backwards(found)}
        if self.query.method == "thread/list":
            states = self._read_states
            result["readStates"] = states and {each: states[each] for _, each in found if each in states}
        return result

    def _backwards(self, found: list[Position]) -> str | None:
        """The cursor with which the same list in the opposite direction begins with the first of these entries.

        It names no index: what has changed meanwhile is to be in that list.
        """
        if not found:
            return None
        at, _ = found[0]
        # No id is before "" or behind "~".
        return Cursor(self.query.reverse, after=(at, "" if self.query.direction == "desc" else "~")).encode()

    def _after(self, after: Position | None) -> list[Position]:
        positions = self._positions
        if self.query.direction == "asc":
            return positions[bisect_right(positions, after) if after is not None else 0 :]
        return positions[: bisect_left(positions, after) if after is not None else len(positions)][::-1]

    def _entry(self, thread_id: str, name_of: Callable[[str], str | None]) -> Any:
        listed = self._listed[thread_id]
        name = listed.name or name_of(thread_id) or self._names.get(thread_id)
        if name == listed.name:
            return msgspec.Raw(listed.entry)
        entry = msgspec.json.decode(listed.entry)
        entry.get("thread", entry)["name"] = name
        return entry
