"""Figures of scores against those of scipy and Inspect AI, which compute them by code of their own."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys

import pytest

from codex_batch.report import paired
from codex_batch.scoring.intervals import interval, t_quantile
from codex_batch.scoring.metrics import ScoreValue, pass_at_k, summarise

# In a process of its own: neither is a part of ours.
INSPECT = """
import json, sys
from inspect_ai.scorer import SampleScore, Score, accuracy, mean, pass_at, std, stderr
clusters = json.load(sys.stdin)
scores = [
    SampleScore(score=Score(value=value), sample_id=f"{n} {e}", sample_metadata={"sample": n})
    for n, values in enumerate(clusters) for e, value in enumerate(values)
]
first = [score for score in scores if score.sample_id.endswith(" 0")]
print(json.dumps({
    "mean": mean()(scores),
    "accuracy": accuracy()(scores),
    "stderr": stderr()(first),
    "clustered": stderr(cluster="sample")(scores),
    "pass_at": [
        sum(pass_at(k)([Score(value=value) for value in values]).as_float() for values in clusters) / len(clusters)
        for k in (1, 2, 5)
    ],
}))
"""
SCIPY = """
import json, sys
from scipy import stats
asked = json.load(sys.stdin)
values = asked["values"]
print(json.dumps({
    "t": [stats.t.ppf(0.975, df) for df in asked["df"]],
    "sem": stats.sem(values),
    "students": list(stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))),
    "wilson": [
        list(stats.binomtest(passed, n).proportion_ci(0.95, method="wilson")) for passed, n in asked["parts"]
    ],
    "mcnemar": [stats.binomtest(better, changed).pvalue for better, changed in asked["changed"]],
}))
"""


def run(program: str, given: object) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(given), capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.generate
def test_inspect_finds_the_same() -> None:
    draw = random.Random(3)
    clusters = [[float(draw.random() < part) for _ in range(5)] for part in (0.1, 0.5, 0.5, 0.9, 1.0, 0.3, 0.7)]
    theirs = run(INSPECT, clusters)
    rows = [ScoreValue(str(n), "s", value, value == 1.0) for n, values in enumerate(clusters) for value in values]
    ours = summarise(rows, k=(1, 2, 5)).scorers["s"]
    first = summarise([ScoreValue(str(n), "s", values[0]) for n, values in enumerate(clusters)]).scorers["s"]
    assert (ours.mean, ours.accuracy) == (pytest.approx(theirs["mean"]), pytest.approx(theirs["accuracy"]))
    assert first.stderr == pytest.approx(theirs["stderr"])
    assert ours.stderr == pytest.approx(theirs["clustered"])
    assert [value for value, _ in ours.pass_at.values()] == pytest.approx(theirs["pass_at"])


@pytest.mark.generate
def test_scipy_finds_the_same() -> None:
    values = [3.0, 5.0, 8.0, 4.0, 10.0]
    df = [1, 2, 5, 10, 11, 15, 30, 100, 1000]
    parts = [(5, 10), (7, 20), (50, 100), (390, 400)]
    changed = [(5, 5), (3, 12), (40, 100)]
    theirs = run(SCIPY, {"values": values, "df": df, "parts": parts, "changed": changed})
    assert [t_quantile(one) for one in df] == pytest.approx(theirs["t"], rel=5e-4)
    ours = summarise([ScoreValue(str(n), "s", value) for n, value in enumerate(values)]).scorers["s"]
    assert ours.stderr == pytest.approx(theirs["sem"])
    assert [ours.low, ours.high] == pytest.approx(theirs["students"], rel=1e-3)
    found = [interval([(1, float(n < passed)) for n in range(count)], "pass_fail") for passed, count in parts]
    assert [list(bounds or ()) for bounds in found] == [pytest.approx(one) for one in theirs["wilson"]]  # type: ignore[attr-defined]
    for (better, count), p in zip(changed, theirs["mcnemar"], strict=True):  # type: ignore[call-overload]
        difference = paired.difference([(0.0, 1.0)] * better + [(1.0, 0.0)] * (count - better) + [(1.0, 1.0)] * 3)
        assert difference is not None and difference.p == pytest.approx(p)


def test_known_values() -> None:
    """Values that the two find, by formulas in exact numbers: without them."""
    assert t_quantile(9) == pytest.approx(2.262157, abs=1e-4) and t_quantile(49) == pytest.approx(2.009575, abs=1e-4)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)
    # Clusters (1, 1), (0, 1), (0, 0): mean 1/2, sums of residuals 1, 0, -1.
    rows = [ScoreValue("a", "s", 1.0), ScoreValue("a", "s", 1.0), ScoreValue("b", "s", 0.0), ScoreValue("b", "s", 1.0)]
    found = summarise([*rows, ScoreValue("c", "s", 0.0), ScoreValue("c", "s", 0.0)]).scorers["s"]
    assert (found.mean, found.stderr) == (0.5, pytest.approx(math.sqrt(3 / 2 * 2) / 6))
