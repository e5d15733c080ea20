"""The parts of a comparison's page that stand in it as markup. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from . import plots, units
from .figures import PairFigures, RunFigures
from .markup import Html, element
from .paired import Difference
from .sections import value_text


def changes(pairs: PairFigures, places: dict[str, int]) -> Html:
    """A line a scorer: both means, the change, who got better and who got worse; the same by tag."""
    scorers = pairs.scorers()
    if not scorers:
        return element(
            "section",
            element("h2", "Scores", id="scores"),
            element("p", "No scorer has scored the same sample in both runs."),
            aria_labelledby="scores",
        )
    compared = {
        scorer: [(tag, found) for tag in (None, *pairs.tags()) if (found := pairs.score(scorer, tag))]
        for scorer in scorers
    }
    extent = max((_extent(found) for lines in compared.values() for _, found in lines), default=1.0)
    extent = (
        units.round_step(extent, 1) if extent > 1 else next(edge for edge in (0.1, 0.2, 0.5, 1.0) if extent <= edge)
    )
    head = ("Scorer", "A", "B", "Change", "95 % interval", _axis(extent), "Better", "Worse", "Same", "p")
    left = (0, 4, 5)
    columns = element(
        "tr",
        *(element("th", name, scope="col", class_=None if place in left else "n") for place, name in enumerate(head)),
    )
    body = [
        element("tbody", *(_line(scorer, places[scorer], tag, found, extent) for tag, found in lines))
        for scorer, lines in compared.items()
    ]
    tests = sorted({lines[0][1].test for lines in compared.values() if lines})
    note = (
        "Of the samples that both runs scored. Intervals of 95 %, paired by sample; epochs of one sample counted "
        f"together. p: how likely a change this large would be if the two runs did not differ ({'; '.join(tests)}); "
        "nothing is corrected for looking at many tags."
    )
    return element(
        "section",
        element("h2", "Scores", id="scores"),
        *(_verdict(scorer, places[scorer], lines[0][1]) for scorer, lines in compared.items() if lines),
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


def _verdict(scorer: str, place: int, change: Difference) -> Html:
    if change.better == change.worse == 0:
        said = "no sample changed"
    elif not math.isfinite(change.high):
        said = "one sample alone says nothing of the runs"
    elif change.p < 0.05:
        way = "better" if change.value > 0 else "worse"
        said = f"B is {way} by {value_text(abs(change.value))}, more than chance explains"
    else:
        said = "no difference that chance could not explain"
    class_ = "verdict"
    if change.p < 0.05 and math.isfinite(change.high):
        class_ += " better" if change.value > 0 else " worse"
    return element(
        "p",
        element("strong", scorer),
        ": ",
        said,
        element("span", f" (p {p_text(change.p, '= ')})", class_="muted"),
        class_=class_,
    )


def _line(scorer: str, place: int, tag: str | None, change: Difference, extent: float) -> Html:
    counts = [
        element(
            "td",
            element(
                "button",
                f"{mark} {count:,}",
                type="button",
                class_=f"link {name}",
                data_filter="change",
                data_value=f"{place}:{name}",
                data_tag=tag,
                aria_label=f"{count} samples {name} in {scorer}: show them",
            )
            if count
            else "0",
            class_="n",
        )
        for name, mark, count in (
            ("better", "▲", change.better),
            ("worse", "▼", change.worse),
            ("same", "", change.same),
        )
    ]
    return element(
        "tr",
        element("th", scorer if tag is None else tag, scope="row", class_=None if tag is None else "tag-name"),
        element("td", value_text(change.before), class_="n"),
        element("td", value_text(change.after), class_="n"),
        element("td", element("strong", signed(change.value, value_text)), class_="n"),
        element("td", _interval(change, value_text), class_="nowrap"),
        element("td", plots.interval(change.value, change.low, change.high, -extent, extent, zero=0.0), class_="drawn"),
        *counts,
        element("td", p_text(change.p), class_="n"),
        class_=None if tag is None else "of-tag",
    )


def costs(pairs: PairFigures, a: RunFigures, b: RunFigures, currency: str | None) -> Html:
    """How samples ended in each run, and what those that both completed took."""
    names = dict.fromkeys(name for figures in (a, b) for name, _ in figures.ordered_statuses())
    ended = element(
        "table",
        element(
            "thead",
            element(
                "tr",
                element("th", "Samples", scope="col"),
                *(element("th", side, scope="col", class_="n") for side in "AB"),
            ),
        ),
        element(
            "tbody",
            element(
                "tr",
                element("th", "all", scope="row"),
                *(element("td", f"{figures.samples:,}", class_="n") for figures in (a, b)),
            ),
            *(
                element(
                    "tr",
                    element("th", element("span", class_=f"key k-{plots.class_of(name)}"), name, scope="row"),
                    *(element("td", f"{figures.statuses[name]:,}", class_="n") for figures in (a, b)),
                )
                for name in names
            ),
        ),
    )
    measures: Sequence[tuple[str, str, Callable[[float], str]]] = (
        ("tokens", "tokens a sample", lambda value: f"{value:,.0f}"),
        ("duration_ms", "time a sample", units.duration),
        ("cost", "cost a sample", partial(units.money, currency=currency)),
    )
    lines = [
        element(
            "tr",
            element("th", title, scope="row"),
            element("td", say(found.before), class_="n"),
            element("td", say(found.after), class_="n"),
            element("td", element("strong", signed(found.value, say)), class_="n"),
            element("td", _relative(found), class_="n"),
            element("td", _interval(found, say), class_="nowrap"),
            element("td", p_text(found.p), class_="n"),
        )
        for name, title, say in measures
        if (found := pairs.measure(name)) is not None
    ]
    heads = (("Mean", ""), ("A", "n"), ("B", "n"), ("Change", "n"), ("", "n"), ("95 % interval", ""), ("p", "n"))
    took = (
        element(
            "table",
            element(
                "thead",
                element("tr", *(element("th", name, scope="col", class_=class_ or None) for name, class_ in heads)),
            ),
            element("tbody", *lines),
        )
        if lines
        else element("p", "No sample was completed in both runs.", class_="muted")
    )
    return element(
        "section",
        element("h2", "How they ended, what they took", id="costs"),
        element("p", _matched(pairs), class_="muted"),
        element(
            "div",
            element("div", ended),
            element("div", took),
            class_="beside",
            tabindex="0",
            role="region",
            aria_labelledby="costs",
        ),
        aria_labelledby="costs",
    )


def _matched(pairs: PairFigures) -> str:
    said = f"{pairs.both:,} samples are in both runs"
    if pairs.only_a or pairs.only_b:
        said += f", {pairs.only_a:,} only in A, {pairs.only_b:,} only in B"
    if pairs.asked_differently:
        said += f"; {pairs.asked_differently:,} of them were asked differently (another prompt or other settings)"
    return said + "."


def _interval(change: Difference, say: Callable[[float], str]) -> str:
    if not math.isfinite(change.high):
        return units.NOTHING
    return f"{signed(change.low, say)} to {signed(change.high, say)}"


def _relative(found: Difference) -> str:
    return f"{found.value / found.before:+.0%}".replace("-", units.MINUS) if found.before else ""


def _extent(change: Difference) -> float:
    ends = [abs(end) for end in (change.low, change.high, change.value) if math.isfinite(end)]
    return max(ends)


def _axis(extent: float) -> Html:
    return element(
        "span",
        element("span", f"{units.MINUS}{extent:g}"),
        element("span", "0"),
        element("span", f"+{extent:g}"),
        class_="axis-label",
    )


def signed(value: float, say: Callable[[float], str]) -> str:
    """A change with its sign, as a typographer would set it."""
    shown = say(abs(value))
    sign = "\u00b1" if shown == say(0) else "+" if value > 0 else units.MINUS
    return sign + shown


def p_text(p: float, sign: str = "") -> str:
    return "< 0.001" if p < 0.001 else f"{sign}{p:.3f}"
