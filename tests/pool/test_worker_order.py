"""The order in which a session that gets all turns receives the lines of a thread: that of the app-server."""

from __future__ import annotations

import random
from typing import Any

import pytest
from session_ids import sid
from worker_bench import WORKSPACE_WRITE, Bench, completed, delta

from codex_pool.protocol import wire
from codex_pool.worker.subscription import Limits

ACTIVE = {"method": "thread/status/changed", "params": {"threadId": "t1", "status": {"type": "active"}}}
IDLE = {"method": "thread/status/changed", "params": {"threadId": "t1", "status": {"type": "idle"}}}
READ_STATE = {"method": "thread/readState/changed", "params": {"threadId": "t1"}}
USAGE = {"method": "thread/tokenUsage/updated", "params": {"threadId": "t1", "turnId": "u1", "tokenUsage": {}}}
RESOLVED = {"method": "serverRequest/resolved", "params": {"threadId": "t1", "requestId": 0}}


def bench_of(*names: str, **options: Any) -> Bench:
    bench = Bench(**options).start()
    for name in names:
        head = wire.SessionOptions(sid(name), all_turns=True, keep=True)
        bench.apply(bench.core.broker_message(head, [], bench.now))
    bench.thread("t1", names[0] if names else "s1", sandbox=WORKSPACE_WRITE)
    return bench


@pytest.fixture
def bench() -> Bench:
    """Session a gets all turns, and has started thread t1."""
    return bench_of("a")


def started(turn_id: str, thread_id: str = "t1") -> dict[str, Any]:
    return {"method": "turn/started", "params": {"threadId": thread_id, "turn": {"id": turn_id}}}


def of_app_server(bench: Bench, session: str = "a") -> list[dict[str, Any]]:
    return [line for line in bench.received[session] if not line.get("method", "").startswith("pool/")]


def test_lines_of_a_thread_and_of_its_turn_keep_their_order_within_one_read(bench: Bench) -> None:
    bench.turn("u1", session="a")
    lines = [ACTIVE, started("u1"), delta("u1", "t1", "x"), USAGE, READ_STATE, IDLE, completed("u1")]
    bench.say(*lines)
    assert of_app_server(bench) == lines
    assert bench.check_numbers("a", "u1") == len(lines) + 1


def test_a_turn_that_begins_unasked_keeps_its_place(bench: Bench) -> None:
    lines = [ACTIVE, started("u1"), READ_STATE, delta("u1", "t1", "x"), IDLE, completed("u1"), READ_STATE]
    bench.say(*lines)
    assert of_app_server(bench) == lines


def test_thread_started_waits_for_no_other_line_of_its_thread(bench: Bench) -> None:
    line = {"method": "thread/started", "params": {"thread": {"id": "t1"}}}
    bench.say(line)
    assert of_app_server(bench) == [line]


def test_lines_of_a_thread_do_not_overtake_its_turn_when_the_session_reads_slowly() -> None:
    bench = bench_of("a", limits=Limits(window=1))
    bench.turn("u1", session="a")
    lines = [delta("u1", "t1", "x"), READ_STATE, delta("u1", "t1", "y"), IDLE, completed("u1")]
    for line in lines:
        bench.say(line)
    assert of_app_server(bench) == [], "one message is on the way, and nothing is acknowledged"
    for _ in lines:
        bench.ack()
    assert of_app_server(bench) == lines
    bench.ack()
    assert not bench.core.held["subscriptions"]


def test_who_comes_back_gets_lines_of_the_thread_again_in_their_place(bench: Bench) -> None:
    bench.turn("u1", session="a")
    bench.say(delta("u1", "t1", "x"), READ_STATE, delta("u1", "t1", "y"))
    bench.received.clear()
    bench.back("a", wire.Position("u1", 1, "t1"))
    assert of_app_server(bench) == [delta("u1", "t1", "x"), READ_STATE, delta("u1", "t1", "y")]


def test_sessions_with_the_default_options_get_them_outside_of_the_turn() -> None:
    bench = bench_of("a")
    bench.dispatch("thread/resume", {"threadId": "t1"}, session="s1")
    bench.answer(bench.request("thread/resume"), {"thread": {"id": "t1"}})
    bench.turn("u1", session="s1")
    bench.say(delta("u1", "t1", "x"), READ_STATE, completed("u1"))
    assert bench.methods("s1", "u1") == ["pool/turn/assigned", "item/agentMessage/delta", "turn/completed"]
    assert (["s1"], [READ_STATE]) in bench.lines
    assert of_app_server(bench) == [delta("u1", "t1", "x"), READ_STATE, completed("u1")]
    bench.ack()
    assert not bench.core.held["subscriptions"]


def test_without_such_a_session_a_read_is_one_message() -> None:
    bench = bench_of()
    bench.turn("u1")
    before = len(bench.events["s1", "u1"])
    bench.say(delta("u1", "t1", "x"), READ_STATE, delta("u1", "t1", "y"), IDLE, completed("u1"))
    assert len(bench.events["s1", "u1"]) == before + 1


@pytest.mark.parametrize("seed", range(30))
def test_any_lines_in_any_reads_with_any_credit_keep_their_order(seed: int) -> None:
    rng = random.Random(seed)
    bench = bench_of("a", "b", limits=Limits(window=rng.choice([1, 2000, 10**6])))
    bench.dispatch("thread/resume", {"threadId": "t1"}, session="b")
    bench.answer(bench.request("thread/resume"), {"thread": {"id": "t1"}})
    said: list[dict[str, Any]] = []
    for number in range(3):
        bench.turn(f"u{number}", session=rng.choice("ab"))
        lines = [started(f"u{number}")]
        for place in range(rng.randrange(20)):
            lines.append(rng.choice([delta(f"u{number}", "t1", str(place)), READ_STATE, ACTIVE]))
        lines += [IDLE, completed(f"u{number}")]
        said += lines
        while lines:
            size = rng.randrange(1, 6)
            read, lines = lines[:size], lines[size:]
            bench.say(*read)
            if rng.random() < 0.5:
                bench.ack()
        for _ in range(40):
            bench.ack()
    assert of_app_server(bench, "a") == of_app_server(bench, "b") == said
    assert not bench.core.held["subscriptions"] and not bench.core.held["kept_bytes"]
