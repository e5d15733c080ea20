"""results.jsonl, made of the tables: one line a finished sample. What stands in it can be made again at any time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server._runtime.files import replacing

from . import layout
from .rows import SampleRow, ScoreRow, is_valid

EXPORT_VERSION = 1


def exported(row: SampleRow) -> dict[str, Any]:
    """A finished sample as a line of results.jsonl."""
    record = row.record
    assert record is not None
    return {
        "schema_version": EXPORT_VERSION,
        "id": row.id,
        "epoch": row.epoch,
        **({"variant": row.variant} if row.variant else {}),
        "status": record.status,
        "valid": is_valid(record.status),
        "limit": record.limit,
        "final_response": record.final_response,
        "responses": list(record.responses) if len(record.responses) > 1 else None,
        "error": record.error,
        "scores": {score.scorer: _exported_score(score) for score in row.scores},
        "usage": record.usage,
        "cost": record.cost,
        "thread_id": record.thread_id,
        "turn_id": record.turn_id,
        "worker": record.worker,
        "attempts": record.attempts,
        "turns": record.turns,
        "tool_calls": record.tool_calls,
        "queued_ms": record.queued_ms,
        "duration_ms": record.duration_ms,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "artifacts": list(record.artifacts),
        "agents_md": record.agents_md,
        "model": record.model,
        "effort": record.effort,
        "provider": record.provider,
        "codex_version": record.codex_version,
        "rerouted_from": record.rerouted_from,
        **({"container": record.container} if record.container else {}),
        "fingerprint": record.fingerprint,
        "launch": record.launch,
        "tags": list(row.tags),
        "metadata": row.spec.get("metadata"),
    }


def _exported_score(score: ScoreRow) -> dict[str, Any]:
    return {
        "value": score.value,
        "passed": score.passed,
        "answer": score.answer,
        "explanation": score.explanation,
        "metadata": score.metadata,
        "error": score.error,
    }


def line_of(row: SampleRow) -> bytes:
    value = exported(row)
    if not row.scores:
        # No scorer has had a word in it: all numbers are finite, and a faster encoder writes them as well.
        with contextlib.suppress(UnicodeEncodeError):
            return msgspec.json.encode(value) + b"\n"
    return encode(value)


def encode(value: dict[str, Any]) -> bytes:
    # What a lone surrogate becomes is an escape again, so the line stays valid JSON.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"


class Results:
    """The file while a run goes on: finished samples are added to its end."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / layout.RESULTS
        self._file: int | None = None

    def rewrite(self, rows: Iterable[SampleRow]) -> None:
        """Write the file beside the old one, then rename it over that: a reader has either file whole."""
        self.close()
        with replacing(self._path) as file:
            for row in rows:
                file.write(line_of(row))

    def append(self, rows: Iterable[SampleRow]) -> None:
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        data = memoryview(b"".join(map(line_of, rows)))
        while data:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None
