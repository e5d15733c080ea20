"""Lists of turns, sessions, threads and workers: what the owner, an admin and a limited key see."""

from __future__ import annotations

from typing import Any

import pytest
from broker_bench import Bench, encode
from session_ids import sid

from codex_pool.auth.policy import AccessPolicy
from codex_pool.auth.principal import Identity
from codex_pool.broker.fair_queue import FairQueue
from codex_pool.protocol import wire

ALICE = Identity(name="alice", principal="p-alice", sandbox="danger-full-access", cwd_roots=("/",))
ROOT = Identity(name="root", principal="p-root", admin=True)


@pytest.fixture
def bench() -> Bench:
    """A worker with two turns at once, and the owner's session s1."""
    bench = Bench(slots=1, turns_per_worker=2)
    bench.register()
    bench.hello()
    return bench


def rows(bench: Bench, what: str, *, session: str = "s1", **params: Any) -> list[dict[str, Any]]:
    (answer,) = bench.answers[bench.call(f"pool/{what}/list", params, session=session)]
    data: list[dict[str, Any]] = answer["result"]["data"]
    return data


def with_keys() -> Bench:
    """The same with keys: alice's session is `a`, the admin's `r`."""
    bench = Bench(slots=1, turns_per_worker=4, policy=AccessPolicy([ALICE, ROOT]))
    bench.register()
    bench.hello()
    for session, identity in (("a", ALICE), ("r", ROOT)):
        bench.connections[session] = session
        hello = wire.Hello(session, f"client-{session}")
        bench.apply(
            bench.core.client_message(session.encode(), [wire.encode(hello)], bench.now, identity.principal, "key")
        )
    return bench


def keyed(bench: Bench, session: str, identity: Identity, method: str, params: dict[str, Any] | None = None) -> Any:
    """Return what a client with a key is answered."""
    line = encode({"id": f"{method}-{bench.now}", "method": method, "params": params or {}})
    frames = [wire.encode(wire.Call()), line]
    bench.apply(bench.core.client_message(session.encode(), frames, bench.now, identity.principal, "key"))
    found = bench.answers.get((session, f"{method}-{bench.now}"))
    return found[0].get("result", found[0].get("error")) if found else None


# Turns.


def test_turns_are_listed_by_state_with_what_they_wait_for(bench: Bench) -> None:
    for number in range(4):
        bench.thread(f"t{number}")
    worker, first = bench.turn("t0")
    bench.now += 5
    _, asks = bench.turn("t1")
    bench.call("turn/start", {"threadId": "t2"})
    bench.call("turn/start", {"threadId": "t0"})
    bench.now += 2
    activity = [wire.TurnActivity(first, bench.now - 1, wire.Tokens(100, 60, 20, 5))]
    bench.from_worker(worker, wire.Activity(activity))
    bench.wait(worker, asks, bench.now - 1.5, "item/tool/requestUserInput")
    found = rows(bench, "turns")
    # The permit of the turn that waits is taken by the next one.
    assert [(row["state"], row["threadId"], row["waitsFor"], row["place"]) for row in found] == [
        ("waiting", "t1", "userInput", None),
        ("running", "t0", None, None),
        ("starting", "t2", None, None),
        ("queued", "t0", "thread", 1),
    ]
    waits, runs, _, queued = found
    assert (waits["waitedS"], waits["ageS"], waits["tokens"]) == (1.5, 2.0, None)
    assert (runs["turnId"], runs["ageS"], runs["lastEventAgeS"], runs["session"]) == (first, 7.0, 1.0, "s1")
    assert (runs["worker"], runs["slot"], runs["client"], runs["principal"]) == ("w0", 0, "s1", "")
    assert runs["tokens"] == {
        "inputTokens": 100,
        "cachedInputTokens": 60,
        "outputTokens": 20,
        "reasoningOutputTokens": 5,
        "totalTokens": 120,
    }
    assert (queued["turnId"], queued["waitedS"]) == (None, 2.0)
    bench.go_on(worker, asks)
    assert rows(bench, "turns")[0]["waitsFor"] is None


def test_a_turn_that_is_reported_again_keeps_its_age_and_tokens(bench: Bench) -> None:
    bench.thread("t0")
    worker, turn_id = bench.turn("t0")
    bench.from_worker(worker, wire.Activity([wire.TurnActivity(turn_id, bench.now, wire.Tokens(1))]))
    bench.now += 3
    bench.from_worker(worker, wire.TurnStarted("t0", turn_id, [sid("s1")]))
    (row,) = rows(bench, "turns")
    assert row["ageS"] == 3.0 and row["tokens"]["inputTokens"] == 1


def test_another_broker_knows_the_age_of_turns_and_what_they_wait_for(bench: Bench) -> None:
    after = Bench(slots=1)
    turn = wire.RunningTurn("t0", "u0", [sid("s1")], after.now - 4, "item/permissions/requestApproval", after.now - 9)
    after.register(holdings=wire.encode_worker_state(wire.WorkerState([wire.ThreadRecord("t0", False)], turns=[turn])))
    after.hello()
    (row,) = rows(after, "turns")
    assert (row["ageS"], row["waitedS"], row["waitsFor"]) == (9.0, 4.0, "permissionsApproval")


def test_the_turn_of_a_sub_agent_names_the_turn_that_it_works_for(bench: Bench) -> None:
    bench.thread("t0")
    worker, root = bench.turn("t0")
    for parent, child, turn_id in (("t0", "c1", "u-c1"), ("c1", "c2", "u-c2")):
        bench.from_worker(worker, wire.Children(parent, [child]))
        bench.from_worker(worker, wire.TurnStarted(child, turn_id, [sid("s1")]))
    found = {row["turnId"]: row["rootTurnId"] for row in rows(bench, "turns")}
    assert found == {root: None, "u-c1": root, "u-c2": root}


def test_the_place_in_the_queue_is_the_order_in_which_turns_begin(bench: Bench) -> None:
    for number in range(8):
        bench.thread(f"t{number}")
    running = [bench.turn(f"t{number}")[1] for number in (0, 1)]
    bench.hello("s2")
    for number in (2, 3, 4):
        bench.call("turn/start", {"threadId": f"t{number}"})
    for number in (5, 6):
        bench.call("turn/start", {"threadId": f"t{number}"}, session="s2")
    queued = [row["threadId"] for row in rows(bench, "turns") if row["state"] == "queued"]
    worker, begun = bench.workers["w0"], []
    while running:
        bench.end(worker, running.pop(0))
        for call, (_, line) in list(worker.open.items()):
            begun.append(line["params"]["threadId"])
            turn_id = bench.answer(worker, call)
            assert turn_id is not None
            running.append(turn_id)
    assert begun == queued and len(begun) == 5


@pytest.mark.parametrize("weights", [(1, 1, 1), (4, 1, 1), (2, 3, 1)])
def test_a_fair_queue_is_served_in_the_order_that_it_states(weights: tuple[int, ...]) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue()
    for number in range(30):
        lane = number % 3
        queue.put(wire.SessionId("", f"s{lane}"), weights[lane], f"t{number % 4}", (lane, number))
        if number % 7 == 6:
            queue.take(lambda _: True)
    stated = list(queue.in_order())
    served = []
    while (item := queue.take(lambda _: True)) is not None:
        served.append(item)
    assert served == stated


# Sessions, threads, workers.


def test_sessions_name_their_program_and_how_they_came_in(bench: Bench) -> None:
    bench.call("initialize", {"clientInfo": {"name": "editor", "version": "1.2"}, "capabilities": {}})
    bench.thread("t0")
    worker, turn_id = bench.turn("t0")
    bench.from_worker(worker, wire.TurnWaits(turn_id, bench.now))
    bench.call("turn/start", {"threadId": "t0"})
    for peer, listener in ((b"tcp\x001.1", ""), (b"gateway\x001.2", "unix"), (b"gateway\x001.3", "ws")):
        hello = wire.Hello(peer.decode(), "x", listener=listener)
        bench.apply(bench.core.client_message(peer, [wire.encode(hello)], bench.now))
    bench.now += 2
    mine, *others = rows(bench, "sessions")
    assert (mine["session"], mine["program"], mine["programVersion"]) == ("s1", "editor", "1.2")
    assert (mine["listener"], mine["state"], mine["awayS"]) == ("ipc", "connected", None)
    assert (mine["turns"], mine["waiting"], mine["queued"], mine["ageS"]) == (1, 1, 1, 2.0)
    assert sorted(row["listener"] for row in others) == ["tcp", "unix", "ws"]


def test_threads_come_with_the_running_ones_first_then_the_ones_used_last(bench: Bench) -> None:
    for number in range(3):
        bench.thread(f"t{number}")
        bench.now += 1
    _, turn_id = bench.turn("t0")
    found = rows(bench, "threads")
    assert [(row["threadId"], row["state"], row["turnId"]) for row in found] == [
        ("t0", "running", turn_id),
        ("t2", "loaded", None),
        ("t1", "loaded", None),
    ]
    assert (found[2]["idleS"], found[0]["idleS"], found[0]["worker"], found[0]["followers"]) == (2.0, 0.0, "w0", 1)
    assert [row["threadId"] for row in rows(bench, "threads", limit=1)] == ["t0"]


def test_rows_of_workers_are_in_seconds_and_bytes(bench: Bench) -> None:
    worker = bench.workers["w0"]
    bench.from_worker(worker, wire.ProcessTree(memory_bytes=5 << 20))
    bench.now += 3
    (row,) = rows(bench, "workers")
    assert (row["slot"], row["worker"], row["state"], row["restarts"]) == (0, "w0", "ready", 0)
    assert (row["memoryBytes"], row["ageS"], row["turnsPerWorker"]) == (5 << 20, 3.0, 2)
    assert not [name for name in row if name.endswith("Ms")]
    bench.drain(worker)
    bench.register("w1")
    assert sorted(row["worker"] for row in rows(bench, "workers")) == ["w0", "w1"]


# Who sees what.


def test_a_limited_key_sees_its_own_and_an_admin_all() -> None:
    bench = with_keys()
    worker = bench.thread("owners")
    bench.turn("owners")
    keyed(bench, "a", ALICE, "thread/start", {"cwd": "/"})
    ((call, _),) = worker.open.items()
    bench.answer(worker, call, record=wire.ThreadRecord("hers", False, turns=1, cwd="/"))
    keyed(bench, "a", ALICE, "turn/start", {"threadId": "hers", "input": []})
    ((call, _),) = worker.open.items()
    turn_id = bench.answer(worker, call)
    assert turn_id is not None
    # An admin follows her turn: she does not learn of that.
    bench.from_worker(
        worker, wire.TurnStarted("hers", turn_id, [wire.SessionId("p-root", "r"), wire.SessionId("p-alice", "a")])
    )
    bench.now += 1
    (hers,) = keyed(bench, "a", ALICE, "pool/turns/list")["data"]
    assert (hers["threadId"], hers["session"], hers["followers"], hers["principalName"]) == ("hers", "a", 1, "alice")
    assert [row["threadId"] for row in keyed(bench, "a", ALICE, "pool/threads/list")["data"]] == ["hers"]
    assert [row["session"] for row in keyed(bench, "a", ALICE, "pool/sessions/list")["data"]] == ["a"]
    assert keyed(bench, "a", ALICE, "pool/workers/list")["data"] == [{"slot": 0, "state": "ready", "restarts": 0}]
    assert keyed(bench, "a", ALICE, "pool/turns/list", {"limit": 1})["total"] == 1
    for method, count in (("turns", 2), ("threads", 2), ("sessions", 3)):
        seen = keyed(bench, "r", ROOT, f"pool/{method}/list")
        assert (len(seen["data"]), seen["total"]) == (count, count)
        bench.now += 1
    assert keyed(bench, "r", ROOT, "pool/workers/list")["data"][0]["worker"] == "w0"


def test_a_limited_key_does_not_learn_how_many_others_wait() -> None:
    bench = with_keys()
    worker = bench.thread("hers")
    owner = wire.ThreadRecord("hers", False, turns=1, cwd="/", owner=ALICE.principal)
    bench.core.state.threads["hers"].record = owner
    for number in range(8):
        bench.thread(f"t{number}")
        bench.call("turn/start", {"threadId": f"t{number}"})
    bench.answer_all(worker)
    keyed(bench, "a", ALICE, "turn/start", {"threadId": "hers", "input": []})
    (mine,) = [row for row in rows(bench, "turns") if row["threadId"] == "hers"]
    bench.now += 1
    (hers,) = keyed(bench, "a", ALICE, "pool/turns/list")["data"]
    assert (mine["state"], hers["state"], hers["place"]) == ("queued", "queued", 1) and mine["place"] > 1


def test_no_list_has_texts_of_threads_or_turns(bench: Bench) -> None:
    secret = "a prompt that nobody else may read"
    bench.thread("t0")
    worker = bench.workers["w0"]
    bench.from_worker(worker, wire.ThreadChanged(wire.ThreadRecord("t0", False, 1, name=secret)))
    for _ in range(2):
        bench.call("turn/start", {"threadId": "t0", "input": [{"type": "text", "text": secret}]})
    for what in ("turns", "sessions", "threads", "workers"):
        assert secret not in repr(rows(bench, what)), what
