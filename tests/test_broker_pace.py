"""Pace: fewer turns when the account's rate limit is met, more again when it is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_pool.broker.pace import DECREASE_EVERY_S, INCREASE_EVERY_S, MAX_PAUSE_S, Pace


def test_without_a_limit_everything_may_run() -> None:
    pace = Pace(8)
    pace.completed()
    assert pace.allows(1000, 0.0) and not pace.tick(100.0)
    assert pace.status(0.0) == {"limit": None, "pausedMs": 0, "reason": ""}


def test_each_sign_halves_what_may_run_but_a_burst_of_them_only_once() -> None:
    pace = Pace(16)
    for moment in (0.0, 0.1, DECREASE_EVERY_S - 0.1):
        pace.limited("429", None, 16, moment)
    assert pace.limit == 8 and pace.status(0.0)["reason"] == "429"
    assert pace.allows(7, 1.0) and not pace.allows(8, 1.0)
    pace.limited("429", None, 8, DECREASE_EVERY_S)
    assert pace.limit == 4
    for second in range(10, 100, 10):
        pace.limited("429", None, 4, float(second))
    assert pace.limit == 1 and pace.allows(0, 99.0), "it never stops for good"


def test_what_did_not_run_counts_for_nothing() -> None:
    pace = Pace(100)
    pace.limited("429", None, 6, 0.0)
    assert pace.limit == 3


def test_one_more_for_every_time_of_success_until_there_is_no_limit() -> None:
    pace = Pace(4)
    pace.limited("429", None, 4, 0.0)
    assert pace.limit == 2
    now = INCREASE_EVERY_S
    assert not pace.tick(now), "nothing has completed since"
    pace.completed()
    assert not pace.tick(now - 0.1) and pace.tick(now) and pace.limit == 3
    assert not pace.tick(now + INCREASE_EVERY_S), "one success raises it once"
    pace.completed()
    assert pace.tick(now + INCREASE_EVERY_S) and pace.limit is None


def test_nothing_starts_before_the_reset() -> None:
    pace = Pace(4)
    pace.limited("usageLimitExceeded", 60.0, 2, 100.0)
    assert not pace.allows(0, 159.9) and not pace.tick(159.9)
    assert pace.status(110.0)["pausedMs"] == 50_000
    assert pace.allows(0, 160.0) and pace.tick(160.0), "who waits must be told that it is over"
    assert pace.limit == 1 and not pace.tick(161.0)


@pytest.mark.parametrize("reset_in_s", [None, 0.0, -5.0, MAX_PAUSE_S + 1])
def test_a_time_that_cannot_be_a_reset_is_no_pause(reset_in_s: float | None) -> None:
    pace = Pace(4)
    pace.limited("429", reset_in_s, 4, 0.0)
    assert pace.allows(0, 0.0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["limited", "completed", "tick"]), st.floats(0, 20), st.integers(0, 9)), max_size=60
    )
)
def test_it_stays_within_one_and_the_capacity_and_comes_back(events: list[tuple[str, float, int]]) -> None:
    pace, now = Pace(8), 0.0
    for event, seconds, running in events:
        now += seconds
        if event == "limited":
            pace.limited("429", seconds, running, now)
        elif event == "completed":
            pace.completed()
        else:
            pace.tick(now)
        assert pace.limit is None or 1 <= pace.limit < 8
    for _ in range(20):
        now += INCREASE_EVERY_S + 20
        pace.completed()
        pace.tick(now)
    assert pace.limit is None and pace.allows(7, now)
