"""The parts of a run's page that stand in it as markup: what is known of the run, totals, scores, plots. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

from ..prices import UNKNOWN
from ..scoring.metrics import Metrics
from . import plots, units
from .figures import RunFigures
from .markup import Html, element
from .source import RunFacts

ERRORS_SHOWN = 6


def heading(kind: str, runs: Sequence[RunFacts], figures: Sequence[RunFigures], names: Sequence[str] = ()) -> Html:
    """The title and what is known of each run, who answered in it included."""
    title = " and ".join(run.name for run in runs)
    top = element(
        "header",
        element("div", element("p", kind, class_="kind"), element("h1", title), class_="title"),
        element("button", "Colours", type="button", id="theme", class_="quiet"),
        class_="top",
    )
    known = [
        _known(run, of_run.who_answered(), name)
        for run, of_run, name in zip(runs, figures, names or [""] * len(runs), strict=True)
    ]
    return Html(top + element("div", *known, class_="runs" if names else None))


def _known(run: RunFacts, answered: Sequence[tuple[str, str]], name: str) -> Html:
    side = element("span", name, class_=f"side side-{name.lower()}") if name else None
    return element(
        "section" if name else "div",
        element("h2", side, run.name) if name else None,
        element("p", run.problem, class_="problem") if run.problem else None,
        element(
            "dl",
            *(element("div", element("dt", key), element("dd", value)) for key, value in (*answered, *run.facts)),
            class_="facts",
        ),
        element(
            "details",
            element("summary", "All of the configuration"),
            element("pre", run.configuration, tabindex="0"),
            class_="configuration",
        )
        if run.configuration
        else None,
    )


def totals(figures: RunFigures, currency: str | None) -> Html:
    """How many samples ended how, and what the run took."""
    statuses = figures.ordered_statuses()
    legend = [
        element(
            "li",
            element("span", class_=f"key k-{plots.class_of(name)}"),
            element("button", f"{count:,} {name}", type="button", class_="link", data_filter="status", data_value=name),
            class_="legend-item",
        )
        for name, count in statuses
    ]
    usage = figures.usage
    cards = [
        _card("samples", f"{figures.samples:,}", f"of {figures.epochs} epochs" if figures.epochs > 1 else None),
        _card(
            "tokens",
            _big(usage["total_tokens"]),
            f"{_big(usage['input_tokens'])} in, {_big(usage['cached_input_tokens'])} of them cached, "
            f"{_big(usage['output_tokens'])} out",
        ),
    ]
    cards.append(_cost(figures, currency))
    if figures.not_valid:
        cards.append(_card("not valid", f"{figures.not_valid:,}", "in no mean, interval or pass@k"))
    span_s = figures.span_s()
    if span_s is not None:
        rate = len(figures.ends) / span_s * 60 if span_s else 0.0
        cards.append(
            _card("from start to end", units.duration(span_s * 1000), f"{units.number(rate)} samples a minute")
        )
    retries = (
        "no retries" if not figures.retries else f"{figures.retries:,} {_plural(figures.retries, 'retry', 'retries')}"
    )
    cards.append(_card("tool calls", _big(figures.tool_calls), retries))
    return element(
        "section",
        element("h2", "Totals", id="totals"),
        plots.shares([(name, plots.class_of(name), count) for name, count in statuses]),
        element("ul", *legend, class_="legend"),
        element("div", *cards, class_="cards"),
        _why(figures),
        aria_labelledby="totals",
    )


def _cost(figures: RunFigures, currency: str | None) -> Html:
    """The cost of all attempts and judges; without prices, or where one is not known, it is unknown."""
    if currency is None:
        return _card("cost", UNKNOWN, "the run had no prices")
    money = partial(units.money, currency=currency)
    if not figures.unknown_costs:
        ended = sum(count for name, count in figures.statuses.items() if name not in ("not run", "running"))
        return _card("cost", money(figures.cost), f"{money(figures.cost / max(1, ended))} a sample, with judges")
    unknown = f"nothing is known of {figures.unknown_costs:,} {_plural(figures.unknown_costs, 'part', 'parts')} of it"
    return _card("cost", UNKNOWN, f"at least {money(figures.cost)}; {unknown}" if figures.cost else unknown)


def _why(figures: RunFigures) -> Html | None:
    parts = [f"{name} {count:,}" for name, count in figures.errors.most_common(ERRORS_SHOWN)]
    limits = [f"{name} {count:,}" for name, count in figures.limits.most_common(ERRORS_SHOWN)]
    rows = [("Errors", parts), ("Limits reached", limits)]
    shown = [element("p", element("strong", name), " ", " · ".join(texts)) for name, texts in rows if texts]
    return element("div", *shown, class_="why") if shown else None


def scores(figures: RunFigures) -> Html | None:
    """A line a scorer: its mean with interval, and the same by tag."""
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
    head = [("Scorer", ""), ("Mean", "n"), ("95 % interval", ""), (_axis_label(floor, ceiling), ""), ("Passed", "n")]
    head += [(f"pass@{k}", "n")] if k else []
    head += [("Samples scored", "n"), ("Scorer failed", "n")]
    body = [
        element(
            "tbody",
            _score_line(line, scorer, floor, ceiling, k, of=len(figures.ids)),
            *(_score_line(inner, tag, floor, ceiling, k, tag=True) for tag, inner in by_tag[scorer]),
        )
        for scorer, line in summary.scorers.items()
    ]
    columns = element("tr", *(element("th", name, scope="col", class_=class_ or None) for name, class_ in head))
    note = "Intervals of 95 %: Wilson's on the effective number of scores from 0 to 1, Student's for others."
    if k:
        note += (
            f" Epochs of one sample belong together. pass@{k}: the part of samples of which one of {k} epochs passed."
        )
    return element(
        "section",
        element("h2", "Scores", id="scores"),
        scrolled("scores", element("table", element("thead", columns), *body, class_="scores")),
        element("p", note, class_="muted small"),
        aria_labelledby="scores",
    )


def scrolled(label: str, *content: object, class_: str = "scroll") -> Html:
    """What may be wider than the page."""
    return element("div", *content, class_=class_, tabindex="0", role="region", aria_labelledby=label)


def _score_line(
    line: Metrics, name: str, floor: float, ceiling: float, k: int | None, tag: bool = False, of: int | None = None
) -> Html:
    low, high = line.low, line.high
    known = low is not None and high is not None
    mean = units.NOTHING if line.mean is None else value_text(line.mean)
    drawn = None
    if line.mean is not None:
        bounds = (low, high) if low is not None and high is not None else (-math.inf, math.inf)
        drawn = plots.interval(line.mean, *bounds, floor, ceiling)
    cells = [
        element("th", name, scope="row", class_="tag-name" if tag else None),
        element("td", element("strong", mean), class_="n"),
        element(
            "td", f"{value_text(low or 0)} to {value_text(high or 0)}" if known else units.NOTHING, class_="nowrap"
        ),
        element("td", drawn, class_="drawn"),
        element("td", units.NOTHING if line.accuracy is None else f"{line.accuracy:.1%}", class_="n"),
    ]
    if k:
        cells.append(element("td", value_text(line.pass_at[k][0]) if k in line.pass_at else units.NOTHING, class_="n"))
    count = f"{line.samples:,}" if of is None else f"{line.samples:,} of {of:,}"
    cells.append(element("td", count, class_="n"))
    cells.append(element("td", f"{line.not_scored:,}", class_="n bad" if line.not_scored else "n"))
    return element("tr", *cells, class_="of-tag" if tag else None)


def figures_of(figures: RunFigures) -> Html:
    """The plots of a run."""
    return element(
        "section",
        element("h2", "Time and tokens", id="plots"),
        element(
            "div",
            plots.histogram(
                "Time of a sample", figures.durations_ms, units.duration, _duration_tick, _duration_step, "longest"
            ),
            plots.histogram(
                "Tokens of a sample",
                figures.tokens,
                lambda value: f"{value:,.0f}",
                units.short,
                units.round_step,
                "most",
            ),
            plots.throughput("Throughput", figures.ends),
            plots.timeline("Workers", figures.spans),
            class_="plots",
        ),
        aria_labelledby="plots",
    )


def value_text(value: float) -> str:
    """A score or a mean of scores."""
    shown = f"{abs(value):.3f}" if abs(value) < 100 else units.number(abs(value))
    return units.MINUS + shown if value < 0 and float(shown.replace(",", "")) else shown


def _range(lines: Iterable[Metrics]) -> tuple[float, float]:
    """What all the intervals are drawn on: 0 to 1 where that is enough."""
    values = [value for line in lines for value in (line.mean, line.low, line.high) if value is not None]
    if not values or (min(values) >= 0 and max(values) <= 1):
        return 0.0, 1.0
    step = units.round_step((max(values) - min(values)) or abs(values[0]) or 1.0, 4)
    return step * math.floor(min(values) / step), step * math.ceil(max(values) / step)


def _axis_label(floor: float, ceiling: float) -> Html:
    return element(
        "span", element("span", units.number(floor)), element("span", units.number(ceiling)), class_="axis-label"
    )


def _duration_tick(ms: float) -> str:
    if ms == 0:
        return "0"
    return f"{ms / 1000:.3g} s" if 1000 <= ms < 60_000 else units.duration(ms)


def _duration_step(span_ms: float, steps: int) -> float:
    return units.time_step_s(span_ms / 1000, steps) * 1000


def _card(name: str, value: str, more: str | None) -> Html:
    return element(
        "div",
        element("p", name, class_="card-name"),
        element("p", value, class_="card-value"),
        element("p", more, class_="muted small") if more else None,
        class_="card",
    )


def _big(value: float) -> str:
    return f"{value:,.0f}" if value < 10_000 else units.short(value)


def _plural(count: int, one: str, many: str) -> str:
    return one if count == 1 else many
