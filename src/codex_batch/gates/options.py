"""Gates as they are asked for, from the words of the command line. Pure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

MARGIN, ALPHA, MIN_SCORED = 0.0, 0.05, 1.0


class GateError(ValueError):
    """Gates that cannot be decided; `problems` holds everything that is wrong, each with its option."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class FailUnder:
    """The mean of `scorer` is to be `least` or more: in `variant`, in each of them if None."""

    scorer: str
    least: float
    variant: str | None = None

    @property
    def shown(self) -> str:
        """The value of --fail-under that it is of."""
        return f"{named(self.scorer, self.variant or '')}={self.least:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOptions:
    """Gates of one command, and the files that report them.

    `worse_than` are values of --fail-if-worse-than. `margin` is in units of the score; `alpha` is the probability of a
    false alarm, above 0 and at most 0.5; `min_scored` the part of the samples, from 0 to 1, that must have a score.
    `scorers` are those that baselines are compared by, all of the run if empty.
    """

    fail_under: tuple[FailUnder, ...] = ()
    worse_than: tuple[str, ...] = ()
    scorers: tuple[str, ...] = ()
    margin: float = MARGIN
    alpha: float = ALPHA
    min_scored: float = MIN_SCORED
    junit: Path | None = None

    @property
    def any_gate(self) -> bool:
        """True if anything can fail."""
        return bool(self.fail_under or self.worse_than)

    @property
    def pairs_needed(self) -> int:
        """The fewest samples with which the comparison can fail at all, each of them worse: p is then 2**-samples."""
        return math.ceil(-math.log2(self.alpha) - 1e-9)


def parse_fail_under(text: str) -> FailUnder:
    """The gate of `SCORER=NUMBER` or `SCORER@VARIANT=NUMBER`. Raises ValueError."""
    name, equals, number = text.rpartition("=")
    scorer, at, variant = name.partition("@")
    try:
        least = float(number)
    except ValueError:
        least = math.nan
    if not equals or not scorer or (at and not variant) or not math.isfinite(least):
        raise ValueError(f"{text!r} is not of the form SCORER=NUMBER or SCORER@VARIANT=NUMBER, such as exact=0.8")
    return FailUnder(scorer, least, variant if at else None)


def named(scorer: str, variant: str) -> str:
    """A scorer with the variant that it has scored, if there is one."""
    return f"{scorer}@{variant}" if variant else scorer


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The problem of a name that there is not, with the one that is meant or all that there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f"no {what} {name!r}; did you mean {near[0]!r}?"
    there = f"there are {', '.join(known)}" if len(known) > 1 else f"there is {known[0]}" if known else "there is none"
    return f"no {what} {name!r}; {there}"
