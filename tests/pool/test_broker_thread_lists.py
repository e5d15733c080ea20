"""Lists of the threads of the whole pool: pages by hand lose nothing, whichever worker knows what."""

from __future__ import annotations

from typing import Any

import pytest
from broker_bench import Bench, encode, total_held
from listing_runtime import Runtime, Stored, begun
from session_ids import sid

from codex_pool.broker import thread_lists
from codex_pool.broker.thread_index import PREFIX
from codex_pool.protocol import wire


@pytest.fixture
def bench() -> Bench:
    """Two workers, one client."""
    bench = Bench()
    for slot in range(2):
        bench.register(f"w{slot}", slot)
    bench.hello()
    return bench


class Home:
    """The app-servers of the workers: threads are in files that all share, and each in a database of one of them."""

    def __init__(self, bench: Bench, threads: list[Stored]) -> None:
        self.bench = bench
        self.runtimes = {
            name: Runtime(
                [Stored(t.id, t.created_ms, t.updated_ms, n % 2 == slot, t.name) for n, t in enumerate(threads)]
            )
            for slot, name in enumerate(bench.workers)
        }

    def serve(self) -> int:
        """Answer all that workers are asked for, and what follows; how many requests that were."""
        served = 0
        while any(worker.open for worker in self.bench.workers.values()):
            for name, worker in self.bench.workers.items():
                for call, (_, line) in list(worker.open.items()):
                    served += 1
                    assert served < 10_000, "it does not end"
                    result = self.runtimes[name].list(line["params"])
                    if line["method"] == "thread/search":
                        result["data"] = [{"snippet": "s", "thread": thread} for thread in result["data"]]
                    self.bench.answer_with(worker, call, {"id": line["id"], "result": result})
        return served

    def page(self, method: str = "thread/list", **params: Any) -> dict[str, Any]:
        call = self.bench.call(method, params)
        self.serve()
        (answer,) = self.bench.answers.pop(call)
        return answer.get("result") or answer["error"]  # type: ignore[no-any-return]

    def by_hand(
        self, method: str = "thread/list", *, first_cursor: str | None = None, **params: Any
    ) -> list[dict[str, Any]]:
        found, cursor = [], first_cursor
        while True:
            page = self.page(method, **params, **({"cursor": cursor} if cursor else {}))
            assert len(page["data"]) <= (params.get("limit") or 25)
            found += [each.get("thread", each) for each in page["data"]]
            cursor = page["nextCursor"]
            if cursor is None:
                return found


def ids(threads: list[dict[str, Any]]) -> list[str]:
    return [each["id"] for each in threads]


@pytest.mark.parametrize("direction", ["desc", "asc"])
@pytest.mark.parametrize("limit", [5, 100])
@pytest.mark.parametrize(
    "filters",
    [{}, {"sortKey": "updated_at"}, {"sortKey": "recency_at"}, {"searchTerm": "x"}, {"useStateDbOnly": True}],
    ids=str,
)
def test_pages_by_hand_lose_nothing(bench: Bench, filters: dict[str, Any], limit: int, direction: str) -> None:
    threads = begun(230, within_ms=2000)
    home = Home(bench, threads)
    found = home.by_hand(limit=limit, sortDirection=direction, **filters)
    assert ids(found) == sorted((each.id for each in threads), reverse=direction == "desc")
    assert total_held(bench) == 0


@pytest.mark.parametrize(("direction", "opposite"), [("desc", "asc"), ("asc", "desc")])
@pytest.mark.parametrize("key", ["created_at", "updated_at", "recency_at"])
def test_a_page_of_an_index_leads_back(bench: Bench, key: str, direction: str, opposite: str) -> None:
    threads = begun(60, within_ms=2000)
    home = Home(bench, threads)
    query = {"limit": 10, "sortKey": key, "searchTerm": "x"}
    first = home.page(**query, sortDirection=direction)
    second = home.page(**query, sortDirection=direction, cursor=first["nextCursor"])
    for runtime in home.runtimes.values():
        runtime.threads.append(Stored("z-new", 1_795_990_000_000, 1_795_990_000_000, True))
    back = home.by_hand(**query, sortDirection=opposite, first_cursor=second["backwardsCursor"])
    everything = sorted(each.id for each in threads)
    same_time = {each["id"] for each in second["data"][:1]} | {each["id"] for each in first["data"]}
    assert same_time <= {*ids(back)}, "all that came before, and the first of the page"
    assert ("z-new" in ids(back)) == (opposite == "asc"), "what is new is in the list"
    assert ids(back) == sorted(ids(back), reverse=opposite == "desc") and {*ids(back)} <= {*everything, "z-new"}
    refusal = home.page(**query, sortDirection=direction, cursor=second["backwardsCursor"])
    assert refusal["code"] == -32602


def test_a_first_page_is_asked_for_once_and_no_index_made(bench: Bench) -> None:
    home = Home(bench, begun(230, within_ms=2000))
    call = bench.call("thread/list", {"limit": 10})
    assert home.serve() == 2
    page = bench.answers[call][0]["result"]
    assert len(page["data"]) == 10 and page["nextCursor"].startswith(PREFIX)
    assert home.page(limit=100, cwd="/x")["nextCursor"] != page["nextCursor"]


def test_an_index_serves_all_pages_that_follow(bench: Bench) -> None:
    home = Home(bench, begun(230, within_ms=2000))
    page = home.page(limit=20)
    page = home.page(limit=20, cursor=page["nextCursor"])
    call = bench.call("thread/list", {"limit": 20, "cursor": page["nextCursor"]})
    assert home.serve() == 0 and len(bench.answers[call][0]["result"]["data"]) == 20


def test_what_is_begun_between_the_first_pages_is_not_lost(bench: Bench) -> None:
    """Nor what the first page had in another order than the index."""
    threads = begun(60, within_ms=60_000)
    home = Home(bench, threads)
    page = home.page(limit=20, sortKey="updated_at")
    found = ids(page["data"])
    for runtime in home.runtimes.values():
        # The last one moves to the front, before anybody has seen it.
        runtime.threads[0].updated_ms += 1_000_000
        runtime.threads.append(Stored("z-new", 1_795_960_000_000, 1_795_960_000_000))
    while page["nextCursor"] is not None:
        page = home.page(limit=20, sortKey="updated_at", cursor=page["nextCursor"])
        found += ids(page["data"])
    assert sorted(found) == sorted([*(each.id for each in threads), "z-new"])


def test_names_and_dates_are_those_of_the_worker_that_has_the_thread(bench: Bench) -> None:
    threads = begun(3, within_ms=3000)
    home = Home(bench, threads)
    first, second = home.runtimes.values()
    second.threads[1].name = "named there"
    for runtime in (first, second):
        runtime.threads[1].database = True
    second.threads[1].updated_ms = 1_795_990_000_000
    worker = bench.workers["w1"]
    record = wire.ThreadRecord(threads[1].id, False, 1)
    holder = bench.call("thread/resume", {"threadId": threads[1].id})
    ((name, dispatch),) = bench.dispatches(holder)
    bench.answer(bench.workers[name], dispatch.call)
    bench.from_worker(worker, wire.ThreadChanged(record))
    found = home.page(useStateDbOnly=True, sortKey="updated_at")["data"]
    assert {each["id"]: each["name"] for each in found}[threads[1].id] == "named there"


def test_a_cursor_of_another_list_is_refused(bench: Bench) -> None:
    home = Home(bench, begun(60, within_ms=2000))
    cursor = home.page(limit=10)["nextCursor"]
    for params in ({"archived": True}, {"sortKey": "updated_at"}, {"sortDirection": "asc"}, {"cwd": "/x"}):
        refusal = home.page(limit=10, cursor=cursor, **params)
        assert refusal["code"] == -32602 and "begin again" in refusal["message"]
    for damaged in (PREFIX, f"{PREFIX}x", f"{PREFIX}\xff", cursor[:-4]):
        assert home.page(limit=10, cursor=damaged)["code"] == -32602
    assert len(home.page(limit=10, cursor=cursor, archived=False)["data"]) == 10, "it is the same list"


def test_a_cursor_outlives_its_index_where_the_order_does_not_change(bench: Bench) -> None:
    threads = begun(60, within_ms=2000)
    for key in ("created_at", "updated_at"):
        home = Home(bench, threads)
        found = ids((page := home.page(limit=20, sortKey=key))["data"])
        found += ids((page := home.page(limit=20, sortKey=key, cursor=page["nextCursor"]))["data"])
        bench.tick(thread_lists.KEPT_S + 2.0)
        bench.apply(bench.core.client_message(b"s1", [wire.encode(wire.Beat())], bench.now))
        bench.hello(connection=f"s1/{key}")
        page = home.page(limit=20, sortKey=key, cursor=page["nextCursor"])
        if key == "created_at":
            assert sorted([*found, *ids(page["data"])]) == sorted(each.id for each in threads)
        else:
            assert page["code"] == -32602 and "was kept for 300 s" in page["message"]


def test_a_list_that_cannot_go_on_says_so(bench: Bench) -> None:
    home = Home(bench, begun(250, within_ms=1))
    for runtime in home.runtimes.values():
        for thread in runtime.threads:
            thread.database = False
    cursor = home.page(limit=20)["nextCursor"]
    error = home.page(limit=20, cursor=cursor)
    assert (error["code"], error["data"]["kind"], error["data"]["sortKey"]) == (-32603, "threadList", "created_at")
    assert total_held(bench) == 0


def test_a_worker_that_dies_meanwhile_is_done_without(bench: Bench) -> None:
    threads = begun(60, within_ms=2000)
    home = Home(bench, threads)
    cursor = home.page(limit=20)["nextCursor"]
    call = bench.call("thread/list", {"limit": 20, "cursor": cursor})
    bench.lose(bench.workers["w0"])
    bench.workers.pop("w0")
    home.serve()
    assert len(bench.answers[call][0]["result"]["data"]) == 20 and total_held(bench) == 0
    (cursor,) = (bench.answers[call][0]["result"]["nextCursor"],)
    call = bench.call("thread/list", {"searchTerm": "x"})
    bench.lose(bench.workers.pop("w1"))
    assert bench.error(call)["data"] == {"kind": "lost", "safeToRetry": True}


def test_an_error_of_an_app_server_is_the_answer(bench: Bench) -> None:
    call = bench.call("thread/list", {"searchTerm": "x"})
    for worker in bench.workers.values():
        for number, (_, line) in list(worker.open.items()):
            bench.answer_with(worker, number, {"id": line["id"], "error": {"code": -32602, "message": "no"}})
    assert bench.error(call) == {"code": -32602, "message": "no"} and total_held(bench) == 0


@pytest.mark.parametrize("result", [None, [], {"data": [7]}, {"data": {}}])
def test_an_answer_of_another_shape_is_an_error(bench: Bench, result: Any) -> None:
    call = bench.call("thread/list", {"searchTerm": "x"})
    for worker in bench.workers.values():
        for number, (_, line) in list(worker.open.items()):
            bench.answer_with(worker, number, {"id": line["id"], "result": result})
    assert "cannot be read" in bench.error(call)["message"] and total_held(bench) == 0


def test_so_many_lists_are_made_at_once_and_the_rest_waits(bench: Bench) -> None:
    threads = begun(30, within_ms=2000)
    home = Home(bench, threads)
    calls = [bench.call("thread/list", {"searchTerm": f"x{number}", "limit": 100}) for number in range(10)]
    asked = sum(len(worker.open) for worker in bench.workers.values())
    assert asked == 2 * thread_lists.MAX_BUILDS
    home.serve()
    assert all(len(bench.answers[call][0]["result"]["data"]) == 30 for call in calls) and total_held(bench) == 0


def test_a_list_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_lists, "MAX_INDEX_BYTES", 1000)
    assert "narrow it" in Home(bench, begun(60, within_ms=2000)).page(searchTerm="x")["message"]
    assert total_held(bench) == 0


def test_indexes_are_bounded_together(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(bench, begun(60, within_ms=2000))
    monkeypatch.setattr(thread_lists, "MAX_KEPT_BYTES", 1000)
    for number in range(5):
        home.page(searchTerm=f"x{number}")
    assert len(bench.core._thread_lists._kept) == 1


def test_pages_of_a_search_lose_nothing(bench: Bench) -> None:
    threads = begun(230, within_ms=2000)
    assert ids(Home(bench, threads).by_hand("thread/search", limit=50)) == sorted(
        (each.id for each in threads), reverse=True
    )


def test_an_order_that_the_pool_does_not_know_is_the_app_servers(bench: Bench) -> None:
    home = Home(bench, begun(60, within_ms=2000))
    call = bench.call("thread/list", {"sortKey": "section_position", "sectionId": "s"})
    assert home.serve() == 2
    assert not str(bench.answers[call][0]["result"]["nextCursor"]).startswith(PREFIX)


def test_ids_of_loaded_threads_by_pages(bench: Bench) -> None:
    loaded = {"w0": [f"a{number:02d}" for number in range(5)], "w1": [f"b{number:02d}" for number in range(30)]}
    found: list[str] = []
    cursor = None
    while True:
        call = bench.call("thread/loaded/list", {"limit": 7, "cursor": cursor})
        for name, worker in bench.workers.items():
            for number, (_, line) in list(worker.open.items()):
                rest = [each for each in loaded[name] if cursor is None or each > cursor]
                result = {"data": rest[:7], "nextCursor": rest[6] if len(rest) > 7 else None}
                bench.answer_with(worker, number, {"id": line["id"], "result": result})
        result = bench.answers[call][0]["result"]
        assert len(result["data"]) <= 7
        found += result["data"]
        cursor = result["nextCursor"]
        if cursor is None:
            break
    assert found == loaded["w0"] + loaded["w1"]


# Long answers, as the broker sees them.


@pytest.mark.parametrize("opted_out", [[], ["turn/started"]])
def test_pieces_go_to_sessions_that_take_them_whole(bench: Bench, opted_out: list[str]) -> None:
    bench.connections["s2"] = "s2"
    hello = wire.encode(wire.Hello("s2", "s2", accepts_parts=True))
    bench.apply(bench.core.client_message(b"s2", [hello], bench.now))
    params = {"clientInfo": {}, "capabilities": {"optOutNotificationMethods": opted_out}}
    bench.call("initialize", params, session="s2")
    for session, expected in (("s1", False), ("s2", not opted_out)):
        ((_, dispatch),) = bench.dispatches(bench.call("thread/read", {"threadId": "t"}, session=session))
        assert dispatch.accepts_parts is expected
    lists = [head for worker in bench.workers.values() for head in worker.heads]
    bench.call("thread/list", session="s2")
    new = [head for worker in bench.workers.values() for head in worker.heads if head not in lists]
    assert [head.accepts_parts for head in new] == [False, False], "they are put together here"


def test_a_thread_is_held_before_its_long_answer_is_there(bench: Bench) -> None:
    call = bench.call("thread/resume", {"threadId": "t1"})
    ((name, dispatch),) = bench.dispatches(call)
    worker = bench.workers[name]
    record = wire.ThreadRecord("t1", False, 1, model="first")
    bench.from_worker(worker, wire.ThreadLoaded(dispatch.call, record))
    bench.from_worker(worker, wire.ThreadChanged(wire.ThreadRecord("t1", False, 1, model="second")))
    bench.from_worker(worker, wire.ToSessions([sid("s1")]), wire.encode(wire.AnswerPart("1", 0)), b"{")
    assert bench.heads[-1] == ("s1", wire.AnswerPart("1", 0))
    worker.open.pop(dispatch.call)
    bench.from_worker(
        worker, wire.Answered(dispatch.call, True), wire.encode(wire.AnswerPart("1", 1, True)), encode({})
    )
    thread = bench.core.state.threads["t1"]
    assert (thread.worker, thread.record.model, list(thread.followers)) == (name, "second", [sid("s1")])
    assert total_held(bench) == 0
