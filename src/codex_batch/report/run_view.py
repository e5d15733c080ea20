"""Contents of a run's page, as values for its template: facts about the run, totals, scores, plots. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from codex_app_server._runtime.text import plural
from codex_pool.prices import UNKNOWN

from ..scoring.metrics import Metrics
from . import plots, units
from .figures import RunFigures
from .source import RunFacts

ERRORS_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Known:
    """Facts about a run, including the model and provider that answered in it."""

    name: str
    problem: str | None
    facts: Sequence[tuple[str, str]]
    configuration: str | None


@dataclass(frozen=True, slots=True)
class Card:
    """A figure with its name and a note."""

    name: str
    value: str
    more: str | None


@dataclass(frozen=True, slots=True)
class StatusCount:
    """Number of samples of a status; `class_` is the status in the stylesheet."""

    name: str
    class_: str
    count: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Number of samples by status, and what the run took. `reasons` are lists of what went wrong, by their title."""

    bar: plots.StatusBar
    statuses: Sequence[StatusCount]
    cards: Sequence[Card]
    reasons: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class ScoreLine:
    """A scorer's mean with its interval, over all samples or those of one tag."""

    name: str
    is_tag: bool
    mean: str
    interval: str
    drawn: Sequence[plots.Shape] | None
    passed: str
    pass_at_k: str
    scored: str
    not_scored: int


@dataclass(frozen=True, slots=True)
class Scores:
    """A group of lines for each scorer. `k` is the number of epochs, None for one; `axis` labels the scale."""

    groups: Sequence[Sequence[ScoreLine]]
    axis: tuple[str, str]
    k: int | None


def known_of(run: RunFacts, figures: RunFigures) -> Known:
    """Collect what is known of a run as a whole."""
    return Known(run.name, run.problem, [*figures.who_answered(), *run.facts], run.configuration)


def totals(figures: RunFigures, currency: str | None) -> Totals:
    """Count how many samples ended how, and what the run took."""
    statuses = figures.ordered_statuses()
    usage = figures.usage
    cards = [
        Card("samples", f"{figures.samples:,}", f"of {figures.epochs} epochs" if figures.epochs > 1 else None),
        Card(
            "tokens",
            _big(usage["total_tokens"]),
            f"{_big(usage['input_tokens'])} in, {_big(usage['cached_input_tokens'])} of them cached, "
            f"{_big(usage['output_tokens'])} out",
        ),
        _cost(figures, currency),
    ]
    if figures.not_valid:
        cards.append(Card("not valid", f"{figures.not_valid:,}", "in no mean, interval or pass@k"))
    span_s = figures.span_s()
    if span_s is not None:
        rate = len(figures.ends) / span_s * 60 if span_s else 0.0
        cards.append(Card("from start to end", units.duration(span_s * 1000), f"{units.number(rate)} samples a minute"))
    retries = plural(figures.retries, "retry", "retries") if figures.retries else "no retries"
    cards.append(Card("tool calls", _big(figures.tool_calls), retries))
    reasons = [
        (title, [f"{name} {count:,}" for name, count in counts.most_common(ERRORS_SHOWN)])
        for title, counts in (("Errors", figures.errors), ("Limits reached", figures.limits))
    ]
    return Totals(
        plots.status_bar(statuses),
        [StatusCount(name, plots.class_of(name), count) for name, count in statuses],
        cards,
        [(title, texts) for title, texts in reasons if texts],
    )


def _cost(figures: RunFigures, currency: str | None) -> Card:
    """The cost of all attempts and judges; without prices, or where one is not known, it is unknown."""
    if currency is None:
        return Card("cost", UNKNOWN, "the run had no prices")
    money = partial(units.money, currency=currency)
    if not figures.unknown_costs:
        ended = sum(count for name, count in figures.statuses.items() if name not in ("not run", "running"))
        return Card("cost", money(figures.cost), f"{money(figures.cost / max(1, ended))} a sample, with judges")
    unknown = f"nothing is known of {plural(figures.unknown_costs, 'part')} of it"
    return Card("cost", UNKNOWN, f"at least {money(figures.cost)}; {unknown}" if figures.cost else unknown)


def scores(figures: RunFigures) -> Scores | None:
    """A group for each scorer: its mean with interval, and the same by tag. None without scorers."""
    summary = figures.scores()
    if not summary.scorers:
        return None
    order = {tag: -count for tag, count in figures.tags.items()}
    by_tag = {
        scorer: sorted(summary.tags.get(scorer, {}).items(), key=lambda item: (order[item[0]], item[0]))
        for scorer in summary.scorers
    }
    floor, ceiling = _range([*summary.scorers.values(), *(line for lines in by_tag.values() for _, line in lines)])
    k = figures.epochs if figures.epochs > 1 else None
    groups = [
        [
            _score_line(line, scorer, floor, ceiling, k, of=len(figures.ids)),
            *(_score_line(inner, tag, floor, ceiling, k) for tag, inner in by_tag[scorer]),
        ]
        for scorer, line in summary.scorers.items()
    ]
    return Scores(groups, (units.number(floor), units.number(ceiling)), k)


def _score_line(
    line: Metrics, name: str, floor: float, ceiling: float, k: int | None, of: int | None = None
) -> ScoreLine:
    """`of` is the number of samples of the run, for a line of all of them; a line of a tag has none."""
    low, high = line.low, line.high
    drawn = None
    if line.mean is not None:
        bounds = (low, high) if low is not None and high is not None else (-math.inf, math.inf)
        drawn = plots.interval(line.mean, *bounds, floor, ceiling)
    return ScoreLine(
        name,
        is_tag=of is None,
        mean=units.NOTHING if line.mean is None else value_text(line.mean),
        interval=units.NOTHING if low is None or high is None else f"{value_text(low)} to {value_text(high)}",
        drawn=drawn,
        passed=units.NOTHING if line.accuracy is None else f"{line.accuracy:.1%}",
        pass_at_k=value_text(line.pass_at[k][0]) if k in line.pass_at else units.NOTHING,
        scored=f"{line.samples:,}" if of is None else f"{line.samples:,} of {of:,}",
        not_scored=line.not_scored,
    )


def plots_of(figures: RunFigures) -> list[plots.Plot]:
    """The plots of a run: time and tokens of its samples, throughput, workers."""
    return [
        plots.histogram(
            "Time of a sample", figures.durations_ms, units.duration, _duration_tick, _duration_step, "longest"
        ),
        plots.histogram(
            "Tokens of a sample", figures.tokens, lambda value: f"{value:,.0f}", units.short, units.round_step, "most"
        ),
        plots.throughput("Throughput", figures.ends),
        plots.timeline("Workers", figures.spans),
    ]


def value_text(value: float) -> str:
    """A score or a mean of scores."""
    shown = f"{abs(value):.3f}" if abs(value) < 100 else units.number(abs(value))
    return units.MINUS + shown if value < 0 and float(shown.replace(",", "")) else shown


def _range(lines: Iterable[Metrics]) -> tuple[float, float]:
    """The scale that all the intervals are drawn on: 0 to 1 where that is enough."""
    values = [value for line in lines for value in (line.mean, line.low, line.high) if value is not None]
    if not values or (min(values) >= 0 and max(values) <= 1):
        return 0.0, 1.0
    step = units.round_step((max(values) - min(values)) or abs(values[0]) or 1.0, 4)
    return step * math.floor(min(values) / step), step * math.ceil(max(values) / step)


def _duration_tick(ms: float) -> str:
    if ms == 0:
        return "0"
    return f"{ms / 1000:.3g} s" if 1000 <= ms < 60_000 else units.duration(ms)


def _duration_step(span_ms: float, steps: int) -> float:
    return units.time_step_s(span_ms / 1000, steps) * 1000


def _big(value: float) -> str:
    return f"{value:,.0f}" if value < 10_000 else units.short(value)
