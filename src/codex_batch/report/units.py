"""Figures as people read them, and round steps for axes. Pure."""

from __future__ import annotations

import math
from datetime import datetime, timezone

from codex_pool.prices import amount

NOTHING, MINUS = "\u2013", "\u2212"
"""Signs for a missing figure and for a minus."""


def number(value: float | None, digits: int = 3) -> str:
    """A figure in so many significant digits, thousands with commas."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1) or float(value).is_integer():
        return f"{value:,.0f}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"


def short(value: float) -> str:
    """A figure for an axis: 1.2k, 3M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(ms: float | None) -> str:
    """Milliseconds as 380 ms, 4.2 s, 3 min 5 s, 2 h 4 min."""
    if ms is None:
        return NOTHING
    if ms < 999.5:
        return f"{ms:.0f} ms"
    s = ms / 1000
    if s < 59.95:
        return f"{s:.1f} s"
    whole = round(s)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(s / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def moment(at: float | None) -> str:
    """Seconds since the epoch as a time in UTC."""
    return NOTHING if at is None else datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def money(value: float | None, currency: str | None) -> str:
    """A cost, `unknown` where it is not known; small ones in more digits. A currency not known is left out."""
    return f"${amount(value)}" if currency == "USD" and value is not None else amount(value, currency)


def round_step(span: float, steps: int) -> float:
    """1, 2 or 5 times a power of ten, so that about `steps` of them make the span."""
    raw = max(span, 1e-12) / max(steps, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * 0.999)


_TIME_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


def time_step_s(span_s: float, steps: int) -> float:
    """A step that clocks know, so that about `steps` of them make the span."""
    raw = span_s / max(steps, 1)
    if raw < 1:
        return round_step(span_s, steps)
    return next((step for step in _TIME_STEPS_S if step >= raw), 86400 * math.ceil(raw / 86400))
