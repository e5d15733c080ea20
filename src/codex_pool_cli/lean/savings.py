"""Savings of switches, of what several rounds have measured. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A smaller part of the figure without the switch is not told apart from what other programs do meanwhile.
LEAST_PART = 0.03
MIN_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one app-server: CPU for a turn on a new thread, memory after the turns, time until it is ready."""

    cpu_ms: float
    memory_bytes: int
    start_ms: float


KINDS = ("cpu_ms", "memory_bytes", "start_ms")


@dataclass(frozen=True, slots=True)
class Saving:
    """Saving of one kind: `part` of the figure without the switch, below 0 where the switch costs something.

    `is_clear`: seen in every one of at least MIN_ROUNDS rounds, and at least LEAST_PART.
    """

    amount: float
    part: float
    is_clear: bool


def saving(without: Sequence[float], with_switch: Sequence[float]) -> Saving:
    """Compare the rounds without a switch to those with it, round by round; `part` is a median of ratios."""
    parts = [1 - after / before if before else 0.0 for before, after in zip(without, with_switch, strict=True)]
    part = statistics.median(parts)
    amount = statistics.median(before - after for before, after in zip(without, with_switch, strict=True))
    agree = all(each > 0 for each in parts) or all(each < 0 for each in parts)
    return Saving(amount, part, agree and len(parts) >= MIN_ROUNDS and abs(part) >= LEAST_PART)


def savings(without: Sequence[Figures], with_switch: Sequence[Figures]) -> dict[str, Saving]:
    """Return the saving of each kind."""
    return {kind: saving(_values(without, kind), _values(with_switch, kind)) for kind in KINDS}


def medians(rounds: Sequence[Figures]) -> dict[str, float]:
    """Return the median of each kind."""
    return {kind: statistics.median(_values(rounds, kind)) for kind in KINDS}


def rounds_of(measured: Mapping[str, Sequence[Figures]]) -> int:
    """Return how many rounds there are of all that was measured."""
    return min(map(len, measured.values()))


def _values(rounds: Sequence[Figures], kind: str) -> list[float]:
    return [getattr(each, kind) for each in rounds]
