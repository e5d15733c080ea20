"""Contents of a leaderboard's page, as values for its template. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from codex_app_server._runtime.text import plural
from codex_pool.prices import UNKNOWN

from ...scoring.metrics import Metrics
from .. import plots, units
from ..comparison_view import p_text, signed
from ..run_view import value_text
from .chart import failures_as, scale_of
from .comparing import Comparison
from .differing import model_and_effort, settings_of
from .ranking import Standing
from .results import RunResult
from .table import ScorerTable, Table

SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure of a row: `value` sorts it, None without one. `more` stands below it, `class_` is of the stylesheet."""

    text: str
    value: float | str | None = None
    more: str | None = None
    class_: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A result in the table of one scorer. `drawn` is its interval, `report` the address of its own page."""

    rank: Cell
    name: str
    settings: str
    differs: str
    is_baseline: bool
    report: str | None
    drawn: Sequence[plots.Shape] | None
    of_all: Cell
    of_scored: Cell
    scored: Cell
    change: Cell | None
    cost: Cell
    time: Cell
    tokens: Cell
    turns: Cell


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison with the baseline; all texts. `way` is better or worse where the corrected p is below 0.05."""

    name: str
    differs: str
    before: str
    after: str
    change: str
    interval: str
    drawn: Sequence[plots.Shape]
    counts: Sequence[tuple[str, str, int]]
    p: str
    p_holm: str
    of_scored: str
    of_scored_more: str
    samples: str
    way: str | None


@dataclass(frozen=True, slots=True)
class OfScorer:
    """All of the page that is of one scorer. `axis` labels the scale of its intervals."""

    name: str
    failures_as: str
    axis: tuple[str, str]
    rows: Sequence[Row]
    compared: Sequence[Compared]
    compared_axis: tuple[str, str, str]
    tests: str


@dataclass(frozen=True, slots=True)
class Page:
    """A leaderboard. `notes` are facts that limit what may be concluded from it."""

    title: str
    same: str
    baseline: str | None
    comparisons: int
    notes: Sequence[str]
    scorers: Sequence[OfScorer]
    unscored: Sequence[Row]
    """Rows of results without any scorer."""


def page_of(table: Table, reports: Mapping[int, str]) -> Page:
    """Describe a table for its page. `reports`: addresses of the results' own reports, by place."""
    runs = len({result.path for result in table.results})
    count = len(table.results)
    if runs == 1:
        title = f"{_base(table.results[0])}: {plural(count, 'variant')}" if count > 1 else _base(table.results[0])
    else:
        title = plural(runs, "run") if runs == count else f"{count:,} results of {plural(runs, 'run')}"
    nobody = ScorerTable("", 0.0, [Standing(place) for place in range(len(table.results))], ())
    return Page(
        title,
        table.differing.same,
        None if table.baseline is None else table.results[table.baseline].name,
        sum(one.p is not None for scorer in table.scorers for one in scorer.comparisons),
        list(_notes(table)),
        [_of_scorer(table, scorer, reports) for scorer in table.scorers],
        [] if table.scorers else _rows(table, nobody, reports),
    )


def _base(result: RunResult) -> str:
    return result.path.rstrip("/").rpartition("/")[2] or result.name


def _notes(table: Table) -> list[str]:
    results = table.results
    notes = []
    datasets = {(str(one.dataset.get("name")), one.dataset.get("fingerprint")) for one in results}
    if len({fingerprint for _, fingerprint in datasets}) > 1:
        said = ", ".join(sorted(f"{name} ({fingerprint or 'unknown'})" for name, fingerprint in datasets))
        notes.append(f"The runs are of different datasets, or of different parts of one: {said}.")
    for state, words in (
        ("running", "still under way"),
        ("died", "of a run that died and has not been resumed"),
        ("interrupted", "of a run that was interrupted"),
    ):
        names = [one.name for one in results if one.state == state]
        if names:
            verb = "is" if len(names) == 1 else "are"
            notes.append(f"{', '.join(names)} {verb} {words}: samples that were not run count as failures.")
    if any(one.shares_judges for one in results):
        notes.append("Judges were paid for all variants of a run together; their cost is in none of these rows.")
    if table.differing.unknown:
        names = [results[place].name for place in table.differing.unknown]
        notes.append(f"The effective configuration is not known of {', '.join(names)}.")
    if len({one.currency for one in results if one.currency is not None}) > 1:
        notes.append("The runs have prices in different currencies.")
    return notes


def _of_scorer(table: Table, scorer: ScorerTable, reports: Mapping[int, str]) -> OfScorer:
    floor, ceiling = scale_of(scorer.standings)
    changes = [one for one in scorer.comparisons if one.difference is not None]
    extent = max((_extent(one) for one in changes), default=0.1)
    extent = (
        units.round_step(extent, 1) if extent > 1 else next(edge for edge in (0.1, 0.2, 0.5, 1.0) if extent <= edge)
    )
    order = {one.place: index for index, one in enumerate(scorer.standings)}
    return OfScorer(
        scorer.scorer,
        failures_as(scorer.floor),
        (units.number(floor), units.number(ceiling)),
        _rows(table, scorer, reports),
        [_compared(table, one, extent) for one in sorted(scorer.comparisons, key=lambda one: order[one.place])],
        (f"{units.MINUS}{extent:g}", "0", f"+{extent:g}"),
        "; ".join(sorted({one.difference.test for one in changes if one.difference is not None})),
    )


def _rows(table: Table, scorer: ScorerTable, reports: Mapping[int, str]) -> list[Row]:
    scale = scale_of(scorer.standings)
    base = next((one.mean for one in scorer.standings if one.place == table.baseline), None)
    return [_row(table, scorer, standing, scale, base, reports) for standing in scorer.standings]


def _row(
    table: Table,
    scorer: ScorerTable,
    standing: Standing,
    scale: tuple[float, float],
    base: float | None,
    reports: Mapping[int, str],
) -> Row:
    result, comparison = table.results[standing.place], table.comparison(scorer, standing.place)
    differs = table.differing.lines[standing.place]
    drawn = None
    if standing.of_all is not None and standing.of_all.mean is not None:
        low, high = standing.of_all.low, standing.of_all.high
        bounds = (-math.inf, math.inf) if low is None or high is None else (low, high)
        drawn = plots.interval(standing.of_all.mean, *bounds, *scale, zero=base)
    return Row(
        Cell("" if standing.rank is None else str(standing.rank), standing.rank),
        result.name,
        model_and_effort(settings_of(result)),
        "" if standing.place == table.baseline else differs,
        standing.place == table.baseline,
        reports.get(standing.place),
        drawn,
        _mean(standing.of_all),
        _mean(standing.of_scored),
        _scored(result, standing),
        _change(comparison) if scorer.comparisons else None,
        _cost(result),
        _time(result),
        Cell(units.short(result.tokens), result.tokens, _each(result.tokens, result, units.short)),
        Cell(f"{result.turns:,}", result.turns, plural(result.tool_calls, "tool call") if result.tool_calls else None),
    )


def _mean(metrics: Metrics | None) -> Cell:
    if metrics is None or metrics.mean is None:
        return Cell(units.NOTHING)
    more = None
    if metrics.low is not None and metrics.high is not None:
        more = f"{value_text(metrics.low)} to {value_text(metrics.high)}"
    return Cell(value_text(metrics.mean), metrics.mean, more)


def _scored(result: RunResult, standing: Standing) -> Cell:
    if not standing.planned:
        count = result.statuses["completed"]
        return Cell(f"0/{result.samples:,}", 0.0, f"{count:,} completed")
    reasons = [f"{standing.broken:,} scorer failed"] if standing.broken else []
    not_run = result.statuses["not run"] + result.statuses["running"]
    reasons += [f"{not_run:,} not run"] if not_run else []
    failed = standing.planned - standing.scored - standing.broken - not_run
    reasons += [f"{failed:,} failed"] if failed > 0 else []
    share = standing.scored / standing.planned
    return Cell(
        f"{standing.scored:,}/{standing.planned:,}", share, ", ".join(reasons) or None, "bad" if reasons else ""
    )


def _change(one: Comparison | None) -> Cell:
    if one is None:
        return Cell("baseline")
    if one.difference is None or one.p is None:
        return Cell(units.NOTHING)
    way = _way(one)
    return Cell(signed(one.difference.value, value_text), one.difference.value, f"p {p_text(one.p, '= ')}", way or "")


def _way(one: Comparison) -> str | None:
    found = one.difference
    if found is None or one.p is None or one.p >= SIGNIFICANT or not math.isfinite(found.high):
        return None
    return "better" if found.value > 0 else "worse"


def _compared(table: Table, one: Comparison, extent: float) -> Compared:
    found, scored = one.difference, one.of_scored
    samples = f"{0 if found is None else found.count:,} in both"
    for count, words in (
        (one.only_baseline, "only in the baseline"),
        (one.only_this, "only in this"),
        (one.asked_differently, "asked differently"),
    ):
        samples += f", {count:,} {words}" if count else ""
    no = units.NOTHING
    return Compared(
        table.results[one.place].name,
        table.differing.lines[one.place],
        no if found is None else value_text(found.before),
        no if found is None else value_text(found.after),
        no if found is None else signed(found.value, value_text),
        no if found is None else _interval(found.low, found.high),
        [] if found is None else plots.interval(found.value, found.low, found.high, -extent, extent, zero=0.0),
        () if found is None else (("better", "▲", found.better), ("worse", "▼", found.worse), ("same", "", found.same)),
        no if found is None else p_text(found.p),
        no if one.p is None else p_text(one.p),
        no if scored is None else signed(scored.value, value_text),
        "" if scored is None else f"{_interval(scored.low, scored.high)}, {plural(scored.count, 'sample')}",
        samples,
        _way(one),
    )


def _interval(low: float, high: float) -> str:
    return f"{signed(low, value_text)} to {signed(high, value_text)}" if math.isfinite(high) else units.NOTHING


def _extent(one: Comparison) -> float:
    found = one.difference
    assert found is not None
    return max(abs(end) for end in (found.low, found.high, found.value) if math.isfinite(end))


def _cost(result: RunResult) -> Cell:
    money = partial(units.money, currency=result.currency)
    if result.currency is None:
        return Cell(UNKNOWN, None, "no prices")
    if result.known_cost is None:
        return Cell(UNKNOWN, None, f"at least {money(result.cost)}")
    return Cell(money(result.cost), result.cost, _each(result.cost, result, money))


def _time(result: RunResult) -> Cell:
    span_s, mean = result.span_s, result.mean_duration_ms
    return Cell(
        units.duration(None if span_s is None else span_s * 1000),
        span_s,
        None if mean is None else f"{units.duration(mean)} a sample",
    )


def _each(total: float, result: RunResult, write: Callable[[float], str]) -> str | None:
    ran = result.samples - result.statuses["not run"] - result.statuses["running"]
    return f"{write(total / ran)} a sample" if ran and total else None
