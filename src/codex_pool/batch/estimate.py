"""What a whole run will take, foretold from a few samples of it. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .prices import UNKNOWN, amount
from .progress import duration, plural

_Z = 1.96


@dataclass(frozen=True, slots=True)
class Canary:
    """One sample that was run first. `duration_ms` from dispatch to end, scoring included."""

    tokens: int
    cost: float | None
    duration_ms: int


@dataclass(frozen=True, slots=True)
class Figure:
    """What is expected, and how far off it may be: None where one canary says nothing about that."""

    expected: float
    give_or_take: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of `samples` samples, `concurrency` at once. `cost` is None where a canary's is not known."""

    samples: int
    canaries: int
    tokens: Figure
    cost: Figure | None
    wall_s: Figure


def choose(count: int, canaries: int) -> list[int]:
    """Which of `count` samples to run first: spread evenly, since neighbours are often alike."""
    canaries = min(canaries, count)
    return [index * count // canaries for index in range(canaries)]


def canary(record: Mapping[str, Any]) -> Canary:
    """Of a record."""
    usage = record.get("usage") or {}
    return Canary(usage.get("total_tokens", 0), record.get("cost"), record.get("duration_ms") or 0)


def estimate(
    canaries: Iterable[Canary],
    samples: int,
    concurrency: int,
    *,
    more_tokens: int = 0,
    more_cost: float | None = 0.0,
) -> Estimate:
    """Estimate what `samples` samples will take. Raises ValueError without a canary.

    `more_tokens` and `more_cost` are what all canaries took beside their records: attempts before the last, and judges.
    """
    ran = list(canaries)
    if not ran:
        raise ValueError("no canary has ended; there is nothing to estimate from")
    costs = [one.cost + more_cost / len(ran) for one in ran if one.cost is not None and more_cost is not None]
    at_once = max(1, min(concurrency, samples))
    wall = _total([one.duration_ms / 1000 for one in ran], samples)
    # The last ones have places to spare: no run is shorter than its longest sample.
    longest_s = max(one.duration_ms for one in ran) / 1000
    return Estimate(
        samples=samples,
        canaries=len(ran),
        tokens=_total([one.tokens + more_tokens / len(ran) for one in ran], samples),
        cost=_total(costs, samples) if len(costs) == len(ran) else None,
        wall_s=Figure(
            max(wall.expected / at_once, longest_s if samples else 0.0),
            None if wall.give_or_take is None else wall.give_or_take / at_once,
        ),
    )


def _total(values: Sequence[float], samples: int) -> Figure:
    expected = statistics.fmean(values) * samples
    if len(values) < 2:
        return Figure(expected, None)
    # Of the mean that the canaries give, and of the sum over samples that scatter as they do.
    spread = statistics.stdev(values)
    return Figure(expected, _Z * spread * math.sqrt(samples * samples / len(values) + samples))


def printed(found: Estimate, currency: str) -> list[tuple[str, str]]:
    """(name, figure) for people."""
    cost = f"{UNKNOWN}: no price of its model, or none of all that was used; name a table with --prices"
    if found.cost is not None:
        off = found.cost.give_or_take
        cost = amount(found.cost.expected) + ("" if off is None else f" ± {amount(off)}") + f" {currency}"
    return [
        ("from", f"{plural(found.canaries, 'sample')}, for {found.samples:,}"),
        ("tokens", _figure(found.tokens, "{:,.0f}")),
        ("cost", cost),
        ("time", duration(found.wall_s.expected) + _time_off(found.wall_s)),
    ]


def _figure(figure: Figure, form: str) -> str:
    off = "" if figure.give_or_take is None else " ± " + form.format(figure.give_or_take)
    return form.format(figure.expected) + off


def _time_off(figure: Figure) -> str:
    return "" if figure.give_or_take is None else f" ± {duration(figure.give_or_take)}"
