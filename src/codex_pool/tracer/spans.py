"""TurnSpanBook: spans of turns, made of the beginnings and ends that workers report.

    the client's span, by the traceparent of its request
      codex_pool.turn         from when the request came to the end of the turn
        codex_pool.queue      until the request was sent to the app-server
        codex_pool.turn       of a sub-agent, by itself

Attributes follow the semantic conventions for generative AI where these have a word for it; no text of a prompt or an
answer is among them. A turn whose worker has gone without its end is `lost`.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..protocol.turn_spans import TurnBegan, TurnEnded

TURN, QUEUE = "codex_pool.turn", "codex_pool.queue"
# More turns than a pool can run; what a worker begins beyond it is made of its end.
MAX_OPEN = 65_536
_ERRORS = ("failed", "lost", "stalled")
_PROPAGATOR = TraceContextTextMapPropagator()


class TurnSpanBook:
    """See the module's docstring. `unix_offset_s` makes the times of workers Unix time."""

    def __init__(self, tracer: Tracer, unix_offset_s: float) -> None:
        self._tracer = tracer
        self._unix_offset_s = unix_offset_s
        # By turn: the connection that has reported its beginning, and its span.
        self._open: dict[str, tuple[int, Span]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def began(self, connection: int, began: TurnBegan) -> None:
        """Begin the span of a turn."""
        if len(self._open) < MAX_OPEN and began.turn_id not in self._open:
            self._open[began.turn_id] = connection, self._start(began)

    def ended(self, ended: TurnEnded) -> None:
        """End the span of a turn."""
        found = self._open.pop(ended.began.turn_id, None)
        span = found[1] if found is not None else self._start(ended.began)
        attributes: dict[str, Any] = {
            "gen_ai.request.model": ended.model or None,
            "gen_ai.provider.name": ended.provider or None,
        }
        if ended.tokens is not None:
            attributes |= {
                "gen_ai.usage.input_tokens": ended.tokens.input,
                "gen_ai.usage.cache_read.input_tokens": ended.tokens.cached,
                "gen_ai.usage.output_tokens": ended.tokens.output,
                "gen_ai.usage.reasoning.output_tokens": ended.tokens.reasoning,
            }
        if ended.first_delta_at is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = round(ended.first_delta_at - ended.began.came_at, 6)
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        self._end(span, ended.status, ended.ended_at)

    def closed(self, connection: int, now: float) -> None:
        """End the spans of the turns that a worker has begun and not ended: it is gone, and they are with it."""
        for turn_id in [turn_id for turn_id, (of, _) in self._open.items() if of == connection]:
            _, span = self._open.pop(turn_id)
            self._end(span, "lost", now)

    def _start(self, began: TurnBegan) -> Span:
        """Begin the span of a turn, and make that of its wait in the queue."""
        above = self._open.get(began.parent_turn)
        parent = _parent_of(began) if above is None else set_span_in_context(above[1], Context())
        span = self._tracer.start_span(
            TURN,
            context=parent,
            kind=SpanKind.INTERNAL if began.parent_turn else SpanKind.SERVER,
            start_time=self._ns(began.came_at),
            attributes={
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": "codex",
                "gen_ai.conversation.id": began.thread_id,
                "codex_pool.turn.id": began.turn_id,
                "codex_pool.worker": began.worker,
                "codex_pool.slot": began.slot,
                "codex_pool.principal": began.principal or "owner",
            },
        )
        if began.sent_at is not None:
            queue = self._tracer.start_span(
                QUEUE, context=set_span_in_context(span, Context()), start_time=self._ns(began.came_at)
            )
            queue.end(self._ns(began.sent_at))
        return span

    def _end(self, span: Span, status: str, at: float) -> None:
        span.set_attribute("codex_pool.outcome", status)
        if status in _ERRORS:
            span.set_attribute("error.type", status)
            span.set_status(Status(StatusCode.ERROR, status))
        span.end(self._ns(at))

    def _ns(self, at: float) -> int:
        return round((at + self._unix_offset_s) * 1e9)


def _parent_of(began: TurnBegan) -> Context:
    """The context that the request carried; an empty one where there is none to be read."""
    carrier = {"traceparent": began.traceparent, "tracestate": began.tracestate}
    return _PROPAGATOR.extract({name: value for name, value in carrier.items() if value}, Context())
