"""The difference between two runs of the same samples, and how sure one may be of it. Pure. Intervals are of 95 %."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

_T_BY_DF = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
FLIPS = 20_000
FLIPPED_MOST = 200
EXACT_MOST = 12
SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Difference:
    """The means of A and B over samples that both have, the mean change with its interval, the p-value of no change.

    `low` and `high` are infinite with one sample alone.
    """

    before: float
    after: float
    value: float
    low: float
    high: float
    p: float
    test: str
    count: int
    better: int
    worse: int
    same: int


def t_quantile(df: int) -> float:
    """Of Student's distribution, two-sided 95 %."""
    if df <= len(_T_BY_DF):
        return _T_BY_DF[max(df, 1) - 1]
    z = 1.959964
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / float(df) ** power for power, term in enumerate(terms, 1))


def difference(pairs: Sequence[tuple[float, float]]) -> Difference | None:
    """Of (A, B) a sample. The test flips the signs of the changes: exactly where there are few of them or all are of
    one size (then it is McNemar's), by a seeded draw of 20,000 otherwise, and by the normal law beyond 200 changes."""
    if not pairs:
        return None
    changes = [after - before for before, after in pairs]
    better, worse = sum(change > SAME for change in changes), sum(change < -SAME for change in changes)
    count, value = len(changes), fmean(changes)
    if all(score in (0.0, 1.0) for pair in pairs for score in pair):
        # Agresti and Min: half a sample more in each of the four cells keeps the interval honest when few changed.
        middle = (better - worse) / (count + 2)
        half = 1.959964 * math.sqrt(max(better + worse + 1 - (better - worse) ** 2 / (count + 2), 0.0)) / (count + 2)
        low, high = max(-1.0, min(middle - half, value)), min(1.0, max(middle + half, value))
    else:
        half = _half(changes)
        low, high = value - half, value + half
    p, test = _flip_test([change for change in changes if abs(change) > SAME])
    before, after = (fmean(side) for side in zip(*pairs, strict=True))
    return Difference(before, after, value, low, high, p, test, count, better, worse, count - better - worse)


def _half(values: Sequence[float]) -> float:
    """Half the width of Student's interval; without a bound for one value alone."""
    count = len(values)
    if count < 2:
        return math.inf
    mean = fmean(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return t_quantile(count - 1) * math.sqrt(variance / count)


def _flip_test(changes: Sequence[float]) -> tuple[float, str]:
    """The p-value, two-sided, and how it was found."""
    count = len(changes)
    if not count:
        return 1.0, "nothing changed"
    sizes = [abs(change) for change in changes]
    if max(sizes) - min(sizes) < 1e-12:
        less = min(sum(change > 0 for change in changes), sum(change < 0 for change in changes))
        return min(1.0, 2.0 * _binomial_below(less, count)), "exact sign test (McNemar)"
    seen = abs(math.fsum(changes)) - 1e-9
    if count <= EXACT_MOST:
        sums = [0.0]
        for size in sizes:
            sums = [total + sign * size for total in sums for sign in (1, -1)]
        return sum(abs(total) >= seen for total in sums) / len(sums), "exact permutation test"
    if count > FLIPPED_MOST:
        spread = math.sqrt(math.fsum(size * size for size in sizes))
        return math.erfc((seen + 1e-9) / spread / math.sqrt(2)), "permutation test, normal law"
    draw = random.Random(0)
    total = math.fsum(sizes)
    hits = 0
    for _ in range(FLIPS):
        bits = draw.getrandbits(count)
        minus = sum(size for index, size in enumerate(sizes) if bits >> index & 1)
        hits += abs(total - 2 * minus) >= seen
    return (hits + 1) / (FLIPS + 1), "permutation test, 20,000 draws"


def _binomial_below(most: int, count: int) -> float:
    """Of `count` fair coins: how likely at most so many heads."""
    logs = (
        math.lgamma(count + 1) - math.lgamma(heads + 1) - math.lgamma(count - heads + 1) for heads in range(most + 1)
    )
    return math.fsum(math.exp(value - count * math.log(2)) for value in logs)
