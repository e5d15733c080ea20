"""The difference between two runs of the same samples, and how sure one may be of it. Pure. Intervals are of 95 %."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from statistics import fmean

from ..scoring.intervals import Z, t_quantile

Epochs = Sequence[tuple[Sequence[float], Sequence[float]]]
"""The scores of each sample in A and in B, one for each epoch."""
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


def difference(pairs: Sequence[tuple[float, float]], agreement: float | None = None) -> Difference | None:
    """Compute the difference from (A, B) of each sample; `agreement` as by `agreement_of`, if scores are pass/fail.

    The test flips the signs of the changes: exactly where there are few of them or all are of one size (then it is
    McNemar's), by a seeded draw of 20,000 otherwise, and by the normal law beyond 200 changes.
    """
    if not pairs:
        return None
    changes = [after - before for before, after in pairs]
    better, worse = sum(change > SAME for change in changes), sum(change < -SAME for change in changes)
    low, high = interval(pairs, agreement)
    p, test = _flip_test([change for change in changes if abs(change) > SAME])
    before, after = (fmean(side) for side in zip(*pairs, strict=True))
    count = len(changes)
    return Difference(before, after, fmean(changes), low, high, p, test, count, better, worse, count - better - worse)


def of_epochs(epochs: Epochs) -> Difference | None:
    """The same of samples with several scores; those of one sample count as one, by their mean."""
    return difference([(fmean(first), fmean(second)) for first, second in epochs], agreement_of(epochs))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several comparisons by Holm's method: each at most 1, in the order given.

    Among comparisons without any difference, the probability that one or more of the results is below 0.05 is at most
    5 %.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for step, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - step) * p_values[place]))
        corrected[place] = highest
    return corrected


def agreement_of(epochs: Epochs) -> float | None:
    """Measure how far epochs of a sample agree in what changed: 1 / epochs if independent, to 1. None if not pass/fail.

    It is the variance of a sample's mean change, in parts of the variance of one epoch's.
    """
    if any(score not in (0.0, 1.0) for pair in epochs for side in pair for score in side):
        return None
    single = [[after - before for before, after in zip(*pair, strict=True)] for pair in epochs]
    one = math.fsum(fmean(change * change for change in changes) for changes in single)
    mean = math.fsum(fmean(changes) ** 2 for changes in single)
    # Half a sample more whose epochs agree: few changes show little of their agreement.
    return (mean + 0.5) / (one + 0.5)


def interval(pairs: Sequence[tuple[float, float]], agreement: float | None = None) -> tuple[float, float]:
    """Bounds of the mean change; infinite for one pair of scores that are not pass/fail."""
    changes = [after - before for before, after in pairs]
    count, value = len(changes), fmean(changes)
    scores = [score for pair in pairs for score in pair]
    if agreement is None and (
        all(score in (0.0, 1.0) for score in scores)
        or (count > 1 and min(changes) == max(changes) and all(0.0 <= score <= 1.0 for score in scores))
    ):
        # Also where every score from 0 to 1 changed alike: a sample without spread does not show how much there is.
        agreement = 1.0
    if agreement is None:
        half = _half(changes)
        return value - half, value + half
    # Agresti and Min: half a sample more in each of the four cells keeps the interval honest when few changed.
    middle = math.fsum(changes) / (count + 2)
    variance = (math.fsum(change * change for change in changes) + agreement) / (count + 2) - middle**2
    half = Z * math.sqrt(max(variance, 0.0) / (count + 2))
    return max(-1.0, min(middle - half, value)), min(1.0, max(middle + half, value))


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
    # The sums of all choices of eight sizes, so that a byte of random bits is one look-up.
    sums_by_byte = [_subset_sums(sizes[first : first + 8]) for first in range(0, count, 8)]
    hits = 0
    for _ in range(FLIPS):
        flipped = draw.getrandbits(count).to_bytes(len(sums_by_byte), "little")
        hits += abs(total - 2 * sum(map(getitem, sums_by_byte, flipped))) >= seen
    return (hits + 1) / (FLIPS + 1), "permutation test, 20,000 draws"


def _subset_sums(sizes: Sequence[float]) -> list[float]:
    """Return the sums of all subsets: bit n of an index says that size n is in it."""
    sums = [0.0]
    for size in sizes:
        sums += [total + size for total in sums]
    return sums


def _binomial_below(most: int, count: int) -> float:
    """Return the probability of at most `most` heads in `count` tosses of a fair coin."""
    logs = (
        math.lgamma(count + 1) - math.lgamma(heads + 1) - math.lgamma(count - heads + 1) for heads in range(most + 1)
    )
    return math.fsum(math.exp(value - count * math.log(2)) for value in logs)
