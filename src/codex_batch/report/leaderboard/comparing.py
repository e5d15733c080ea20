"""Paired comparisons of results with a baseline. Pure.

The comparison is of what results are ranked by: over the samples that both planned, one without a score counts as the
floor. Epochs of one sample count as one, by their mean. The p-values of all comparisons of a table, of every scorer,
are corrected together by Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from .. import paired
from .results import Key, RunResult


@dataclass(frozen=True, slots=True)
class OfScored:
    """The mean change over the samples that both results scored, with its interval; `count` samples."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A result against the baseline, for one scorer. `place` is that of the result in the list of all.

    `difference` is None if no sample is in both. `p` is Holm-corrected. `only_baseline`, `only_this` and
    `asked_differently` count samples, epochs each: planned in one of them alone, or in both with other prompts or
    settings.
    """

    scorer: str
    place: int
    difference: paired.Difference | None
    of_scored: OfScored | None
    only_baseline: int
    only_this: int
    asked_differently: int
    p: float | None = None


def compare(
    baseline: RunResult, result: RunResult, place: int, scorer: str, floor: float, known: Mapping[str, Sequence[str]]
) -> Comparison:
    """Compare a result with the baseline; `floor` as of `ranking.floor_of`, `known` as of `names_by_scorers`."""
    before, after = baseline.planned(scorer, known), result.planned(scorer, known)
    both = sorted(set(before).intersection(after))
    first, second = baseline.values.get(scorer, {}), result.values.get(scorer, {})
    scored = [key for key in both if key in first and key in second]
    return Comparison(
        scorer,
        place,
        paired.of_epochs(_epochs(both, first, second, floor)),
        _of_scored(_epochs(scored, first, second, floor)),
        len(before) - len(both),
        len(after) - len(both),
        sum(baseline.digests[key] != result.digests[key] for key in both),
    )


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with their p-values corrected by Holm's method over all of them."""
    values = paired.holm([one.difference.p for one in comparisons if one.difference is not None])
    following = iter(values)
    return [one if one.difference is None else replace(one, p=next(following)) for one in comparisons]


def _epochs(
    keys: Sequence[Key], first: Mapping[Key, float], second: Mapping[Key, float], floor: float
) -> list[tuple[list[float], list[float]]]:
    found: dict[str, tuple[list[float], list[float]]] = {}
    for key in keys:
        a, b = found.setdefault(key[0], ([], []))
        a.append(first.get(key, floor))
        b.append(second.get(key, floor))
    return list(found.values())


def _of_scored(epochs: paired.Epochs) -> OfScored | None:
    if not epochs:
        return None
    pairs = [(fmean(a), fmean(b)) for a, b in epochs]
    low, high = paired.interval(pairs, paired.agreement_of(epochs))
    return OfScored(fmean(after - before for before, after in pairs), low, high, len(pairs))
