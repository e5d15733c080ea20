"""Contents of a comparison's page, as values for its template. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from . import plots, units
from .figures import PairFigures, RunFigures
from .paired import Difference
from .run_view import value_text


@dataclass(frozen=True, slots=True)
class Verdict:
    """Conclusion for a scorer over all samples. `way` is better or worse where the change is significant."""

    scorer: str
    text: str
    p: str
    way: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """A change from A to B with its interval and p-value; all texts."""

    name: str
    before: str
    after: str
    change: str
    interval: str
    p: str
    relative: str = ""


@dataclass(frozen=True, slots=True)
class ScoreChange(Change):
    """A scorer's change, over all samples or those of one tag. `counts` are (better, worse or same; mark; samples)."""

    scorer: str = ""
    tag: str | None = None
    number: int = 0
    """The place of the scorer in the page's list, by which the table is filtered."""
    drawn: Sequence[plots.Shape] = ()
    counts: Sequence[tuple[str, str, int]] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """A group of changes for each scorer. `axis` labels a scale from left to right, `tests` gave the p-values."""

    verdicts: Sequence[Verdict]
    groups: Sequence[Sequence[ScoreChange]]
    axis: tuple[str, str, str]
    tests: str


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Statuses of the samples of each run, and the cost of those that both completed."""

    matched: str
    statuses: Sequence[tuple[str, str, Sequence[int]]]
    """A status, its class in the stylesheet, and how many samples of A and of B have it."""
    samples: Sequence[int]
    measures: Sequence[Change]


def changes(pairs: PairFigures, numbers: dict[str, int]) -> Changes | None:
    """A group for each scorer: both means, the change, who got better or worse; the same by tag. None without any."""
    compared = {
        scorer: [(tag, found) for tag in (None, *pairs.tags()) if (found := pairs.score(scorer, tag))]
        for scorer in pairs.scorers()
    }
    if not compared:
        return None
    extent = max((_extent(found) for lines in compared.values() for _, found in lines), default=1.0)
    extent = (
        units.round_step(extent, 1) if extent > 1 else next(edge for edge in (0.1, 0.2, 0.5, 1.0) if extent <= edge)
    )
    return Changes(
        [_verdict(scorer, lines[0][1]) for scorer, lines in compared.items() if lines],
        [
            [_score_change(scorer, numbers[scorer], tag, found, extent) for tag, found in lines]
            for scorer, lines in compared.items()
        ],
        (f"{units.MINUS}{extent:g}", "0", f"+{extent:g}"),
        "; ".join(sorted({lines[0][1].test for lines in compared.values() if lines})),
    )


def _verdict(scorer: str, change: Difference) -> Verdict:
    way = "better" if change.value > 0 else "worse"
    is_sure = change.p < 0.05 and math.isfinite(change.high)
    if change.better == change.worse == 0:
        text = "no sample changed"
    elif not math.isfinite(change.high):
        text = "one sample alone says nothing of the runs"
    elif is_sure:
        text = f"B is {way} by {value_text(abs(change.value))}, more than chance explains"
    else:
        text = "no difference that chance could not explain"
    return Verdict(scorer, text, p_text(change.p, "= "), way if is_sure else None)


def _score_change(scorer: str, number: int, tag: str | None, change: Difference, extent: float) -> ScoreChange:
    return ScoreChange(
        scorer if tag is None else tag,
        value_text(change.before),
        value_text(change.after),
        signed(change.value, value_text),
        _interval(change, value_text),
        p_text(change.p),
        scorer=scorer,
        tag=tag,
        number=number,
        drawn=plots.interval(change.value, change.low, change.high, -extent, extent, zero=0.0),
        counts=(("better", "▲", change.better), ("worse", "▼", change.worse), ("same", "", change.same)),
    )


def outcomes(pairs: PairFigures, a: RunFigures, b: RunFigures, currency: str | None) -> Outcomes:
    """Compare how samples ended in each run, and what those that both completed took."""
    names = dict.fromkeys(name for figures in (a, b) for name, _ in figures.ordered_statuses())
    measures: Sequence[tuple[str, str, Callable[[float], str]]] = (
        ("tokens", "tokens a sample", lambda value: f"{value:,.0f}"),
        ("duration_ms", "time a sample", units.duration),
        ("cost", "cost a sample", partial(units.money, currency=currency)),
    )
    return Outcomes(
        _matched(pairs),
        [(name, plots.class_of(name), [figures.statuses[name] for figures in (a, b)]) for name in names],
        [figures.samples for figures in (a, b)],
        [
            _measure(title, found, write)
            for name, title, write in measures
            if (found := pairs.measure(name)) is not None
        ],
    )


def _measure(title: str, found: Difference, write: Callable[[float], str]) -> Change:
    return Change(
        title,
        write(found.before),
        write(found.after),
        signed(found.value, write),
        _interval(found, write),
        p_text(found.p),
        _relative(found),
    )


def _matched(pairs: PairFigures) -> str:
    matched = f"{pairs.both:,} samples are in both runs"
    if pairs.only_a or pairs.only_b:
        matched += f", {pairs.only_a:,} only in A, {pairs.only_b:,} only in B"
    if pairs.asked_differently:
        matched += f"; {pairs.asked_differently:,} of them were asked differently (another prompt or other settings)"
    return matched + "."


def _interval(change: Difference, write: Callable[[float], str]) -> str:
    if not math.isfinite(change.high):
        return units.NOTHING
    return f"{signed(change.low, write)} to {signed(change.high, write)}"


def _relative(found: Difference) -> str:
    return f"{found.value / found.before:+.0%}".replace("-", units.MINUS) if found.before else ""


def _extent(change: Difference) -> float:
    return max(abs(end) for end in (change.low, change.high, change.value) if math.isfinite(end))


def signed(value: float, write: Callable[[float], str]) -> str:
    """A change with its sign, as a typographer would set it."""
    shown = write(abs(value))
    sign = "\u00b1" if shown == write(0) else "+" if value > 0 else units.MINUS
    return sign + shown


def p_text(p: float, sign: str = "") -> str:
    return "< 0.001" if p < 0.001 else f"{sign}{p:.3f}"
