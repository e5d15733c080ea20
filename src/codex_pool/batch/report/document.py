"""Rows as the page holds them: a short line for the table, and all of a sample for its transcript view. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .rows import AttemptRow, SampleRow, ScoreRow
from .transcript import TEXT_CHARACTERS, cut, transcript

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
"""Of a line of a run's table; the place of its detail follows them: segment, item."""

PAIR_COLUMNS = ("id", "epoch", "tags", "prompt", "note", "a", "b")
"""Of a line of a comparison; `a` and `b` are null or PAIR_SIDE."""

PAIR_SIDE = ("status", "scores", "tokens", "cost", "duration_ms")

Events = Callable[[int], Iterable[Mapping[str, Any]]]


class Scorers:
    """The names of scorers in the order they were met; the page knows them by their place."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, name: str) -> int:
        if name not in self._places:
            self._places[name] = len(self.names)
            self.names.append(name)
        return self._places[name]

    def line(self, scores: Iterable[ScoreRow]) -> list[list[Any]]:
        """[place, value, passed, 1 if the scorer itself failed] of each score."""
        return [
            [self.place(score.scorer), _short(score.value), score.passed, 1 if score.error else 0] for score in scores
        ]


def line(row: SampleRow, scorers: Scorers) -> list[Any]:
    """What the table shows of a sample, in the order of COLUMNS."""
    return [
        row.id,
        row.epoch,
        row.status,
        row.limit,
        list(row.tags),
        scorers.line(row.scores),
        row.tokens,
        row.cost,
        _short(row.duration_ms),
        row.attempts,
        row.tool_calls,
        one_line(row.prompts[0] if row.prompts else ""),
        one_line(row.final_response or ""),
        one_line(error_text(row.error)),
    ]


def pair_line(a: SampleRow | None, b: SampleRow | None, scorers: Scorers) -> list[Any]:
    """What the comparison's table shows of a sample, in the order of PAIR_COLUMNS."""
    either = b or a
    assert either is not None
    note = "only in B" if a is None else "only in A" if b is None else None
    if a is not None and b is not None and a.digest and b.digest and a.digest != b.digest:
        note = "asked differently"
    sides = [
        None if row is None else [row.status, scorers.line(row.scores), row.tokens, row.cost, _short(row.duration_ms)]
        for row in (a, b)
    ]
    prompt = one_line(either.prompts[0] if either.prompts else "")
    return [either.id, either.epoch, list(either.tags), prompt, note, *sides]


def detail(row: SampleRow, attempts: Iterable[AttemptRow], events: Events, diff: bytes | None) -> dict[str, Any]:
    """All that is shown of a sample. Texts are bounded; what is cut out says so."""
    shown: dict[str, Any] = {
        "status": row.status,
        "limit": row.limit,
        "prompts": [cut(prompt, TEXT_CHARACTERS) for prompt in row.prompts],
        "target": row.target,
        "settings": dict(row.settings),
        "metadata": row.metadata,
        "tags": list(row.tags),
        "response": None if row.final_response is None else cut(row.final_response, TEXT_CHARACTERS),
        "error": error_text(row.error),
        "usage": dict(row.usage or {}),
        "cost": row.cost,
        "thread_id": row.thread_id,
        "turn_id": row.turn_id,
        "worker": row.worker,
        "turns": row.turns,
        "tool_calls": row.tool_calls,
        "queued_ms": row.queued_ms,
        "duration_ms": row.duration_ms,
        "started_at": row.started_at,
        "artifacts": list(row.artifacts),
        "scores": [_score(score) for score in row.scores],
        "diff": None if diff is None else cut(diff.decode("utf-8", "replace"), DIFF_CHARACTERS),
        "attempts": [_attempt(attempt, events) for attempt in attempts],
    }
    return {key: value for key, value in shown.items() if value not in (None, "", [], {})}


def error_text(error: Mapping[str, Any] | None) -> str:
    """An error of a record: its kind and message."""
    if not error:
        return ""
    parts = (error.get("kind"), error.get("message"))
    return ": ".join(str(part) for part in parts if part) or str(dict(error))


def one_line(text: str) -> str:
    """The beginning of a text on one line."""
    words = " ".join(text[: LINE_CHARACTERS * 4].split())
    return words if len(words) <= LINE_CHARACTERS else words[: LINE_CHARACTERS - 1] + "…"


def _score(score: ScoreRow) -> dict[str, Any]:
    values = {
        "scorer": score.scorer,
        "value": score.value,
        "passed": score.passed,
        "answer": score.answer,
        "explanation": None if score.explanation is None else cut(score.explanation, TEXT_CHARACTERS),
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
