"""The broker's state machine: events in, effects out, between clients and workers that are written down here."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from broker_bench import NOTHING_HELD, THREAD_LOST, TURN_LOST, Bench, encode, total_held
from hypothesis import given, settings
from hypothesis import strategies as st
from session_ids import sid

from codex_app_server.generated.routing import REQUESTS
from codex_pool.broker import dispatch, entities, in_flight, sessions, thread_table, workers
from codex_pool.broker.effects import LogLine, ToClient
from codex_pool.protocol import wire


@pytest.fixture
def bench() -> Bench:
    """Two workers, one client."""
    bench = Bench()
    for slot in range(2):
        bench.register(f"w{slot}", slot)
    bench.hello()
    return bench


# Sessions.


def test_a_client_is_welcomed_once_a_worker_is_ready() -> None:
    bench = Bench()
    bench.hello("s0")
    assert isinstance(bench.heads[-1][1], wire.Refused) and "no worker is ready" in bench.heads[-1][1].message
    bench.register()
    assert bench.registered == ["w0"], "the supervisor is to know when clients may come"
    bench.hello("s1")
    assert bench.heads[-1] == ("s1", wire.Welcome(1))


@pytest.mark.parametrize("frames", [
    [wire.encode(wire.Hello("", "nameless"))],
    [wire.encode(wire.Hello("s2", "x")), b"no positions"],
    [wire.encode(wire.Hello("x" * 1000, "long"))],
    [b""], [b"junk"], [wire.encode(wire.Call())], [wire.encode(wire.Call()), b"{}", b"{}"],
    [wire.encode(wire.Hello("s2", "x"))[:-1]], [wire.encode(wire.Welcome(1))], [b"\x01\x92\xa5hello\xa1\xff"],
])  # fmt: skip
def test_what_is_no_message_of_a_client_is_refused(bench: Bench, frames: list[bytes]) -> None:
    (effect,) = [
        effect
        for effect in bench.core.client_message(b"stranger", frames, bench.now)
        if not isinstance(effect, LogLine)
    ]
    assert isinstance(effect, ToClient) and effect.peer == b"stranger"
    assert isinstance(wire.decode_to_client(effect.frames[0]), wire.Refused)
    assert bench.core.held["sessions"] == 1


def test_a_second_hello_of_one_connection_is_refused(bench: Bench) -> None:
    bench.apply(bench.core.client_message(b"s1", [wire.encode(wire.Hello("s1b", "x"))], bench.now))
    assert isinstance(bench.heads[-1][1], wire.Refused)
    bench.call("pool/status")
    assert len(bench.answers) == 1, "its first session lives on"


def test_a_session_that_is_not_known_is_told_so(bench: Bench) -> None:
    for head in (wire.Beat(), wire.Bye()):
        bench.apply(bench.core.client_message(b"ghost", [wire.encode(head)], bench.now))
        assert bench.heads[-1][0] == "ghost" and isinstance(bench.heads[-1][1], wire.Closed)
    bench.apply(bench.core.client_unreachable(b"ghost", bench.now))


def test_the_number_of_clients_is_bounded() -> None:
    bench = Bench(max_clients=2)
    bench.register()
    for session in ("s1", "s2", "s3"):
        bench.hello(session)
    assert isinstance(bench.heads[-1][1], wire.Refused) and "limit" in bench.heads[-1][1].message
    assert len(bench.status()["clients"]) == 2


@pytest.mark.parametrize("when_gone", ["interrupt", "keep"])
@pytest.mark.parametrize("how", ["bye", "unreachable", "silent", "overflow"])
def test_the_end_of_a_session_is_told_to_all_workers_and_forgets_what_waited(
    bench: Bench, how: str, when_gone: wire.WhenGone
) -> None:
    worker = bench.thread("t1")
    bench.hello(connection="s1/2", when_gone=when_gone)
    for _ in range(5):
        bench.call("turn/start", {"threadId": "t1"})
    gone = wire.SessionGone(sid("s1"), keep=when_gone == "keep" and how != "bye")
    if how == "bye":
        bench.from_client(wire.Bye())
    elif how == "unreachable":
        bench.apply(bench.core.client_unreachable(b"s1/2", bench.now))
    elif how == "overflow":
        bench.apply(bench.core.client_overflow(b"s1/2", bench.now))
        assert isinstance(bench.heads[-1][1], wire.Closed) and bench.heads[-1][1].again
    else:
        bench.tick(sessions.AWAY_S + 0.5)
    if how != "bye":
        assert bench.status()["sessions"][0]["state"] == "away"
        bench.tick(sessions.SESSION_GRACE_S - 0.5)
        assert gone not in worker.heads, "it has its time to come back"
        bench.tick(1.0)
    assert all(gone in each.heads for each in bench.workers.values())
    assert bench.status()["turns"]["queued"] == 0 and bench.status()["clients"] == []
    turn_id = bench.answer(worker, next(iter(worker.open)))
    assert turn_id is not None
    bench.end(worker, turn_id, "interrupted")
    assert total_held(bench) == 0


def test_a_client_that_beats_is_kept_and_beaten_at(bench: Bench) -> None:
    for _ in range(60):
        bench.tick(1.0)
        bench.apply(bench.core.client_message(b"s1", [wire.encode(wire.Beat())], bench.now))
    assert bench.status()["clients"] == ["s1"]
    assert sum(isinstance(head, wire.Beat) for _, head in bench.heads) >= 59


# Requests.


def test_requests_with_one_answer_of_their_own(bench: Bench) -> None:
    assert bench.answers[bench.call("initialize")][0]["result"] == {"userAgent": "x"}
    assert bench.answers[bench.call("pool/status")][0]["result"]["workers"][1]["state"] == "ready"
    for method in ("thread/realtime/start", "remoteControl/enable", "pool/nothing", "nothing"):
        assert bench.error(bench.call(method))["code"] == -32601
    assert all(worker.open == {} for worker in bench.workers.values())


@pytest.mark.parametrize("line", [
    b"", b"{", b"null", b"[]", b"17", b"\xff", b"{}", b'{"id":true,"method":"model/list"}', b'{"id":[],"result":1}',
    b'{"id":1,"method":"model/list","params":[1]}', b'{"id":1,"method":"model/list","params":"x"}',
    b'{"id":1,"method":"model/list","params":{"a":"\xff"}}', b'{"id":1,"method":"model/list","params":{"\xff":1}}',
    b'{"id":1,"method":"model/list",\n"params":{"a":[\n1]}}',
    b'{"id":1,"method":"model/list","params":{"a":"\\ud800 alone"}}',
    b'{"id":1,"method":"model/list","params":{"a":' + b"[" * 200 + b"]" * 200 + b"}}",
    b'{"id":1,"method":"model/list","params":{"a":' + b"[" * 5000 + b"]" * 5000 + b"}}",
])  # fmt: skip
def test_what_the_app_server_would_never_answer_is_answered_here(bench: Bench, line: bytes) -> None:
    """The app-server reads one line a message, UTF-8, at most 128 levels deep, and is silent on what it cannot read."""
    bench.raw(line)
    (answers,) = bench.answers.values()
    assert answers[0]["error"]["code"] in (-32700, -32600)
    assert all(worker.open == {} for worker in bench.workers.values())


def test_requests_that_are_unusual_but_right_pass(bench: Bench) -> None:
    for line in (
        b'{"id":"x","method":"model/list"}',
        b'{"id":2,"method":"model/list","params":null}',
        '{"id":3,"method":"model/list","params":{"a":"\\ud83d\\ude00 ü"}}'.encode(),
        b'{"id":4,"method":"model/list","params":{"a":' + b"[" * 60 + b"]" * 60 + b"}}",
        b'{"id":5,"method":"model/list","params":{"a":"' + b"[" * 500 + b'"}}',
        b'{"id":99999999999999999999999999,"method":"model/list"}',
    ):
        bench.raw(line)
    assert sum(len(worker.open) for worker in bench.workers.values()) == 6 and bench.answers == {}


def test_ids_of_any_kind_come_back_in_errors(bench: Bench) -> None:
    for request_id in (7, "seven", 99999999999999999999999999, -1, ""):
        assert bench.error(bench.call("nothing", id=request_id))["code"] == -32601


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["id", "method", "params", "threadId", "result", "error", "x"]), inner),
    ),
    max_leaves=12,
)
EVERY_METHOD = st.sampled_from(sorted(REQUESTS)).map(lambda name: encode({"id": 1, "method": name, "params": {}}))


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=60), JSON_VALUES.map(encode), EVERY_METHOD))
def test_no_line_of_a_client_upsets_the_broker(line: bytes) -> None:
    bench = Bench()
    bench.register()
    bench.hello()
    bench.raw(line)
    bench.call("pool/status", id="end")
    assert ("s1", "end") in bench.answers


def test_new_threads_that_start_at_once_are_spread(bench: Bench) -> None:
    for _ in range(10):
        bench.call("thread/start")
    assert [len(worker.open) for worker in bench.workers.values()] == [5, 5]


def test_a_thread_stays_with_its_worker(bench: Bench) -> None:
    owner = bench.thread("t1")
    for _ in range(3):
        bench.call("thread/read", {"threadId": "t1"})
    assert len(owner.open) == 3


def test_gathered_requests_go_to_all(bench: Bench) -> None:
    first, second = bench.workers.values()
    good = bench.call("thread/loaded/list")
    bench.answer_all(first)
    assert good not in bench.answers
    bench.answer_all(second)
    assert len(bench.answers[good]) == 1 and "result" in bench.answers[good][0]
    survived = bench.call("thread/loaded/list")
    bench.answer(second, next(iter(second.open)))
    bench.lose(first)
    assert len(bench.answers[survived]) == 1 and "result" in bench.answers[survived][0]
    unanswered = bench.call("thread/loaded/list")
    bench.lose(second)
    assert bench.error(unanswered)["code"] == TURN_LOST
    assert total_held(bench) == 0


def test_answers_to_questions_go_to_the_worker_that_asked_with_their_session(bench: Bench) -> None:
    bench.raw(encode({"id": "w1/5", "result": {}}))
    assert bench.workers["w1"].heads[-1] == wire.ServerRequestAnswer(sid("s1"))
    assert (
        sum(isinstance(head, wire.ServerRequestAnswer) for worker in bench.workers.values() for head in worker.heads)
        == 1
    )
    for request_id in ("w7/5", "nonsense", 5):
        bench.raw(encode({"id": request_id, "result": {}}))


# Turns.


def test_a_worker_has_at_most_its_number_of_turns_and_the_rest_is_told_to_wait() -> None:
    bench = Bench(slots=1, turns_per_worker=2)
    worker = bench.register()
    bench.hello()
    for number in range(4):
        bench.thread(f"t{number}")
    calls = [bench.call("turn/start", {"threadId": f"t{number}"}) for number in range(4)]
    assert worker.load == 2
    assert [(notice["method"], notice["params"]["requestId"]) for _, notice in bench.notices] == [
        ("pool/queued", calls[2][1]),
        ("pool/queued", calls[3][1]),
    ]
    bench.answer_all(worker)
    assert worker.load == 2
    bench.end(worker, next(iter(worker.running)))
    assert worker.load == 2 and bench.notices[-1][1] == {
        "method": "pool/dequeued",
        "params": {"requestId": calls[2][1], "threadId": "t2"},
    }
    bench.answer(worker, next(iter(worker.open)), ok=False)
    assert worker.load == 2 and bench.notices[-1][1]["params"]["requestId"] == calls[3][1]


def test_turns_of_one_thread_do_not_overlap_and_let_others_pass(bench: Bench) -> None:
    worker = bench.thread("t1")
    first = bench.call("turn/start", {"threadId": "t1"})
    bench.call("turn/start", {"threadId": "t1"})
    third = bench.call("review/start", {"threadId": "t1"})
    assert worker.load == 1, "a start under way counts"
    turn_id = bench.answer(worker, next(iter(worker.open)))
    assert turn_id is not None and worker.load == 1 and len(bench.answers[first]) == 1
    bench.core.state.threads["t2"] = entities.Thread(wire.ThreadRecord("t2", False, turns=1), worker.name)
    bench.call("turn/start", {"threadId": "t2"})
    assert worker.load == 2
    bench.end(worker, turn_id)
    assert [line["method"] for _, line in worker.open.values()] == ["turn/start", "turn/start"]
    assert third not in bench.answers


def test_steer_and_interrupt_do_not_wait_for_a_place() -> None:
    bench = Bench(slots=1, turns_per_worker=1)
    worker = bench.register()
    bench.hello()
    bench.thread("t1")
    bench.call("turn/start", {"threadId": "t1"})
    bench.answer_all(worker)
    bench.call("turn/steer", {"threadId": "t1"})
    bench.call("turn/interrupt", {"threadId": "t1"})
    assert [line["method"] for _, line in worker.open.values()] == ["turn/steer", "turn/interrupt"]


def test_a_turn_that_waits_can_be_cancelled(bench: Bench) -> None:
    worker = bench.thread("t1")
    calls = [bench.call("turn/start", {"threadId": "t1"}) for _ in range(3)]
    for line in ({}, {"requestId": None}, {"requestId": 99}, {"requestId": str(calls[1][1])}, {"requestId": {}}):
        bench.raw(encode({"method": "pool/cancel", "params": line}))
    bench.raw(encode({"method": "pool/cancel"}))
    bench.hello("s2")
    bench.raw(encode({"method": "pool/cancel", "params": {"requestId": calls[1][1]}}), session="s2")
    assert bench.status()["turns"]["queued"] == 2, "only its own client can"
    bench.cancel(calls[1])
    bench.cancel(calls[1])
    bench.cancel(calls[0])
    assert bench.error(calls[1])["code"] == -32800 and calls[0] not in bench.answers
    turn_id = bench.answer(worker, next(iter(worker.open)))
    assert turn_id is not None
    bench.end(worker, turn_id)
    assert [line["id"] for _, line in worker.open.values()] == [calls[2][1]]


def test_a_request_that_waits_for_any_worker_can_be_cancelled() -> None:
    bench = Bench()
    worker = bench.register()
    bench.hello()
    bench.lose(worker)
    call = bench.call("model/list")
    bench.cancel(call)
    assert bench.error(call)["code"] == -32800 and total_held(bench) == 0
    assert bench.register("w1").open == {}


@pytest.mark.parametrize("bound", ["MAX_HELD_PER_SESSION", "MAX_HELD", "MAX_HELD_BYTES_PER_SESSION", "MAX_HELD_BYTES"])
def test_what_waits_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    size = len(encode({"id": 5, "method": "turn/start", "params": {"threadId": "t1"}}))
    monkeypatch.setattr(in_flight, bound, 3 * size if "BYTES" in bound else 3)
    bench.thread("t1")
    bench.hello("s2")
    calls = [bench.call("turn/start", {"threadId": "t1"}) for _ in range(6)]
    other = bench.call("turn/start", {"threadId": "t1"}, session="s2")
    assert bench.status()["turns"]["queued"] == (4 if "SESSION" in bound else 3)
    refused = [call for call in [*calls, other] if call in bench.answers]
    assert refused == (calls[4:] if "SESSION" in bound else [*calls[4:], other])
    error = bench.error(refused[0])
    assert error["code"] == -32001 and error["data"]["retryAfterMs"] > 0


def test_requests_that_start_no_turn_are_bounded_but_for_control(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MAX_OUTSTANDING", 3)
    monkeypatch.setattr(dispatch, "MAX_CONTROL", 2)
    bench = Bench(slots=1)
    worker = bench.register()
    bench.hello()
    calls = [bench.call("model/list") for _ in range(4)]
    assert bench.error(calls[3])["code"] == -32001 and len(worker.open) == 3
    control = [bench.call("turn/interrupt", {"threadId": "t", "turnId": "u"}) for _ in range(3)]
    assert bench.error(control[2])["code"] == -32001 and len(worker.open) == 5


def test_batch_gets_its_share_and_interactive_more() -> None:
    bench = Bench(slots=1, turns_per_worker=1)
    worker = bench.register()
    bench.hello("s1", priority="batch")
    bench.hello("s2")
    for number in range(40):
        bench.thread(f"b{number}", session="s1")
        bench.thread(f"i{number}", session="s2")
    for number in range(40):
        bench.call("turn/start", {"threadId": f"b{number}"}, session="s1")
    for number in range(40):
        bench.call("turn/start", {"threadId": f"i{number}"}, session="s2")
    served: list[str] = []
    for _ in range(40):
        turn_id = bench.answer(worker, next(iter(worker.open)))
        assert turn_id is not None
        served.append(worker.running[turn_id][1])
        bench.end(worker, turn_id)
    assert 30 <= served.count("s2") <= 33 and served[:10].count("s1") >= 1


def test_another_client_joins_a_running_turn(bench: Bench) -> None:
    worker = bench.thread("t1")
    _, turn_id = bench.turn("t1")
    bench.hello("s2")
    params = {"threadId": "t1", "turnId": turn_id, "interest": "items"}
    call = bench.call("pool/turn/follow", params, session="s2")
    ((name, head),) = bench.dispatches(call)
    assert name == worker.name and head.interest == "items"
    bench.answer_with(worker, head.call, {"id": call[1], "result": {}})
    bench.lose(worker)
    assert bench.ended == [("s1", turn_id), ("s2", turn_id)]


def test_a_turn_that_does_not_run_cannot_be_joined(bench: Bench) -> None:
    bench.thread("t1")
    worker, turn_id = bench.turn("t1")
    bench.end(worker, turn_id)
    for params in ({"threadId": "t1", "turnId": turn_id}, {"threadId": "t1", "turnId": "never"}, {"threadId": "t1"}):
        error = bench.error(bench.call("pool/turn/follow", params))
        assert error["code"] == -32600 and str(params.get("turnId")) in error["message"]


def test_turns_that_the_app_server_starts_itself_count(bench: Bench) -> None:
    worker = bench.thread("t1")
    bench.from_worker(worker, wire.TurnStarted("t1", "own", [sid("s1")]))
    worker.running["own"] = ("t1", "s1")
    waiting = bench.call("turn/start", {"threadId": "t1"})
    assert bench.dispatches(waiting) == [] and bench.status()["turns"]["running"] == 1
    bench.end(worker, "own")
    assert len(bench.dispatches(waiting)) == 1


def test_a_turn_that_is_known_by_itself_finds_its_worker(bench: Bench) -> None:
    """The thread of a sub-agent is in nobody's books."""
    worker = bench.workers["w1"]
    bench.from_worker(worker, wire.TurnStarted("child", "own", [sid("s1")]))
    call = bench.call("turn/interrupt", {"threadId": "child", "turnId": "own"})
    assert [name for name, _ in bench.dispatches(call)] == ["w1"]


def test_lists_of_threads_are_put_together(bench: Bench) -> None:
    call = bench.call("thread/list")
    first, second = bench.workers.values()
    entry = {"id": "t1", "name": None}
    for worker, name in ((second, "named"), (first, None)):
        ((number, _),) = worker.open.items()
        bench.answer_with(worker, number, {"id": call[1], "result": {"data": [{**entry, "name": name}]}})
    assert bench.answers[call] == [{"id": call[1], "result": {"data": [{**entry, "name": "named"}]}}]
    again = bench.call("thread/list")
    bench.lose(first)
    ((number, _),) = second.open.items()
    bench.answer_with(second, number, {"id": again[1], "result": {"data": []}})
    assert bench.answers[again][0]["result"] == {"data": []} and total_held(bench) == 0


# Ids.


def test_an_id_is_used_again_after_its_answer(bench: Bench) -> None:
    for _ in range(2):
        call = bench.call("model/list", id=7)
        ((name, dispatch),) = bench.dispatches(call)
        bench.answer_with(bench.workers[name], dispatch.call, {"id": 7, "result": {"data": []}})
        assert bench.answers.pop(call) == [{"id": 7, "result": {"data": []}}] and not dispatch.again


@pytest.mark.parametrize(("limit", "again"), [(1, False), (2, True)])
def test_an_id_that_is_under_way_is_not_given_to_another_request(bench: Bench, limit: int, again: bool) -> None:
    call = bench.call("model/list", {"limit": 1}, id=7)
    before = bench.dispatches(call)
    bench.call("model/list", {"limit": limit}, id=7, again=again)
    assert bench.error(call)["code"] == -32600 and bench.dispatches(call) == before


def test_an_id_that_waits_is_not_given_to_another_request() -> None:
    bench = Bench(slots=1, turns_per_worker=1)
    bench.register()
    bench.hello()
    bench.thread("t1")
    bench.thread("t2")
    bench.turn("t1")
    call = bench.call("turn/start", {"threadId": "t2"}, id=7)
    bench.call("turn/start", {"threadId": "t1"}, id=7)
    assert bench.error(call)["code"] == -32600
    bench.call("turn/start", {"threadId": "t2"}, id=7, again=True)
    assert len(bench.answers[call]) == 1 and bench.status()["turns"]["queued"] == 1


# The account.


def test_fewer_turns_run_once_the_rate_limit_was_met() -> None:
    bench = Bench(slots=2, turns_per_worker=4)
    fakes = [bench.register(f"w{slot}", slot) for slot in range(2)]
    bench.hello()
    for number in range(12):
        bench.thread(f"t{number}")
    for number in range(8):
        bench.call("turn/start", {"threadId": f"t{number}"})
    for worker in fakes:
        bench.answer_all(worker)
    bench.from_worker(fakes[0], wire.Limited("usageLimitExceeded"))
    assert (
        bench.status()["rateLimiter"]
        == bench.status()["pace"]
        == {"limit": 4, "pausedMs": 0, "reason": "usageLimitExceeded"}
    )
    late = [bench.call("turn/start", {"threadId": f"t{number}"}) for number in range(8, 12)]
    assert [notice["params"]["requestId"] for _, notice in bench.notices] == [call[1] for call in late]
    for worker in fakes:
        for turn_id in list(worker.running)[:2]:
            bench.end(worker, turn_id)
    assert not any(bench.dispatches(call) for call in late), "four still run"
    for _ in range(2):
        bench.end(fakes[0], next(iter(fakes[0].running)))
    assert sum(bool(bench.dispatches(call)) for call in late) == 2, "room on one worker is room on the other"
    bench.beat(11, "s1")
    assert sum(bool(bench.dispatches(call)) for call in late) == 3, "one more after ten seconds of success"


def test_nothing_starts_until_the_limit_is_reset() -> None:
    bench = Bench(slots=1, unix_offset=5000.0)
    worker = bench.register()
    bench.hello()
    bench.thread("t1")
    bench.from_worker(worker, wire.Limited("usageLimitExceeded", resets_at=int(bench.now + 5000 + 30)))
    call = bench.call("turn/start", {"threadId": "t1"})
    assert bench.status()["rateLimiter"]["pausedMs"] == 30_000
    bench.beat(29, "s1")
    assert bench.dispatches(call) == []
    bench.beat(2, "s1")
    assert len(bench.dispatches(call)) == 1


def test_questions_without_a_thread_go_to_who_holds_the_account(bench: Bench) -> None:
    worker = bench.workers["w0"]
    assert worker.heads[-1] == wire.DefaultSession(sid("s1"))
    bench.hello("s2")
    call = bench.call("account/login/start", session="s2")
    ((number, _),) = worker.open.items()
    bench.answer_with(worker, number, {"id": call[1], "result": {}})
    assert worker.heads[-1] == wire.DefaultSession(sid("s2"))
    late = bench.register("w2", 2)
    assert late.heads == [wire.DefaultSession(sid("s2"))]
    bench.from_client(wire.Bye(), session="s2")
    assert worker.heads[-2:] == [wire.DefaultSession(sid("s1")), wire.SessionGone(sid("s2"))]
    bench.from_client(wire.Bye())
    assert worker.heads[-2:] == [wire.DefaultSession(None), wire.SessionGone(sid("s1"))]


# Workers.


def test_requests_wait_for_the_first_worker() -> None:
    bench = Bench()
    worker = bench.register()
    bench.hello()
    bench.lose(worker)
    bench.call("model/list")
    turn = bench.call("turn/start", {"threadId": "t1"})
    assert bench.core.held["unassigned"] == 2 and turn not in bench.answers
    bench.hello("s2")
    bench.call("config/read", session="s2")
    bench.from_client(wire.Bye(), session="s2")
    other = bench.register("w1")
    assert [line["method"] for _, line in other.open.values()] == ["model/list", "turn/start"]


def test_a_lost_worker_ends_its_turns_and_requests_for_those_who_wait(bench: Bench) -> None:
    bench.hello("s2")
    worker = bench.thread("t1")
    bench.call("turn/start", {"threadId": "t1"})
    turn_id = bench.answer(worker, next(iter(worker.open)))
    read = bench.call("thread/read", {"threadId": "t1"}, session="s2")
    queued = bench.call("turn/start", {"threadId": "t1"}, session="s2")
    bench.lose(worker, "killed by SIGKILL")
    assert bench.ended == [("s1", turn_id)]
    assert bench.error(read)["code"] == TURN_LOST and "SIGKILL" in bench.error(read)["message"]
    assert bench.error(read)["data"] == {"kind": "lost", "safeToRetry": False}
    (other,) = [each for each in bench.workers.values() if not each.lost]
    (dispatch, line) = next(iter(other.open.values()))
    assert dispatch.adopt is not None and dispatch.adopt.thread_id == "t1" and line["id"] == queued[1]
    assert wire.Follow(sid("s1"), "t1") in other.heads
    assert bench.status()["turns"]["lost"] == 1
    bench.lose(worker)
    assert len(bench.ended) == 1


def test_the_lines_of_a_lost_turn(bench: Bench) -> None:
    worker = bench.thread("t1")
    bench.call("turn/start", {"threadId": "t1"})
    bench.answer_all(worker)
    worker.lost = True
    effect, _ = bench.core.worker_lost(worker.name, "killed", bench.now)
    assert isinstance(effect, ToClient) and wire.decode_to_client(effect.frames[0]) == wire.Ended("t1", "u1")
    ended, completed = map(json.loads, effect.frames[1].split(b"\n"))
    assert ended["method"] == "pool/turn/ended"
    assert (ended["params"]["kind"], ended["params"]["safeToRetry"]) == ("lost", False)
    assert completed["method"] == "turn/completed" and completed["params"]["turn"]["status"] == "failed"


def test_all_turns_that_wait_for_a_lost_thread_go_to_one_worker() -> None:
    """Two workers that both have no room: the thread must not be brought back on both."""
    bench = Bench(slots=3, turns_per_worker=1)
    workers = [bench.register(f"w{slot}", slot) for slot in range(3)]
    bench.hello()
    threads = {bench.thread(f"t{number}").name: f"t{number}" for number in range(3)}
    assert len(threads) == 3
    for thread_id in threads.values():
        bench.call("turn/start", {"threadId": thread_id})
    for worker in workers:
        bench.answer_all(worker)
    waiting = [bench.call("turn/start", {"threadId": threads["w0"]}) for _ in range(4)]
    bench.lose(workers[0])
    for _ in range(4):
        for worker in workers[1:]:
            for turn_id in list(worker.running):
                bench.end(worker, turn_id)
            starts = [line["params"]["threadId"] for _, line in worker.open.values()]
            assert len(starts) <= 1
        assert sum(len(worker.open) for worker in workers[1:]) == 1
        for worker in workers[1:]:
            bench.answer_all(worker)
    adopting = [
        worker.name
        for worker in workers[1:]
        for head in worker.heads
        if isinstance(head, wire.Dispatch) and head.adopt is not None
    ]
    assert len(adopting) == 1 and all(len(bench.answers[call]) == 1 for call in waiting)
    queued = Counter(notice["params"]["requestId"] for _, notice in bench.notices if notice["method"] == "pool/queued")
    assert set(queued.values()) == {1}


@pytest.mark.parametrize("fields", [{"ephemeral": True}, {"turns": 0}], ids=["ephemeral", "turnless"])
def test_a_thread_that_was_not_stored_is_lost_with_its_worker(bench: Bench, fields: dict[str, Any]) -> None:
    worker = bench.thread("t1", **fields)
    bench.lose(worker)
    for method in ("turn/start", "thread/read", "thread/resume", "turn/start"):
        error = bench.error(bench.call(method, {"threadId": "t1"}))
        assert error["code"] == THREAD_LOST and error["data"] == {"safeToRetry": True}
    assert total_held(bench) == 0


def test_a_first_turn_makes_a_thread_one_that_can_come_back(bench: Bench) -> None:
    worker = bench.thread("t1", turns=0)
    bench.call("turn/start", {"threadId": "t1"})
    bench.answer_all(worker)
    bench.lose(worker)
    bench.call("thread/read", {"threadId": "t1"})
    (other,) = [each for each in bench.workers.values() if not each.lost]
    assert next(iter(other.open.values()))[0].adopt is not None


def test_a_worker_is_ready_only_between_register_and_loss(bench: Bench) -> None:
    """The last messages of a worker may come after the news of its death."""
    worker = bench.workers["w0"]
    bench.lose(worker)
    for route, *frames in (
        (wire.Register(0, "w0", 10, 11), b"{}", NOTHING_HELD),
        (wire.TurnStarted("t1", "u1", [sid("s1")]),),
        (wire.Answered(1, True), wire.encode(wire.Lines()), b"{}"),
        (wire.Progress("w0", 1, 1, 1),),
        (wire.TurnEnded("t1", "u1", "completed"),),
    ):
        bench.from_worker(worker, route, *frames)
    for _ in range(4):
        bench.call("thread/start")
    assert worker.open == {} and len(bench.workers["w1"].open) == 4
    assert bench.status()["turns"]["running"] == 0


def test_a_worker_that_died_before_it_registered_stays_away() -> None:
    bench = Bench()
    bench.apply(bench.core.worker_lost("w0", "died at once", bench.now))
    bench.register("w0")
    bench.hello()
    assert isinstance(bench.heads[-1][1], wire.Refused)


def test_registering_twice_changes_nothing(bench: Bench) -> None:
    worker = bench.thread("t1")
    bench.call("turn/start", {"threadId": "t1"})
    bench.from_worker(worker, wire.Register(0, worker.name, 10, 11), b"{}", NOTHING_HELD)
    bench.call("turn/start", {"threadId": "t1"})
    assert worker.load == 1


def test_strangers_on_the_workers_socket_are_tolerated(bench: Bench) -> None:
    bench.thread("t1")
    lines = wire.encode(wire.Lines())
    for identity in (b"stranger", b"\xff\xfe", b"w0", b""):
        for frames in (
            [b""],
            [b"\x01"],
            [b"junk", b"junk"],
            [wire.encode(wire.Register(0, "w9", 1, 1))],
            [wire.encode(wire.Register(0, "w9", 1, 1)), b"{}"],
            [wire.encode(wire.Register(0, "w9", 1, 1)), b"{}", b"\xff"],
            [wire.encode(wire.Register(0, "not the identity", 1, 1)), b"{}", NOTHING_HELD],
            [wire.encode(wire.Answered(999, True)), lines, b"{}"],
            [wire.encode(wire.Answered(999, True))],
            [wire.encode(wire.TurnEnded("t1", "u99", "completed"))],
            [wire.encode(wire.TurnEnded("t77", "u99", "completed"))],
            [wire.encode(wire.ThreadChanged(wire.ThreadRecord("t99", True)))],
            [wire.encode(wire.ThreadGone("t99"))],
            [wire.encode(wire.ToSessions([sid("nobody")])), lines, b"{}"],
            [wire.encode(wire.ToSessions([]))],
            [wire.encode(wire.Progress("nobody", 1, 1, 1))],
        ):
            bench.apply(bench.core.worker_message(identity, frames, bench.now))
    assert bench.registered == ["w0", "w1"]
    assert {row.get("worker") for row in bench.status()["workers"]} == {"w0", "w1"}
    bench.call("model/list")
    assert sum(len(worker.open) for worker in bench.workers.values()) == 1


def test_a_silent_worker_is_suspected_once(bench: Bench) -> None:
    bench.tick(workers.WORKER_SILENT_S / 2)
    bench.from_worker(bench.workers["w1"], wire.Progress("w1", 1, 1, 0))
    bench.tick(workers.WORKER_SILENT_S / 2 + 1)
    bench.tick(2)
    assert bench.suspects == ["w0"]
    bench.from_worker(bench.workers["w1"], wire.Progress("w1", 2, 1, 0))
    assert [row["state"] for row in bench.status()["workers"]] == ["silent", "ready"]


def test_a_worker_that_beats_but_does_not_turn_is_wedged(bench: Bench) -> None:
    bench.beat(2, "s1", wedged="w1")
    assert [row["state"] for row in bench.status()["workers"]] == ["ready", "ready"]
    bench.beat(3, "s1", wedged="w1")
    assert [row["state"] for row in bench.status()["workers"]] == ["ready", "wedged"] and bench.suspects == []
    bench.beat(8, "s1", wedged="w1")
    assert bench.suspects == ["w1"]


def test_new_work_goes_to_those_who_are_heard_of(bench: Bench) -> None:
    bench.tick(4)
    bench.from_worker(bench.workers["w1"], wire.Progress("w1", 1, 1, 0))
    for method in ("thread/start", "thread/start", "model/list", "account/read"):
        bench.call(method)
    assert bench.workers["w0"].open == {} and len(bench.workers["w1"].open) == 4


def test_a_thread_that_only_its_former_worker_gives_up_stays_where_it_is(bench: Bench) -> None:
    owner = bench.thread("t1")
    (other,) = [worker for worker in bench.workers.values() if worker is not owner]
    bench.from_worker(other, wire.ThreadGone("t1", keep=True))
    bench.call("thread/read", {"threadId": "t1"})
    assert len(owner.open) == 1 and next(iter(owner.open.values()))[0].adopt is None
    bench.from_worker(owner, wire.ThreadGone("t1", keep=True))
    bench.call("thread/read", {"threadId": "t1"})
    adopted = [head for worker in bench.workers.values() for head, _ in worker.open.values() if head.adopt is not None]
    assert len(adopted) == 1


def test_unsubscribing_is_answered_by_the_worker_of_the_thread(bench: Bench) -> None:
    owner = bench.thread("t1")
    call = bench.call("thread/unsubscribe", {"threadId": "t1"})
    assert bench.dispatches(call) == [(owner.name, owner.heads[-1])]
    assert not bench.core.state.threads["t1"].followers


def test_unsubscribing_from_a_thread_that_no_worker_has(bench: Bench) -> None:
    owner = bench.thread("t1")
    bench.lose(owner)
    statuses = [
        bench.answers[bench.call("thread/unsubscribe", {"threadId": "t1"})][0]["result"]["status"] for _ in "12"
    ]
    assert statuses == ["unsubscribed", "notLoaded"]
    call = bench.call("thread/unsubscribe", {"threadId": "none"})
    assert len(bench.dispatches(call)) == 1, "an app-server says what is wrong with it"


def test_unsubscribing_succeeds_if_the_worker_dies_before_it_answers(bench: Bench) -> None:
    owner = bench.thread("t1")
    call = bench.call("thread/unsubscribe", {"threadId": "t1"})
    bench.lose(owner)
    assert bench.answers[call][0]["result"] == {"status": "unsubscribed"}


def test_known_threads_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_table, "MAX_THREADS", 5)
    for number in range(9):
        bench.thread(f"t{number}")
    assert bench.status()["threads"] == 5
    assert sum(row["threads"] for row in bench.status()["workers"]) == 5


def test_nothing_is_kept_of_turns_that_are_over(bench: Bench) -> None:
    worker = bench.thread("t1")
    before = bench.core.held
    for _ in range(50):
        bench.call("turn/start", {"threadId": "t1"})
        turn_id = bench.answer(worker, next(iter(worker.open)))
        assert turn_id is not None
        bench.end(worker, turn_id)
    assert bench.core.held == before and bench.status()["turns"]["completed"] == 50


def test_the_end_of_the_pool_is_told_to_everybody(bench: Bench) -> None:
    bench.hello("s2")
    bench.apply(bench.core.shut_down())
    assert [session for session, head in bench.heads if isinstance(head, wire.Closed)] == ["s1", "s2"]


def test_an_archived_thread_is_brought_back_by_the_worker_that_put_it_away(bench: Bench) -> None:
    holder = bench.thread("t1")
    bench.call("thread/archive", {"threadId": "t1"})
    bench.answer(holder, next(iter(holder.open)))
    bench.from_worker(holder, wire.ThreadGone("t1"))
    # It is the busiest one by now.
    bench.core.state.workers[holder.name].threads.update(f"t{number}" for number in range(10, 20))

    def asked() -> list[str]:
        return [worker.name for worker in bench.workers.values() if worker.open and not worker.lost]

    bench.call("thread/unarchive", {"threadId": "t1"})
    assert asked() == [holder.name]
    # Without that worker any other has to try.
    bench.lose(holder)
    bench.call("thread/unarchive", {"threadId": "t1"})
    assert len(asked()) == 1


def test_the_end_of_a_turn_is_not_told_to_the_next_session_of_the_same_name(bench: Bench) -> None:
    worker = bench.register("w0")
    bench.hello()
    bench.thread("t1")
    bench.call("turn/start", {"threadId": "t1"})
    bench.answer(worker, next(iter(worker.open)))
    turn_id = next(iter(bench.core.state.turns))
    bench.from_client(wire.Bye())
    bench.hello(connection="s1/again")
    before = len(bench.ended)
    bench.lose(worker)
    assert bench.ended[before:] == [] and turn_id not in bench.core.state.turns
