"""The on-record hook `opentelemetry`: a span for each sample, sent by OTLP over HTTP where OTEL_* variables say.

A span goes from the beginning of the sample's last attempt to its end. With TRACEPARENT, as tools of CI systems set it,
all are below that span, else each begins a trace. No text of a prompt or an answer is in it. This module needs the
extra `otel`, and is loaded in the hook's process only.
"""

from __future__ import annotations

import os
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from codex_pool import __version__
from codex_pool.tracer.telemetry import Counts, begin

SPAN = "codex_pool.sample"
# Of the time that hooks have at the end of a run.
FLUSH_MS = 8_000
_USAGE = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "cached_input_tokens": "gen_ai.usage.cache_read.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "reasoning_output_tokens": "gen_ai.usage.reasoning.output_tokens",
}
_FIELDS = {
    "thread_id": "gen_ai.conversation.id",
    "model": "gen_ai.request.model",
    "provider": "gen_ai.provider.name",
    "id": "codex_pool.sample.id",
    "epoch": "codex_pool.sample.epoch",
    "variant": "codex_pool.sample.variant",
    "attempts": "codex_pool.sample.attempts",
    "status": "codex_pool.outcome",
    "worker": "codex_pool.worker",
    "turn_id": "codex_pool.turn.id",
    "cost": "codex_pool.cost",
}
_NO_ERRORS = ("completed", "limit", "interrupted")


class SampleSpans:
    """Makes the spans of one launch."""

    def __init__(self, run: dict[str, Any]) -> None:
        self._run = {"codex_pool.run": os.path.basename(run["path"]), "codex_pool.launch": run["launch"]}
        self._counts = Counts()
        self._tracer, self._provider = begin(self._counts, __version__)
        names = ("TRACEPARENT", "TRACESTATE")
        carrier = {name.lower(): os.environ[name] for name in names if os.environ.get(name)}
        self._parent = TraceContextTextMapPropagator().extract(carrier, Context())

    def __call__(self, record: dict[str, Any]) -> None:
        ended_at = record["ended_at"]
        began_at = record["started_at"] or ended_at
        span = self._tracer.start_span(
            SPAN, context=self._parent, start_time=round(began_at * 1e9), attributes=attributes_of(record) | self._run
        )
        if record["status"] not in _NO_ERRORS:
            span.set_status(Status(StatusCode.ERROR, record["status"]))
        span.end(round(ended_at * 1e9))

    def close(self) -> None:
        """Send what waits. Raises RuntimeError if spans were lost."""
        self._provider.force_flush(FLUSH_MS)
        counts = self._counts.as_json()
        lost = counts["lost"] + counts["waiting"]
        if lost:
            raise RuntimeError(f"{lost:,} spans were lost: {counts['problem'] or 'not exported in time'}")


def attributes_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a record's span: those of the semantic conventions where these have a word for it."""
    usage, error = record.get("usage") or {}, record.get("error") or {}
    found: dict[str, Any] = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "codex"}
    found |= {to: record.get(name) for name, to in _FIELDS.items()}
    found |= {to: usage.get(name) for name, to in _USAGE.items()}
    if record["status"] not in _NO_ERRORS:
        found["error.type"] = error.get("kind") or record["status"]
    for name, score in (record.get("scores") or {}).items():
        found[f"codex_pool.score.{name}"] = score.get("value")
    return {name: value for name, value in found.items() if value is not None}
