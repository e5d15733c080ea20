"""Plots as inline SVG: what they show stands in their label too. Colours and fonts are the stylesheet's. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from . import units
from .markup import Html, element, text

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
) -> Html:
    """How often which value; a logarithmic axis where values differ by orders of magnitude.

    `say` writes a value, `tick` one of the axis, `step` finds a round step for a span; `most` names the highest value.
    """
    ordered = sorted(value for value in values if value >= 0)
    if not ordered:
        return _figure(title, element("p", "no values", class_="muted"), None)
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
    y, parts = _y_axis(max(counts), whole=True)
    for place in ticks:
        parts.append(_x_tick(x(place), tick(backward(place))))
    width = (WIDTH - LEFT - RIGHT) / bins
    for index, count in enumerate(counts):
        if count:
            start, end = (backward(low + (high - low) * edge / bins) for edge in (index, index + 1))
            hint = element("title", f"{say(start)} to {say(end)}: {count:,}")
            parts.append(_rect(LEFT + index * width + 0.5, y(count), width - 1, y(0) - y(count), "bar", hint))
    for share, value in (("median", middle), ("90 %", p90)):
        parts.append(_mark(x(forward(value)), share, right=share == "90 %"))
    return _figure(title, _svg(f"{title}: {summary}", WIDTH, HEIGHT, parts), summary)


def throughput(title: str, ends: Sequence[tuple[float, bool]]) -> Html:
    """Samples ended a minute (a second, an hour) over time, the completed ones and the others stacked."""
    if len(ends) < 2:
        return _figure(title, element("p", "too few samples have ended", class_="muted"), None)
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
    y, parts = _y_axis(max(a + b for a, b in zip(good, bad, strict=True)) * rate, whole=False)
    for place in _steps_of(0.0, span, units.time_step_s(span, 5)):
        parts.append(_x_tick(x(place), _elapsed(place)))
    width = (WIDTH - LEFT - RIGHT) / bins
    for index in range(bins):
        left, completed, other = LEFT + index * width + 0.5, good[index], bad[index]
        hint = element("title", f"after {_elapsed(index * span / bins)}: {completed:,} completed, {other:,} not")
        if completed:
            parts.append(_rect(left, y(completed * rate), width - 1, y(0) - y(completed * rate), "bar", hint))
        if other:
            top, base = y((completed + other) * rate), y(completed * rate)
            parts.append(_rect(left, top, width - 1, base - top, "bar-bad", hint))
    mean = len(ends) * unit_s / span
    summary = f"{units.number(mean)} samples a {unit} on average over {units.duration(span * 1000)}"
    return _figure(title, _svg(f"{title}: {summary}", WIDTH, HEIGHT, parts), summary)


def timeline(title: str, spans: Sequence[Span]) -> Html:
    """What each worker did when: one row for each turn that it had at a time."""
    if not spans:
        return _figure(title, element("p", "no attempt has a worker and times", class_="muted"), None, wide=True)
    start, end = min(span.start_s for span in spans), max(span.end_s for span in spans)
    total = max(end - start, 1e-3)
    x = _scale(0.0, total, TIMELINE_LEFT, TIMELINE_WIDTH - RIGHT)
    lanes = _lanes(spans)
    rows = sum(len(rows) for _, rows in lanes)
    thick = LANE if rows <= 24 else max(3.0, 24 * LANE / rows)
    y = 8.0
    parts: list[Html] = []
    busy = 0.0
    for name, own in lanes:
        top = y
        for row in own:
            parts += _spans(row, x, start, y, thick) if len(spans) <= MARKED_SPANS else _merged(row, x, start, y, thick)
            busy += sum(span.end_s - span.start_s for span in row)
            y += thick + 1
        label = name if len(name) <= 13 else name[:12] + "…"
        parts.append(
            element(
                "text",
                element("title", name),
                label,
                class_="label",
                x=TIMELINE_LEFT - 8,
                y=_n((top + y) / 2 + 3),
                text_anchor="end",
            )
        )
        parts.append(_line(TIMELINE_LEFT, y + 1.5, TIMELINE_WIDTH - RIGHT, y + 1.5, "grid"))
        y += 4
    for place in _steps_of(0.0, total, units.time_step_s(total, 12)):
        parts.append(
            element("text", _elapsed(place), class_="label", x=_n(x(place)), y=_n(y + 14), text_anchor="middle")
        )
    workers = f"{len(lanes)} {'worker' if len(lanes) == 1 else 'workers'}"
    summary = f"{workers}, {len(spans):,} attempts, {busy / (total * rows):.0%} of the time of all places in use"
    return _figure(title, _svg(f"{title}: {summary}", TIMELINE_WIDTH, y + 22, parts), summary, wide=True)


def interval(value: float, low: float, high: float, floor: float, ceiling: float, zero: float | None = None) -> Html:
    """A point with its interval, on a scale that several of them share; `zero` is a line for comparison."""
    x = _scale(floor, ceiling, 4, 196)
    parts = [_line(4, 10, 196, 10, "grid")]
    if zero is not None and floor <= zero <= ceiling:
        parts.append(_line(x(zero), 1, x(zero), 19, "axis"))
    if math.isfinite(low) and math.isfinite(high):
        low, high = max(low, floor), min(high, ceiling)
        parts += [
            _line(x(low), 10, x(high), 10, "whisker"),
            _line(x(low), 6, x(low), 14, "whisker"),
            _line(x(high), 6, x(high), 14, "whisker"),
        ]
    parts.append(element("circle", class_="dot", cx=_n(x(min(max(value, floor), ceiling))), cy=10, r=4.5))
    return element("svg", *parts, class_="interval", viewBox="0 0 200 20", aria_hidden="true")


def shares(parts: Sequence[tuple[str, str, int]]) -> Html:
    """(name, class, count) as one bar of shares."""
    total = sum(count for _, _, count in parts) or 1
    drawn, left = [], 0.0
    for name, class_, count in parts:
        if count:
            width = 1000 * count / total
            drawn.append(
                _rect(left, 0, max(width - 1.5, 0.8), 10, f"s-{class_}", element("title", f"{name}: {count:,}"))
            )
            left += width
    label = ", ".join(f"{name} {count:,}" for name, _, count in parts if count)
    return element(
        "svg", *drawn, class_="shares", viewBox="0 0 1000 10", preserveAspectRatio="none", role="img", aria_label=label
    )


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


def _spans(row: Sequence[Span], x: Callable[[float], float], start: float, y: float, thick: float) -> list[Html]:
    drawn = []
    for span in row:
        left, right = x(span.start_s - start), x(span.end_s - start)
        hint = element("title", f"{span.label}: {span.status}, {units.duration((span.end_s - span.start_s) * 1000)}")
        drawn.append(_rect(left, y, max(right - left - 0.6, 0.8), thick, f"s-{class_of(span.status)}", hint, span.n))
    return drawn


def _merged(row: Sequence[Span], x: Callable[[float], float], start: float, y: float, thick: float) -> list[Html]:
    """Many spans as one path a status; those nearer than half a unit run together."""
    paths: dict[str, list[list[float]]] = {}
    for span in row:
        left, right = x(span.start_s - start), x(span.end_s - start)
        pieces = paths.setdefault(class_of(span.status), [])
        if pieces and left - pieces[-1][1] < 0.5:
            pieces[-1][1] = max(pieces[-1][1], right)
        else:
            pieces.append([left, right])
    return [
        element(
            "path",
            class_=f"s-{class_}",
            d="".join(
                f"M{_n(left)} {_n(y)}h{_n(max(right - left, 0.6))}v{_n(thick)}H{_n(left)}z" for left, right in pieces
            ),
        )
        for class_, pieces in sorted(paths.items(), key=lambda item: item[0] != "completed")
    ]


def class_of(status: str) -> str:
    """The name of a status in the stylesheet."""
    known = ("completed", "failed", "interrupted", "lost", "stalled", "limit", "running")
    return status if status in known else "none"


def _y_axis(highest: float, *, whole: bool) -> tuple[Callable[[float], float], list[Html]]:
    step = units.round_step(highest or 1.0, 4)
    if whole:
        step = max(1.0, step)
    top = step * max(1, math.ceil(highest / step - 1e-9))
    y = _scale(0.0, top, HEIGHT - BOTTOM, TOP)
    parts = []
    for place in _steps_of(0.0, top, step):
        parts.append(_line(LEFT, y(place), WIDTH - RIGHT, y(place), "axis" if place == 0 else "grid"))
        parts.append(
            element("text", units.short(place), class_="label", x=LEFT - 6, y=_n(y(place) + 4), text_anchor="end")
        )
    return y, parts


def _x_tick(x: float, label: str) -> Html:
    y = HEIGHT - BOTTOM
    anchor = "end" if x > WIDTH - RIGHT - 20 else "middle"
    x_label = WIDTH - 2 if anchor == "end" else x
    return Html(
        _line(x, y, x, y + 4, "axis")
        + element("text", label, class_="label", x=_n(x_label), y=y + 17, text_anchor=anchor)
    )


def _mark(x: float, label: str, *, right: bool) -> Html:
    anchor, offset = ("start", 4) if right else ("end", -4)
    if x < LEFT + 60:
        anchor, offset = "start", 4
    if x > WIDTH - 60:
        anchor, offset = "end", -4
    y = TOP - 14 if right else TOP - 4
    return Html(
        _line(x, y - 8, x, HEIGHT - BOTTOM, "mark")
        + element("text", label, class_="mark-label", x=_n(x + offset), y=y, text_anchor=anchor)
    )


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


def _svg(label: str, width: float, height: float, parts: Sequence[Html]) -> Html:
    return element("svg", *parts, viewBox=f"0 0 {_n(width)} {_n(height)}", role="img", aria_label=label)


def _figure(title: str, body: Html, summary: str | None, *, wide: bool = False) -> Html:
    caption = element(
        "figcaption", element("strong", title), element("span", summary, class_="muted") if summary else None
    )
    return element("figure", caption, body, class_="plot wide" if wide else "plot")


def _rect(x: float, y: float, width: float, height: float, class_: str, hint: Html, n: int | None = None) -> Html:
    return element(
        "rect",
        hint,
        class_=class_,
        x=_n(x),
        y=_n(y),
        width=_n(width),
        height=_n(height),
        data_n=n,
        rx=1 if n is not None else None,
    )


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return element("line", class_=class_, x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2))


def _n(value: float) -> Html:
    return text(f"{value:.1f}".removesuffix(".0"))
