"""Plots as values: shapes with their coordinates, and a summary that stands in the plot's label too. Pure.

`templates/plots.html` draws them as inline SVG; colours and fonts are the stylesheet's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from codex_app_server._runtime.text import cut, plural

from . import units

WIDTH, HEIGHT = 460, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 26, 30
BINS_MOST = 32
LOG_RATIO = 60
LANE = 12
TIMELINE_WIDTH, TIMELINE_LEFT = 1320, 92
MARKED_SPANS = 600


@dataclass(frozen=True, slots=True)
class Span:
    """An attempt on the timeline."""

    lane: str
    start_s: float
    end_s: float
    status: str
    n: int
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line from one point to another. `class_` is its class in the stylesheet, as in every shape."""

    kind: ClassVar[str] = "line"
    x1: float
    y1: float
    x2: float
    y2: float
    class_: str


@dataclass(frozen=True, slots=True)
class Rect:
    """A rectangle; `hint` is shown by the pointer, `n` is the sample that a click opens."""

    kind: ClassVar[str] = "rect"
    x: float
    y: float
    width: float
    height: float
    class_: str
    hint: str
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """A text at a point; `anchor` is the part of it that lies there: start, middle or end."""

    kind: ClassVar[str] = "label"
    x: float
    y: float
    anchor: str
    text: str
    class_: str = "label"
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Boxes:
    """Rectangles of one height in a row, as (left, width): one path in the page, however many they are."""

    kind: ClassVar[str] = "boxes"
    y: float
    height: float
    spans: Sequence[tuple[float, float]]
    class_: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of an interval."""

    kind: ClassVar[str] = "dot"
    x: float
    y: float


Shape = Line | Rect | Label | Boxes | Dot


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with its title. One without a summary has nothing to draw, and `nothing` is the reason."""

    title: str
    summary: str | None = None
    shapes: Sequence[Shape] = ()
    width: float = WIDTH
    height: float = HEIGHT
    wide: bool = False
    nothing: str | None = None


@dataclass(frozen=True, slots=True)
class StatusBar:
    """The statuses of samples as one bar; `label` is the same as text."""

    label: str
    shapes: Sequence[Rect]


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which so much of the ordered values lies, linear between neighbours."""
    place = (len(ordered) - 1) * share
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def histogram(
    title: str,
    values: Iterable[float],
    say: Callable[[float], str],
    tick: Callable[[float], str],
    step: Callable[[float, int], float],
    most: str,
) -> Plot:
    """Draw the distribution of values, on a logarithmic axis where they differ by orders of magnitude.

    `say` writes a value, `tick` one of the axis, `step` finds a round step for a span; `most` names the highest value.
    """
    ordered = sorted(value for value in values if value >= 0)
    if not ordered:
        return Plot(title, nothing="no values")
    middle, p90 = quantile(ordered, 0.5), quantile(ordered, 0.9)
    bins = min(BINS_MOST, max(8, 2 * math.ceil(math.sqrt(len(ordered)))))
    summary = f"median {say(middle)} · 90 % below {say(p90)} · {most} {say(ordered[-1])}"
    lowest = ordered[0]
    logarithmic = lowest >= 1 and quantile(ordered, 0.99) > LOG_RATIO * lowest
    forward: Callable[[float], float] = (lambda value: math.log10(max(value, lowest))) if logarithmic else float
    if logarithmic:
        low, high = forward(lowest), forward(ordered[-1])
    else:
        between = step(ordered[-1] or 1.0, 5)
        low, high = 0.0, between * max(1, math.ceil((ordered[-1] or 1.0) / between))
    counts = [0] * bins
    for value in ordered:
        counts[min(bins - 1, int((forward(value) - low) / (high - low) * bins))] += 1
    ticks = _decades(low, high) if logarithmic else _steps_of(low, high, between)
    backward: Callable[[float], float] = (lambda place: 10.0**place) if logarithmic else float
    x = _scale(low, high, LEFT, WIDTH - RIGHT)
    y, shapes = _y_axis(max(counts), whole=True)
    for place in ticks:
        shapes += _x_tick(x(place), tick(backward(place)))
    width = (WIDTH - LEFT - RIGHT) / bins
    for index, count in enumerate(counts):
        if count:
            start, end = (backward(low + (high - low) * edge / bins) for edge in (index, index + 1))
            hint = f"{say(start)} to {say(end)}: {count:,}"
            shapes.append(Rect(LEFT + index * width + 0.5, y(count), width - 1, y(0) - y(count), "bar", hint))
    for share, value in (("median", middle), ("90 %", p90)):
        shapes += _mark(x(forward(value)), share, right=share == "90 %")
    return Plot(title, summary, shapes)


def throughput(title: str, ends: Sequence[tuple[float, bool]]) -> Plot:
    """Samples ended a minute (a second, an hour) over time, the completed ones and the others stacked."""
    if len(ends) < 2:
        return Plot(title, nothing="too few samples have ended")
    start, end = min(at for at, _ in ends), max(at for at, _ in ends)
    span = max(end - start, 1e-3)
    bins = min(60, max(8, len(ends) // 10))
    good, bad = [0] * bins, [0] * bins
    for at, is_completed in ends:
        (good if is_completed else bad)[min(bins - 1, int((at - start) / span * bins))] += 1
    unit, unit_s = next(
        ((name, size) for name, size in (("second", 1), ("minute", 60)) if len(ends) * size / span >= 2), ("hour", 3600)
    )
    rate = unit_s * bins / span
    x = _scale(0.0, span, LEFT, WIDTH - RIGHT)
    y, shapes = _y_axis(max(a + b for a, b in zip(good, bad, strict=True)) * rate, whole=False)
    for place in _steps_of(0.0, span, units.time_step_s(span, 5)):
        shapes += _x_tick(x(place), _elapsed(place))
    width = (WIDTH - LEFT - RIGHT) / bins
    for index in range(bins):
        left, completed, other = LEFT + index * width + 0.5, good[index], bad[index]
        hint = f"after {_elapsed(index * span / bins)}: {completed:,} completed, {other:,} not"
        if completed:
            shapes.append(Rect(left, y(completed * rate), width - 1, y(0) - y(completed * rate), "bar", hint))
        if other:
            top, base = y((completed + other) * rate), y(completed * rate)
            shapes.append(Rect(left, top, width - 1, base - top, "bar-bad", hint))
    mean = len(ends) * unit_s / span
    summary = f"{units.number(mean)} samples a {unit} on average over {units.duration(span * 1000)}"
    return Plot(title, summary, shapes)


def timeline(title: str, spans: Sequence[Span]) -> Plot:
    """Draw the work of each worker over time, with one row for each turn that it ran at a time."""
    if not spans:
        return Plot(title, nothing="no attempt has a worker and times", wide=True)
    start, end = min(span.start_s for span in spans), max(span.end_s for span in spans)
    total = max(end - start, 1e-3)
    x = _scale(0.0, total, TIMELINE_LEFT, TIMELINE_WIDTH - RIGHT)
    lanes = _lanes(spans)
    rows = sum(len(rows) for _, rows in lanes)
    thick = LANE if rows <= 24 else max(3.0, 24 * LANE / rows)
    y = 8.0
    shapes: list[Shape] = []
    busy = 0.0
    for name, own in lanes:
        top = y
        for row in own:
            drawn = _bars if len(spans) <= MARKED_SPANS else _merged
            shapes += drawn(row, x, start, y, thick)
            busy += sum(span.end_s - span.start_s for span in row)
            y += thick + 1
        shapes.append(Label(TIMELINE_LEFT - 8, (top + y) / 2 + 3, "end", cut(name, 13, "…"), hint=name))
        shapes.append(Line(TIMELINE_LEFT, y + 1.5, TIMELINE_WIDTH - RIGHT, y + 1.5, "grid"))
        y += 4
    for place in _steps_of(0.0, total, units.time_step_s(total, 12)):
        shapes.append(Label(x(place), y + 14, "middle", _elapsed(place)))
    workers = plural(len(lanes), "worker")
    summary = f"{workers}, {len(spans):,} attempts, {busy / (total * rows):.0%} of the time of all rows in use"
    return Plot(title, summary, shapes, TIMELINE_WIDTH, y + 22, wide=True)


def interval(
    value: float, low: float, high: float, floor: float, ceiling: float, zero: float | None = None
) -> list[Shape]:
    """A point with its interval, on a scale that several of them share; `zero` is a line for comparison."""
    x = _scale(floor, ceiling, 4, 196)
    shapes: list[Shape] = [Line(4, 10, 196, 10, "grid")]
    if zero is not None and floor <= zero <= ceiling:
        shapes.append(Line(x(zero), 1, x(zero), 19, "axis"))
    if math.isfinite(low) and math.isfinite(high):
        low, high = max(low, floor), min(high, ceiling)
        shapes += [
            Line(x(low), 10, x(high), 10, "whisker"),
            Line(x(low), 6, x(low), 14, "whisker"),
            Line(x(high), 6, x(high), 14, "whisker"),
        ]
    return [*shapes, Dot(x(min(max(value, floor), ceiling)), 10)]


def status_bar(counts: Sequence[tuple[str, int]]) -> StatusBar:
    """(status, count) as one bar of their parts."""
    total = sum(count for _, count in counts) or 1
    drawn, left = [], 0.0
    for name, count in counts:
        if count:
            width = 1000 * count / total
            drawn.append(Rect(left, 0, max(width - 1.5, 0.8), 10, f"s-{class_of(name)}", f"{name}: {count:,}"))
            left += width
    return StatusBar(", ".join(f"{name} {count:,}" for name, count in counts if count), drawn)


def _lanes(spans: Sequence[Span]) -> list[tuple[str, list[list[Span]]]]:
    lanes: dict[str, list[list[Span]]] = {}
    for span in sorted(spans, key=lambda span: span.start_s):
        rows = lanes.setdefault(span.lane, [])
        free = next((row for row in rows if row[-1].end_s <= span.start_s + 0.002), None)
        if free is None:
            rows.append([span])
        else:
            free.append(span)
    return sorted(lanes.items(), key=lambda lane: _natural(lane[0]))


def _natural(name: str) -> tuple[int, str]:
    digits = "".join(letter for letter in name if letter.isdigit())
    return int(digits[:15] or 0), name


def _bars(row: Sequence[Span], x: Callable[[float], float], start: float, y: float, thick: float) -> list[Shape]:
    drawn: list[Shape] = []
    for span in row:
        left, right = x(span.start_s - start), x(span.end_s - start)
        hint = f"{span.label}: {span.status}, {units.duration((span.end_s - span.start_s) * 1000)}"
        drawn.append(Rect(left, y, max(right - left - 0.6, 0.8), thick, f"s-{class_of(span.status)}", hint, span.n))
    return drawn


def _merged(row: Sequence[Span], x: Callable[[float], float], start: float, y: float, thick: float) -> list[Shape]:
    """Many spans as one shape a status; those nearer than half a unit run together."""
    merged: dict[str, list[tuple[float, float]]] = {}
    for span in row:
        left, right = x(span.start_s - start), x(span.end_s - start)
        spans = merged.setdefault(class_of(span.status), [])
        if spans and left - spans[-1][1] < 0.5:
            spans[-1] = spans[-1][0], max(spans[-1][1], right)
        else:
            spans.append((left, right))
    return [
        Boxes(y, thick, [(left, max(right - left, 0.6)) for left, right in spans], f"s-{class_}")
        for class_, spans in sorted(merged.items(), key=lambda item: item[0] != "completed")
    ]


def class_of(status: str) -> str:
    """The name of a status in the stylesheet."""
    known = ("completed", "failed", "interrupted", "lost", "stalled", "limit", "running")
    return status if status in known else "none"


def _y_axis(highest: float, *, whole: bool) -> tuple[Callable[[float], float], list[Shape]]:
    step = units.round_step(highest or 1.0, 4)
    if whole:
        step = max(1.0, step)
    top = step * max(1, math.ceil(highest / step - 1e-9))
    y = _scale(0.0, top, HEIGHT - BOTTOM, TOP)
    shapes: list[Shape] = []
    for place in _steps_of(0.0, top, step):
        shapes.append(Line(LEFT, y(place), WIDTH - RIGHT, y(place), "axis" if place == 0 else "grid"))
        shapes.append(Label(LEFT - 6, y(place) + 4, "end", units.short(place)))
    return y, shapes


def _x_tick(x: float, label: str) -> list[Shape]:
    y = HEIGHT - BOTTOM
    anchor = "end" if x > WIDTH - RIGHT - 20 else "middle"
    return [Line(x, y, x, y + 4, "axis"), Label(WIDTH - 2 if anchor == "end" else x, y + 17, anchor, label)]


def _mark(x: float, label: str, *, right: bool) -> list[Shape]:
    anchor, offset = ("start", 4) if right else ("end", -4)
    if x < LEFT + 60:
        anchor, offset = "start", 4
    if x > WIDTH - 60:
        anchor, offset = "end", -4
    y = TOP - 14 if right else TOP - 4
    return [Line(x, y - 8, x, HEIGHT - BOTTOM, "mark"), Label(x + offset, y, anchor, label, "mark-label")]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _steps_of(low: float, high: float, step: float) -> list[float]:
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten, and where they are few also twice and five times them, as logarithms."""
    factors = (1, 2, 5) if high - low < 2.5 else (1, 3) if high - low < 4 else (1,)
    places = [
        decade + math.log10(factor) for decade in range(math.floor(low), math.ceil(high) + 1) for factor in factors
    ]
    return [place for place in places if low - 1e-9 <= place <= high + 1e-9]


def _elapsed(s: float) -> str:
    if s < 1 and s > 0:
        return f"{s * 1000:.0f} ms"
    if s < 60:
        return f"{s:.3g} s"
    if s < 3600:
        return f"{s / 60:.3g} min"
    hours, minutes = divmod(round(s / 60), 60)
    return f"{hours}:{minutes:02} h"
