"""Figures of scores, against formulas written another way."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codex_pool.batch.scoring import summary
from codex_pool.batch.scoring.metrics import (
    BOOTSTRAP_UP_TO,
    Row,
    clustered_stderr,
    interval,
    pass_at_k,
    quantile,
    summarise,
)

VALUES = st.lists(st.floats(-100, 100, allow_nan=False), min_size=2, max_size=30)


@given(VALUES)
def test_without_epochs_the_error_is_that_of_the_mean(values: list[float]) -> None:
    metrics = summarise([Row(str(n), "s", value) for n, value in enumerate(values)]).scorers["s"]
    assert metrics.mean is not None and metrics.stderr is not None
    assert math.isclose(metrics.mean, statistics.fmean(values), abs_tol=1e-9)
    expected = statistics.stdev(values) / math.sqrt(len(values))
    assert math.isclose(metrics.stderr, expected, rel_tol=1e-6, abs_tol=1e-9)
    assert (metrics.scores, metrics.samples, metrics.not_scored) == (len(values), len(values), 0)


@given(VALUES, st.integers(1, 5))
def test_repeating_every_score_tells_nothing_new(values: list[float], epochs: int) -> None:
    rows = [Row(str(n), "s", value) for n, value in enumerate(values) for _ in range(epochs)]
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
    rows = [Row("a", "s", 1.0, True), Row("a", "s", 0.0, False), Row("b", "s", 1.0, True)]
    metrics = summarise(rows, k=(1, 2, 3)).scorers["s"]
    assert metrics.pass_at == {1: (0.75, 2), 2: (1.0, 1)}
    assert metrics.accuracy == 2 / 3


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1, allow_nan=False), min_size=2, max_size=40), st.integers(0, 5))
def test_an_interval_is_seeded_and_holds_the_mean(values: list[float], seed: int) -> None:
    clusters = [(1, value) for value in values]
    bounds = interval(clusters, seed=seed, resamples=200)
    assert bounds is not None and bounds == interval(clusters, seed=seed, resamples=200)
    low, high = bounds
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert low - 1e-9 <= statistics.fmean(values) <= high + 1e-9 or len(values) < 8


def test_the_bootstrap_agrees_with_the_normal_distribution_where_both_hold() -> None:
    generator = random.Random(1)
    clusters = [(1, generator.gauss(0.0, 1.0)) for _ in range(500)]
    error = clustered_stderr(clusters)
    bounds = interval(clusters, seed=3)
    assert error is not None and bounds is not None
    assert math.isclose(bounds[1] - bounds[0], 2 * 1.96 * error, rel_tol=0.1)
    many = [(1, float(n % 2)) for n in range(BOOTSTRAP_UP_TO + 1)]
    low, high = interval(many) or (0.0, 0.0)
    assert math.isclose(high - low, 2 * 1.96 * (clustered_stderr(many) or 0.0), rel_tol=1e-3)


@given(st.lists(st.floats(-5, 5, allow_nan=False), min_size=2, max_size=20), st.floats(0.01, 0.99))
def test_quantiles_are_those_of_the_standard_library(values: list[float], part: float) -> None:
    values.sort()
    cut = statistics.quantiles(values, n=100, method="inclusive")[max(0, min(98, round(part * 100) - 1))]
    assert math.isclose(quantile(values, max(1, min(99, round(part * 100))) / 100), cut, abs_tol=1e-9)


def test_tags_scorers_and_what_was_not_scored() -> None:
    rows = [
        Row("a", "x", 1.0, True, ("easy", "git")),
        Row("b", "x", 0.0, False, ("easy", "easy")),
        Row("c", "x", 0.0, None, failed=True),
        Row("a", "y", 0.5),
    ]
    found = summarise(iter(rows))
    assert list(found.scorers) == ["x", "y"] and list(found.tags) == ["x"]
    x, y = found.scorers["x"], found.scorers["y"]
    assert (x.mean, x.scores, x.not_scored, x.accuracy) == (0.5, 2, 1, 0.5)
    assert (y.mean, y.stderr, y.low, y.accuracy, y.pass_at) == (0.5, None, None, None, {})
    assert {tag: (m.mean, m.samples) for tag, m in found.tags["x"].items()} == {"easy": (0.5, 2), "git": (1.0, 1)}
    assert summary.printed(found)[0][1] == ("0.500 ± 0.500 [0.000, 1.000], 2 samples, 1 not scored: the scorer failed")
    assert [name for name, _ in summary.printed(found)] == ["x", "  easy", "  git", "y"]
    as_json = summary.as_json(found)
    assert as_json["x"]["tags"]["git"]["mean"] == 1.0 and as_json["x"]["pass_at"] == {"1": {"value": 0.5, "samples": 2}}
    assert summarise([]).scorers == {}


def test_rows_come_from_samples_as_they_are_stored() -> None:
    scores = (
        SimpleNamespace(scorer="s", value=1.0, passed=True, error=None),
        SimpleNamespace(scorer="u", value=None, passed=None, error="no"),
    )
    samples = [SimpleNamespace(id="a", tags=("t",), scores=scores), SimpleNamespace(id="b", tags=(), scores=())]
    assert list(summary.rows_of(samples)) == [
        Row("a", "s", 1.0, True, ("t",)),
        Row("a", "u", 0.0, None, ("t",), failed=True),
    ]
