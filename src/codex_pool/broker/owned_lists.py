"""Lists of a client's own threads, computed from what the broker keeps of them. Pure.

No answer of an app-server goes into the order, the length or the cursor of a page, so nothing in them can tell of other
threads. A cursor names the place after an entry, and is signed for the client, the method and the query: one that was
made up, or is of another list, is refused.

How `thread/list` of a client with a limited key differs from the app-server's: `searchTerm` looks at names only, upper
and lower case alike; without `modelProviders` all are listed; `updated_at` and `recency_at` are when the last turn
began or ended; `useStateDbOnly` means nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from heapq import nlargest, nsmallest
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from ..auth.ownership import Row
from ..protocol import jsonrpc

DEFAULT_LIMIT = 25
MAX_LIMIT = 100
MAX_CURSOR_CHARS = 1024
# Of loaded threads all are listed by default.
MAX_LOADED = 10_000

_SUB_AGENTS = frozenset({"subAgent", "subAgentThreadSpawn"})
_INTERACTIVE = frozenset({"cli", "vscode"})
_SORT_KEYS = {"created_at": "created_ms", "updated_at": "updated_ms", "recency_at": "updated_ms"}


class QueryError(ValueError):
    """Parameters that a list cannot be made of; the message names them."""


class Query(msgspec.Struct, rename="camel", frozen=True):
    """Parameters of thread/list and thread/loaded/list."""

    cursor: str | None = None
    limit: int | None = None
    archived: bool | None = None
    cwd: str | list[str] | None = None
    excluded_thread_ids: list[str] | None = None
    model_providers: list[str] | None = None
    parent_thread_id: str | None = None
    ancestor_thread_id: str | None = None
    search_term: str | None = None
    sort_key: str | None = None
    sort_direction: str | None = None
    source_kinds: list[str] | None = None
    originators: list[str] | None = None
    project_id: str | None = None
    section_id: str | None = None


class Page(NamedTuple):
    """The rows of a page, in order, the cursor of the next one, and the one that leads back from the first row."""

    rows: list[Row]
    next_cursor: str | None
    backwards_cursor: str | None


class _Line(msgspec.Struct):
    params: Query | None = None


_decode = msgspec.json.Decoder(_Line).decode


def query_of(line: bytes) -> Query:
    """The query in a request. Raises QueryError."""
    try:
        query = _decode(line).params or Query()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise QueryError(f"invalid params: {error}") from None
    for name, value in (("originators", query.originators), ("projectId", query.project_id)):
        if value is not None:
            raise QueryError(f"{name} is not for clients with a limited key; leave it out")
    if query.section_id is not None:
        raise QueryError("sectionId is not for clients with a limited key; leave it out")
    if query.sort_key not in (None, *_SORT_KEYS):
        raise QueryError(f"sortKey is {query.sort_key!r}; expected one of {', '.join(_SORT_KEYS)}")
    if query.sort_direction not in (None, "asc", "desc"):
        raise QueryError(f"sortDirection is {query.sort_direction!r}; expected asc or desc")
    if query.limit is not None and query.limit < 0:
        raise QueryError(f"limit is {query.limit}; expected a number from 1 on")
    return query


class OwnedLists:
    """See the module's docstring. `secret` signs cursors; brokers that have the same take each other's."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def threads(self, principal: str, query: Query, rows: Iterable[Row]) -> Page:
        """A page of thread/list. Raises QueryError for a cursor that is not of this list."""
        parents: dict[str, str] = {}
        if query.ancestor_thread_id is not None:
            rows = list(rows)
            parents = {row.thread_id: row.parent for row in rows}
        matches = list(filter(_matcher(query, parents), rows))
        position = attrgetter(_SORT_KEYS[query.sort_key or "created_at"], "thread_id")
        return self._page(principal, "thread/list", query, matches, position, DEFAULT_LIMIT)

    def loaded(self, principal: str, query: Query, rows: Iterable[Row]) -> Page:
        """A page of thread/loaded/list. Raises QueryError likewise."""
        query = Query(cursor=query.cursor, limit=query.limit, sort_direction="asc")
        return self._page(
            principal, "thread/loaded/list", query, list(rows), attrgetter("created_ms", "thread_id"), MAX_LOADED
        )

    def _page(
        self,
        principal: str,
        method: str,
        query: Query,
        rows: list[Row],
        position: Callable[[Row], tuple[int, str]],
        limit: int,
    ) -> Page:
        backwards = query.sort_direction != "asc"
        query = msgspec.structs.replace(query, sort_direction="desc" if backwards else "asc")
        about = _about(principal, method, query)
        if query.cursor is not None:
            after = self._open(query.cursor, about)
            rows = [row for row in rows if (position(row) < after if backwards else position(row) > after)]
        most = MAX_LOADED if limit == MAX_LOADED else MAX_LIMIT
        limit = min(max(query.limit, 1), most) if query.limit is not None else limit
        page = (nlargest if backwards else nsmallest)(limit, rows, key=position)
        next_cursor = self._seal(position(page[-1]), about) if len(rows) > limit else None
        if not page:
            return Page(page, next_cursor, None)
        # In the opposite direction the list begins with the first row: no id is before "" or behind "~".
        before = position(page[0])[0], "" if backwards else "~"
        reverse = msgspec.structs.replace(query, sort_direction="asc" if backwards else "desc")
        return Page(page, next_cursor, self._seal(before, _about(principal, method, reverse)))

    def _seal(self, position: tuple[int, str], about: bytes) -> str:
        body = jsonrpc.encode(position)
        return base64.urlsafe_b64encode(self._sign(body, about) + body).decode()

    def _open(self, cursor: str, about: bytes) -> tuple[int, str]:
        try:
            raw = base64.b64decode(cursor[:MAX_CURSOR_CHARS].encode(), b"-_", validate=True)
        except ValueError:
            raw = b""
        signature, body = raw[:16], raw[16:]
        if not body or not hmac.compare_digest(signature, self._sign(body, about)):
            raise QueryError("cursor is not of this list; begin again without it")
        return msgspec.json.decode(body, type=tuple[int, str])

    def _sign(self, body: bytes, about: bytes) -> bytes:
        message = b"%d:%s%s" % (len(about), about, body)
        return hmac.new(self._secret, message, hashlib.sha256).digest()[:16]


def _about(principal: str, method: str, query: Query) -> bytes:
    """The query that a cursor is signed for, beside the place that it names."""
    return jsonrpc.encode([principal, method, msgspec.structs.replace(query, cursor=None, limit=None)])


def _matcher(query: Query, parents: Mapping[str, str]) -> Callable[[Row], bool]:
    """Tells the rows of a query; one pass over many rows is all that a list costs the broker's loop."""
    archived = bool(query.archived)
    kinds = set(query.source_kinds or ())
    if kinds & _SUB_AGENTS:
        kinds |= _SUB_AGENTS
    if not kinds and query.parent_thread_id is None and query.ancestor_thread_id is None:
        kinds |= _INTERACTIVE
    tests: list[Callable[[Row], bool]] = []
    if query.cwd is not None:
        directories = {query.cwd} if isinstance(query.cwd, str) else set(query.cwd)
        tests.append(lambda row: row.cwd in directories)
    if query.model_providers:
        providers = set(query.model_providers)
        tests.append(lambda row: row.model_provider in providers)
    if query.search_term:
        term = query.search_term.casefold()
        tests.append(lambda row: term in row.name.casefold())
    if query.excluded_thread_ids:
        excluded = set(query.excluded_thread_ids)
        tests.append(lambda row: row.thread_id not in excluded)
    if query.parent_thread_id is not None:
        tests.append(lambda row: row.parent == query.parent_thread_id)
    if query.ancestor_thread_id is not None:
        tests.append(lambda row: query.ancestor_thread_id in _ancestors(row, parents))

    def matches(row: Row) -> bool:
        if row.archived != archived or not row.stored or (kinds and row.source not in kinds):
            return False
        return not tests or all([test(row) for test in tests])

    return matches


def _ancestors(row: Row, parents: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    parent = row.parent
    while parent and parent not in found:
        found.add(parent)
        parent = parents.get(parent, "")
    return found


def thread_list(page: Page, answers: Mapping[str, bytes]) -> dict[str, Any]:
    """The result of thread/list: of each row of a page the thread that its `thread/read` has answered with.

    A row whose thread could not be read is left out.
    """
    data: list[dict[str, Any]] = []
    states: dict[str, Any] = {}
    for row in page.rows:
        result = _result_of(answers.get(row.thread_id, b""))
        thread = result.get("thread")
        if not isinstance(thread, dict) or thread.get("id") != row.thread_id:
            continue
        # A name is known to the app-server alone on which it was set.
        data.append({**thread, "name": thread.get("name") or row.name or None, "turns": []})
        if result.get("readState") is not None:
            states[row.thread_id] = result["readState"]
    cursors = {"nextCursor": page.next_cursor, "backwardsCursor": page.backwards_cursor}
    return {"data": data, "readStates": states, **cursors}


def _result_of(line: bytes) -> dict[str, Any]:
    try:
        result = msgspec.json.decode(line).get("result")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, AttributeError):
        return {}
    return result if isinstance(result, dict) else {}
