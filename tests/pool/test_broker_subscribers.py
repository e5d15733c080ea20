"""Sessions that get all turns of their threads, in the broker: what workers are told of them, and how they end."""

from __future__ import annotations

from typing import Any

import pytest
from broker_bench import Bench, encode
from session_ids import sid

from codex_pool.broker.sessions import SESSION_GRACE_S
from codex_pool.protocol import wire


@pytest.fixture
def bench() -> Bench:
    """Session g is one as the gateway's; s1 is not."""
    bench = Bench(slots=1)
    bench.register()
    bench.hello("s1")
    hello(bench)
    return bench


def hello(bench: Bench, session: str = "g", **options: Any) -> None:
    options = {"when_gone": "keep", "all_turns": True, **options}
    bench.connections[session] = session
    bench.apply(
        bench.core.client_message(session.encode(), [wire.encode(wire.Hello(session, session, **options))], bench.now)
    )


def told(bench: Bench, kind: type, worker: str = "w0") -> list[Any]:
    return [head for head in bench.workers[worker].heads if isinstance(head, kind)]


def test_workers_know_the_options_of_sessions_that_have_others_than_the_default(bench: Bench) -> None:
    options = wire.SessionOptions(sid("g"), all_turns=True, keep=True)
    assert told(bench, wire.SessionOptions) == [options]
    bench.register("w1", 0)
    assert told(bench, wire.SessionOptions, "w1") == [options]


def test_options_come_before_what_a_session_that_is_back_is_sent(bench: Bench) -> None:
    before = len(bench.workers["w0"].heads)
    bench.apply(bench.core.client_unreachable(b"s1", bench.now))
    hello(bench, "s1")
    kinds = [type(head) for head in bench.workers["w0"].heads[before:]]
    assert kinds == [wire.SessionOptions, wire.SessionResumed]


@pytest.mark.parametrize("way", ["bye", "away"])
@pytest.mark.parametrize(
    ("options", "kept_after_bye", "kept"),
    [({}, True, True), ({"all_turns": False}, False, True), ({"when_gone": "interrupt"}, False, False)],
)
def test_turns_are_kept_after_bye_only_of_sessions_that_get_all(
    bench: Bench, way: str, options: dict[str, Any], kept_after_bye: bool, kept: bool
) -> None:
    hello(bench, "x", **options)
    bench.thread("t1", session="x")
    bench.turn("t1", session="x")
    if way == "bye":
        bench.from_client(wire.Bye(), session="x")
    else:
        bench.apply(bench.core.client_unreachable(b"x", bench.now))
        bench.tick(SESSION_GRACE_S + 1)
    keep = kept_after_bye if way == "bye" else kept
    assert wire.SessionGone(sid("x"), keep) in told(bench, wire.SessionGone)


@pytest.mark.parametrize("way", ["bye", "away"])
def test_a_turn_that_waits_is_started_though_its_client_is_gone(bench: Bench, way: str) -> None:
    worker = bench.thread("t1", session="g")
    _, running = bench.turn("t1", session="g")
    waiting = bench.call("turn/start", {"threadId": "t1"}, session="g")
    read = bench.call("thread/read", {"threadId": "t1"}, session="g")
    assert not bench.dispatches(waiting)
    if way == "bye":
        bench.from_client(wire.Bye(), session="g")
    else:
        bench.apply(bench.core.client_unreachable(b"g", bench.now))
        bench.beat(SESSION_GRACE_S + 2, "s1")
    assert told(bench, wire.SessionGone) == [] and not bench.dispatches(waiting)
    bench.end(worker, running)
    ((name, _),) = bench.dispatches(waiting)
    assert name == worker.name and bench.dispatches(read)
    bench.beat(2, "s1")
    assert told(bench, wire.SessionGone) == [wire.SessionGone(sid("g"), keep=True)]
    assert bench.core.held["sessions"] == 1 and bench.core.state.faults() == []


def test_the_next_broker_knows_of_a_session_that_never_comes_back_what_it_wanted() -> None:
    bench = Bench(slots=1)
    options = [wire.SessionOptions(sid("g"), True, True), wire.SessionOptions(sid("over"), True, True)]
    turns = [wire.RunningTurn("t1", "u1", [sid("g")])]
    state = wire.WorkerState([wire.ThreadRecord("t1", False, 1)], turns=turns, options=options)
    bench.register(holdings=wire.encode_worker_state(state))
    assert told(bench, wire.SessionGone) == [wire.SessionGone(sid("over"), keep=True)], "it ended without a broker"
    bench.tick(SESSION_GRACE_S + 1)
    assert told(bench, wire.SessionGone)[-1] == wire.SessionGone(sid("g"), keep=True)


def test_a_session_that_unsubscribes_is_told_no_loss_of_the_turns_that_it_got(bench: Bench) -> None:
    worker = bench.thread("t1")
    bench.call("thread/resume", {"threadId": "t1"}, session="g")
    bench.answer_all(worker)
    _, turn_id = bench.turn("t1")
    bench.from_worker(worker, wire.TurnStarted("t1", turn_id, [sid("s1"), sid("g")]))
    assert sid("g") in bench.core.state.turns[turn_id].sessions
    bench.call("thread/unsubscribe", {"threadId": "t1"}, session="g")
    bench.call("thread/unsubscribe", {"threadId": "t1"})
    assert bench.core.state.turns[turn_id].sessions == [sid("s1")], "s1 has started it"


def test_a_fork_subscribes_to_the_new_thread_only(bench: Bench) -> None:
    worker = bench.thread("t1")
    bench.call("thread/fork", {"threadId": "t1"}, session="g")
    (number,) = worker.open
    bench.answer(worker, number, record=wire.ThreadRecord("t2", False, 1))
    followers = {thread_id: [*thread.followers] for thread_id, thread in bench.core.state.threads.items()}
    assert followers == {"t1": [sid("s1")], "t2": [sid("g")]}


def test_an_unsubscribe_that_is_sent_again_goes_to_the_same_worker(bench: Bench) -> None:
    worker = bench.thread("t1")
    call = bench.call("thread/unsubscribe", {"threadId": "t1"}, id=77)
    bench.call("thread/unsubscribe", {"threadId": "t1"}, id=77, again=True)
    heads = told(bench, wire.Dispatch)
    assert [head.again for head in heads[-2:]] == [False, True]
    body = encode({"id": call[1], "result": {"status": "unsubscribed"}})
    bench.from_worker(worker, wire.Answered(heads[-1].call, True), wire.encode(wire.Lines()), body)
    assert bench.answers[call][-1]["result"] == {"status": "unsubscribed"}


# Members of a request beside its method and parameters.


TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=x"}
IDS = [0, 7, -7, 2**63 - 1, -(2**63), "", "x", '\u00e9\n"/\\ \U0001f600', "y" * 1024]


@pytest.mark.parametrize("request_id", IDS, ids=lambda request_id: repr(request_id)[:20])
def test_ids_of_every_type_are_echoed(bench: Bench, request_id: int | str) -> None:
    worker = bench.workers["w0"]
    call = bench.call("model/list", session="g", id=request_id)
    (number,) = worker.open
    bench.answer(worker, number)
    assert bench.answers[call] == [{"id": request_id, "result": {}}]
    bench.call("nothing", session="g", id=request_id)
    assert bench.answers[call][1]["id"] == request_id and bench.answers[call][1]["error"]["code"] == -32601


def test_a_trace_goes_to_the_worker_with_its_request(bench: Bench) -> None:
    for method in ("model/list", "thread/start", "thread/loaded/list", "thread/list", "config/value/write"):
        bench.raw(encode({"id": method, "method": method, "params": {}, "trace": TRACE}), session="g")
    worker = bench.workers["w0"]
    found = {line["method"]: line.get("trace") for _, line in worker.open.values()}
    found |= {line["method"]: line.get("trace") for line in worker.applies.values()}
    assert len(found) == 5 and all(trace == TRACE for trace in found.values()), found


@pytest.mark.parametrize("trace", [5, "x", {"traceparent": 5}, {"tracestate": []}])
def test_a_trace_that_no_app_server_can_read_is_refused(bench: Bench, trace: Any) -> None:
    bench.raw(encode({"id": 9, "method": "model/list", "params": {}, "trace": trace}), session="g")
    error = bench.error(("g", 9))
    assert error["code"] == -32600 and "trace" in error["message"]
