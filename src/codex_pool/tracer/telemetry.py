"""The OpenTelemetry SDK of the tracer: configured by OTEL_* variables, with counts of what is exported and lost."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Tracer

SERVICE = "codex-pool"
DEFAULT_QUEUE = 2048
# The reason, at the end of a chain of exceptions.
_ERRNO = re.compile(r"\[Errno -?\d+\] [\w ]+")
DEFAULT_ENDPOINT = "http://localhost:4318"


class Counts:
    """Spans that were `exported` and `lost`, those that are `waiting`, and the last `problem` ("" once one went well).

    Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.exported = self.lost = self.waiting = 0
        self.problem = ""

    def begin(self, most: int) -> bool:
        """Count a span that is to be exported; return False, and count it as lost, if `most` wait already."""
        with self._lock:
            if self.waiting >= most:
                self.lost += 1
                return False
            self.waiting += 1
            return True

    def end(self, count: int, problem: str | None) -> None:
        """Count spans that were exported, or lost for a problem."""
        with self._lock:
            self.waiting -= count
            if problem is None:
                self.exported += count
            else:
                self.lost += count
            self.problem = problem or ""

    def lose(self, count: int) -> None:
        """Count spans that were never made."""
        with self._lock:
            self.lost += count

    def as_json(self) -> dict[str, Any]:
        """Return the counts for a report."""
        with self._lock:
            return {name: getattr(self, name) for name in ("exported", "lost", "waiting", "problem")}


class _Problems(logging.Handler):
    """Keeps the first message of the SDK's own log since `clear`, which has the reason of a failed export."""

    first = ""

    def clear(self) -> None:
        self.first = ""

    def emit(self, record: logging.LogRecord) -> None:
        if not self.first:
            text = " ".join(record.getMessage().split())
            errno = _ERRNO.search(text)
            self.first = errno[0] if errno is not None else text[:200]


class _CountingExporter(SpanExporter):
    def __init__(self, inner: SpanExporter, counts: Counts, problems: _Problems, where: str) -> None:
        self._inner = inner
        self._where = where
        self._counts = counts
        self._problems = problems

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        problem: str | None = f"{self._where}: the exporter has failed"
        self._problems.clear()
        try:
            result = self._inner.export(spans)
            if result is SpanExportResult.SUCCESS:
                problem = None
            elif self._problems.first:
                problem = f"{self._where}: {self._problems.first}"
        finally:
            self._counts.end(len(spans), problem)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _CountingProcessor(SpanProcessor):
    """Passes on what is sampled, and no more than the queue behind it takes: so nothing is dropped uncounted."""

    def __init__(self, inner: BatchSpanProcessor, counts: Counts, most: int) -> None:
        self._inner = inner
        self._counts = counts
        self._most = most

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled and self._counts.begin(self._most):
            self._inner.on_end(span)

    def shutdown(self) -> None:
        self._inner.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


def begin(counts: Counts, version: str, environ: Mapping[str, str] = os.environ) -> tuple[Tracer, TracerProvider]:
    """Set the SDK up; return the tracer that makes spans, and its provider. Raises ValueError for a wrong variable."""
    problems, logger = _Problems(), logging.getLogger("opentelemetry")
    logger.addHandler(problems)
    logger.propagate = False
    attributes = {"service.version": version}
    if "OTEL_SERVICE_NAME" not in environ and "service.name=" not in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        attributes["service.name"] = SERVICE
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    exporter = _CountingExporter(OTLPSpanExporter(), counts, problems, _where(environ))
    most = int(environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or DEFAULT_QUEUE)
    provider.add_span_processor(_CountingProcessor(BatchSpanProcessor(exporter), counts, most))
    return provider.get_tracer("codex_pool", version), provider


def _where(environ: Mapping[str, str]) -> str:
    """The host and port that spans are sent to, for messages: an address may have a password in it."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    address = next((environ[name] for name in names if environ.get(name)), DEFAULT_ENDPOINT)
    return urlsplit(address).netloc.rpartition("@")[2]
