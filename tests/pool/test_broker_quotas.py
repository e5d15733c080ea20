"""Quotas of clients with keys in a pool: places, turns, what waits, positions, log lines; and the end of a key."""

from __future__ import annotations

from typing import Any

import pytest
from broker_bench import Bench, total_held
from session_ids import sid
from test_policy_broker import KeyedBench, identity

from codex_pool.auth.principal import MAX_ID_CHARS
from codex_pool.broker import quotas, sessions
from codex_pool.protocol import wire

KEYS = ("alice", "bob", "carol")


@pytest.fixture
def bench() -> KeyedBench:
    bench = KeyedBench(*map(identity, KEYS))
    bench.register()
    for session in (*(f"{name}-{number}" for name in KEYS for number in (1, 2)), "own"):
        bench.hello(session)
    return bench


def under_way(bench: Bench) -> list[str]:
    """The principals of the requests that the worker has, in order."""
    return [dispatch.session.principal for dispatch, _ in bench.workers["w0"].open.values()]


def test_a_key_has_so_many_places_with_all_its_sessions_and_the_owner_needs_none(bench: KeyedBench) -> None:
    for number in range(60):
        bench.call("model/list", session=f"alice-{number % 2 + 1}")
    assert under_way(bench) == ["P-alice"] * quotas.PERMITS
    own = bench.call("model/list", session="own")
    assert bench.dispatches(own)
    control = bench.call("turn/interrupt", {"threadId": "t", "turnId": "u"}, session="own")
    assert bench.dispatches(control)
    while bench.workers["w0"].open:
        bench.answer(bench.workers["w0"], next(iter(bench.workers["w0"].open)))
        assert under_way(bench).count("P-alice") <= quotas.PERMITS
    assert sum(len(answers) for answers in bench.answers.values()) == 62 and total_held(bench) == 0


def test_large_requests_of_a_key_go_to_a_worker_one_after_the_other(bench: KeyedBench) -> None:
    params = {"cursor": "x" * quotas.PERMIT_BYTES}
    for _ in range(3):
        bench.call("model/list", params, session="alice-1")
    small = bench.call("model/list", session="alice-2")
    assert under_way(bench) == ["P-alice"] and small not in bench.answers
    bench.call("model/list", params, session="bob-1")
    assert under_way(bench) == ["P-alice", "P-bob"]
    for _ in range(4):
        bench.answer(bench.workers["w0"], next(iter(bench.workers["w0"].open)))
        assert under_way(bench).count("P-alice") <= 1
    bench.answer_all(bench.workers["w0"])
    assert "result" in bench.answers[small][0] and total_held(bench) == 0
    assert not +bench.core.state.workers["w0"].permit_bytes


def test_a_key_is_told_of_its_own_turns_that_wait(bench: KeyedBench) -> None:
    """The number of others that wait tells what others do."""
    for name in ("alice", "bob"):
        for number in range(9):
            bench.keyed_thread(f"{name}-{number}", f"{name}-1")
            bench.call("turn/start", {"threadId": f"{name}-{number}"}, session=f"{name}-1")
            bench.answer_all(bench.workers["w0"])
    aheads = [notice["params"]["ahead"] for _, notice in bench.notices if notice["method"] == "pool/queued"]
    # Seven of alice's run, the rest of hers and bob's wait.
    assert aheads == [0, 1, *range(9)]


def test_keys_take_turns_and_leave_places(bench: KeyedBench) -> None:
    for name in KEYS:
        for _ in range(40):
            bench.call("model/list", session=f"{name}-1")
    taken = under_way(bench)
    assert len(taken) == quotas.KEY_PERMITS and taken.count("P-carol") == quotas.KEY_PERMITS - 2 * quotas.PERMITS
    for _ in range(24):
        bench.answer(bench.workers["w0"], next(iter(bench.workers["w0"].open)))
    # What has ended was alice's and bob's; each of the places went to the next in turn.
    assert sorted(map(under_way(bench).count, ("P-alice", "P-bob", "P-carol"))) != [0, 24, 16]
    assert min(map(under_way(bench).count, ("P-alice", "P-bob", "P-carol"))) >= 8


def test_what_waits_can_be_cancelled_and_ends_with_its_session(bench: KeyedBench) -> None:
    calls = [bench.call("model/list", session="alice-1") for _ in range(quotas.PERMITS + 3)]
    bench.cancel(calls[-1])
    assert bench.error(calls[-1])["code"] == -32800
    bench.from_client(wire.Bye(), session="alice-1")
    bench.answer_all(bench.workers["w0"])
    assert total_held(bench) == 0 and not bench.workers["w0"].open


def test_the_dead_worker_frees_its_places(bench: KeyedBench) -> None:
    for _ in range(quotas.PERMITS + 5):
        bench.call("model/list", session="alice-1")
    bench.register("w1")
    bench.lose(bench.workers["w0"])
    assert len(bench.workers["w1"].open) == 5


@pytest.mark.parametrize(("bound", "size"), [(quotas.MAX_WAITING, 0), (2, 7 * 1024 * 1024)])
def test_what_waits_of_a_key_is_bounded_over_its_sessions(bench: KeyedBench, bound: int, size: int) -> None:
    for _ in range(quotas.PERMITS):
        bench.call("model/list", session="alice-1")
    calls = [
        bench.call("model/list", {"cursor": "x" * size}, session=f"alice-{number % 2 + 1}")
        for number in range(bound + 3)
    ]
    refused = [call for call in calls if call in bench.answers]
    assert refused == calls[bound:] and bench.error(refused[0])["code"] == -32001
    bench.call("model/list", session="bob-1")
    assert under_way(bench).count("P-bob") == 1


def test_the_owner_has_turns_that_no_key_can_take(bench: KeyedBench) -> None:
    limit = 8 - quotas.reserved_turns(8)
    for number in range(8):
        bench.keyed_thread(f"t{number}", "alice-1")
        bench.call("turn/start", {"threadId": f"t{number}"}, session="alice-1")
        bench.answer_all(bench.workers["w0"])
    assert limit == 7 and len(bench.workers["w0"].running) == limit
    bench.keyed_thread("own", "own")
    assert bench.dispatches(bench.call("turn/start", {"threadId": "own"}, session="own"))
    assert quotas.reserved_turns(1) == 0 and quotas.reserved_turns(64) == 8


def test_turns_that_are_asked_for_at_once_and_goals_count() -> None:
    bench = KeyedBench(identity("alice", max_turns=1, max_threads=2))
    bench.register()
    bench.hello("alice-1")
    started = [bench.call("thread/start", session="alice-1") for _ in range(5)]
    assert [call in bench.answers for call in started] == [False, False, True, True, True]
    for number, call in enumerate(list(bench.workers["w0"].open)):
        record = wire.ThreadRecord(
            f"t{number}", False, 1, cwd="/srv", sandbox='{"type":"readOnly"}', approval_policy='"never"'
        )
        bench.answer(bench.workers["w0"], call, record=record)
    goal = bench.call("thread/goal/set", {"threadId": "t0", "objective": "x"}, session="alice-1")
    assert goal not in bench.answers and len(bench.workers["w0"].open) == 1
    other = bench.call("thread/goal/set", {"threadId": "t1", "objective": "x"}, session="alice-1")
    assert bench.error(other)["code"] == -32001
    bench.now += quotas.NEXT_TURN_S + 1
    bench.answer_all(bench.workers["w0"])
    bench.call("turn/start", {"threadId": "t1"}, session="alice-1")
    assert [line["method"] for _, line in bench.workers["w0"].open.values()] == ["turn/start"]


def test_positions_are_bounded_before_they_are_decoded(bench: KeyedBench) -> None:
    count = 1_000_000
    bodies = [b"\xdd" + count.to_bytes(4, "big") + b"\x92\xa0\x00" * count, b"\x91" + b"\xda\xff\xff" * 2_000_000]
    bodies.append(wire.encode_positions([wire.Position("u", 1)] * (sessions.MAX_KEY_POSITIONS + 1)))
    for number, body in enumerate(bodies):
        frames = [wire.encode(wire.Hello(f"x{number}", "x")), body]
        effects = bench.core.client_message(b"new%d" % number, frames, bench.now, "P-alice")
        (head,) = [wire.decode_to_client(effect.frames[0]) for effect in effects if hasattr(effect, "frames")]
        assert isinstance(head, wire.Refused), head
    assert len(bench.core.state.sessions) == 7


def test_an_id_that_is_too_long_is_answered_and_not_remembered(bench: KeyedBench) -> None:
    call = bench.call("model/list", session="alice-1", id="x" * (MAX_ID_CHARS + 1))
    assert (
        bench.error(call)["code"] == -32600 and not bench.workers["w0"].open and not bench.core.state.requests.sent_to
    )


def test_dense_requests_are_refused_before_they_are_decoded(bench: KeyedBench) -> None:
    bench.raw(
        b'{"id":1,"method":"thread/start","params":{"dynamicTools":[' + b"{}," * 60_000 + b"{}]}}", session="alice-1"
    )
    assert "values" in bench.error(("alice-1", 1))["message"] and not bench.workers["w0"].open


def test_one_client_writes_so_many_lines_to_the_log(bench: KeyedBench) -> None:
    for _ in range(100):
        bench.apply(bench.core.client_message(b"alice-1", [b"no head"], bench.now, "P-alice"))
    assert sum("was refused" in note for note in bench.notes) == quotas.LOG_LINES
    bench.tick(quotas.LOG_S + 1)
    assert any(note.startswith("90 more lines because of alice") for note in bench.notes)


def test_sessions_of_keys_leave_room_for_the_owner() -> None:
    bench = KeyedBench(identity("alice", max_sessions=1000), max_clients=sessions.OWNER_SESSIONS + 2)
    bench.register()
    for number in range(4):
        bench.hello(f"alice-{number}")
    assert len(bench.core.state.sessions) == 2
    bench.hello("own")
    assert sid("own") in bench.core.state.sessions


def test_turns_of_a_revoked_key_are_interrupted_however_they_have_begun(bench: KeyedBench) -> None:
    worker = bench.workers["w0"]

    def interrupted() -> set[str]:
        found = {head.turn_id for head in worker.heads if isinstance(head, wire.Interrupt)}
        worker.heads.clear()
        return found

    for name in ("alice", "bob"):
        bench.keyed_thread(f"{name}'s", f"{name}-1")
        # Kept after its session, begun by a goal: no session has it.
        bench.from_worker(worker, wire.TurnStarted(f"{name}'s", f"turn of {name}", [], by_itself=True))
    policy: Any = bench.core.state.policy
    policy.replace([identity(name) for name in KEYS if name != "alice"])
    bench.apply(bench.core.end_sessions(lambda who, _: who == "P-alice", bench.now))
    assert interrupted() == {"turn of alice"}
    # Again until it is over: one that a goal begins next, too.
    bench.tick(1.1)
    assert interrupted() == {"turn of alice"}
    bench.from_worker(worker, wire.TurnEnded("alice's", "turn of alice", "interrupted"))
    bench.tick(1.1)
    assert interrupted() == set()


@pytest.mark.parametrize(
    ("method", "name"), [("thread/name/set", "name"), ("thread/start", "model"), ("thread/start", "cwd")]
)
def test_what_records_keep_of_a_request_is_bounded(bench: KeyedBench, method: str, name: str) -> None:
    bench.keyed_thread("t1", "alice-1")
    params = (
        {"threadId": "t1", name: "/srv/" + "n" * 5000} if method == "thread/name/set" else {name: "/srv/" + "n" * 5000}
    )
    call = bench.call(method, params, session="alice-1")
    assert "5005 characters" in bench.error(call)["message"] and not bench.workers["w0"].open
