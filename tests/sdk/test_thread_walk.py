"""All pages of thread/list: nothing is lost between two of them, and what cannot be read on is said."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from listing_runtime import MAX_FILES, MAX_PAGE, Runtime, Stored, begun

from codex_app_server import InternalRpcError, InvalidInputError, ThreadListError
from codex_app_server._core.thread_walk import Listed, Stage, ThreadWalk, stages_of
from codex_app_server._thread_pages import order_of, reading, walk_of

NOTHING: Callable[[], None] = lambda: None  # noqa: E731


def walk(
    runtime: Runtime,
    stages: tuple[Stage, ...] = ("state", "files"),
    *,
    limit: int = MAX_PAGE,
    between: Callable[[], None] = NOTHING,
) -> list[str]:
    """The threads that a walk finds, in its order; `between` is called after each page."""
    found: list[str] = []
    walk = ThreadWalk(stages, limit=limit)
    while (request := walk.request) is not None:
        assert len(runtime.asked) < 1000, "it does not end"
        page = runtime.list({
            "limit": request.limit, "sortKey": request.sort_key, "cursor": request.cursor,
            "useStateDbOnly": request.use_state_db_only,
        })  # fmt: skip
        entries = [Listed(each["id"], each["updatedAt"]) for each in page["data"]]
        found += [entries[place].id for place in walk.add(entries, page["nextCursor"])]
        between()
    return found


def by_hand(runtime: Runtime, **params: Any) -> set[str]:
    seen: set[str] = set()
    cursor = None
    while True:
        page = runtime.list({**params, "cursor": cursor})
        seen |= {each["id"] for each in page["data"]}
        cursor = page["nextCursor"]
        if cursor is None:
            return seen


def ids(threads: list[Stored]) -> list[str]:
    return sorted(each.id for each in threads)


def test_what_pages_by_hand_lose_is_found() -> None:
    threads = begun(1000, within_ms=2000)
    runtime = Runtime(threads)
    assert len(by_hand(runtime, limit=100)) == 200, "it loses those of the same second"
    assert sorted(walk(runtime)) == ids(threads)


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_what_the_database_lacks_is_read_from_the_files(limit: int) -> None:
    threads = begun(30, within_ms=2000) + begun(30, within_ms=2000, at_ms=1_795_950_000_500, database=False)
    assert sorted(walk(Runtime(threads), limit=limit)) == ids(threads)


@pytest.mark.slow
def test_more_than_the_files_that_are_looked_at_are_found() -> None:
    threads = begun(MAX_FILES + 500, within_ms=1_000_000_000)
    runtime = Runtime(threads)
    assert len(walk(Runtime(threads), ("files",))) == MAX_FILES
    assert sorted(walk(runtime)) == ids(threads)


def test_a_list_of_one_page_is_read_once_each_way() -> None:
    runtime = Runtime(begun(50, within_ms=2000))
    assert len(walk(runtime)) == 50 and len(runtime.asked) == 2


def test_what_is_updated_meanwhile_is_found_where_it_moves() -> None:
    threads = begun(300, within_ms=600_000, database=False)
    moved = list(threads[:5])
    runtime = Runtime(threads)

    def move() -> None:
        if moved:
            each = moved.pop()
            each.updated_ms = 1_795_999_000_000 + len(runtime.asked) * 1000

    assert sorted(walk(runtime, between=move)) == ids(threads)


def test_what_was_updated_at_once_is_told_apart_by_when_it_began() -> None:
    threads = begun(500, within_ms=100_000, database=False)
    for each in threads:
        each.updated_ms = 1_795_999_000_000
    assert sorted(walk(Runtime(threads))) == ids(threads)


@pytest.mark.parametrize("stages", [("state", "files"), ("files",), ("pool",), ("created",)])
def test_where_nothing_tells_them_apart_it_raises(stages: tuple[Stage, ...]) -> None:
    threads = begun(250, within_ms=1, database=False)
    runtime = Runtime(threads)
    with pytest.raises(ThreadListError, match="created_at") as caught:
        walk(runtime, stages)
    assert caught.value.seen >= 100 and caught.value.sort_key == "created_at"
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.cursor) == (str(caught.value), caught.value.cursor)


def test_a_cursor_that_comes_again_is_not_followed_for_ever() -> None:
    walk = ThreadWalk(("pool",))
    walk.add([Listed("a", 1)], "pool:x")
    walk.add([Listed("b", 1)], "pool:y")
    with pytest.raises(ThreadListError, match="pool:x"):
        walk.add([Listed("c", 1)], "pool:x")


def test_an_older_database_is_left_for_the_files() -> None:
    """One whose cursors name nothing but a time."""
    walk = ThreadWalk()
    walk.add([Listed("a", 1)], "2026-11-29T11:06:34.522Z")
    assert walk.request is not None and walk.request.cursor == "2026-11-29T11:06:34.523Z"
    walk.add([Listed("a", 1)], "2026-11-29T11:06:34.522Z")
    assert walk.request is not None and not walk.request.use_state_db_only


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 30), st.booleans()), max_size=120),
    st.integers(5, 40),
    st.lists(st.integers(0, 119), max_size=10),
)
@settings(max_examples=150, deadline=None)
def test_every_thread_comes_once(rows: list[tuple[int, int, bool]], limit: int, touched: list[int]) -> None:
    threads = [
        Stored(f"t{number:03d}", 1_795_950_000_000 + created, 1_795_950_010_000 + updated, database)
        for number, (created, updated, database) in enumerate(rows)
    ]
    expected = ids(threads)

    def touch() -> None:
        if touched and (number := touched.pop()) < len(threads):
            threads[number].updated_ms = 1_795_950_020_000 + len(touched)

    try:
        found = walk(Runtime(threads), limit=limit, between=touch)
    except ThreadListError:
        # Only where more than a page are of one second and of one millisecond.
        return
    assert sorted(found) == expected and len(found) == len(set(found))


# What is asked for.


def test_options_go_into_each_page() -> None:
    walk, page = walk_of({"cwd": "/x", "archived": True, "sort_key": "updated_at", "limit": 7}, shared=False)
    assert walk.request is not None
    params = page(walk.request).params
    assert params is not None
    assert params == (
        b'{"archived":true,"cwd":"/x","limit":7,"sortDirection":"desc","sortKey":"created_at","useStateDbOnly":true}'
    )


def test_the_order_is_that_which_was_asked_for() -> None:
    assert order_of({}) is None and order_of({"sort_key": "section_position"}) is None
    assert order_of({"sort_key": "updated_at"}) == ("updated_at", "desc")
    assert order_of({"sort_direction": "asc"}) == ("created_at", "asc")


@pytest.mark.parametrize(
    "options", [{"cursor": "x"}, {"sort_key": "colour"}, {"sort_direction": "up"}, {"limits": 1}], ids=str
)
def test_options_that_are_none_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((InvalidInputError, TypeError), match=r"threads|colour|up|limits"):
        walk_of(options, shared=False)


def test_the_stages_of_a_walk() -> None:
    assert stages_of(shared=False, sort_key=None, state_db_only=False) == ("state", "files")
    assert stages_of(shared=False, sort_key=None, state_db_only=True) == ("state",)
    assert stages_of(shared=True, sort_key="updated_at", state_db_only=False) == ("pool",)
    assert stages_of(shared=False, sort_key="section_position", state_db_only=False) == ("section",)


def test_a_pool_that_cannot_go_on_raises_the_same_error() -> None:
    data = {"kind": "threadList", "sortKey": "created_at", "cursor": "c", "seen": 7}
    with pytest.raises(ThreadListError, match="after 7"), reading():
        raise InternalRpcError(-32603, "stuck", data)
    with pytest.raises(InternalRpcError), reading():
        raise InternalRpcError(-32603, "other", None)
