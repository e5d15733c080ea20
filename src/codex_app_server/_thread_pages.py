"""The pages of `threads()`: what both clients ask for, and what they make of the answers. No I/O."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from . import operations
from ._core.thread_walk import MAX_PAGE, STUCK, Listed, PageRequest, ThreadWalk, stages_of
from .errors import InternalRpcError, InvalidInputError, ThreadListError

if TYPE_CHECKING:
    from .generated import models


_SORT_KEYS = ("created_at", "updated_at", "recency_at", "section_position")


def walk_of(
    options: Mapping[str, Any], *, shared: bool
) -> tuple[ThreadWalk, Callable[[PageRequest], operations.Operation[Any]]]:
    """A walk through all pages of thread/list with these options, and how a page of it is asked for.

    Raises InvalidInputError.
    """
    if options.get("cursor") is not None:
        raise InvalidInputError("threads() begins at the beginning: leave cursor out, or use thread_list(cursor=...)")
    # Raises for what is no option, also for what a page is not asked for.
    operations.thread_list(options)
    # As text: enums of the generated types as well as literals.
    options = {key: getattr(value, "value", value) for key, value in options.items()}
    sort_key = options.get("sort_key")
    # An unknown one would not be noticed: the pages have an order of their own.
    for name, known in (("sort_key", _SORT_KEYS), ("sort_direction", ("asc", "desc"))):
        if options.get(name) not in (None, *known):
            raise InvalidInputError(f"{name} is {options[name]!r}; expected one of {', '.join(known)}")
    by_section = sort_key == "section_position"

    def page(request: PageRequest) -> operations.Operation[Any]:
        fields = {**options, "sort_key": request.sort_key, "cursor": request.cursor, "limit": request.limit}
        if not by_section:
            fields["sort_direction"] = "desc"
        if request.use_state_db_only:
            fields["use_state_db_only"] = True
        return operations.thread_list(fields)

    state_db_only = bool(options.get("use_state_db_only"))
    stages = stages_of(shared=shared, sort_key=sort_key, state_db_only=state_db_only)
    walk = ThreadWalk(stages, limit=min(options.get("limit") or MAX_PAGE, MAX_PAGE))
    return walk, page


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Raise ThreadListError where a pool has answered that a list cannot go on."""
    try:
        yield
    except InternalRpcError as error:
        data = error.data if isinstance(error.data, dict) else {}
        if data.get("kind") != STUCK:
            raise
        raise ThreadListError(str(data["sortKey"]), str(data["cursor"]), int(data["seen"])) from error


def walk_on(walk: ThreadWalk, page: models.ThreadListResponse) -> list[models.Thread]:
    """The threads of a page that have not come before. Raises ThreadListError."""
    listed = [Listed(each.id, each.updated_at) for each in page.data]
    return [page.data[place] for place in walk.add(listed, page.next_cursor)]


def order_of(options: Mapping[str, Any]) -> tuple[str, str] | None:
    """Sort key and direction of a list for which one of both was asked; None if it may come as it is found."""
    asked = {key: getattr(value, "value", value) for key, value in options.items()}
    sort_key, direction = asked.get("sort_key"), asked.get("sort_direction")
    if sort_key == "section_position" or (sort_key is None and direction is None):
        return None
    return sort_key or "created_at", direction or "desc"


def in_order(threads: Iterable[models.Thread], sort_key: str, direction: str) -> list[models.Thread]:
    """Sort threads by a time in seconds, those of the same second by id: ids grow with the time of creation."""
    return sorted(threads, key=lambda each: (getattr(each, sort_key) or 0, each.id), reverse=direction != "asc")
