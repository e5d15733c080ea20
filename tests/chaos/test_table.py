"""The table is whole: every fault at every process in every phase has a verdict."""

from __future__ import annotations

import itertools
from collections import Counter

from .table import FAULTS, PHASES, TARGETS, VERDICTS, NotApplicable, Run, Todo, cells


def test_every_cell_has_a_verdict() -> None:
    assert len(FAULTS) * len(TARGETS) * len(PHASES) == 312
    assert set(VERDICTS) == set(itertools.product(FAULTS, TARGETS, PHASES))
    counts = Counter(type(cell.verdict).__name__ for cell in cells())
    missing = Counter(cell.verdict.what for cell in cells() if isinstance(cell.verdict, Todo))
    print(f"\n{dict(counts)}; waits for: {dict(missing)}")
    assert counts["Run"] >= 90


def test_every_cell_says_what_must_be_seen_or_why_nothing_is() -> None:
    for cell in cells():
        if isinstance(cell.verdict, NotApplicable):
            assert len(cell.verdict.reason) > 20, cell
        elif isinstance(cell.verdict, Run) and cell.phase in ("mid-turn", "draining"):
            seen = (cell.verdict.turn, cell.verdict.victim, cell.verdict.request, cell.verdict.scenario)
            assert any(seen), f"{cell}: of its turn nothing is expected"
