"""Limits, prices, estimates, and what pauses a run: by events and a clock of the test's own."""

from __future__ import annotations

import errno
import math
import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_batch.rules import breaker as breakers
from codex_batch.rules import estimate as estimates
from codex_batch.rules import retry
from codex_batch.rules.breaker import Breaker
from codex_batch.rules.limits import Limits, Meter, Reached, RunLimits, RunMeter, parse_limits
from codex_batch.rules.retry import Outcome
from codex_batch.run.disks import Disk, is_full
from codex_pool.prices import Price, Prices, PricesError, parse_prices, read_prices

# Limits of a sample.


def test_limits_are_checked_all_at_once() -> None:
    run = Limits(wall_s=60.0, tokens=100)
    assert parse_limits(None, run) == (run, [])
    assert parse_limits({"wall_s": None, "turns": 2}, run) == (Limits(tokens=100, turns=2), [])
    assert parse_limits({"wall": 1, "turns": 0, "tokens": 1.5, "idle_s": True})[1] == [
        "wall: is no limit; expected one of wall_s, idle_s, tokens, turns, tool_calls",
        "turns: is 0; expected a whole number above 0",
        "tokens: is 1.5; expected a whole number above 0",
        "idle_s: is True; expected a number of seconds above 0",
    ]
    assert parse_limits([1])[1] == ["is [1]; expected an object"]


def running(**limits: Any) -> Meter:
    meter = Meter(Limits(**limits))
    meter.turn_started()
    meter.assigned(100.0)
    return meter


def test_waiting_does_not_count() -> None:
    meter = Meter(Limits(wall_s=10.0, idle_s=100.0))
    meter.turn_started()
    assert meter.reached(1e6) is None and meter.wait_s(1e6) is None
    meter.assigned(100.0)
    assert meter.wait_s(104.0) == 6.0
    meter.paused(105.0)
    assert meter.ran_s(500.0) == 5.0 and meter.wait_s(500.0) is None
    meter.resumed(500.0)
    assert meter.reached(504.9) is None
    meter.turn_ended(504.9)
    # Between turns nothing runs either.
    meter.turn_started()
    meter.assigned(900.0)
    assert meter.reached(900.0) is None
    reached = meter.reached(900.1)
    assert reached == Reached("wall_s", "the sample ran for its limit of 10 s")


def test_idle_is_when_nothing_is_open_and_nothing_comes() -> None:
    meter = running(idle_s=5.0)
    meter.event(103.0)
    assert meter.reached(107.9) is None and meter.wait_s(107.0) == 1.0
    meter.item_started("c", 104.0, "commandExecution")
    assert meter.reached(1000.0) is None and meter.wait_s(1000.0) is None
    meter.item_completed("c", 1000.0)
    assert meter.reached(1004.9) is None
    assert meter.reached(1005.0) == Reached("idle_s", "nothing came of the sample for its limit of 5 s")


def test_tokens_and_tool_calls_may_be_used_up_but_not_more() -> None:
    meter = running(tokens=100, tool_calls=1)
    meter.used(100)
    meter.item_started("a", 100.0, "fileChange")
    meter.item_started("b", 100.0, "reasoning")
    assert meter.reached(101.0) is None
    meter.item_started("c", 101.0, "webSearch")
    assert (meter.reached(101.0) or Reached("", "")).limit == "tool_calls"
    meter.used(101)
    assert meter.reached(101.0) == Reached("tokens", "the sample used 101 tokens, more than its limit of 100")


def test_tokens_never_shrink_and_turns_are_counted() -> None:
    meter = running(turns=2)
    meter.used(30)
    meter.used(10)
    assert meter.may_start_turn() is None and meter.tokens == 30
    meter.turn_started()
    assert meter.may_start_turn() == Reached("turns", "the sample has had its 2 turns")


def test_only_tools_are_open() -> None:
    meter = running(idle_s=5.0)
    for at, kind in ((100.0, "agentMessage"), (101.0, "reasoning")):
        meter.item_started(kind, at, kind)
    assert meter.reached(106.0) is not None
    # The provider's own tool ends with its stream, a command does not.
    meter.item_started("w", 106.0, "webSearch")
    assert meter.reached(200.0) is None
    meter.observe("error", {"willRetry": True}, 200.0)
    meter.observe("warning", {}, 201.0)
    assert meter.reached(205.9) is None and meter.reached(206.0) is not None
    meter.item_started("c", 206.0, "commandExecution")
    meter.observe("error", {"willRetry": True}, 207.0)
    meter.observe("warning", {}, 208.0)
    assert meter.reached(999.0) is None


def test_a_meter_reads_what_comes_over_the_wire() -> None:
    meter = Meter(Limits(wall_s=10.0))
    meter.turn_started()
    usage = {"tokenUsage": {"total": {"totalTokens": 42}}}
    limited = {
        "willRetry": True,
        "error": {"codexErrorInfo": {"responseTooManyFailedAttempts": {"httpStatusCode": 429}}},
    }
    ended = {"willRetry": False, "error": {"codexErrorInfo": "other"}}
    for at, method, params in (
        (100.0, "pool/turn/assigned", {}),
        (101.0, "item/started", {"item": {"id": "c", "type": "commandExecution"}}),
        (102.0, "item/completed", {"item": {"id": "c", "type": "commandExecution"}}),
        (103.0, "error", ended),
        (104.0, "error", limited),
        (150.0, "thread/tokenUsage/updated", usage),
        (151.0, "item/started", {"item": {"id": "m", "type": "agentMessage"}}),
    ):
        meter.observe(method, params, at)
    assert (meter.tool_calls, meter.tokens, meter.ran_s(152.0)) == (1, 42, 6.0)
    meter.observe("turn/completed", {}, 153.0)
    assert meter.ran_s(999.0) == 7.0


@given(st.lists(st.tuples(st.sampled_from(["paused", "resumed", "event"]), st.floats(0, 10)), max_size=30))
def test_what_ran_is_the_sum_of_what_was_not_paused(steps: list[tuple[str, float]]) -> None:
    meter = running()
    now, ran, runs = 100.0, 0.0, True
    for step, after in steps:
        now += after
        ran += after if runs else 0.0
        getattr(meter, step)(now)
        runs = step == "resumed" or (runs and step != "paused")
    assert math.isclose(meter.ran_s(now), ran, abs_tol=1e-6)


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.lists(st.floats(0, 20), max_size=6))
def test_a_limit_is_reached_when_its_wait_is_over_and_not_before(wall: float, idle: float, gaps: list[float]) -> None:
    meter, now = running(wall_s=wall, idle_s=idle), 100.0
    for gap in gaps:
        wait_s = meter.wait_s(now)
        assert wait_s is not None
        if gap >= wait_s:
            assert meter.reached(now + wait_s + 1e-6) is not None
            return
        assert meter.reached(now + gap) is None or math.isclose(gap, wait_s, abs_tol=1e-6)
        now += gap
        meter.event(now)


def test_a_run_has_limits_of_its_own() -> None:
    meter = RunMeter(RunLimits(tokens=100, cost=1.0, wall_s=60.0), 1000.0, tokens=40, cost=0.5)
    meter.used(59, None, is_paid=False)
    meter.used(0, 0.25)
    assert meter.reached(1059.9) is None and meter.wait_s(1059.0) == 1.0
    assert meter.reached(1060.0) == Reached("wall_s", "the run took its limit of 60 s")
    meter.used(0, 0.25)
    assert meter.reached(1000.0) == Reached("cost", "the run cost 1.00; its limit is 1.00")
    meter.used(1, None, is_paid=False)
    assert meter.reached(1000.0) == Reached("tokens", "the run used 100 tokens; its limit is 100")
    assert RunMeter(RunLimits(), 0.0).wait_s(1.0) is None


# Money.


def test_cached_tokens_are_part_of_the_input() -> None:
    prices = Prices("USD", {"m": Price(2.0, 0.5, 10.0)})
    usage = {"input_tokens": 1_000_000, "cached_input_tokens": 400_000, "output_tokens": 100_000}
    assert prices.cost(usage, "m") == 0.6 * 2.0 + 0.4 * 0.5 + 0.1 * 10.0
    assert prices.cost(usage, "other") is None and prices.cost(None, "m") is None
    assert Prices("USD", {"*": Price(1.0, 1.0, 1.0)}).cost({"output_tokens": 2_000_000}, None) == 2.0


def test_prices_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text('currency = "EUR"\n[models.m]\ninput = 1\noutput = 2.5\n')
    assert read_prices(path) == Prices("EUR", {"m": Price(1, 1, 2.5)})
    with pytest.raises(PricesError, match="No such file or directory; expected a TOML file of prices"):
        read_prices(tmp_path / "none")


def test_what_is_wrong_with_prices_is_said_at_once() -> None:
    text = 'curency = "EUR"\n[models.m]\ninput = -1\noutptu = 2\n[models."n.1"]\ninput = "1"\noutput = true\n'
    with pytest.raises(PricesError) as caught:
        parse_prices(text, "p.toml")
    assert caught.value.problems == [
        "p.toml: curency: expected currency or models",
        "p.toml: models.m: outptu: expected one of input, cached_input, cache_write, output, reasoning, web_search, "
        "above, service_tiers",
        "p.toml: models.m: output: is missing",
        "p.toml: models.m: input: is -1; expected a price of at least 0",
        "p.toml: models.n.1: input: is '1'; expected a price of at least 0",
        "p.toml: models.n.1: output: is True; expected a price of at least 0",
    ]
    for bad, problem in (
        ("x", "not TOML"),
        ("", "models: is missing"),
        ("[models]\nm = 1", "models.m: is 1; expected"),
    ):
        with pytest.raises(PricesError, match=problem):
            parse_prices(bad, "p.toml")


# Estimates.


def test_a_whole_run_is_foretold_from_some_of_it() -> None:
    ran = [estimates.Canary(100, 0.01, 2_000), estimates.Canary(300, 0.03, 4_000)]
    found = estimates.estimate(ran, 1_000, 10)
    assert (found.tokens.expected, found.wall_s.expected) == (200_000, 300.0)
    assert found.cost is not None and math.isclose(found.cost.expected, 20.0)
    assert found.tokens.give_or_take is not None and found.tokens.give_or_take > 0
    rows = dict(estimates.printed(found, "USD"))
    assert rows["from"] == "2 samples, for 1,000" and re.fullmatch(r"20\.00 ± \d+\.\d\d USD", rows["cost"])
    assert rows["time"].startswith("5 min 00 s ± ")


def test_one_canary_does_not_say_how_far_off_it_is() -> None:
    found = estimates.estimate([estimates.Canary(100, None, 5_000)], 3, 64)
    assert (found.tokens, found.cost, found.wall_s) == (
        estimates.Figure(300, None),
        None,
        estimates.Figure(5.0, None),
    )
    assert dict(estimates.printed(found, "USD"))["cost"].startswith("unknown: no price of its model")
    with pytest.raises(ValueError, match="no canary has ended"):
        estimates.estimate([], 3, 1)
    record = {"usage": {"total_tokens": 7}, "cost": 0.5, "duration_ms": 9}
    assert estimates.canary(record) == estimates.Canary(7, 0.5, 9)
    assert estimates.canary({"usage": None, "duration_ms": None}) == estimates.Canary(0, None, 0)


@given(st.integers(1, 500), st.integers(1, 20))
def test_canaries_are_spread_over_the_dataset(count: int, canaries: int) -> None:
    chosen = estimates.choose([1] * count, canaries)
    assert (
        len(set(chosen)) == min(count, canaries) and chosen == sorted(chosen) and 0 <= chosen[0] <= chosen[-1] < count
    )


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=10), st.integers(1, 50), st.integers(1, 8))
def test_no_run_is_shorter_than_its_longest_sample(durations: list[int], samples: int, at_once: int) -> None:
    found = estimates.estimate([estimates.Canary(1, None, ms) for ms in durations], samples, at_once)
    assert found.wall_s.expected >= max(durations) / 1000


# What is tried again.


@pytest.mark.parametrize(
    ("on", "status", "kind", "again"),
    [
        ("lost", "lost", "lost", True),
        ("lost", "failed", "badRequest", False),
        ("lost,overload", "failed", "serverOverloaded", True),
        ("overload", "failed", "usageLimitExceeded", True),
        ("overload", "failed", "sandboxError", False),
        ("sandboxError", "failed", "sandboxError", True),
        ("failed", "failed", "invalidInput", False),
        ("failed,lost,stalled", "limit", "tokens", False),
        ("stalled", "stalled", "stalled", True),
    ],
)
def test_what_is_tried_again_can_be_named(on: str, status: retry.Status, kind: str, again: bool) -> None:
    outcome = Outcome(status, error={"kind": kind, "message": ""})
    assert retry.may_retry(outcome, 1, 1, retry.parse_retry_on(on)) is again
    assert not retry.may_retry(outcome, 2, 1, retry.parse_retry_on(on))


def test_what_cannot_be_tried_again_is_refused() -> None:
    with pytest.raises(
        ValueError, match="'timeouts', 'x': not known; expected some of failed, lost, stalled, overload"
    ):
        retry.parse_retry_on("lost, timeouts,x")
    with pytest.raises(ValueError, match="is empty"):
        retry.parse_retry_on(" ,")


# What pauses a run.


def failed(kind: str) -> Outcome:
    return Outcome("failed", error={"kind": kind, "message": f"{kind}\n happened"})


COMPLETED = Outcome("completed")


def test_a_refused_login_pauses_at_once_and_says_so() -> None:
    breaker = Breaker()
    assert breaker.ended(failed("unauthorized"), 0, 100.0)
    assert breaker.pause is not None and breaker.pause.message == (
        "paused: the model's service refuses the login (unauthorized happened); log in again (codex-pool login), or "
        "mend the key; the run tries again by itself in 30 s; Ctrl-C ends it, and the same command goes on later"
    )
    assert not breaker.may_start(129.9) and breaker.wait_s(110.0) == 20.0
    assert breaker.may_start(130.0)
    breaker.started()
    # One at a time is tried.
    assert not breaker.may_start(131.0) and breaker.wait_s(131.0) is None
    assert not breaker.ended(COMPLETED, 0, 140.0)
    assert breaker.pause is None and breaker.may_start(140.0)


def test_the_tries_come_more_and_more_seldom() -> None:
    breaker, now, waits = Breaker(), 0.0, []
    breaker.ended(failed("unauthorized"), 0, now)
    for _ in range(8):
        wait_s = breaker.wait_s(now)
        assert wait_s is not None
        waits.append(wait_s)
        now += wait_s
        assert breaker.may_start(now)
        breaker.started()
        assert breaker.ended(failed("unauthorized"), 99, now)
    assert waits == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0, 600.0]


def test_what_a_pools_limit_ended_while_it_waited_for_the_network_goes_back() -> None:
    message = (
        "turn u was stalled: nothing was heard of it for 600 s; its last error: Reconnecting... waiting for network"
    )
    outcome = Outcome("stalled", {"kind": "stalled", "message": message})
    assert retry.waited_in_vain(outcome)
    breaker = Breaker()
    breaker.waiting("Reconnecting... waiting for network", 0.0)
    assert all(breaker.ended(outcome, put_back, 600.0) for put_back in range(9))
    assert breaker.pause is not None and breaker.pause.trouble is breakers.NETWORK
    other = Outcome("stalled", {"kind": "stalled", "message": "turn u was stalled: nothing was heard of it for 600 s"})
    assert not retry.waited_in_vain(other) and not breaker.ended(other, 0, 600.0)


def test_what_still_ran_when_the_pause_began_is_no_try() -> None:
    breaker = Breaker()
    for _ in range(60):
        assert breaker.ended(failed("unauthorized"), 0, 100.0)
    assert breaker.wait_s(100.0) == 30.0
    # Something that ended meanwhile says that the login is fine.
    assert not breaker.ended(COMPLETED, 0, 101.0) and breaker.pause is None


def test_a_service_that_refuses_is_told_from_one_that_is_broken() -> None:
    for status, name in (("401", "unauthorized"), ("403", "unauthorized"), ("503", None)):
        breaker = Breaker()
        error = {"kind": "httpConnectionFailed", "message": f"unexpected status {status}", "http_status": status}
        assert breaker.ended(Outcome("failed", error=error), 0, 0.0)
        assert (breaker.pause and breaker.pause.trouble.name) == name


def test_a_run_pauses_while_turns_wait_for_the_network() -> None:
    breaker = Breaker()
    breaker.going_on()
    breaker.waiting("Connection failed", 0.0)
    breaker.waiting("Connection failed", 1.0)
    assert breaker.pause is not None and breaker.pause.trouble is breakers.NETWORK
    assert breaker.wait_s(1.0) == 29.0
    # The one that is tried waits as well, and is no other try until it ends.
    assert breaker.may_start(30.0)
    breaker.started()
    assert not breaker.may_start(1000.0)
    breaker.going_on()
    assert breaker.pause is None and breaker.may_start(1000.0)
    # What pauses the run for another reason is not mended by that.
    breaker.ended(failed("unauthorized"), 0, 0.0)
    breaker.going_on()
    assert breaker.pause is not None


@pytest.mark.parametrize("kind", ["httpConnectionFailed", "responseStreamConnectionFailed", "sandboxError"])
def test_what_may_be_one_samples_trouble_pauses_after_several_in_a_row(kind: str) -> None:
    breaker = Breaker()
    for _ in range(3):
        for _ in range(4):
            assert breaker.ended(failed(kind), 0, 0.0) and breaker.pause is None
        breaker.ended(COMPLETED, 0, 0.0)
    for _ in range(5):
        breaker.ended(failed(kind), 0, 0.0)
    assert breaker.pause is not None


def test_a_sample_that_always_meets_it_alone_is_recorded_in_the_end() -> None:
    breaker, put_back = Breaker(), 0
    while breaker.ended(failed("sandboxError"), put_back, 0.0):
        put_back += 1
        breaker.ended(COMPLETED, 0, 0.0)
    assert put_back == breakers.PUT_BACK_LIMIT


def test_other_failures_are_the_samples_own() -> None:
    breaker = Breaker()
    for kind in ("badRequest", "contextWindowExceeded", "other", "serverOverloaded"):
        for _ in range(20):
            assert not breaker.ended(failed(kind), 0, 0.0)
    for status in ("lost", "stalled", "interrupted", "limit"):
        assert not breaker.ended(Outcome(status), 0, 0.0)
    assert breaker.pause is None


def test_a_try_that_is_interrupted_shows_nothing() -> None:
    breaker = Breaker()
    breaker.ended(failed("unauthorized"), 0, 0.0)
    breaker.started()
    assert not breaker.ended(Outcome("interrupted"), 0, 40.0)
    assert breaker.pause is not None and breaker.may_start(40.0)
    breaker.started()
    breaker.given_up()
    assert breaker.may_start(40.0)


def test_a_full_disk_pauses_the_run_until_there_is_room() -> None:
    breaker = Breaker(directory="out/run or of home")
    breaker.disk_full("0.0 MiB are free", 0.0, "out/run")
    assert breaker.pause is not None and breaker.pause.message == (
        "paused: the disk is full (0.0 MiB are free); make room on the disk of out/run; the run goes on by itself "
        "then; Ctrl-C ends it, and the same command goes on later"
    )
    breaker.disk_full("0.0 MiB are free", 10.0, "out/run")
    assert breaker.wait_s(10.0) == 20.0
    breaker.disk_mended()
    assert breaker.pause is None and breaker.may_start(10.0)
    # There being room mends nothing else.
    breaker.ended(failed("unauthorized"), 0, 10.0)
    breaker.disk_full("0.0 MiB are free", 11.0, "out/run")
    breaker.disk_mended()
    assert breaker.pause is not None and breaker.pause.trouble is breakers.UNAUTHORIZED


def test_a_program_that_met_a_full_disk_pauses_the_run() -> None:
    breaker = Breaker(directory="out/run or of home")
    error = {"kind": "workspace", "message": "git add: fatal: write error: No space left on device"}
    assert breaker.ended(Outcome("failed", error=error), 0, 0.0)
    assert breaker.pause is not None and breaker.pause.trouble is breakers.DISK
    # It does not say where.
    assert "make room on the disk of out/run or of home; " in breaker.pause.message


def test_an_attempt_that_ran_while_the_disk_was_full_is_made_again_a_few_times() -> None:
    breaker, put_back = Breaker(), 0
    while breaker.ended(failed(breakers.DISK_FULL), put_back, 0.0):
        put_back += 1
    assert put_back == breakers.PUT_BACK_LIMIT and breaker.pause is None


def test_a_disk_without_room_for_another_file_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(tmp_path)
    names = ["bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "flag", "namemax"]
    values = dict(zip(names, found, strict=True))
    for files, favail, full in ((1000, 0, True), (1000, 1, False), (0, 0, False)):
        told = os.statvfs_result(tuple((values | {"files": files, "favail": favail}).values()))
        monkeypatch.setattr(os, "statvfs", lambda _, told=told: told)
        assert ("inodes" in (Disk(tmp_path).shortage() or "")) is full


def test_only_a_full_disk_is_taken_for_one() -> None:
    assert is_full(OSError(errno.ENOSPC, "no")) and is_full(OSError(errno.EDQUOT, "no"))
    assert is_full(sqlite3.OperationalError("database or disk is full"))
    assert not is_full(OSError(errno.EACCES, "no")) and not is_full(sqlite3.OperationalError("disk I/O error"))


def test_a_run_with_too_many_failures_ends() -> None:
    breaker = Breaker(max_failures=2)
    for outcome in (COMPLETED, failed("other"), Outcome("interrupted"), Outcome("limit", limit="tokens")):
        breaker.recorded(outcome)
    assert breaker.failed_too_often is None
    breaker.recorded(Outcome("lost"))
    assert breaker.failed_too_often == (
        "2 samples have failed, as many as --max-failures allows; nothing more is started"
    )
    assert Breaker().failed_too_often is None
