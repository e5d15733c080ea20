"""Conditions for a run to give up replacing its pool, and how long it waits before each try."""

from __future__ import annotations

import pytest

from codex_batch.rules.pool_deaths import ABSENT_LIMIT_S, DEATHS_LIMIT, FIRST_WAIT_S, LONGEST_WAIT_S, PoolDeaths


@pytest.mark.parametrize("losses", range(1, DEATHS_LIMIT + 1))
def test_pools_that_die_or_do_not_start_before_a_turn_finishes_are_given_up(losses: int) -> None:
    deaths = PoolDeaths(is_own=True)
    for number in range(DEATHS_LIMIT):
        assert deaths.given_up is None
        if number < losses:
            deaths.lost(f"death {number}", 1.0)
        else:
            deaths.failed(f"no start {number}", 1.0)
    last = "death" if losses == DEATHS_LIMIT else "no start"
    assert deaths.given_up is not None and f"{last} {DEATHS_LIMIT - 1}" in deaths.given_up
    assert f"{DEATHS_LIMIT} times in a row" in deaths.given_up


def test_a_turn_that_finished_starts_the_count_and_the_pauses_anew() -> None:
    deaths = PoolDeaths(is_own=True)
    for _ in range(10 * DEATHS_LIMIT):
        for _ in range(DEATHS_LIMIT - 1):
            deaths.lost("why", 0.0)
        deaths.turn_finished()
    assert deaths.given_up is None
    deaths.lost("why", 0.0)
    assert deaths.wait_s(0.0) == FIRST_WAIT_S / 2


def test_the_pauses_double_up_to_the_longest() -> None:
    deaths, waits = PoolDeaths(is_own=False), []
    deaths.lost("why", 0.0)
    for number in range(60):
        waits.append(deaths.wait_s(1.0))
        deaths.failed("nothing listens", float(number))
    assert waits[:5] == [FIRST_WAIT_S * 2**number for number in range(5)]
    assert waits[5:] == [LONGEST_WAIT_S] * 55
    assert deaths.wait_s(0.0) == LONGEST_WAIT_S / 2 and deaths.given_up is None


def test_a_daemon_that_is_away_is_waited_for_and_not_for_ever() -> None:
    deaths = PoolDeaths(is_own=False)
    deaths.lost("stopped", 1000.0)
    for now in range(1000, 1000 + int(ABSENT_LIMIT_S)):
        deaths.failed("nothing listens", float(now))
    assert deaths.given_up is None
    deaths.failed("nothing listens", 1000.0 + ABSENT_LIMIT_S)
    assert deaths.given_up == f"it did not come back within {ABSENT_LIMIT_S:.0f} s: nothing listens"


def test_a_daemon_that_dies_each_time_is_given_up_too() -> None:
    deaths = PoolDeaths(is_own=False)
    for number in range(DEATHS_LIMIT):
        deaths.failed("not yet", float(number))
        deaths.lost("died", float(number))
    assert deaths.given_up is not None and "died" in deaths.given_up
