"""Intervals of 95 % for the mean of scores that come in clusters: the epochs of one sample. Pure.

A cluster is (count, total) of its scores. Pass/fail scores get a Wilson interval on the effective number of scores,
`n / deff`. The design effect `deff` is the variance of the mean over clusters, divided by the variance that n
independent scores would have. Where few clusters hold the rarer outcome that estimate is often much too small, so it is
averaged with the largest that is possible, with weights k**3 and 8 for k such clusters. `bench/intervals.py` measures
how often intervals hold the true mean; docs/guides/scoring.md has its figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Clusters = Sequence[tuple[int, float]]
Scale = Literal["pass_fail", "unit", "open"]
"""Scores that are all 0 or 1; scores from 0 to 1; other numbers."""

Z = 1.959963984540054
# Wilson's bound next to 0 or 1 is too tight for so few scores of one outcome (Brown, Cai and DasGupta 2001).
FEW = 3.5
_Z_ONE_SIDED = 1.6448536269514722
_T_BY_DF = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
_NO_SPREAD = 1e-12


def clustered_stderr(clusters: Clusters) -> float | None:
    """The standard error of the mean over all scores, clustered. None with fewer than two clusters.

    With one score a cluster it is s / sqrt(n).
    """
    number = len(clusters)
    if number < 2:
        return None
    scores = sum(count for count, _ in clusters)
    mean = math.fsum(total for _, total in clusters) / scores
    squares = math.fsum((total - count * mean) ** 2 for count, total in clusters)
    return math.sqrt(number / (number - 1) * squares) / scores


def interval(clusters: Clusters, scale: Scale) -> tuple[float, float] | None:
    """Bounds of the mean. None with fewer than two clusters, and for an open scale without any spread."""
    error = clustered_stderr(clusters)
    if error is None:
        return None
    scores = sum(count for count, _ in clusters)
    mean = math.fsum(total for _, total in clusters) / scores
    # As many independent scores as there would be if those of a cluster all agreed.
    fewest = scores * scores / sum(count * count for count, _ in clusters)
    if scale == "pass_fail":
        return wilson(mean, _effective(clusters, mean, error, scores, fewest))
    t = t_quantile(len(clusters) - 1)
    if error <= _NO_SPREAD * max(1.0, abs(mean)):
        return wilson(mean, fewest) if scale == "unit" else None
    if scale == "open" or not 0.0 < mean < 1.0:
        return mean - t * error, mean + t * error
    return wilson(mean, mean * (1 - mean) / error**2 * (Z / t) ** 2)


def _effective(clusters: Clusters, mean: float, error: float, scores: int, fewest: float) -> float:
    """Compute the effective sample size: the number of independent pass/fail scores that would say as much."""
    independent = mean * (1 - mean) / scores
    if independent <= _NO_SPREAD:
        return fewest
    most = scores / fewest
    if most == 1.0:
        return scores
    informative = min(sum(total > 0 for _, total in clusters), sum(total < count for count, total in clusters))
    weight = informative**3 / 8
    deff = (weight * max(error**2 / independent, 1.0) + most) / (weight + 1)
    return scores / deff * (Z / t_quantile(scores - 1)) ** 2


def wilson(part: float, scores: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion, wider where fewer than FEW scores are of one outcome.

    `scores` need not be whole.
    """
    spread = Z * Z / scores
    centre = (part + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(max(part * (1 - part), 0.0) / scores + spread / scores / 4)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    if part * scores < FEW:
        low = min(low, _poisson_low(part * scores) / scores)
    if (1 - part) * scores < FEW:
        high = max(high, 1 - _poisson_low((1 - part) * scores) / scores)
    return min(low, part), max(high, part)


def _poisson_low(count: float) -> float:
    """Half the 5 % quantile of chi-squared with 2 * count degrees of freedom, by Wilson and Hilferty."""
    if count <= 0:
        return 0.0
    part = 1 / (9 * count)
    return count * max(1 - part - _Z_ONE_SIDED * math.sqrt(part), 0.0) ** 3


def t_quantile(df: int) -> float:
    """Return the two-sided 95 % quantile of Student's distribution, to three decimals."""
    if df <= len(_T_BY_DF):
        return _T_BY_DF[max(df, 1) - 1]
    terms = ((Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96, (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384)
    return Z + sum(term / float(df) ** power for power, term in enumerate(terms, 1))
