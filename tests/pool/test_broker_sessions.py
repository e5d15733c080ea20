"""Sessions that go away and come back, requests that are sent again, and a broker that takes over from a dead one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from broker_bench import THREAD_LOST, TURN_LOST, Bench, total_held
from session_ids import sid

from codex_pool.broker import answers, sessions
from codex_pool.broker.checkpoint import SPARE_LINES, CheckpointFile
from codex_pool.broker.effects import SaveThreads, ToClient
from codex_pool.protocol import wire

LINES = wire.encode(wire.Lines())


@pytest.fixture
def bench() -> Bench:
    """Two workers, one client."""
    bench = Bench()
    for slot in range(2):
        bench.register(f"w{slot}", slot)
    bench.hello()
    return bench


def lines_for(session: str, text: bytes = b'{"method":"x"}') -> tuple[bytes, ...]:
    return wire.encode(wire.ToSessions([sid(session)])), LINES, text


def to_clients(bench: Bench, *frames: bytes) -> list[ToClient]:
    effects = bench.core.worker_message(b"w0", list(frames), bench.now)
    return [effect for effect in effects if isinstance(effect, ToClient)]


def away(bench: Bench, session: str = "s1") -> None:
    bench.beat(sessions.AWAY_S + 1)
    (row,) = [row for row in bench.status()["sessions"] if row["client"] == session]
    assert row["state"] == "away"


# Away and back.


def test_nothing_is_sent_to_one_who_is_away(bench: Bench) -> None:
    assert to_clients(bench, *lines_for("s1")) != []
    away(bench)
    assert to_clients(bench, *lines_for("s1")) == []
    heads = len(bench.heads)
    bench.beat(3)
    assert len(bench.heads) == heads, "not even a beat"


def test_one_who_missed_nothing_goes_on_where_it_was(bench: Bench) -> None:
    away(bench)
    call = bench.call("pool/status")
    assert bench.answers[call][0]["result"]["sessions"][0]["state"] == "connected"


def test_one_who_missed_something_has_to_come_back_on_a_new_connection(bench: Bench) -> None:
    away(bench)
    to_clients(bench, *lines_for("s1"))
    for _ in range(2):
        bench.from_client(wire.Beat())
        closed = bench.heads[-1][1]
        assert isinstance(closed, wire.Closed) and closed.again
    bench.hello(connection="s1/2")
    assert bench.heads[-1] == ("s1", wire.Welcome(2, resumed=True))
    assert len(to_clients(bench, *lines_for("s1"))) == 1


def test_who_comes_back_is_told_to_all_workers_with_how_far_it_came(bench: Bench) -> None:
    bench.hello(connection="s1/2", positions=[wire.Position("u1", 7, "t1")])
    for worker in bench.workers.values():
        assert worker.heads[-1] == wire.SessionResumed(sid("s1"), [wire.Position("u1", 7, "t1")])
    assert bench.forgotten == [b"s1"], "what waited for the old connection waits for nobody"
    effects = bench.core.client_message(b"s1", [wire.encode(wire.Beat())], bench.now)
    assert [wire.decode_to_client(e.frames[0]) for e in effects if isinstance(e, ToClient)] == [
        wire.Closed("the pool does not know this connection", again=True)
    ]
    assert len(bench.status()["sessions"]) == 1


def test_a_connection_that_breaks_leaves_the_session_its_time(bench: Bench) -> None:
    bench.apply(bench.core.client_unreachable(b"s1", bench.now))
    bench.beat(sessions.SESSION_GRACE_S - 1)
    bench.hello(connection="s1/2")
    assert bench.heads[-1] == ("s1", wire.Welcome(2, resumed=True))
    assert not any(isinstance(head, wire.SessionGone) for worker in bench.workers.values() for head in worker.heads)


def test_a_bye_counts_though_its_connection_broke_before_it_was_read(bench: Bench) -> None:
    """A client closes right after a request: the answer to it finds nobody."""
    bench.apply(bench.core.client_unreachable(b"s1", bench.now))
    bench.from_client(wire.Bye())
    assert bench.status()["sessions"] == []
    assert all(worker.heads[-1] == wire.SessionGone(sid("s1")) for worker in bench.workers.values())


def test_a_bye_of_a_former_connection_ends_nothing(bench: Bench) -> None:
    bench.apply(bench.core.client_unreachable(b"s1", bench.now))
    bench.hello(connection="s1/2")
    bench.apply(bench.core.client_message(b"s1", [wire.encode(wire.Bye())], bench.now))
    assert len(bench.status()["sessions"]) == 1


def test_the_turns_of_one_who_came_too_late_end_for_it(bench: Bench) -> None:
    worker, turn_id = bench.turn("t1") if bench.thread("t1") else (None, "")
    assert worker is not None
    bench.beat(sessions.AWAY_S + sessions.SESSION_GRACE_S + 3)
    assert wire.SessionGone(sid("s1")) in worker.heads
    bench.hello(connection="s1/2", positions=[wire.Position(turn_id, 3, "t1")])
    assert ("s1", wire.Welcome(2, resumed=False)) in bench.heads
    assert bench.ended == [("s1", turn_id)]


def test_a_turn_that_was_lost_meanwhile_is_told_to_who_comes_back(bench: Bench) -> None:
    bench.thread("t1")
    worker, turn_id = bench.turn("t1")
    away(bench)
    bench.lose(worker)
    assert bench.ended == []
    bench.hello(connection="s1/2", positions=[wire.Position(turn_id, 3, "t1")])
    assert bench.ended == [("s1", turn_id)]


@pytest.mark.parametrize("ended", [False, True])
def test_a_turn_whose_worker_lives_is_left_to_that_worker(bench: Bench, ended: bool) -> None:
    bench.thread("t1")
    worker, turn_id = bench.turn("t1")
    away(bench)
    if ended:
        bench.end(worker, turn_id)
    bench.hello(connection="s1/2", positions=[wire.Position(turn_id, 3, "t1")])
    assert bench.ended == []
    if ended:
        away(bench)
        bench.lose(worker)
        bench.hello(connection="s1/3", positions=[wire.Position(turn_id, 3, "t1")])
        assert bench.ended == [("s1", turn_id)], "nobody is left who could tell"


# Requests that are sent again.


@pytest.mark.parametrize("answered", [False, True], ids=["under way", "answered"])
@pytest.mark.parametrize(
    ("method", "is_repeated"),
    [
        *((method, True) for method in ("fs/readFile", "model/list", "thread/start", "thread/name/set")),
        *((method, False) for method in ("fs/writeFile", "fs/remove", "thread/shellCommand")),
        *((method, False) for method in ("review/start", "thread/inject_items", "thread/compact/start")),
    ],
)
def test_a_request_whose_worker_died_meanwhile_is_repeated_only_if_that_changes_nothing_twice(
    bench: Bench, method: str, is_repeated: bool, answered: bool
) -> None:
    bench.thread("t1")
    params = {"threadId": "t1"} if method.startswith(("thread/", "review/")) and method != "thread/start" else {}
    call = bench.call(method, params)
    ((name, head),) = bench.dispatches(call)
    away(bench)
    if answered:
        bench.answer(bench.workers[name], head.call)
    bench.lose(bench.workers[name])
    bench.register("w9", 0)
    bench.hello(connection="s1/2")
    assert call not in bench.answers
    bench.call(method, params, id=call[1], again=True)
    if is_repeated:
        assert len(bench.dispatches(call)) == 1 and call not in bench.answers
    else:
        assert bench.dispatches(call) == []
        error = bench.error(call)
        assert error["code"] == -32011 and error["data"] == {"kind": "lost", "safeToRetry": False}
        assert f"{method} was not executed again" in error["message"] and name in error["message"]


def test_a_request_under_way_goes_to_the_worker_that_has_it(bench: Bench) -> None:
    worker = bench.thread("t1")
    call = bench.call("turn/start", {"threadId": "t1"})
    bench.hello(connection="s1/2")
    bench.call("turn/start", {"threadId": "t1"}, id=call[1], again=True)
    ((name, head),) = bench.dispatches(call)
    assert name == worker.name and head.again and worker.load == 1
    bench.answer(worker, head.call)
    assert len(bench.answers[call]) == 1 and bench.core.held["calls"] == 0


@pytest.mark.parametrize("method", ["turn/start", "model/list", "thread/start"])
def test_an_answer_that_was_missed_comes_from_the_worker_that_gave_it(bench: Bench, method: str) -> None:
    worker = bench.thread("t1")
    for number in range(3):
        bench.thread(f"o{number}")
    call = bench.call(method, {"threadId": "t1"})
    ((name, head),) = bench.dispatches(call)
    answering = bench.workers[name]
    away(bench)
    bench.answer(answering, head.call)
    assert call not in bench.answers
    bench.hello(connection="s1/2")
    bench.call(method, {"threadId": "t1"}, id=call[1], again=True)
    ((again, head),) = bench.dispatches(call)
    assert again == name and head.again
    bench.answer(answering, head.call)
    assert len(bench.answers[call]) == 1 and len(worker.running) == (method == "turn/start")
    assert bench.core.held["starting"] == 0


def test_a_request_that_waits_keeps_its_place(bench: Bench) -> None:
    bench.thread("t1")
    worker, turn_id = bench.turn("t1")
    calls = [bench.call("turn/start", {"threadId": "t1"}) for _ in range(2)]
    bench.hello(connection="s1/2")
    told = len(bench.notices)
    for call in reversed(calls):
        bench.call("turn/start", {"threadId": "t1"}, id=call[1], again=True)
    assert [notice["method"] for _, notice in bench.notices[told:]] == ["pool/queued"] * 2
    assert bench.status()["turns"]["queued"] == 2
    bench.end(worker, turn_id)
    assert [line["id"] for _, line in worker.open.values()] == [calls[0][1]]


def test_a_gathered_request_is_asked_of_all_again(bench: Bench) -> None:
    call = bench.call("thread/loaded/list", {"x": 1})
    bench.answer(bench.workers["w0"], next(iter(bench.workers["w0"].open)))
    bench.hello(connection="s1/2")
    bench.call("thread/loaded/list", {"x": 1}, id=call[1], again=True)
    assert {head.again for _, head in bench.dispatches(call)} == {True}
    for worker in bench.workers.values():
        bench.answer_all(worker)
    assert len(bench.answers[call]) == 1 and total_held(bench) == 0


def test_a_request_whose_worker_died_is_sent_to_another_as_one_sent_before(bench: Bench) -> None:
    worker = bench.thread("t1")
    call = bench.call("model/list")
    ((name, head),) = bench.dispatches(call)
    away(bench)
    bench.answer(bench.workers[name], head.call)
    bench.lose(bench.workers[name])
    bench.hello(connection="s1/2")
    bench.call("model/list", id=call[1], again=True)
    ((other, head),) = bench.dispatches(call)
    assert other != name and head.again
    assert worker.name in bench.workers


def test_ids_may_be_used_anew_by_those_who_do_not_say_again(bench: Bench) -> None:
    first = bench.call("model/list", id=1)
    ((name, head),) = bench.dispatches(first)
    bench.answer(bench.workers[name], head.call)
    for worker in bench.workers.values():
        worker.answered.clear()
    bench.call("model/list", id=1)
    assert [head.again for _, head in bench.dispatches(first)] == [False]


# A broker that takes over.


def holdings(**fields: Any) -> bytes:
    return wire.encode_worker_state(wire.WorkerState(**{"records": [], **fields}))


def heir(*expect: str, **options: Any) -> Bench:
    """A broker that was started because the one before it died."""
    return Bench(expect=expect, **options)


def test_nobody_is_answered_before_every_worker_that_lives_is_there() -> None:
    bench = heir("w0", "w1")
    bench.hello("s1", connection="s1/2")
    bench.register("w0", 0, connection="w0/2")
    bench.hello("s1", connection="s1/3")
    bench.hello("s2", connection="s2/2")
    bench.beat(2)
    assert {type(head) for _, head in bench.heads} == {wire.Beat}, "they are to know that somebody is there"
    assert bench.core.held["callers"] == 2
    bench.register("w1", 1, connection="w1/2")
    welcomed = [session for session, head in bench.heads if isinstance(head, wire.Welcome)]
    assert welcomed == ["s1", "s2"] and bench.core.held["callers"] == 0
    bench.call("model/list")
    assert sum(len(worker.open) for worker in bench.workers.values()) == 1


def test_a_worker_that_is_dead_is_not_waited_for() -> None:
    bench = heir("w0", "w1")
    bench.register("w0")
    bench.hello()
    bench.apply(bench.core.worker_lost("w1", "killed", bench.now))
    assert isinstance(bench.heads[-1][1], wire.Welcome)


def test_when_all_are_dead_clients_wait_for_the_first_that_comes() -> None:
    bench = heir("w0")
    bench.hello()
    bench.apply(bench.core.worker_lost("w0", "killed", bench.now))
    assert bench.heads == []
    bench.register("w0.2")
    assert isinstance(bench.heads[-1][1], wire.Welcome)


def test_a_worker_that_does_not_come_is_suspected() -> None:
    bench = heir("w0", "w1")
    bench.register("w0")
    bench.beat(sessions.BARRIER_S)
    assert bench.suspects == []
    bench.beat(1)
    assert bench.suspects == ["w1"]


def test_those_who_wait_are_bounded() -> None:
    bench = heir("w0", max_clients=2)
    for number in range(4):
        bench.hello(f"s{number}")
    assert [type(head) for _, head in bench.heads] == [wire.Refused] * 2 and bench.core.held["callers"] == 2


def test_what_a_worker_holds_goes_on() -> None:
    """A worker's threads, who follows them, its turns, and what it has answered."""
    bench = heir("w0")
    bench.hello("s1", connection="s1/2", positions=[wire.Position("u1", 4, "t1")])
    record = wire.ThreadRecord("t1", False, turns=3, owner="somebody")
    worker = bench.register(
        connection="w0/2",
        holdings=holdings(
            records=[record],
            followers={"t1": [sid("s1")]},
            turns=[wire.RunningTurn("t1", "u1", [sid("s1")])],
            calls=[wire.KnownCall(sid("s1"), "5"), wire.KnownCall(sid("s1"), '"x"')],
            ended=["u0"],
        ),
    )
    worker.running["u1"] = ("t1", "s1")
    assert wire.SessionResumed(sid("s1"), [wire.Position("u1", 4, "t1")]) in worker.heads
    assert bench.heads[-1] == ("s1", wire.Welcome(1, resumed=True))
    bench.register("w1", 1)
    call = bench.call("turn/start", {"threadId": "t1"})
    assert bench.dispatches(call) == [], "its turn still runs"
    bench.end(worker, "u1")
    ((name, head),) = bench.dispatches(call)
    assert name == "w0" and head.adopt is None
    for request_id in (5, "x"):
        bench.call("model/list", id=request_id, again=True)
        ((name, head),) = bench.dispatches(("s1", request_id))
        assert name == "w0" and head.again
    bench.lose(worker)
    assert bench.core.state.threads["t1"].record.owner == "somebody"
    assert bench.core.state.threads["t1"].record.turns == 4 - 1


def test_sessions_that_do_not_come_back_to_the_new_broker_are_over() -> None:
    bench = heir("w0")
    turns = [wire.RunningTurn("t1", "u1", [sid("s1")])]
    worker = bench.register(connection="w0/2", holdings=holdings(turns=turns, calls=[wire.KnownCall(sid("s2"), "1")]))
    assert [row["state"] for row in bench.status()["sessions"]] == ["away", "away"]
    bench.beat(sessions.SESSION_GRACE_S + 1)
    assert wire.SessionGone(sid("s1")) in worker.heads and wire.SessionGone(sid("s2")) in worker.heads
    assert bench.status()["sessions"] == []


def test_a_turn_that_no_worker_knows_any_more_ends_for_who_followed_it() -> None:
    bench = heir("w0", "w1")
    places = [wire.Position(turn_id, 1, "t1") for turn_id in ("running", "over", "gone")]
    bench.hello("s1", connection="s1/2", positions=places)
    held = holdings(turns=[wire.RunningTurn("t1", "running", [sid("s1")])], ended=["over"])
    bench.register("w0", holdings=held)
    bench.apply(bench.core.worker_lost("w1", "killed", bench.now))
    assert bench.ended == [("s1", "gone")]


def test_a_worker_that_registers_on_a_new_connection_is_sent_again_what_is_open(bench: Bench) -> None:
    worker = bench.thread("t1")
    call = bench.call("turn/start", {"threadId": "t1"})
    bench.register(worker.name, int(worker.name[1]), connection=f"{worker.name}/2")
    ((name, head),) = bench.dispatches(call)
    assert name == worker.name and head.again and worker.load == 1
    bench.answer(worker, head.call)
    assert len(bench.answers[call]) == 1
    # What still comes on the old one is not heeded: it is asked who it is, once.
    stale = [wire.encode(wire.TurnEnded("t1", "u1", "completed"))]
    asked = [bench.core.worker_message(worker.name.encode(), stale, bench.now) for _ in range(3)]
    assert [len(effects) for effects in asked] == [1, 0, 0]
    assert bench.status()["turns"]["running"] == 1


def test_threads_are_left_to_the_next_broker_even_if_their_worker_dies_with_this_one(bench: Bench) -> None:
    worker = bench.thread("t1", turns=2)
    bench.thread("ephemeral", ephemeral=True)
    bench.thread("no turn", turns=0)
    bench.from_worker(worker, wire.ThreadChanged(wire.ThreadRecord("t1", False, turns=2, name="n", sandbox="{}")))
    bench.thread("gone")
    owner = next(each for each in bench.workers.values() if "gone" in bench.core.state.workers[each.name].threads)
    bench.from_worker(owner, wire.ThreadGone("gone", keep=False))
    assert {record.thread_id for record in bench.checkpoint} == {"t1", "ephemeral", "no turn"}
    next_one = Bench(expect=[], checkpoint=bench.checkpoint)
    next_one.hello()
    assert next_one.heads == [], "it is no pool that has just begun"
    next_one.register("w5")
    assert next_one.heads[-1] == ("s1", wire.Welcome(1))
    call = next_one.call("turn/start", {"threadId": "t1"})
    ((_, head),) = next_one.dispatches(call)
    assert head.adopt is not None and (head.adopt.name, head.adopt.sandbox) == ("n", "{}")
    for thread_id, words in (("ephemeral", "it was ephemeral"), ("no turn", "it had no turn yet")):
        call = next_one.call("turn/start", {"threadId": thread_id})
        (answer,) = next_one.answers[call]
        assert answer["error"]["code"] == THREAD_LOST and words in answer["error"]["message"]
        assert answer["error"]["data"] == {"safeToRetry": True}


def test_a_thread_is_written_down_before_its_client_hears_of_it(bench: Bench) -> None:
    call = bench.call("thread/start", {})
    ((name, head),) = bench.dispatches(call)
    record = wire.ThreadRecord("t9", False)
    answered = [wire.encode(wire.Answered(head.call, True, record)), wire.encode(wire.Lines()), b"{}"]
    kept, told, *_ = bench.core.worker_message(name.encode(), answered, bench.now)
    assert kept == SaveThreads({"t9": record}) and isinstance(told, ToClient)


def test_a_legacy_is_for_brokers_of_the_same_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"ipc://{tmp_path / 's'}"
    checkpoint = CheckpointFile(endpoint)
    assert checkpoint.read() is None
    record = wire.ThreadRecord("t1", False, turns=1, sandbox='{"type":"readOnly"}', owner="o")
    checkpoint.write([record])
    (file,) = tmp_path.iterdir()
    assert CheckpointFile(endpoint).read() == [record] and file.stat().st_mode & 0o777 == 0o600
    changed, other = msgspec.structs.replace(record, turns=2), wire.ThreadRecord("t2", True)
    assert checkpoint.keep({"t1": changed, "t2": other}, threads=2) and checkpoint.keep({"t2": None}, threads=1)
    with file.open("ab") as rest:
        rest.write(b'["t3",["t3",fal')
    assert CheckpointFile(endpoint).read() == [changed], "a line that was cut is none"
    changes = {f"t{number}": other for number in range(SPARE_LINES)}
    assert not checkpoint.keep(changes, threads=1), "now most of it is of no use"
    checkpoint.write([changed])
    assert file.read_bytes().count(b"\n") == 2 and checkpoint.keep({"t1": record}, threads=1)
    assert CheckpointFile(endpoint).read() == [record]
    monkeypatch.setattr(os, "getppid", lambda: os.getpid())
    assert CheckpointFile(endpoint).read() is None
    file.write_bytes(b"\xc1 not one of ours")
    assert CheckpointFile(endpoint).read() is None
    checkpoint.remove()
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


# Starts whose worker died before it answered.


def test_a_start_whose_worker_died_is_looked_up_by_the_next(bench: Bench) -> None:
    """The next worker finds in the thread's history whether the turn has begun."""
    worker = bench.thread("t1")
    call = bench.call("turn/start", {"threadId": "t1"})
    waiting = bench.call("turn/start", {"threadId": "t1"})
    bench.lose(worker)
    assert call not in bench.answers
    ((name, head),) = bench.dispatches(call)
    assert name != worker.name and head.again and head.adopt is not None
    assert bench.dispatches(waiting) == []
    bench.answer(bench.workers[name], head.call, ok=False)
    ((name, head),) = bench.dispatches(waiting)
    assert not head.again, "it was never sent"


def test_a_start_that_workers_die_of_is_given_up() -> None:
    bench = Bench(slots=1)
    worker = bench.register()
    bench.hello()
    bench.thread("t1")
    call = bench.call("turn/start", {"threadId": "t1"})
    for number in range(1, answers.MAX_TRIES + 1):
        bench.lose(worker)
        worker = bench.register(f"w0.{number}")
        assert len(bench.dispatches(call)) == 1
    bench.lose(worker)
    assert bench.error(call)["code"] == TURN_LOST and bench.error(call)["data"] == {
        "kind": "lost",
        "safeToRetry": False,
    }
    assert total_held(bench) == 0


def test_other_requests_are_not_sent_twice(bench: Bench) -> None:
    worker = bench.thread("t1")
    calls = [
        bench.call(method, {"threadId": "t1"}) for method in ("review/start", "thread/compact/start", "thread/read")
    ]
    bench.lose(worker)
    assert [bench.error(call)["data"]["safeToRetry"] for call in calls] == [False] * 3


def test_an_ephemeral_thread_whose_start_was_under_way_may_have_begun(bench: Bench) -> None:
    worker = bench.thread("t1", ephemeral=True)
    call = bench.call("turn/start", {"threadId": "t1"})
    waiting = bench.call("turn/start", {"threadId": "t1"})
    bench.lose(worker)
    assert bench.error(call)["code"] in (THREAD_LOST, TURN_LOST)
    assert bench.error(call)["data"]["safeToRetry"] is False
    assert bench.error(waiting)["code"] == THREAD_LOST and bench.error(waiting)["data"]["safeToRetry"] is True


def test_a_thread_that_nobody_has_heard_of_may_be_started_again(bench: Bench) -> None:
    call = bench.call("thread/start")
    ((name, _),) = bench.dispatches(call)
    bench.lose(bench.workers[name])
    assert bench.error(call)["data"] == {"kind": "lost", "safeToRetry": True}


def test_opted_out_notifications_do_not_come(bench: Bench) -> None:
    bench.hello("s2")
    capabilities = {"optOutNotificationMethods": ["item/agentMessage/delta", "thread/name/updated"]}
    bench.call("initialize", {"clientInfo": {}, "capabilities": capabilities})
    unwanted, wanted = b'{"method":"item/agentMessage/delta","params":{}}', b'{"method":"item/completed","params":{}}'
    head = wire.Events("t1", "u1", 3, 8, [wire.Run(2, "droppable"), wire.Run(3, "kept"), wire.Run(4, "dropped")])
    bodies = [unwanted + b"\n" + unwanted, wanted + b"\n" + unwanted + b"\n" + wanted, b""]
    route = wire.encode(wire.ToSessions([sid("s1"), sid("s2")]))
    first, second = to_clients(bench, route, wire.encode(head), *bodies)
    kept = wire.decode_to_client(first.frames[0])
    assert isinstance(kept, wire.Events) and (kept.after, kept.last) == (3, 8), "numbers are covered all the same"
    assert kept.runs == [wire.Run(2, "kept"), wire.Run(4, "dropped")]
    assert first.frames[1:] == [wanted + b"\n" + wanted, b""]
    assert second.frames == [wire.encode(head), *bodies]
    renamed = b'{"method":"thread/name/updated","params":{}}'
    assert len(to_clients(bench, route, LINES, renamed)) == 1
    (one, _) = to_clients(bench, route, LINES, renamed + b"\n" + wanted)
    assert one.frames == [LINES, wanted]
    answer = json.dumps({"id": 1, "result": {"text": "thread/name/updated"}}).encode()
    assert len(to_clients(bench, route, LINES, answer)) == 2
