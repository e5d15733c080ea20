"""The whole table: results with their standings, comparisons and settings, and the same as plain values. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...scoring.metrics import Metrics
from .comparing import Comparison, compare, corrected
from .differing import Differing, differing, settings_of
from .ranking import Standing, floor_of, standings
from .results import RunResult, names_by_scorers


@dataclass(frozen=True, slots=True)
class ScorerTable:
    """Standings of all results for one scorer, the best first, and their comparisons with the baseline.

    `floor` is what a sample without a score counts as.
    """

    scorer: str
    floor: float
    standings: Sequence[Standing]
    comparisons: Sequence[Comparison]


@dataclass(frozen=True, slots=True)
class Table:
    """Results side by side; `baseline` is the place of the one that the others are compared with."""

    results: Sequence[RunResult]
    scorers: Sequence[ScorerTable]
    differing: Differing
    baseline: int | None

    def comparison(self, scorer: ScorerTable, place: int) -> Comparison | None:
        return next((one for one in scorer.comparisons if one.place == place), None)


def table_of(results: Sequence[RunResult], baseline: int | None = None, first: str | None = None) -> Table:
    """Rank results, and compare them with the one at the place `baseline`. `first`: the scorer to begin with."""
    names = list(dict.fromkeys(name for result in results for name in result.scorers()))
    if first is not None:
        names.sort(key=lambda name: name != first)
    known = names_by_scorers(results)
    floors = {name: floor_of(results, name) for name in names}
    compared = [
        compare(results[baseline], result, place, name, floors[name], known)
        for name in names
        for place, result in enumerate(results)
        if baseline is not None and place != baseline
    ]
    comparisons = corrected(compared)
    return Table(
        results,
        [
            ScorerTable(
                name,
                floors[name],
                standings(results, name, floors[name], known),
                [one for one in comparisons if one.scorer == name],
            )
            for name in names
        ],
        differing(results, baseline),
        baseline,
    )


def rows(table: Table) -> Iterator[dict[str, Any]]:
    """Yield the table as plain values: a row for each scorer and result, or each result if there are no scorers."""
    for scorer in table.scorers:
        for standing in scorer.standings:
            result = table.results[standing.place]
            yield {
                "scorer": scorer.scorer,
                "rank": standing.rank,
                **_identity(result),
                "planned": standing.planned,
                "scored": standing.scored,
                "scorer_failed": standing.broken,
                **_metrics("mean", standing.of_scored),
                **_metrics("mean_failures_as_0", standing.of_all),
                "failure_counts_as": scorer.floor,
                **_taken(result),
                "baseline": standing.place == table.baseline,
                **_compared(table.comparison(scorer, standing.place)),
                "differs": table.differing.lines[standing.place],
            }
    if not table.scorers:
        for place, result in enumerate(table.results):
            yield {**_identity(result), **_taken(result), "differs": table.differing.lines[place]}


def _identity(result: RunResult) -> dict[str, Any]:
    found = settings_of(result)
    return {
        "name": result.name,
        "run": result.path,
        "variant": result.variant,
        "model": found.get("model"),
        "effort": found.get("effort"),
        "dataset": result.dataset.get("name"),
        "dataset_fingerprint": result.dataset.get("fingerprint"),
        "state": result.state,
        "samples": result.samples,
        "completed": result.statuses["completed"],
    }


def _taken(result: RunResult) -> dict[str, Any]:
    return {
        "cost": result.known_cost,
        "currency": result.currency,
        "wall_s": result.span_s,
        "mean_duration_ms": result.mean_duration_ms,
        "tokens": result.tokens,
        "turns": result.turns,
        "tool_calls": result.tool_calls,
    }


def _metrics(name: str, metrics: Metrics | None) -> dict[str, Any]:
    values = (None, None, None) if metrics is None else (metrics.mean, metrics.low, metrics.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _compared(one: Comparison | None) -> dict[str, Any]:
    found = None if one is None else one.difference
    return {
        "difference": None if found is None else found.value,
        "difference_low": None if found is None else found.low,
        "difference_high": None if found is None else found.high,
        "better": None if found is None else found.better,
        "worse": None if found is None else found.worse,
        "same": None if found is None else found.same,
        "p": None if found is None else found.p,
        "p_holm": None if one is None else one.p,
        "only_baseline": None if one is None else one.only_baseline,
        "only_this": None if one is None else one.only_this,
        "asked_differently": None if one is None else one.asked_differently,
    }
