"""An estimate of a whole run, extrapolated from a few samples of it. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from codex_app_server._runtime.text import duration, plural
from codex_pool.prices import UNKNOWN, amount

_Z = 1.96


@dataclass(frozen=True, slots=True)
class Canary:
    """One sample that was run first. `duration_ms` from dispatch to end, scoring included."""

    tokens: int
    cost: float | None
    duration_ms: int


@dataclass(frozen=True, slots=True)
class Figure:
    """An expected figure, and how far off it may be: None where one canary shows nothing of that."""

    expected: float
    give_or_take: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimate `samples` samples, `concurrency` at once. `cost` is None where a canary's is not known."""

    samples: int
    canaries: int
    tokens: Figure
    cost: Figure | None
    wall_s: Figure


def choose(sizes: Sequence[int], canaries: int) -> list[int]:
    """Choose which of the samples to run first: spread evenly, since neighbours are often alike.

    `sizes` are the numbers of variants that each of them is to be run in, one after the other; all of a chosen one are
    run. The answer has the positions among all.
    """
    count = len(sizes)
    canaries = min(canaries, count)
    begins = [0, *accumulate(sizes)]
    chosen = [index * count // canaries for index in range(canaries)]
    return [position for index in chosen for position in range(begins[index], begins[index + 1])]


def canary(record: Mapping[str, Any]) -> Canary:
    """Return the figures of a record."""
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
    return estimate_all([(list(canaries), samples)], concurrency, more_tokens=more_tokens, more_cost=more_cost)


def estimate_all(
    groups: Sequence[tuple[Sequence[Canary], int]],
    concurrency: int,
    *,
    more_tokens: int = 0,
    more_cost: float | None = 0.0,
) -> Estimate:
    """Estimate a run of groups that differ, such as variants: of each its canaries, and the number of its samples.

    Raises ValueError for a group without a canary.
    """
    ran = [one for canaries, _ in groups for one in canaries]
    if not all(canaries for canaries, _ in groups) or not ran:
        raise ValueError("no canary has ended; there is nothing to estimate from")
    samples = sum(count for _, count in groups)
    has_costs = more_cost is not None and all(one.cost is not None for one in ran)
    more = (more_cost or 0.0) / len(ran)
    at_once = max(1, min(concurrency, samples))
    wall = _sum([_total([one.duration_ms / 1000 for one in canaries], count) for canaries, count in groups])
    # The last ones have places to spare: no run is shorter than its longest sample.
    longest_s = max(one.duration_ms for one in ran) / 1000
    tokens = [_total([one.tokens + more_tokens / len(ran) for one in canaries], count) for canaries, count in groups]
    costs = [_total([(one.cost or 0.0) + more for one in canaries], count) for canaries, count in groups]
    return Estimate(
        samples=samples,
        canaries=len(ran),
        tokens=_sum(tokens),
        cost=_sum(costs) if has_costs else None,
        wall_s=Figure(
            max(wall.expected / at_once, longest_s if samples else 0.0),
            None if wall.give_or_take is None else wall.give_or_take / at_once,
        ),
    )


def _sum(figures: Sequence[Figure]) -> Figure:
    """The sum of independent figures."""
    off = [each.give_or_take for each in figures]
    known = [each for each in off if each is not None]
    return Figure(sum(each.expected for each in figures), math.hypot(*known) if len(known) == len(off) else None)


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
