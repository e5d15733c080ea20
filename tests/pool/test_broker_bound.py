"""Commands, processes, watches and searches in the broker: which worker has them, and what becomes of them."""

from __future__ import annotations

from typing import Any

import pytest
from broker_bench import TURN_LOST, Bench, FakeWorker, encode, total_held
from session_ids import sid

from codex_pool.broker import bound_objects, sessions
from codex_pool.protocol import wire
from codex_pool.protocol.bound_methods import MAX_ID_CHARS


@pytest.fixture
def bench() -> Bench:
    """Two workers, one client."""
    bench = Bench()
    for slot in range(2):
        bench.register(f"w{slot}", slot)
    bench.hello()
    return bench


def where(bench: Bench, call: tuple[str, Any]) -> FakeWorker:
    ((name, _),) = bench.dispatches(call)
    return bench.workers[name]


def begin(bench: Bench, method: str, params: dict[str, Any], session: str = "s1") -> FakeWorker:
    """Begin an object; its worker, which has answered."""
    call = bench.call(method, params, session=session)
    worker = where(bench, call)
    bench.answer_all(worker)
    return worker


def of(worker: FakeWorker, kind: type) -> list[Any]:
    return [head for head in worker.heads if isinstance(head, kind)]


def over(bench: Bench, worker: FakeWorker, kind: str, name: str, session: str = "s1", **fields: Any) -> None:
    bench.from_worker(worker, wire.Unbound(sid(session), kind, name, **fields))


WATCH = {"watchId": "w", "path": "/p"}


# Where they are.


def test_what_names_an_object_goes_to_its_worker_even_before_it_is_answered(bench: Bench) -> None:
    workers = set()
    for name in ("a", "b"):
        running = bench.call("command/exec", {"processId": name})
        worker = where(bench, running)
        workers.add(worker.name)
        for method in ("command/exec/write", "command/exec/resize", "command/exec/terminate"):
            assert where(bench, bench.call(method, {"processId": name})) is worker
    assert len(workers) == 2, "each goes where there is the least to do"
    assert bench.core.held["bound"] == 2


def test_ids_belong_to_a_session_and_a_kind(bench: Bench) -> None:
    bench.hello("s2")
    worker = begin(bench, "process/spawn", {"processHandle": "x"})
    bench.call("model/list"), bench.call("model/list"), bench.call("model/list")
    other = next(each for each in bench.workers.values() if each is not worker)
    for call in (
        bench.call("process/spawn", {"processHandle": "x"}, session="s2"),
        bench.call("fs/watch", {"watchId": "x", "path": "/p"}, session="s2"),
    ):
        assert bench.dispatches(call)
    assert bench.core.held["bound"] == 3
    over(bench, other, "process", "x")
    assert bench.core.held["bound"] == 3, "only its own worker can say so"
    over(bench, worker, "process", "x", replaced=True)
    assert bench.core.held["bound"] == 3, "it has another one of this id"
    over(bench, worker, "process", "x")
    assert bench.core.held["bound"] == 2


def test_too_many_are_refused_and_so_are_long_ids(bench: Bench) -> None:
    for number in range(bound_objects.MAX_OF_SESSION):
        begin(bench, "fs/watch", {"watchId": str(number), "path": "/p"})
    refused = bench.error(bench.call("process/spawn", {"processHandle": "x"}))
    assert refused["code"] == -32600 and "the limit; end one first" in refused["message"]
    assert "the limit" in bench.error(bench.call("command/exec", {"command": ["x"]}))["message"]
    bench.hello("s2")
    assert bench.dispatches(bench.call("process/spawn", {"processHandle": "x"}, session="s2"))
    refused = bench.error(bench.call("fs/watch", {"watchId": "x" * (MAX_ID_CHARS + 1), "path": "/"}, session="s2"))
    assert f"expected at most {MAX_ID_CHARS}" in refused["message"]
    over(bench, next(w for w in bench.workers.values()), "watch", "0")
    for worker in bench.workers.values():
        over(bench, worker, "watch", "0")
    assert bench.dispatches(bench.call("process/spawn", {"processHandle": "x"}))


def test_all_clients_of_a_key_together_have_a_limit() -> None:
    bench = Bench()
    bench.register("w0")
    table = bench.core._dispatcher.bound
    for number in range(bound_objects.MAX_OF_PRINCIPAL):
        session = wire.SessionId("alice", f"s{number % 8}")
        table._add((session, "watch", str(number)), bound_objects._Object("w0"))
    assert "1024" in (table._problem_with((wire.SessionId("alice", "another"), "watch", "x")) or "")
    assert table._problem_with((wire.SessionId("bob", "s"), "watch", "x")) is None


def test_a_request_waits_for_a_worker(bench: Bench) -> None:
    for worker in list(bench.workers.values()):
        bench.lose(worker)
    call = bench.call("command/exec", {"processId": "p"})
    write = bench.call("command/exec/write", {"processId": "p"})
    worker = bench.register("w2", 0)
    assert where(bench, call) is where(bench, write) is worker
    assert bench.core.held["bound"] == 1


# The death of a worker.


def test_a_watch_and_a_search_are_made_again(bench: Bench) -> None:
    worker = begin(bench, "fs/watch", WATCH)
    params = {"sessionId": "s", "roots": ["/p"]}
    searcher = begin(bench, "fuzzyFileSearch/sessionStart", params)
    begin(bench, "fuzzyFileSearch/sessionUpdate", {"sessionId": "s", "query": "first"})
    begin(bench, "fuzzyFileSearch/sessionUpdate", {"sessionId": "s", "query": "second"})
    for each in {worker.name: worker, searcher.name: searcher}.values():
        bench.lose(each)
    rebound = {head.kind: head for each in bench.workers.values() if not each.lost for head in of(each, wire.Rebind)}
    left = [each for each in bench.workers.values() if not each.lost]
    if not left:
        new = bench.register("w2", 0)
        rebound = {head.kind: head for head in of(new, wire.Rebind)}
        left = [new]
    assert set(rebound) == {"watch", "search"} and bench.core.held["bound"] == 2
    assert where(bench, bench.call("fs/unwatch", {"watchId": "w"})) in left


def test_the_lines_that_make_a_search_again(bench: Bench) -> None:
    bench.lose(bench.workers["w1"])
    begin(bench, "fuzzyFileSearch/sessionStart", {"sessionId": "s", "roots": ["/p"]})
    for query in ("first", "second"):
        begin(bench, "fuzzyFileSearch/sessionUpdate", {"sessionId": "s", "query": query})
    bench.lose(bench.workers["w0"])
    effects = bench.core.worker_message(
        b"w2", [wire.encode(wire.Register(0, "w2", 1, 2)), b"{}", wire.encode_worker_state(wire.WorkerState([]))], 0.0
    )
    sent = [effect.frames for effect in effects if hasattr(effect, "frames")]
    (frames,) = [frames for frames in sent if b"rebind" in frames[0]]
    assert b'"roots":["/p"]' in frames[1] and b'"second"' in frames[2] and len(frames) == 3


def test_processes_have_exited_and_commands_are_lost(bench: Bench) -> None:
    for name in ("a", "b"):
        begin(bench, "process/spawn", {"processHandle": name})
    running = bench.call("command/exec", {"processId": "c"})
    anonymous = bench.call("command/exec", {"command": ["x"]})
    for worker in list(bench.workers.values()):
        bench.lose(worker)
    assert bench.core.held["bound"] == 0
    for call in (running, anonymous):
        assert bench.error(call)["code"] == TURN_LOST and bench.error(call)["data"]["safeToRetry"] is False
    told = [head for session, head in bench.heads if session == "s1" and isinstance(head, wire.Ended)]
    assert {(head.thread_id, head.turn_id) for head in told} == {("", "w0"), ("", "w1")}


def test_a_client_that_was_away_is_told_when_it_is_back(bench: Bench) -> None:
    worker = begin(bench, "process/spawn", {"processHandle": "h"})
    bench.apply(bench.core.client_unreachable(b"s1", bench.now))
    bench.lose(worker)
    bench.notices.clear()
    bench.hello(connection="s1/2", positions=[wire.Position(f"{worker.name}/1", 3, "")])
    ((_, notice),) = bench.notices
    assert notice["method"] == "process/exited" and notice["params"]["exitCode"] == 137
    assert notice["params"]["processHandle"] == "h" and "died" in notice["params"]["stderr"]
    assert ("s1", worker.name) in bench.ended, "what it follows of the dead worker is over"
    bench.notices.clear()
    bench.apply(bench.core.client_unreachable(b"s1/2", bench.now))
    bench.hello(connection="s1/3", positions=[])
    assert not bench.notices, "it is told once"


def test_a_command_is_never_executed_again(bench: Bench) -> None:
    for number, method in enumerate(("command/exec", "process/spawn")):
        params = {"processId": "p", "processHandle": "p"}
        running = bench.call(method, params, id=f"r{number}")
        worker = where(bench, running)
        bench.apply(bench.core.client_unreachable(f"s1/{number}".encode() if number else b"s1", bench.now))
        bench.lose(worker)
        bench.hello(connection=f"s1/{number + 1}", positions=[])
        bench.call(method, params, id=f"r{number}", again=True)
        assert not bench.dispatches(running)
        assert bench.answers[running][-1]["error"]["data"] == {"kind": "lost", "safeToRetry": False}
        bench.register(f"new{number}", number)


def test_a_watch_that_was_not_answered_is_sent_again(bench: Bench) -> None:
    call = bench.call("fs/watch", WATCH)
    worker = where(bench, call)
    bench.lose(worker)
    other = where(bench, call)
    assert other is not worker and not of(other, wire.Rebind) and call not in bench.answers
    bench.answer_all(other)
    assert "result" in bench.answers[call][0] and bench.core.held["bound"] == 1


# Drains.


def test_a_watch_leaves_a_worker_that_drains(bench: Bench) -> None:
    worker = begin(bench, "fs/watch", WATCH)
    other = next(each for each in bench.workers.values() if each is not worker)
    bench.drain(worker)
    assert len(of(other, wire.Rebind)) == len(of(worker, wire.Unbind)) == 1
    assert bench.drained == [worker.name]
    over(bench, worker, "watch", "w")
    assert bench.core.held["bound"] == 1
    assert where(bench, bench.call("fs/unwatch", {"watchId": "w"})) is other


def test_processes_keep_a_worker_for_a_minute_at_most(bench: Bench) -> None:
    worker = begin(bench, "process/spawn", {"processHandle": "h"})
    bench.drain(worker)
    assert where(bench, bench.call("process/writeStdin", {"processHandle": "h"})) is worker
    bench.answer_all(worker)
    bench.beat(bound_objects.PROCESSES_LIMIT_S - 1, "s1")
    assert not of(worker, wire.EndProcesses) and not bench.drained
    bench.beat(3, "s1")
    (head,) = of(worker, wire.EndProcesses)
    assert "is being replaced" in head.reason and not bench.drained
    over(bench, worker, "process", "h")
    assert bench.drained == [worker.name]


# Sessions and brokers.


@pytest.mark.parametrize("how", ["bye", "away"])
def test_all_is_forgotten_with_its_session(bench: Bench, how: str) -> None:
    worker = begin(bench, "process/spawn", {"processHandle": "h"})
    begin(bench, "fs/watch", WATCH)
    if how == "bye":
        bench.from_client(wire.Bye())
    else:
        bench.apply(bench.core.client_unreachable(b"s1", bench.now))
        bench.beat(sessions.SESSION_GRACE_S - 1)
        assert bench.core.held["bound"] == 2
        bench.beat(3)
    assert bench.core.held["bound"] == 0 and len(of(worker, wire.SessionGone)) == 1
    assert total_held(bench) == 0


def test_the_next_broker_knows_them_and_ends_those_whose_client_does_not_come_back() -> None:
    line = encode({"id": 1, "method": "fs/watch", "params": WATCH})
    records = [wire.BoundRecord(sid("s1"), "process", "h"), wire.BoundRecord(sid("s2"), "watch", "w", line)]
    bench = Bench(expect=["w0", "w1"])
    holdings = wire.encode_worker_state(wire.WorkerState([], bound=records))
    worker = bench.register("w0", 0, holdings=holdings)
    bench.register("w1", 1)
    bench.hello("s1", positions=[wire.Position("w0/7", 3, "")])
    assert not bench.ended, "its worker is alive"
    assert where(bench, bench.call("process/kill", {"processHandle": "h"})) is worker
    bench.beat(sessions.SESSION_GRACE_S + 2, "s1")
    assert [head.session for head in of(worker, wire.SessionGone)] == [sid("s2")]
    assert bench.core.held["bound"] == 1


def test_a_worker_that_has_a_new_connection_is_sent_what_may_be_lost(bench: Bench) -> None:
    worker = begin(bench, "fs/watch", WATCH)
    bench.register(worker.name, int(worker.name == "w1"), connection=f"{worker.name}/2")
    assert len(of(worker, wire.Rebind)) == 1 and bench.core.held["bound"] == 1
    record = wire.BoundRecord(sid("s1"), "watch", "w")
    holdings = wire.encode_worker_state(wire.WorkerState([], bound=[record]))
    bench.register(worker.name, int(worker.name == "w1"), connection=f"{worker.name}/3", holdings=holdings)
    assert len(of(worker, wire.Rebind)) == 1


# What a client is told about itself.


def notices(bench: Bench, session: str) -> list[str]:
    return [message["params"]["summary"] for name, message in bench.notices if name == session]


def warning(text: str, at: int = 0) -> bytes:
    return encode({"method": "configWarning", "params": {"summary": text}, "emittedAtMs": at})


def test_a_new_session_gets_the_warnings_of_a_new_connection_once(bench: Bench) -> None:
    worker = bench.workers["w0"]
    bench.from_worker(worker, wire.StartNotices(), b"\n".join([warning("a"), warning("b")]))
    assert notices(bench, "s1") == [], "it has not asked who is there"
    bench.call("initialize", {"clientInfo": {"name": "x", "version": "1"}})
    assert notices(bench, "s1") == ["a", "b"]
    bench.call("initialize", {"clientInfo": {"name": "x", "version": "1"}})
    bench.from_worker(bench.workers["w1"], wire.StartNotices(), b"\n".join([warning("a", 5), warning("c", 5)]))
    assert notices(bench, "s1") == ["a", "b", "c"], "of another app-server only what is new"
    bench.hello("s2")
    bench.call("initialize", {"clientInfo": {"name": "x", "version": "1"}}, session="s2", again=True)
    assert notices(bench, "s2") == [], "it has had them of the broker before"
