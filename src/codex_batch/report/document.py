"""Rows as the page holds them: a short line for the table, and all of a sample for its transcript view. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from codex_app_server._runtime.text import one_line

from ..store.rows import ANSWERED, AttemptRow, RecordRow, SampleRow, ScoreRow
from .source import status_of, tokens_of
from .transcript_view import TEXT_CHARACTERS, cut_middle, transcript

LINE_CHARACTERS = 160
DIFF_CHARACTERS = 400_000

COLUMNS = (
    "id",
    "epoch",
    "status",
    "limit",
    "tags",
    "scores",
    "tokens",
    "cost",
    "duration_ms",
    "attempts",
    "tool_calls",
    "prompt",
    "answer",
    "error",
)
"""Columns of a line of a run's table; the place of its detail follows them: segment, item."""

PAIR_COLUMNS = ("id", "epoch", "tags", "prompt", "note", "a", "b")
"""Columns of a line of a comparison; `a` and `b` are null or PAIR_SIDE."""

PAIR_SIDE = ("status", "scores", "tokens", "cost", "duration_ms")

SETTINGS = ("model", "effort", "sandbox", "cwd", "timeout_s", "limits", "workspace", "scorers", "output_schema")

_NONE = RecordRow(status="", attempts=0)

Events = Callable[[int], Iterable[Mapping[str, Any]]]


class ScorerNumbers:
    """The names of scorers in the order they were met; the page knows them by their place."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]

    def line(self, scores: Iterable[ScoreRow]) -> list[list[Any]]:
        """[place, value, passed, 1 if the scorer itself failed] of each score."""
        return [
            [self.number(score.scorer), _short(score.value), score.passed, 1 if score.error else 0] for score in scores
        ]


def line(row: SampleRow, scorers: ScorerNumbers) -> list[Any]:
    """Return the table's row for a sample, in the order of COLUMNS."""
    record = row.record or _NONE
    return [
        row.id,
        row.epoch,
        status_of(row),
        record.limit,
        list(row.tags),
        scorers.line(row.scores),
        tokens_of(row),
        record.cost,
        record.duration_ms,
        record.attempts,
        record.tool_calls,
        opening(_prompt(row)),
        opening(record.final_response or ""),
        opening(error_text(record.error)),
    ]


def pair_line(a: SampleRow | None, b: SampleRow | None, scorers: ScorerNumbers) -> list[Any]:
    """Return the comparison table's row for a sample, in the order of PAIR_COLUMNS."""
    either = b or a
    assert either is not None
    note = "only in B" if a is None else "only in A" if b is None else None
    if a is not None and b is not None and a.digest and b.digest and a.digest != b.digest:
        note = "asked differently"
    sides = [_side(row, scorers) for row in (a, b)]
    return [either.id, either.epoch, list(either.tags), opening(_prompt(either)), note, *sides]


def _side(row: SampleRow | None, scorers: ScorerNumbers) -> list[Any] | None:
    if row is None:
        return None
    record = row.record or _NONE
    return [status_of(row), scorers.line(row.scores), tokens_of(row), record.cost, record.duration_ms]


def _prompt(row: SampleRow) -> str:
    return str((row.spec.get("prompts") or [""])[0])


def detail(row: SampleRow, attempts: Iterable[AttemptRow], events: Events, diff: bytes | None) -> dict[str, Any]:
    """Return all that is shown of a sample. Texts are bounded; each cut is marked."""
    record = row.record or _NONE
    shown: dict[str, Any] = {
        "status": status_of(row),
        "limit": record.limit,
        "prompts": [cut_middle(str(prompt), TEXT_CHARACTERS) for prompt in row.spec.get("prompts") or ()],
        "target": row.spec.get("target"),
        "settings": _settings(row, record),
        "metadata": row.spec.get("metadata"),
        "tags": list(row.tags),
        "response": None if record.final_response is None else cut_middle(record.final_response, TEXT_CHARACTERS),
        "error": error_text(record.error),
        "usage": dict(record.usage or {}),
        "cost": record.cost,
        "thread_id": record.thread_id,
        "turn_id": record.turn_id,
        "worker": record.worker,
        "turns": record.turns,
        "tool_calls": record.tool_calls,
        "queued_ms": record.queued_ms,
        "duration_ms": record.duration_ms,
        "started_at": record.started_at,
        "artifacts": list(record.artifacts),
        "scores": [_score(score) for score in row.scores],
        "diff": None if diff is None else cut_middle(diff.decode("utf-8", "replace"), DIFF_CHARACTERS),
        "attempts": [_attempt(attempt, events) for attempt in attempts],
    }
    return {key: value for key, value in shown.items() if value not in (None, "", [], {})}


def _settings(row: SampleRow, record: RecordRow) -> dict[str, Any]:
    """Settings of the sample, and the model that answered."""
    asked = {name: row.spec[name] for name in SETTINGS if row.spec.get(name) is not None}
    answered = {name: getattr(record, name) for name in (*ANSWERED, "rerouted_from")}
    return asked | {name.replace("_", " "): value for name, value in answered.items() if value is not None}


def error_text(error: Mapping[str, Any] | None) -> str:
    """An error of a record: its kind and message."""
    if not error:
        return ""
    parts = (error.get("kind"), error.get("message"))
    return ": ".join(str(part) for part in parts if part) or str(dict(error))


def opening(text: str) -> str:
    """Return the beginning of a text on one line; of a long one no more is read than may be shown."""
    return one_line(text[: LINE_CHARACTERS * 4], LINE_CHARACTERS, "…")


def _score(score: ScoreRow) -> dict[str, Any]:
    values = {
        "scorer": score.scorer,
        "value": score.value,
        "passed": score.passed,
        "answer": score.answer,
        "explanation": None if score.explanation is None else cut_middle(score.explanation, TEXT_CHARACTERS),
        "metadata": score.metadata,
        "error": score.error,
        "duration_ms": score.duration_ms,
    }
    return {key: value for key, value in values.items() if value is not None}


def _attempt(attempt: AttemptRow, events: Events) -> dict[str, Any]:
    values = {
        "attempt": attempt.attempt,
        "status": attempt.status,
        "error": error_text(attempt.error),
        "worker": attempt.worker,
        "note": attempt.note,
        "queued_ms": attempt.queued_ms,
        "duration_ms": attempt.duration_ms,
        "started_at": attempt.started_at,
        "entries": transcript(events(attempt.attempt)),
    }
    return {key: value for key, value in values.items() if value not in (None, "", [])}


def _short(value: float | None) -> float | None:
    """Six digits are enough for a table, and make it smaller."""
    if value is None or not isinstance(value, float):
        return value
    return float(f"{value:.6g}")
