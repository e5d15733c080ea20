"""Scores to figures one can defend: means with their standard errors, intervals, pass@k. Pure.

The unit is the sample: epochs of one sample are not independent of each other, so the standard error is clustered by
sample, and so are the intervals.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .intervals import Scale, clustered_stderr, interval

PROBLEMS_KEPT = 20


@dataclass(frozen=True, slots=True)
class ScoreValue:
    """One score. `failed` is true where the scorer itself failed; `sample` is an id without its epoch.

    A value that is not finite counts as failed.
    """

    sample: str
    scorer: str
    value: float
    passed: bool | None = None
    tags: tuple[str, ...] = ()
    failed: bool = False
    problem: str | None = None
    """Reason of the failure."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics of one scorer, or of one scorer and one tag.

    `scores` counts scores, `samples` the samples they belong to, `not_scored` those where the scorer itself failed.
    `stderr` is None with fewer than two samples; `low` and `high` bound the 95 % interval of the mean. `accuracy` is
    the part of scores that passed, None if the scorer knows no right and wrong. `pass_at` holds k -> (pass@k, samples
    with at least k scores).
    """

    scores: int
    samples: int
    not_scored: int
    mean: float | None
    stderr: float | None
    low: float | None
    high: float | None
    interval: str | None
    """`wilson` for scores from 0 to 1, `t` for others."""
    accuracy: float | None
    pass_at: dict[int, tuple[float, int]]
    problem: str | None = None
    """Reason for which most of `not_scored` failed."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Metrics by scorer, and by scorer and tag."""

    scorers: dict[str, Metrics]
    tags: dict[str, dict[str, Metrics]]


@dataclass(slots=True)
class _Cluster:
    """The scores of one sample."""

    count: int = 0
    total: float = 0.0
    passed: int = 0
    judged: int = 0


@dataclass(slots=True)
class _Group:
    clusters: defaultdict[str, _Cluster] = field(default_factory=lambda: defaultdict(_Cluster))
    not_scored: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    pass_fail: bool = True
    unit: bool = True

    def add(self, row: ScoreValue) -> None:
        if row.failed or not math.isfinite(row.value):
            self.not_scored += 1
            problem = row.problem if row.failed else "the value is not a finite number"
            if problem and (problem in self.problems or len(self.problems) < PROBLEMS_KEPT):
                self.problems[problem] += 1
            return
        self.pass_fail = self.pass_fail and row.value in (0.0, 1.0)
        self.unit = self.unit and 0.0 <= row.value <= 1.0
        cluster = self.clusters[row.sample]
        cluster.count += 1
        cluster.total += row.value
        if row.passed is not None:
            cluster.judged += 1
            cluster.passed += row.passed

    @property
    def scale(self) -> Scale:
        return "pass_fail" if self.pass_fail else "unit" if self.unit else "open"


def summarise(rows: Iterable[ScoreValue], *, k: Sequence[int] = (1,)) -> Summary:
    """The figures of all scores, read once."""
    groups: defaultdict[str, _Group] = defaultdict(_Group)
    tagged: defaultdict[str, defaultdict[str, _Group]] = defaultdict(lambda: defaultdict(_Group))
    for row in rows:
        groups[row.scorer].add(row)
        for tag in dict.fromkeys(row.tags):
            tagged[row.scorer][tag].add(row)
    return Summary(
        {scorer: _metrics(group, k) for scorer, group in groups.items()},
        {
            scorer: {tag: _metrics(group, k) for tag, group in sorted(by_tag.items())}
            for scorer, by_tag in tagged.items()
        },
    )


def _metrics(group: _Group, k: Sequence[int]) -> Metrics:
    clusters = [(cluster.count, cluster.total) for cluster in group.clusters.values()]
    scores = sum(count for count, _ in clusters)
    judged = [cluster for cluster in group.clusters.values() if cluster.judged]
    mean = math.fsum(total for _, total in clusters) / scores if scores else None
    error = clustered_stderr(clusters)
    bounds = interval(clusters, group.scale)
    pass_at = {}
    for wanted in k:
        values = [pass_at_k(cluster.judged, cluster.passed, wanted) for cluster in judged if cluster.judged >= wanted]
        if values:
            pass_at[wanted] = (math.fsum(values) / len(values), len(values))
    return Metrics(
        scores=scores,
        samples=len(clusters),
        not_scored=group.not_scored,
        mean=mean,
        stderr=error,
        low=None if bounds is None else bounds[0],
        high=None if bounds is None else bounds[1],
        interval=None if bounds is None else "t" if group.scale == "open" else "wilson",
        accuracy=sum(c.passed for c in judged) / sum(c.judged for c in judged) if judged else None,
        pass_at=pass_at,
        problem=next((problem for problem, _ in group.problems.most_common(1)), None),
    )


def pass_at_k(scores: int, passed: int, k: int) -> float:
    """The chance that at least one of `k` scores drawn from `scores` passed: 1 - C(n-c, k) / C(n, k), unbiased.

    Raises ValueError when there are fewer than k.
    """
    if not 1 <= k <= scores or not 0 <= passed <= scores:
        raise ValueError(f"pass@{k} of {scores} scores, {passed} of them passed; expected at least {k}")
    return 1.0 - math.comb(scores - passed, k) / math.comb(scores, k)
