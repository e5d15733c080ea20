"""The simulation behind docs/scaling.md: the same seed gives the same, and its broker is a server with a queue."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
WORKERS, THREADS, SECONDS = 8, 400, 4.0


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("scaling")


def busiest(scaling: Any, turns: int, *, shards: int = 1) -> Any:
    costs = scaling.Costs(message_s=0.0005, start_s=0.001)
    outcomes = scaling.simulate(shards, WORKERS, THREADS, costs, "full", turns, SECONDS)
    return max(outcomes, key=lambda outcome: outcome.busy)


def test_the_same_seed_gives_the_same(scaling: Any) -> None:
    assert busiest(scaling, 20) == busiest(scaling, 20)
    assert busiest(scaling, 20).waits_s == busiest(scaling, 20).waits_s


def test_a_broker_is_as_busy_as_its_messages_cost(scaling: Any) -> None:
    outcome = busiest(scaling, 40)
    # 10 messages a second of each turn with their acknowledgements, the clients' beats, starts and ends.
    beats, turns = scaling.CLIENTS * 0.0005, 40 * (2 * 10 * 0.0005 + (3 * 0.0005 + 0.001) / scaling.TURN_S)
    assert outcome.busy == pytest.approx(beats + turns, rel=0.15)
    assert outcome.turns > 0 and outcome.p50_ms < 1


def test_beyond_what_it_carries_the_queue_grows(scaling: Any) -> None:
    assert busiest(scaling, 200).p50_ms > 100 * max(busiest(scaling, 40).p50_ms, 0.1)


def test_two_brokers_carry_what_one_does_not(scaling: Any) -> None:
    assert busiest(scaling, 110).busy > 1 > busiest(scaling, 110, shards=2).busy
