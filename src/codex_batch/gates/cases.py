"""Samples of a run as test cases: passed, failed, in error or not run; and a run's overview by variant. Pure."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from codex_app_server._runtime.text import cut, one_line

from ..scoring import metric_rows
from ..scoring.metrics import ScoreValue, Summary, summarise
from ..store import shown_name
from ..store.rows import SampleRow, ScoreRow, is_valid
from .columns import value_of

Kind = Literal["passed", "failure", "error", "skipped"]
# Samples of a summary, the worst ones of the run.
WORST = 20
MESSAGE_CHARACTERS, TEXT_CHARACTERS = 300, 4_000
_RANKS: dict[Kind, int] = {"error": 2, "failure": 1, "skipped": 0}


@dataclass(frozen=True, slots=True)
class Case:
    """A sample as a test case. `message` is one line that says why it did not pass, `text` what is known of it."""

    name: str
    variant: str
    kind: Kind
    time_s: float = 0.0
    type: str = ""
    message: str = ""
    text: str = ""
    scores: str = ""


def case_of(row: SampleRow, scorers: Iterable[str], redact: Callable[[str], str] = str) -> Case:
    """A sample as a test case; `scorers` names those that are to score it, `redact` takes secrets out of its texts.

    A failure: a scorer has judged the answer wrong. An error: it was attempted, and a score is missing.
    """
    kind, type_, message = _outcome(row, list(scorers))
    record = row.record
    return Case(
        # The variant is said apart.
        redact(shown_name(row.id, row.epoch)),
        row.variant,
        kind,
        (record.duration_ms or 0) / 1000 if record is not None else 0.0,
        type_,
        cut(redact(message), MESSAGE_CHARACTERS),
        "" if kind in ("passed", "skipped") else redact(_text(row)),
        ", ".join(f"{score.scorer} {_value(score)}" for score in row.scores),
    )


def _outcome(row: SampleRow, scorers: Sequence[str]) -> tuple[Kind, str, str]:
    record = row.record
    if record is None:
        return "skipped", "", "not run" if row.state == "pending" else "still running"
    if not is_valid(record.status):
        error = record.error or {}
        kind = str(error.get("kind") or record.status)
        why = one_line(str(error.get("message") or ""), MESSAGE_CHARACTERS)
        return "error", kind, f"{record.status}: {why}" if why else record.status
    wrong = [score for score in row.scores if score.passed is False and score.error is None]
    broken = [score for score in row.scores if score.error is not None]
    missing = [name for name in scorers if value_of(row, name) is None]
    if missing or broken:
        why = f"{broken[0].scorer}: {one_line(broken[0].error or '', MESSAGE_CHARACTERS)}" if broken else missing[0]
        return "error", "not scored", f"not scored: {why}"
    if wrong:
        said = [f"{score.scorer} {_value(score)}" for score in wrong]
        why = one_line(wrong[0].explanation or "", MESSAGE_CHARACTERS)
        return "failure", "score", ", ".join(said) + (f": {why}" if why else "")
    return "passed", "", ""


def _value(score: ScoreRow) -> str:
    return "not scored" if score.error is not None or score.value is None else f"{score.value:.4g}"


def _text(row: SampleRow) -> str:
    lines = []
    for score in row.scores:
        said = score.error or score.explanation
        lines.append(f"{score.scorer}: {_value(score)}{f': {cut(said, 1_000)}' if said else ''}")
    record = row.record
    if record is not None and record.error is not None:
        lines.append(f"{record.error.get('kind')}: {cut(str(record.error.get('message', '')), 1_000)}")
    if record is not None and record.final_response:
        lines += ["", "answer:", cut(record.final_response, TEXT_CHARACTERS)]
    return "\n".join(lines)


@dataclass(slots=True)
class Column:
    """The samples of one variant: how many of each kind, their seconds, their scores."""

    kinds: Counter[str] = field(default_factory=Counter)
    time_s: float = 0.0
    scores: list[ScoreValue] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of samples, each epoch counted."""
        return sum(self.kinds.values())

    def metrics(self) -> Summary:
        """The metrics of its scorers."""
        return summarise(self.scores)


class Overview:
    """A run as a whole, by variant; `add` every sample once."""

    def __init__(self) -> None:
        self.columns: dict[str, Column] = {}
        self._worst: list[tuple[int, float, int, Case]] = []
        self._count = 0

    def add(self, row: SampleRow, case: Case) -> None:
        """Count a sample."""
        column = self.columns.setdefault(case.variant, Column())
        column.kinds[case.kind] += 1
        column.time_s += case.time_s
        column.scores.extend(metric_rows.rows_of([row]))
        if case.kind == "passed":
            return
        self._count += 1
        lowest = min((score.value for score in row.scores if score.value is not None), default=-math.inf)
        # The heap drops its smallest: the least bad one.
        entry = (_RANKS[case.kind], -lowest, -self._count, case)
        if len(self._worst) < WORST:
            heapq.heappush(self._worst, entry)
        else:
            heapq.heappushpop(self._worst, entry)

    @property
    def worst(self) -> list[Case]:
        """The worst samples, at most WORST: those in error, wrong ones by their lowest score, then those not run."""
        return [case for _, _, _, case in sorted(self._worst, key=lambda entry: entry[:3], reverse=True)]

    @property
    def not_passed(self) -> int:
        """The number of samples that did not pass."""
        return self._count
