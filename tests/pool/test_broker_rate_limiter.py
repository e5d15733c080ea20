"""Pace: fewer turns when the account's rate limit is met, more again when it is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_pool.broker.rate_limiter import DECREASE_EVERY_S, INCREASE_EVERY_S, MAX_PAUSE_S, RateLimiter


def test_without_a_limit_everything_may_run() -> None:
    limiter = RateLimiter(8)
    limiter.completed()
    assert limiter.allows(1000, 0.0) and not limiter.tick(100.0)
    assert limiter.status(0.0) == {"limit": None, "pausedMs": 0, "reason": ""}


def test_each_sign_halves_what_may_run_but_a_burst_of_them_only_once() -> None:
    limiter = RateLimiter(16)
    for moment in (0.0, 0.1, DECREASE_EVERY_S - 0.1):
        limiter.limited("429", None, 16, moment)
    assert limiter.limit == 8 and limiter.status(0.0)["reason"] == "429"
    assert limiter.allows(7, 1.0) and not limiter.allows(8, 1.0)
    limiter.limited("429", None, 8, DECREASE_EVERY_S)
    assert limiter.limit == 4
    for second in range(10, 100, 10):
        limiter.limited("429", None, 4, float(second))
    assert limiter.limit == 1 and limiter.allows(0, 99.0), "it never stops for good"


def test_what_did_not_run_counts_for_nothing() -> None:
    limiter = RateLimiter(100)
    limiter.limited("429", None, 6, 0.0)
    assert limiter.limit == 3


def test_one_more_for_every_time_of_success_until_there_is_no_limit() -> None:
    limiter = RateLimiter(4)
    limiter.limited("429", None, 4, 0.0)
    assert limiter.limit == 2
    now = INCREASE_EVERY_S
    assert not limiter.tick(now), "nothing has completed since"
    limiter.completed()
    assert not limiter.tick(now - 0.1) and limiter.tick(now) and limiter.limit == 3
    assert not limiter.tick(now + INCREASE_EVERY_S), "one success raises it once"
    limiter.completed()
    assert limiter.tick(now + INCREASE_EVERY_S) and limiter.limit is None


def test_nothing_starts_before_the_reset() -> None:
    limiter = RateLimiter(4)
    limiter.limited("usageLimitExceeded", 60.0, 2, 100.0)
    assert not limiter.allows(0, 159.9) and not limiter.tick(159.9)
    assert limiter.status(110.0)["pausedMs"] == 50_000
    assert limiter.allows(0, 160.0) and limiter.tick(160.0), "who waits must be told that it is over"
    assert limiter.limit == 1 and not limiter.tick(161.0)


@pytest.mark.parametrize("reset_in_s", [None, 0.0, -5.0, MAX_PAUSE_S + 1])
def test_a_time_that_cannot_be_a_reset_is_no_pause(reset_in_s: float | None) -> None:
    limiter = RateLimiter(4)
    limiter.limited("429", reset_in_s, 4, 0.0)
    assert limiter.allows(0, 0.0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["limited", "completed", "tick"]), st.floats(0, 20), st.integers(0, 9)), max_size=60
    )
)
def test_it_stays_within_one_and_the_capacity_and_comes_back(events: list[tuple[str, float, int]]) -> None:
    limiter, now = RateLimiter(8), 0.0
    for event, seconds, running in events:
        now += seconds
        if event == "limited":
            limiter.limited("429", seconds, running, now)
        elif event == "completed":
            limiter.completed()
        else:
            limiter.tick(now)
        assert limiter.limit is None or 1 <= limiter.limit < 8
    for _ in range(20):
        now += INCREASE_EVERY_S + 20
        limiter.completed()
        limiter.tick(now)
    assert limiter.limit is None and limiter.allows(7, now)
