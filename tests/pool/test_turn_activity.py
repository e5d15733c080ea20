"""Reports of a worker on the activity of its turns, and what the broker makes of it."""

from __future__ import annotations

from typing import Any

import broker_bench
import pytest
import worker_bench
from worker_bench import completed

from codex_pool.protocol import wire


@pytest.fixture
def worker() -> worker_bench.Bench:
    """A worker with a turn of session s1."""
    bench = worker_bench.Bench().start()
    bench.thread()
    bench.turn("u1")
    return bench


def usage(total: int, last: int, turn_id: str = "u1", output: int = 0) -> dict[str, Any]:
    def counts(tokens: int) -> dict[str, int]:
        return {
            "inputTokens": tokens,
            "cachedInputTokens": tokens // 2,
            "outputTokens": output,
            "reasoningOutputTokens": 0,
            "totalTokens": tokens + output,
        }

    both = {"total": counts(total), "last": counts(last), "modelContextWindow": None}
    return {
        "method": "thread/tokenUsage/updated",
        "params": {"threadId": "t1", "turnId": turn_id, "tokenUsage": both},
    }


def test_activity_is_reported_once_a_second_and_only_where_something_came(worker: worker_bench.Bench) -> None:
    worker.tick(1)
    assert [each.turns[0].turn_id for each in worker.routed(wire.Activity)] == ["u1"]
    for _ in range(5):
        worker.tick(1)
    assert len(worker.routed(wire.Activity)) == 1, "a silent turn costs nothing"
    worker.delta("u1")
    heard_at = worker.now
    for _ in range(4):
        worker.tick(0.1)
    assert len(worker.routed(wire.Activity)) == 2
    worker.delta("u1")
    worker.tick(0.1)
    assert len(worker.routed(wire.Activity)) == 2, "not twice in a second"
    assert worker.routed(wire.Activity)[1].turns == [wire.TurnActivity("u1", heard_at)]


def test_the_tokens_of_a_turn_are_those_of_its_thread_since_it_began(worker: worker_bench.Bench) -> None:
    worker.say(usage(total=1100, last=100))
    worker.tick(1)
    assert worker.routed(wire.Activity)[-1].turns[0].tokens == wire.Tokens(100, 50, 0, 0)
    worker.say(usage(total=1300, last=200), usage(total=1300, last=200))
    worker.say({"method": "thread/tokenUsage/updated", "params": {"threadId": "t1", "turnId": "u1"}})
    worker.say(completed("u1"))
    (ended,) = worker.routed(wire.TurnEnded)
    assert ended.tokens == wire.Tokens(300, 150, 0, 0), "a report that comes twice counts once"


def test_another_broker_gets_all_of_it_again(worker: worker_bench.Bench) -> None:
    began_at = worker.now
    worker.say(usage(total=100, last=100))
    worker.say({"id": 7, "method": "item/tool/requestUserInput", "params": {"threadId": "t1", "turnId": "u1"}})
    asked_at = worker.now
    worker.tick(1)
    worker.tick(1)
    (turn,) = worker.new_broker().turns
    assert (turn.began_at, turn.waits_since, turn.waits_for) == (began_at, asked_at, "item/tool/requestUserInput")
    worker.tick(0.1)
    assert worker.routed(wire.Activity)[-1].turns == [wire.TurnActivity("u1", asked_at, wire.Tokens(100, 50, 0, 0))]


def test_tokens_are_counted_once_by_the_principal_of_the_thread() -> None:
    bench = broker_bench.Bench()
    worker = bench.register()
    bench.hello()
    bench.thread("t1")
    _, turn_id = bench.turn("t1")
    bench.from_worker(worker, wire.Activity([wire.TurnActivity(turn_id, bench.now, wire.Tokens(10, 1, 2))]))
    bench.from_worker(worker, wire.Activity([wire.TurnActivity(turn_id, bench.now, wire.Tokens(15, 1, 2))]))
    bench.from_worker(worker, wire.Activity([wire.TurnActivity("unknown", bench.now, wire.Tokens(99))]))
    bench.from_worker(worker, wire.TurnEnded("t1", turn_id, "completed", [], wire.Tokens(20, 1, 4)))
    assert bench.core.state.turns.tokens_of == {"": wire.Tokens(20, 1, 4)}
