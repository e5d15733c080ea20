"""thread/list as an app-server of codex 0.163.0 answers it, written down: its pages, and what its cursors leave out."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

MAX_PAGE = 100
MAX_FILES = 10_000


@dataclass
class Stored:
    """A thread; times in milliseconds. `database` says that this app-server's database has it."""

    id: str
    created_ms: int
    updated_ms: int
    database: bool = True
    name: str | None = None


def iso(ms: int, digits: int = 3) -> str:
    moment = datetime.fromtimestamp(ms / 1000, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{ms % 1000:03d}" if digits else "") + "Z"


def moment_ms(text: str) -> int:
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


@dataclass
class Runtime:
    """See the module's docstring. `asked` are the parameters of all requests so far."""

    threads: list[Stored]
    asked: list[dict[str, Any]] = field(default_factory=list)

    def list(self, params: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(params)
        limit = min(max(params.get("limit") or 25, 1), MAX_PAGE)
        key, cursor = params.get("sortKey") or "created_at", params.get("cursor")
        if params.get("useStateDbOnly") or params.get("searchTerm") or key == "recency_at":
            page, next_cursor = self._database(key, cursor, limit)
        else:
            page, next_cursor = self._files(key, cursor, limit, params.get("sortDirection") == "asc")
            for thread in page:
                thread.database = True
        data = [
            {
                "id": each.id,
                "name": each.name,
                "createdAt": each.created_ms // 1000,
                "updatedAt": each.updated_ms // 1000,
            }
            for each in page
        ]
        return {"data": data, "nextCursor": next_cursor, "backwardsCursor": None}

    def _files(self, key: str, cursor: str | None, limit: int, ascending: bool) -> tuple[list[Stored], str | None]:
        # By their names, which have seconds.
        found = sorted(self.threads, key=lambda each: (each.created_ms // 1000, each.id), reverse=True)[:MAX_FILES]
        times = {each.id: each.created_ms // 1000 * 1000 if key == "created_at" else each.updated_ms for each in found}
        found.sort(key=lambda each: (times[each.id], each.id), reverse=not ascending)
        after = moment_ms(cursor) if cursor is not None else None
        rest = [t for t in found if after is None or (times[t.id] > after if ascending else times[t.id] < after)]
        page = rest[:limit]
        more = len(rest) > limit
        return page, iso(times[page[-1].id], 3 if key != "created_at" else 0) if more else None

    def _database(self, key: str, cursor: str | None, limit: int) -> tuple[list[Stored], str | None]:
        def place(each: Stored) -> tuple[int, str]:
            return each.created_ms if key == "created_at" else each.updated_ms, each.id

        found = sorted((each for each in self.threads if each.database), key=place, reverse=True)
        if cursor is not None:
            text, _, id = cursor.partition("|")
            after = moment_ms(text), id
            found = [each for each in found if place(each) < after]
        page = found[:limit]
        if len(found) <= limit:
            return page, None
        last = iso(place(page[-1])[0])
        return page, f"{last}|{page[-1].id}" if key == "created_at" else last


def begun(count: int, *, within_ms: int, at_ms: int = 1_795_950_000_000, **fields: Any) -> list[Stored]:
    """So many threads, begun within this time and updated a second later."""
    threads = []
    for number in range(count):
        ms = at_ms + number * within_ms // count
        threads.append(Stored(f"{ms:012x}-{number:05d}", ms, ms + 1000, **fields))
    return threads
