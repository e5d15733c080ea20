"""Figures of a run by variant: counts, scores, tokens and cost of each, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codex_pool.prices import UNKNOWN, amount

from ..scoring import metric_rows
from ..scoring.metrics import Summary, summarise
from ..store import RunStore
from ..store.rows import SampleRow, Spending
from . import summary

if TYPE_CHECKING:
    from ..report.leaderboard.results import RunResult

MEANS = "means of samples that ended; 0 without a score"


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """Figures of one variant, over all launches of the run. `spending` is of its attempts, without judges.

    `scored` has the metrics over the samples that were scored, `means` by scorer the mean over all that have
    ended, as leaderboards rank it.
    """

    name: str
    total: int
    counts: dict[str, int]
    not_valid: dict[str, int]
    scored: Summary
    means: dict[str, float]
    spending: Spending

    @property
    def done(self) -> int:
        """Samples that are completed, or reached a limit."""
        return self.counts["completed"] + self.counts["limit"]

    @property
    def failed(self) -> int:
        """Samples that have ended otherwise."""
        return sum(self.counts.values()) - self.counts["not_run"] - self.done


def by_variant(store: RunStore, names: Iterable[str], *, k: Sequence[int] = (1,)) -> list[VariantFigures]:
    """Read the figures of these variants."""
    from ..report.leaderboard.ranking import means
    from ..report.leaderboard.results import RunResult

    info, has_scores = store.info(), store.has_scores()
    results, scored = [], []
    for name in names:
        result = RunResult(name, info, variant=name)
        samples = _added(result, store.samples(variant=name)) if has_scores else ()
        scored.append(summarise(metric_rows.rows_of(samples), k=k))
        results.append(result)
    return [
        VariantFigures(
            result.name,
            (counts := store.counts(result.name))["total"],
            summary.count(counts),
            store.not_valid(result.name),
            found,
            of_all,
            store.spending(result.name),
        )
        for result, found, of_all in zip(results, scored, means(results), strict=True)
    ]


def _added(result: RunResult, samples: Iterable[SampleRow]) -> Iterator[SampleRow]:
    """Yield samples; those that have ended are added to the result."""
    for row in samples:
        if row.state == "done":
            result.add(row)
        yield row


def as_json(figures: Iterable[VariantFigures], currency: str | None) -> dict[str, Any]:
    """{variant: {counts, not_valid, metrics, tokens, cost, unknown_costs}}; `cost` None where not all is known."""
    return {
        each.name: {
            "counts": each.counts,
            "not_valid": each.not_valid,
            "metrics": metric_rows.as_json(each.scored),
            "tokens": each.spending.tokens,
            "cost": None if currency is None else each.spending.cost,
            "unknown_costs": each.spending.unknown,
        }
        for each in figures
    }


def table(figures: Sequence[VariantFigures], currency: str | None) -> list[tuple[str, str]]:
    """(name, columns) of a table with a line for each variant, below a line that names the columns.

    Narrow enough for 80 columns: `failed` is there if there are some, tokens if money is not.
    """
    if not figures:
        return []
    scorers = list(dict.fromkeys(scorer for each in figures for scorer in (*each.scored.scorers, *each.means)))
    some_failed = any(each.failed for each in figures)
    lines = [["done", *["failed"] * some_failed, *scorers, "tokens" if currency is None else "cost"]]
    for each in figures:
        failed = [f"{each.failed:,}"] * some_failed
        spent = f"{each.spending.tokens:,}" if currency is None else _cost(each.spending, currency)
        lines.append([f"{each.done:,}/{each.total:,}", *failed, *(_score(each, scorer) for scorer in scorers), spent])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rows = list(zip(["variant", *(each.name for each in figures)], texts, strict=True))
    return [*rows, ("", MEANS)] if scorers else rows


def _score(figures: VariantFigures, scorer: str) -> str:
    mean, metrics = figures.means.get(scorer), figures.scored.scorers.get(scorer)
    # pass@k leaves out what failed, which the mean counts.
    passed = {} if metrics is None or figures.failed else metrics.pass_at
    more = [f"pass@{k} {value:.3f}" for k, (value, _) in passed.items() if k > 1]
    return ", ".join(["-" if mean is None else f"{mean:.3f}", *more])


def _cost(spending: Spending, currency: str) -> str:
    if not spending.unknown:
        return amount(spending.known, currency)
    return f"≥ {amount(spending.known, currency)}" if spending.known else UNKNOWN
