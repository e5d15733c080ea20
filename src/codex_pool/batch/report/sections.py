"""The parts of a run's page that stand in it as markup: what is known of the run, totals, scores, plots. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from . import plots, units
from .estimates import Estimate
from .figures import RunFigures, ScoreFigures
from .markup import Html, element
from .rows import RunFacts

TAGS_SHOWN = 40
ERRORS_SHOWN = 6


def heading(kind: str, facts: Sequence[RunFacts], names: Sequence[str] = ()) -> Html:
    """The title and what is known of each run."""
    runs = [
        element(
            "section",
            element("h2", element("span", name, class_=f"side side-{name.lower()}"), run.name) if names else None,
            element(
                "dl",
                *(element("div", element("dt", key), element("dd", value)) for key, value in run.facts),
                class_="facts",
            ),
        )
        for run, name in zip(facts, names or [""] * len(facts), strict=True)
    ]
    title = facts[0].name if len(facts) == 1 else " and ".join(run.name for run in facts)
    return Html(
        element(
            "header",
            element("div", element("p", kind, class_="kind"), element("h1", title), class_="title"),
            element(
                "button", "Theme", type="button", id="theme", class_="quiet", title="System, light or dark colours"
            ),
            class_="top",
        )
        + element("div", *runs, class_="runs" if names else None)
    )


def totals(figures: RunFigures) -> Html:
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
    if figures.cost is not None:
        ended = max(1, sum(count for name, count in statuses if name not in ("not run", "running")))
        cards.append(_card("cost", units.money(figures.cost), f"{units.money(figures.cost / ended)} a sample"))
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


def _why(figures: RunFigures) -> Html | None:
    parts = [f"{name} {count:,}" for name, count in figures.errors.most_common(ERRORS_SHOWN)]
    limits = [f"{name} {count:,}" for name, count in figures.limits.most_common(ERRORS_SHOWN)]
    rows = [("Errors", parts), ("Limits reached", limits)]
    shown = [element("p", element("strong", name), " ", " · ".join(texts)) for name, texts in rows if texts]
    return element("div", *shown, class_="why") if shown else None


def scores(figures: RunFigures, scorers: Sequence[str]) -> Html | None:
    """A line a scorer: its mean with interval, and the same by tag."""
    if not scorers:
        return None
    lines = [figures.scores(scorer) for scorer in scorers]
    tags = sorted(figures.tags, key=lambda tag: (-figures.tags[tag], tag))[:TAGS_SHOWN]
    by_tag = {scorer: [(tag, figures.scores(scorer, tag)) for tag in tags] for scorer in scorers}
    everything = [*lines, *(line for pairs in by_tag.values() for _, line in pairs)]
    floor, ceiling = _range(line.estimate for line in everything)
    epochs = figures.epochs > 1
    head = ["Scorer", "Mean", "95 % interval", _axis_label(floor, ceiling), "Passed"]
    head += [f"Best of {figures.epochs}"] if epochs else []
    head += ["Samples", "Not scored"]
    body = [
        element(
            "tbody",
            _score_line(line, line.scorer, floor, ceiling, epochs),
            *(
                _score_line(inner, tag, floor, ceiling, epochs, tag=True)
                for tag, inner in by_tag[line.scorer]
                if inner.estimate is not None or inner.errors
            ),
        )
        for line in lines
    ]
    columns = element(
        "tr",
        *(
            element("th", name, scope="col", class_="n" if index in (1,) or index > 3 else None)
            for index, name in enumerate(head)
        ),
    )
    note = "Intervals of 95 %"
    note += ", epochs of one sample counted together." if epochs else "."
    return element(
        "section",
        element("h2", "Scores", id="scores"),
        element(
            "div",
            element("table", element("thead", columns), *body, class_="scores"),
            class_="scroll",
            tabindex="0",
            role="region",
            aria_labelledby="scores",
        ),
        element("p", note, class_="muted small"),
        aria_labelledby="scores",
    )


def _score_line(line: ScoreFigures, name: str, floor: float, ceiling: float, epochs: bool, tag: bool = False) -> Html:
    estimate = line.estimate
    cells = [
        element("th", name, scope="row", class_="tag-name" if tag else None),
        element("td", element("strong", value_text(estimate.value)) if estimate else units.NOTHING, class_="n"),
        element("td", interval_text(estimate), class_="nowrap"),
        element(
            "td",
            plots.interval(estimate.value, estimate.low, estimate.high, floor, ceiling) if estimate else None,
            class_="drawn",
        ),
        element("td", f"{line.passed:,} of {line.judged:,}" if line.judged else units.NOTHING, class_="n"),
    ]
    if epochs:
        best = line.best_of_epochs
        cells.append(element("td", value_text(best.value) if best else units.NOTHING, class_="n"))
    cells.append(element("td", f"{estimate.count:,}" if estimate else "0", class_="n"))
    cells.append(element("td", f"{line.errors:,}" if line.errors else "0", class_="n bad" if line.errors else "n"))
    return element("tr", *cells, class_="of-tag" if tag else None)


def figures_of(figures: RunFigures) -> Html:
    """The plots of a run."""
    return element(
        "section",
        element("h2", "Time and tokens", id="plots"),
        element(
            "div",
            plots.histogram("Time of a sample", figures.durations_ms, units.duration, _duration_tick, "longest"),
            plots.histogram("Tokens of a sample", figures.tokens, lambda value: f"{value:,.0f}", units.short, "most"),
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


def interval_text(estimate: Estimate | None) -> str:
    if estimate is None or not math.isfinite(estimate.high):
        return units.NOTHING
    return f"{value_text(estimate.low)} to {value_text(estimate.high)}"


def _range(estimates: Iterable[Estimate | None]) -> tuple[float, float]:
    """What all the intervals are drawn on: 0 to 1 where that is enough."""
    known = [estimate for estimate in estimates if estimate is not None]
    values = [estimate.value for estimate in known]
    if not values or (min(values) >= 0 and max(values) <= 1):
        return 0.0, 1.0
    step = units.round_step((max(values) - min(values)) or abs(values[0]) or 1.0, 4)
    return step * math.floor(min(values) / step), step * math.ceil(max(values) / step)


def _axis_label(floor: float, ceiling: float) -> Html:
    return element(
        "span", element("span", units.number(floor)), element("span", units.number(ceiling)), class_="axis-label"
    )


def _duration_tick(ms: float) -> str:
    if ms < 1000:
        return f"{ms:.3g} ms"
    if ms < 60_000:
        return f"{ms / 1000:.3g} s"
    return f"{ms / 60_000:.3g} min" if ms < 3_600_000 else f"{ms / 3_600_000:.3g} h"


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
