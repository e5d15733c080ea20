"""Figures of scores, against formulas written another way."""

from __future__ import annotations

import itertools
import math
import runpy
import statistics
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codex_batch.scoring import metric_rows
from codex_batch.scoring.metrics import ScoreValue, clustered_stderr, interval, pass_at_k, summarise

coverage = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).resolve().parents[2] / "bench" / "intervals.py"), run_name="bench_intervals")
)
VALUES = st.lists(st.floats(-100, 100, allow_nan=False), min_size=2, max_size=30)


@given(VALUES)
def test_without_epochs_the_error_is_that_of_the_mean(values: list[float]) -> None:
    metrics = summarise([ScoreValue(str(n), "s", value) for n, value in enumerate(values)]).scorers["s"]
    assert metrics.mean is not None and metrics.stderr is not None
    assert math.isclose(metrics.mean, statistics.fmean(values), abs_tol=1e-9)
    expected = statistics.stdev(values) / math.sqrt(len(values))
    assert math.isclose(metrics.stderr, expected, rel_tol=1e-6, abs_tol=1e-9)
    assert (metrics.scores, metrics.samples, metrics.not_scored) == (len(values), len(values), 0)


@given(VALUES, st.integers(1, 5))
def test_repeating_every_score_tells_nothing_new(values: list[float], epochs: int) -> None:
    rows = [ScoreValue(str(n), "s", value) for n, value in enumerate(values) for _ in range(epochs)]
    once = clustered_stderr([(1, value) for value in values])
    found = summarise(rows).scorers["s"].stderr
    assert once is not None and found is not None and math.isclose(found, once, rel_tol=1e-6, abs_tol=1e-9)


@given(st.lists(st.lists(st.floats(-10, 10, allow_nan=False), min_size=1, max_size=4), min_size=2, max_size=12))
def test_the_clustered_error_is_the_sandwich(clusters: list[list[float]]) -> None:
    # Summed over all pairs of scores within a cluster, in whole fractions.
    scores = [Fraction(value) for cluster in clusters for value in cluster]
    mean = sum(scores) / len(scores)
    meat = sum((Fraction(a) - mean) * (Fraction(b) - mean) for c in clusters for a, b in itertools.product(c, repeat=2))
    number = len(clusters)
    expected = math.sqrt(Fraction(number, number - 1) * meat) / len(scores)
    found = clustered_stderr([(len(c), math.fsum(c)) for c in clusters])
    assert found is not None and math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-7)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_part_of_all_draws_with_one_that_passed(case: tuple[int, int, int]) -> None:
    scores, passed, k = case
    draws = list(itertools.combinations([True] * passed + [False] * (scores - passed), k))
    assert math.isclose(pass_at_k(scores, passed, k), sum(map(any, draws)) / len(draws))


def test_pass_at_k_needs_k_scores() -> None:
    with pytest.raises(ValueError, match="expected at least 3"):
        pass_at_k(2, 1, 3)
    rows = [ScoreValue("a", "s", 1.0, True), ScoreValue("a", "s", 0.0, False), ScoreValue("b", "s", 1.0, True)]
    metrics = summarise(rows, k=(1, 2, 3)).scorers["s"]
    assert metrics.pass_at == {1: (0.75, 2), 2: (1.0, 1)}
    assert metrics.accuracy == 2 / 3


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=2, max_size=40))
def test_an_interval_of_pass_fail_holds_the_mean_and_lies_in_0_to_1(counts: list[tuple[int, int]]) -> None:
    clusters = [(count, float(min(count, passed))) for count, passed in counts]
    mean = sum(total for _, total in clusters) / sum(count for count, _ in clusters)
    low, high = interval(clusters, "pass_fail") or (1.0, 0.0)
    assert 0 <= low <= mean <= high <= 1 and high - low > 0.02
    turned = interval([(count, count - total) for count, total in clusters], "pass_fail")
    assert turned == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_without_epochs_it_is_wilsons_interval() -> None:
    # Both ends by root finding: where the score test just does not refuse the part. 0.2366, 0.7634 for 5 of 10 are
    # printed by statsmodels and R (prop.test without continuity correction).
    for n, passed in ((10, 5), (20, 7), (100, 50), (400, 390)):
        low, high = interval([(1, float(index < passed)) for index in range(n)], "pass_fail") or (1.0, 0.0)
        for bound in (low, high):
            z = (passed / n - bound) / math.sqrt(bound * (1 - bound) / n)
            assert abs(z) == pytest.approx(1.959964, abs=1e-6)
    assert interval([(1, float(index < 5)) for index in range(10)], "pass_fail") == (
        pytest.approx(0.2366, abs=1e-4),
        pytest.approx(0.7634, abs=1e-4),
    )
    # One of ten: the low end is -log(0.95) / 10 of Brown, Cai and DasGupta, here by an approximation from below.
    low, high = interval([(1, float(index < 1)) for index in range(10)], "pass_fail") or (1.0, 0.0)
    assert 0.003 < low < 0.00513 and high == pytest.approx(0.4042, abs=1e-4)
    nothing = interval([(1, 0.0)] * 10, "pass_fail")
    assert nothing == (0.0, pytest.approx(0.2775, abs=1e-4))


def test_epochs_that_agree_are_one_score_and_those_that_do_not_are_more() -> None:
    single = interval([(1, float(index % 2)) for index in range(20)], "pass_fail") or (1.0, 0.0)
    agree = interval([(5, 5.0 * (index % 2)) for index in range(20)], "pass_fail") or (1.0, 0.0)
    differ = interval([(5, 2.0 + index % 2) for index in range(20)], "pass_fail") or (1.0, 0.0)
    assert agree == (pytest.approx(single[0], abs=0.01), pytest.approx(single[1], abs=0.01))
    assert (differ[1] - differ[0]) < 0.6 * (single[1] - single[0])
    # All alike: no more is known than of so many samples.
    assert interval([(5, 5.0)] * 20, "pass_fail") == interval([(1, 1.0)] * 20, "pass_fail")


def test_other_numbers_have_students_interval() -> None:
    values = [3.0, 5.0, 8.0, 4.0, 10.0]
    low, high = interval([(1, value) for value in values], "open") or (1.0, 0.0)
    half = 2.7764 * statistics.stdev(values) / math.sqrt(5)
    assert (low, high) == (pytest.approx(6 - half, abs=1e-3), pytest.approx(6 + half, abs=1e-3))
    # Nothing is known of how much they vary.
    assert interval([(1, 7.0)] * 5, "open") is None
    assert interval([(1, 0.5)] * 5, "unit") == interval([(1, 0.5)] * 5, "pass_fail")
    # From 0 to 1 it is nearly Student's where the ends are far, and never beyond them.
    low, high = interval([(1, 0.5 + value / 1000) for value in values], "unit") or (1.0, 0.0)
    assert (low, high) == (pytest.approx(0.506 - half / 1000, abs=1e-4), pytest.approx(0.506 + half / 1000, abs=1e-4))
    assert (interval([(1, 0.9)] + [(1, 1.0)] * 9, "unit") or (0, 2))[1] <= 1.0


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    # bench/intervals.py draws more. Coverage found by 100 runs has a standard error of 2 points.
    found = coverage.of_runs(10, 1, 1.0, runs=250, seed=1)
    assert abs(statistics.fmean(found[: coverage.EVEN]) - 0.95) < 0.02, found
    for samples, rho in ((10, 0.5), (30, 0.5)):
        found = coverage.of_runs(samples, 5, rho, runs=100, seed=1)
        assert statistics.fmean(found) > 0.94 and min(found) > 0.92 - 0.05, found
    assert statistics.fmean(coverage.of_differences(20, 5, 0.5, runs=50, seed=1)) > 0.94


def test_tags_scorers_and_what_was_not_scored() -> None:
    rows = [
        ScoreValue("a", "x", 1.0, True, ("easy", "git")),
        ScoreValue("b", "x", 0.0, False, ("easy", "easy")),
        ScoreValue("c", "x", 0.0, None, failed=True, problem="no\nsuch program"),
        ScoreValue("d", "x", float("nan")),
        ScoreValue("a", "y", 0.5),
    ]
    found = summarise(iter(rows))
    assert list(found.scorers) == ["x", "y"] and list(found.tags) == ["x"]
    x, y = found.scorers["x"], found.scorers["y"]
    assert (x.mean, x.scores, x.not_scored, x.accuracy) == (0.5, 2, 2, 0.5)
    assert (y.mean, y.stderr, y.low, y.accuracy, y.pass_at) == (0.5, None, None, None, {})
    assert {tag: (m.mean, m.samples) for tag, m in found.tags["x"].items()} == {"easy": (0.5, 2), "git": (1.0, 1)}
    assert metric_rows.printed(found)[0][1] == (
        "0.500 ± 0.500 [0.020, 0.980], 2 samples, 2 not scored: the scorer failed"
    )
    assert [name for name, _ in metric_rows.printed(found)] == ["x", "  easy", "  git", "y"]
    as_json = metric_rows.as_json(found)
    assert as_json["x"]["problem"] in ("no\nsuch program", "the value is not a finite number")
    assert as_json["x"]["tags"]["git"]["mean"] == 1.0 and as_json["x"]["pass_at"] == {"1": {"value": 0.5, "samples": 2}}
    assert summarise([]).scorers == {}


def test_rows_come_from_samples_as_they_are_stored() -> None:
    scores = (
        SimpleNamespace(scorer="s", value=1.0, passed=True, error=None),
        SimpleNamespace(scorer="u", value=None, passed=None, error="no"),
    )
    samples = [SimpleNamespace(id="a", tags=("t",), scores=scores), SimpleNamespace(id="b", tags=(), scores=())]
    assert list(metric_rows.rows_of(samples)) == [
        ScoreValue("a", "s", 1.0, True, ("t",)),
        ScoreValue("a", "u", 0.0, None, ("t",), failed=True, problem="no"),
    ]
