"""Trace context of requests: which span of the program a request belongs to (W3C Trace Context)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec

from .errors import InvalidInputError

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_member: ContextVar[bytes] = ContextVar("codex_app_server.trace_context", default=b"")


@contextmanager
def trace_context(traceparent: str, tracestate: str | None = None) -> Iterator[None]:
    """Have the requests that this thread or task sends within the block name a span, as their member `trace`.

        carrier = {}
        opentelemetry.propagate.inject(carrier)
        with trace_context(**carrier):
            thread.run("...")

    A pool with `traces`, and codex where it exports its own, put what they do below that span. Raises
    InvalidInputError for a traceparent that is not one.
    """
    if not isinstance(traceparent, str) or _TRACEPARENT.fullmatch(traceparent) is None:
        expected = "expected VERSION-TRACE_ID-SPAN_ID-FLAGS in hexadecimal"
        raise InvalidInputError(f"traceparent is {traceparent!r}; {expected}")
    trace = {"traceparent": traceparent, **({} if tracestate is None else {"tracestate": tracestate})}
    token = _member.set(b',"trace":' + msgspec.json.encode(trace))
    try:
        yield
    finally:
        _member.reset(token)


def trace_member() -> bytes:
    """The member as it stands in a request behind another one; b"" outside of any block."""
    return _member.get()
