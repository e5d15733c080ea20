"""Choice between several results of one sample. Pure.

A run directory may be there twice: an older copy and a newer one, or a shard that was begun again on another machine.
Attempts are named by their random keys, so of two states of one directory the one that has all attempts of the other is
the later. Of others, an answer counts more than none. Two answers are a conflict, unless one is preferred.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

AttemptId = tuple[str, float]
"""Key and start of an attempt: a resumed one keeps its key."""
Prefer = Literal["first", "last"]


class SampleState(NamedTuple):
    """State of a sample in one source. `is_settled`: it has an answer, and is not to be run again; `ended` attempts."""

    source: int
    n: int
    position: int
    is_done: bool
    is_recorded: bool
    is_settled: bool
    attempts: Sequence[AttemptId]
    ended: int
    scored_at: float

    @property
    def progress(self) -> tuple[int, bool, bool, bool, float]:
        """Grows while a run works at the sample without another attempt."""
        return self.ended, self.is_recorded, self.is_settled, self.is_done, self.scored_at


class Choice(NamedTuple):
    """The state that is taken, and states with attempts that it does not have, which were paid for as well."""

    taken: SampleState
    others: Sequence[SampleState]


class ConflictError(Exception):
    """Two sources have answers of different attempts, and none is preferred."""

    def __init__(self, first: SampleState, second: SampleState) -> None:
        self.first, self.second = first, second
        super().__init__(first.source, second.source)


def choose(states: Iterable[SampleState], prefer: Prefer | None = None) -> Choice:
    """Choose between the states of a sample, in the order of their sources; at least one. Raises ConflictError."""
    known = list(states)
    taken = known[0]
    for state in known[1:]:
        taken = _of_two(taken, state, prefer)
    there = set(taken.attempts)
    others: list[SampleState] = []
    for state in known:
        if not there.issuperset(state.attempts):
            others.append(state)
            there.update(state.attempts)
    return Choice(taken, others)


def _of_two(first: SampleState, second: SampleState, prefer: Prefer | None) -> SampleState:
    a, b = set(first.attempts), set(second.attempts)
    if a == b:
        return second if second.progress > first.progress else first
    if a > b or b > a:
        return first if a > b else second
    if first.is_settled and second.is_settled:
        if prefer is None:
            raise ConflictError(first, second)
        return first if prefer == "first" else second
    if first.is_settled or second.is_settled:
        return first if first.is_settled else second
    return first if first.is_recorded or not second.is_recorded else second
