"""ThreadWalk: all pages of thread/list, without losing a thread between two of them. Pure.

What the runtime does, measured on 0.163.0: a page has at most 100 threads. `created_at` cursors are cut to seconds and
`updated_at` cursors to milliseconds, and the threads of that second or millisecond which did not fit into the page are
skipped. Such a list is read from the files of the home, the first 10,000 of them. With `useStateDbOnly` it comes from
the database; then a `created_at` cursor names the last thread too, which loses none, but the database may lack what
other processes have written. So both are walked:

    state     the database, by created_at: what this app-server knows
    files     by updated_at, each page beginning a millisecond early. Again from the front, until there is nothing new:
              a thread that is updated meanwhile moves there
    created   by created_at, each page beginning a second early; only if more threads than a page holds were updated in
              one millisecond

A cursor that is not a time is one that loses none: over a pool one stage, `pool`, is enough.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from ..errors import ThreadListError

MAX_PAGE = 100
# What a pool calls a list that cannot go on, as the `kind` of its error.
STUCK = "threadList"
Stage = Literal["state", "files", "created", "pool", "section"]

# Of each stage the sort key, how much earlier a page begins than the last one ended, and whether it is the database.
_STAGES: dict[Stage, tuple[str, timedelta, bool]] = {
    "state": ("created_at", timedelta(milliseconds=1), True),
    "files": ("updated_at", timedelta(milliseconds=1), False),
    "created": ("created_at", timedelta(seconds=1), False),
    "pool": ("created_at", timedelta(seconds=1), False),
    # The order of a section is known to the database alone, and is not a time.
    "section": ("section_position", timedelta(milliseconds=1), False),
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


class PageRequest(NamedTuple):
    """Parameters of a thread/list request, beside the filters."""

    sort_key: str
    cursor: str | None
    use_state_db_only: bool
    limit: int


class Listed(NamedTuple):
    """An entry of a page, as far as the walk looks at it; `updated_at` in seconds, as the runtime gives it."""

    id: str
    updated_at: float


class ThreadWalk:
    """See the module's docstring. `request` is the page to ask for, None at the end; `add` takes its answer.

    `limit` is the size of a page; where that is too small to get on, it is the largest from then on.
    """

    def __init__(self, stages: Sequence[Stage] = ("state", "files"), *, limit: int = MAX_PAGE) -> None:
        self._stages = deque(stages)
        self._limit = limit
        self._seen: set[str] = set()
        self._used: set[str | None] = set()
        self._cursor: str | None = None
        # Of the pass under way its newest time, and whether another must follow; of the one before its newest time.
        self._newest: float | None = None
        self._again = False
        self._mark: float | None = None

    @property
    def request(self) -> PageRequest | None:
        if not self._stages:
            return None
        sort_key, _, database = _STAGES[self._stages[0]]
        return PageRequest(sort_key, self._cursor, database, self._limit)

    def add(self, entries: Iterable[Listed], next_cursor: str | None) -> list[int]:
        """Take a page; the places of the entries that were not seen before.

        Raises ThreadListError when the cursor cannot advance and there is no other way.
        """
        entries = list(entries)
        new: list[int] = []
        for place, entry in enumerate(entries):
            if entry.id not in self._seen:
                self._seen.add(entry.id)
                new.append(place)
        if self._newest is None and entries:
            self._newest = entries[0].updated_at
        stage = self._stages[0]
        # What is read in one page cannot move within it.
        self._again = self._again or (self._cursor is not None and (self._mark is None or bool(new)))
        _, overlap, _ = _STAGES[stage]
        if next_cursor is None or self._is_known_from(entries):
            self._end_pass(stage)
            return new
        cursor = _earlier(next_cursor, overlap)
        if self._advances(cursor):
            self._used.add(self._cursor)
            self._cursor = cursor
        elif self._limit < MAX_PAGE:
            self._limit = MAX_PAGE
        else:
            self._stuck(stage, next_cursor)
        return new

    def _advances(self, cursor: str) -> bool:
        before, now = _time(self._cursor), _time(cursor)
        if before is not None and now is not None:
            return now < before
        return cursor != self._cursor and cursor not in self._used

    def _is_known_from(self, entries: list[Listed]) -> bool:
        """True when all that follows was there, and was seen, in the pass before."""
        return self._mark is not None and bool(entries) and entries[-1].updated_at < self._mark

    def _end_pass(self, stage: Stage) -> None:
        if stage == "files" and self._again:
            self._begin(mark=self._newest)
        else:
            self._next_stage()

    def _begin(self, mark: float | None = None) -> None:
        self._cursor, self._used, self._newest, self._again, self._mark = None, set(), None, False, mark

    def _next_stage(self) -> None:
        self._stages.popleft()
        self._begin()

    def _stuck(self, stage: Stage, cursor: str) -> None:
        if stage == "files":
            # The time of creation may tell apart what was updated at once.
            self._stages.append("created")
        elif stage != "state" or len(self._stages) == 1:
            raise ThreadListError(_STAGES[stage][0], cursor, len(self._seen))
        self._next_stage()


def _time(cursor: str | None) -> datetime | None:
    if cursor is None or _TIME.fullmatch(cursor) is None:
        return None
    return datetime.fromisoformat(_with_micros(cursor))


def _with_micros(cursor: str) -> str:
    # Python 3.10 reads three or six digits, and no Z.
    whole, _, fraction = cursor[:-1].partition(".")
    return f"{whole}.{fraction:0<6}+00:00"


def _earlier(cursor: str, overlap: timedelta) -> str:
    """The cursor of a page that begins so much earlier in a list from new to old; one that is no time stays."""
    moment = _time(cursor)
    if moment is None:
        return cursor
    return (moment + overlap).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def stages_of(*, shared: bool, sort_key: str | None, state_db_only: bool) -> tuple[Stage, ...]:
    """The stages of a walk with these options; `shared`: it is over a pool."""
    if sort_key == "section_position":
        return ("section",)
    if shared:
        return ("pool",)
    return ("state",) if state_db_only else ("state", "files")
