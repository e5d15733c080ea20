"""Standings of results by scorer. Pure.

They are ranked by the mean over all planned samples, in which a sample without a score counts as 0, so that a
configuration that fails more often does not look better. Where a scorer has values below 0, such a sample counts as the
lowest value of the table instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...scoring.metrics import Metrics, ScoreValue, summarise
from .results import RunResult, names_by_scorers


@dataclass(frozen=True, slots=True)
class Standing:
    """The standing of a result for one scorer. `place` is that of the result in the list of all.

    `planned`, `scored` and `broken` (the scorer itself failed) count samples, epochs each. `of_scored` has the metrics
    over the scored samples, None without any; `of_all` those over all planned ones, None for a result that does not
    have the scorer. Only that has no `rank`; equal means have equal ranks.
    """

    place: int
    planned: int = 0
    scored: int = 0
    broken: int = 0
    of_scored: Metrics | None = None
    of_all: Metrics | None = None
    rank: int | None = None

    @property
    def mean(self) -> float | None:
        """The mean that results are ranked by."""
        return None if self.of_all is None else self.of_all.mean


def floor_of(results: Sequence[RunResult], scorer: str) -> float:
    """Return what a sample without a score counts as: 0, or the lowest value of any result if that is below 0."""
    return min((0.0, *(value for result in results for value in result.values.get(scorer, {}).values())))


def standings(
    results: Sequence[RunResult], scorer: str, floor: float, known: Mapping[str, Sequence[str]]
) -> list[Standing]:
    """Return the standings of all results, the best first; `floor` as of `floor_of`, `known` of `names_by_scorers`."""
    found = [_standing(place, result, scorer, floor, known) for place, result in enumerate(results)]
    means = [one.mean for one in found if one.mean is not None]
    ranked = [
        _ranked(one, 1 + sum(other > one.mean for other in means)) if one.mean is not None else one for one in found
    ]
    # Sorting keeps the order of the command line among equals.
    return sorted(ranked, key=lambda one: len(found) + 1 if one.rank is None else one.rank)


def means(results: Sequence[RunResult]) -> list[dict[str, float]]:
    """Return for each result the means that results are ranked by, by scorer."""
    known = names_by_scorers(results)
    found: list[dict[str, float]] = [{} for _ in results]
    for scorer in dict.fromkeys(scorer for result in results for scorer in result.scorers()):
        floor = floor_of(results, scorer)
        for result, means_of in zip(results, found, strict=True):
            if planned := result.planned(scorer, known):
                values = result.values.get(scorer, {})
                means_of[scorer] = math.fsum(values.get(key, floor) for key in planned) / len(planned)
    return found


def _standing(place: int, result: RunResult, scorer: str, floor: float, known: Mapping[str, Sequence[str]]) -> Standing:
    planned = result.planned(scorer, known)
    if not planned:
        return Standing(place)
    values = result.values.get(scorer, {})
    scored = [key for key in planned if key in values]
    return Standing(
        place,
        len(planned),
        len(scored),
        result.broken[scorer],
        summarise(ScoreValue(key[0], scorer, values[key]) for key in scored).scorers.get(scorer),
        summarise(ScoreValue(key[0], scorer, values.get(key, floor)) for key in planned).scorers[scorer],
    )


def _ranked(one: Standing, rank: int) -> Standing:
    return Standing(one.place, one.planned, one.scored, one.broken, one.of_scored, one.of_all, rank)
