"""The chart: a dot with its interval for each result, the best on top, as shapes with their coordinates. Pure.

It is drawn for slides and documents: one style, light, with all its texts. STYLES belong to the classes of its shapes.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from codex_app_server._runtime.text import cut

from .. import plots, units
from ..run_view import value_text
from .differing import model_and_effort, settings_of
from .ranking import Standing
from .table import ScorerTable, Table

WIDTH, ROW, TOP, BOTTOM = 1040, 40, 84, 44
NAME_CHARACTERS, NAME_WIDTH_MOST = 36, 350.0
# Of the widest of the fonts that a chart may be drawn with.
NAME_CHARACTER_WIDTH, NOTE_CHARACTER_WIDTH = 9.7, 7.2
VALUE_WIDTH, SIDE = 260, 24
FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, slots=True)
class Style:
    """The colour of a class, with the width of its lines or the size of its font, in units of the chart."""

    colour: str
    size: float = 1.0
    bold: bool = False
    dashed: bool = False


STYLES = {
    "page": Style("#ffffff"),
    "grid": Style("#dfe3e6"),
    "axis": Style("#59636d"),
    "baseline": Style("#59636d", dashed=True),
    "whisker": Style("#1f6688", 2.0),
    "dot": Style("#1f6688"),
    "title": Style("#1c2126", 19.0, bold=True),
    "name": Style("#1c2126", 14.0, bold=True),
    "value": Style("#1c2126", 14.0, bold=True),
    "label": Style("#59636d", 12.0),
}


@dataclass(frozen=True, slots=True)
class Chart:
    """Shapes of a chart of so many units; `summary` is the same in words."""

    width: float
    height: float
    title: str
    summary: str
    shapes: Sequence[plots.Shape]


def chart_of(table: Table, scorer: ScorerTable) -> Chart:
    """Draw the means of all results that have the scorer, failures counted, with their intervals of 95 %."""
    ranked = [standing for standing in scorer.standings if standing.mean is not None]
    shown = _names(table)
    names = [cut(shown[one.place], NAME_CHARACTERS, "…") for one in ranked]
    notes = [_note(table, one) for one in ranked]
    widths = [_cells(name) * NAME_CHARACTER_WIDTH for name in names]
    widths += [_cells(note) * NOTE_CHARACTER_WIDTH for note in notes]
    left = SIDE + min(NAME_WIDTH_MOST, max(widths, default=80.0)) + 16
    right = WIDTH - SIDE - VALUE_WIDTH
    height = TOP + ROW * len(ranked) + BOTTOM
    floor, ceiling = scale_of(ranked)
    span = (ceiling - floor) or 1.0

    def x(value: float) -> float:
        return left + (min(max(value, floor), ceiling) - floor) / span * (right - left)

    base = next((one for one in ranked if one.place == table.baseline), None)
    shapes: list[plots.Shape] = [
        plots.Label(SIDE, 34, "start", cut(scorer.scorer, 60, "…"), "title"),
        plots.Label(SIDE, 56, "start", _subtitle(scorer, None if base is None else shown[base.place]), "label"),
    ]
    bottom = TOP + ROW * len(ranked)
    step = units.round_step(span, 5)
    first = math.ceil(floor / step - 1e-9)
    for index in range(first, math.floor(ceiling / step + 1e-9) + 1):
        place = x(index * step)
        shapes.append(plots.Line(place, TOP - 6, place, bottom, "grid"))
        shapes.append(plots.Label(place, bottom + 20, "middle", f"{index * step:g}".replace("-", units.MINUS), "label"))
    if base is not None and base.mean is not None:
        shapes.append(plots.Line(x(base.mean), TOP - 6, x(base.mean), bottom, "baseline"))
    for index, (standing, name, note) in enumerate(zip(ranked, names, notes, strict=True)):
        shapes += _row(standing, name, note, TOP + ROW * (index + 0.5), left, right, x)
    summary = "; ".join(f"{name} {value_text(one.mean or 0.0)}" for one, name in zip(ranked, names, strict=True))
    return Chart(WIDTH, height, scorer.scorer, summary or "no result", shapes)


def _names(table: Table) -> list[str]:
    """Return the names of the results; those of the variants alone where all are of one run."""
    if len({result.path for result in table.results}) == 1 and all(result.variant for result in table.results):
        return [result.variant for result in table.results]
    return [result.name for result in table.results]


def _cells(text: str) -> int:
    """Return the width of a text in characters; those of East Asian scripts take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _row(
    standing: Standing, name: str, note: str, y: float, left: float, right: float, x: Callable[[float], float]
) -> list[plots.Shape]:
    assert standing.of_all is not None and standing.mean is not None
    low, high = standing.of_all.low, standing.of_all.high
    shapes: list[plots.Shape] = [
        plots.Label(left - 16, y - 1 if note else y + 5, "end", name, "name"),
        plots.Line(left, y, right, y, "grid"),
    ]
    if note:
        shapes.append(plots.Label(left - 16, y + 14, "end", note, "label"))
    interval = ""
    if low is not None and high is not None:
        shapes += [
            plots.Line(x(low), y, x(high), y, "whisker"),
            plots.Line(x(low), y - 5, x(low), y + 5, "whisker"),
            plots.Line(x(high), y - 5, x(high), y + 5, "whisker"),
        ]
        interval = f"{value_text(low)} to {value_text(high)}"
    scored = f"{standing.scored:,}/{standing.planned:,} scored"
    return [
        *shapes,
        plots.Dot(x(standing.mean), y),
        plots.Label(right + 16, y - 1, "start", value_text(standing.mean), "value"),
        plots.Label(right + 16, y + 14, "start", ", ".join(filter(None, (interval, scored))), "label"),
    ]


def scale_of(standings: Sequence[Standing]) -> tuple[float, float]:
    """Return the scale that all intervals are drawn on: 0 to 1 where that is enough."""
    values = [
        value
        for one in standings
        if one.of_all is not None
        for value in (one.of_all.mean, one.of_all.low, one.of_all.high)
        if value is not None
    ]
    if not values or (min(values) >= 0 and max(values) <= 1):
        return 0.0, 1.0
    step = units.round_step((max(values) - min(values)) or abs(values[0]) or 1.0, 4)
    return step * math.floor(min(values) / step), step * math.ceil(max(values) / step)


def failures_as(floor: float) -> str:
    """Name what a sample without a score counts as: "0"."""
    return units.number(abs(floor)) if floor >= 0 else units.MINUS + units.number(abs(floor))


def _subtitle(scorer: ScorerTable, baseline: str | None) -> str:
    found = f"Mean of all planned samples, failures as {failures_as(scorer.floor)}, with its interval of 95 %"
    return found if baseline is None else f"{found}; dashed: {cut(baseline, NAME_CHARACTERS, '…')}"


def _note(table: Table, standing: Standing) -> str:
    return cut(model_and_effort(settings_of(table.results[standing.place])), NAME_CHARACTERS, "…")
