"""Ownership in the broker's core: answers wait for the store, lists are computed, the table of access is whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_policy_broker import READ_ONLY, KeyedBench, identity

from codex_app_server._core.router import MessageRouter
from codex_app_server._core.sub_agents import children_of
from codex_app_server.generated.routing import REQUESTS
from codex_pool.auth.access import ACCESS
from codex_pool.auth.ownership import Row
from codex_pool.auth.policy import CLOSED
from codex_pool.auth.principal import granted
from codex_pool.broker.effects import Effect, SaveOwners
from codex_pool.broker.owned_lists import OwnedLists, Query, QueryError
from codex_pool.broker.thread_owners import ThreadOwners
from codex_pool.protocol import wire
from codex_pool.worker.effects import Outbox
from codex_pool.worker.request_table import RequestTable
from codex_pool.worker.threads import Threads

ROOT = Path(__file__).resolve().parents[2]


class StoredBench(KeyedBench):
    """A broker with a store; `writes` are what it has been given and has not answered."""

    def __init__(self) -> None:
        self.writes: list[SaveOwners] = []
        self.owners = ThreadOwners(durable=True)
        super().__init__(identity("alice", max_threads=2), identity("mallory"), owners=self.owners, secret=b"secret")
        self.register()
        for session in ("alice-1", "mallory-1", "own"):
            self.hello(session)

    def apply(self, effects: list[Effect]) -> None:
        self.writes += [effect for effect in effects if isinstance(effect, SaveOwners)]
        super().apply([effect for effect in effects if not isinstance(effect, SaveOwners)])

    def written(self, problem: str | None = None) -> None:
        writes, self.writes = self.writes, []
        for write in writes:
            self.apply(self.core.ownership_kept(write.number, write.rows, problem, self.now))

    def start(self, thread_id: str, session: str = "alice-1", **fields: Any) -> tuple[str, Any]:
        call = self.call("thread/start", session=session)
        (number,) = self.workers["w0"].open
        record = wire.ThreadRecord(thread_id, fields.pop("ephemeral", False), turns=0, **READ_ONLY)
        self.answer(self.workers["w0"], number, record=record)
        return call


@pytest.fixture
def bench() -> StoredBench:
    return StoredBench()


def test_the_answer_waits_until_the_thread_is_in_the_store(bench: StoredBench) -> None:
    call = bench.start("t1")
    assert [(row.thread_id, row.owner) for row in bench.writes[0].rows] == [("t1", "P-alice")]
    assert call not in bench.answers
    bench.written()
    assert call in bench.answers
    # That of the pool's own user needs no row.
    own = bench.start("t2", "own")
    assert own in bench.answers and not bench.writes


def test_a_thread_that_could_not_be_kept_is_refused_and_is_nobodys(bench: StoredBench) -> None:
    call = bench.start("t1")
    bench.written("the disk is full")
    assert "the disk is full" in bench.error(call)["message"]
    assert bench.core.state.threads.count_of("P-alice") == 0 and "t1" not in bench.core.state.threads
    again = bench.start("t2")
    bench.written()
    assert again in bench.answers


def test_a_change_that_could_not_be_kept_is_tried_again(bench: StoredBench) -> None:
    bench.start("t1")
    bench.written()
    changed = wire.ThreadChanged(wire.ThreadRecord("t1", False, name="n", **READ_ONLY))
    bench.from_worker(bench.workers["w0"], changed)
    bench.written("database is locked")
    assert not bench.writes
    bench.now += 2.0
    bench.apply(bench.core.tick(bench.now))
    assert [row.name for row in bench.writes[0].rows] == ["n"]


def test_ephemeral_threads_do_not_count_once_they_are_gone(bench: StoredBench) -> None:
    for number in range(4):
        bench.start(f"t{number}", ephemeral=True)
        bench.written()
        assert bench.core.state.threads.count_of("P-alice") == 1
        bench.call("thread/unsubscribe", {"threadId": f"t{number}"}, session="alice-1")
        bench.answer_all(bench.workers["w0"])
        bench.written()
        assert bench.core.state.threads.count_of("P-alice") == 0
    bench.start("t9", ephemeral=True)
    bench.written()
    bench.apply(bench.core.worker_lost("w0", "killed", bench.now))
    assert bench.core.state.threads.count_of("P-alice") == 0


def test_without_a_store_that_can_be_relied_upon_keys_get_nothing(bench: StoredBench) -> None:
    assert bench.core.state.policy is not None
    bench.core.state.policy.close("deleted")
    call = bench.call("thread/start", session="alice-1")
    assert bench.error(call)["message"] == CLOSED
    assert bench.start("t1", "own") in bench.answers
    bench.core.state.policy.close(None)
    bench.apply(bench.core.ownership_opened([Row(thread_id="t1", owner="P-mallory", stored=True)], bench.now))
    record = bench.core.state.threads.record("t1")
    assert record is not None and record.owner == "P-mallory"


def test_a_thread_of_somebody_else_is_no_child(bench: StoredBench) -> None:
    bench.start("theirs", "own")
    bench.start("t1")
    bench.written()
    state = bench.core.state
    state.threads.add_sub_agents("t1", ["theirs", "new"])
    assert state.owners.owner_of("theirs") == "" and state.owners.owner_of("new") == "P-alice"
    state.threads.add_sub_agents("theirs", ["other"])
    assert state.owners.owner_of("other") == ""


def rows(count: int, **fields: Any) -> list[Row]:
    return [
        Row(thread_id=f"t{number}", owner="alice", created_ms=number // 2, source="vscode", stored=True, **fields)
        for number in range(count)
    ]


@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 3, 10, 100])
def test_pages_hold_each_thread_once_whatever_their_dates(direction: str, limit: int) -> None:
    lists, everything, cursor, seen = OwnedLists(b"s"), rows(25), None, []
    while True:
        page = lists.threads("alice", Query(cursor=cursor, limit=limit, sort_direction=direction), everything)
        seen += [row.thread_id for row in page.rows]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(seen) == sorted(row.thread_id for row in everything) and len(seen) == 25


@pytest.mark.parametrize(("direction", "opposite"), [("asc", "desc"), ("desc", "asc")])
def test_a_page_leads_back(direction: str, opposite: str) -> None:
    lists, everything = OwnedLists(b"s"), rows(25)
    query = Query(limit=5, sort_direction=direction)
    pages = [lists.threads("alice", query, everything)]
    pages.append(lists.threads("alice", msgspec.structs.replace(query, cursor=pages[0].next_cursor), everything))
    back = Query(limit=100, sort_direction=opposite, cursor=pages[1].backwards_cursor)
    found = [row.thread_id for row in lists.threads("alice", back, everything).rows]
    before = [row.thread_id for row in (*pages[0].rows, pages[1].rows[0])]
    assert {*before} <= {*found}, "all that came before, and the first of the page"
    assert lists.threads("alice", query, []).backwards_cursor is None
    with pytest.raises(QueryError):
        lists.threads("alice", msgspec.structs.replace(back, sort_direction=direction), everything)


def test_a_cursor_is_good_for_its_own_list_only() -> None:
    lists, everything = OwnedLists(b"s"), rows(5)
    query = Query(limit=2)
    cursor = lists.threads("alice", query, everything).next_cursor
    assert cursor is not None
    others = [
        ("bob", msgspec.structs.replace(query, cursor=cursor)),
        ("alice", msgspec.structs.replace(query, cursor=cursor, archived=True)),
        ("alice", msgspec.structs.replace(query, cursor=cursor, search_term="x")),
        ("alice", msgspec.structs.replace(query, cursor="2020-01-01T00:00:00Z")),
        ("alice", msgspec.structs.replace(query, cursor="")),
        ("alice", msgspec.structs.replace(query, cursor="é" * 3000)),
        ("alice", msgspec.structs.replace(query, cursor=cursor[:-4] + "AAAA")),
    ]
    for who, other in others:
        with pytest.raises(QueryError):
            lists.threads(who, other, everything)
    with pytest.raises(QueryError):
        lists.loaded("alice", Query(cursor=cursor), everything)
    with pytest.raises(QueryError):
        OwnedLists(b"another").threads("alice", msgspec.structs.replace(query, cursor=cursor), everything)


def test_every_method_has_a_rule_and_the_files_made_of_them_are_up_to_date() -> None:
    assert set(ACCESS) == set(REQUESTS)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "access_table.py", "--check"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_grant_opens_a_refused_method_but_an_admin_key_does() -> None:
    greedy, admin = identity("greedy", methods=("thread/search", "thread/*", "project/*")), identity("root", admin=True)
    for method, rule in ACCESS.items():
        if rule == "refused":
            assert not granted(greedy, method) and granted(admin, method)
    assert not granted(greedy, "thread/countAll") and granted(greedy, "thread/memoryMode/set")


def test_the_threads_of_sub_agents_are_the_parents_clients_for_the_next_broker_too() -> None:
    """The worker tells each broker; what the model writes into other calls makes no thread anybody's."""
    spawn = (
        b'{"method":"item/completed","params":{"item":{"type":"collabAgentToolCall","tool":"%s","id":"i","status":'
        b'"completed","receiverThreadIds":["child"],"prompt":"spawnAgent"},"threadId":"t1","turnId":"u1"}}'
    )
    assert children_of(spawn % b"spawnAgent") == ["child"]
    assert children_of(spawn % b"sendInput") == [] == children_of(b'{"params":{}}')
    outbox = Outbox()
    router = MessageRouter()
    threads = Threads(router=router, requests=RequestTable(router, outbox), outbox=outbox)
    threads.sub_agents.spawned("t1", ["child"])
    threads.sub_agents.spawned("child", ["grandchild"])
    first = outbox.take()
    threads.sub_agents.report()
    assert outbox.take() == first and len(first) == 2
