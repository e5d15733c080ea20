"""TurnSpans: reports beginnings and ends of turns to the tracer, in a pool that has one. Pure."""

from __future__ import annotations

from ..protocol import turn_spans
from ..protocol.turn_spans import TurnBegan, TurnEnded
from .effects import Outbox, ToTracer
from .request import Request
from .threads import Threads
from .turn_stream import Turn


class TurnSpans:
    """See the module's docstring. Without `enabled` nothing is reported, and nothing kept."""

    def __init__(self, worker: str, slot: int, *, threads: Threads, outbox: Outbox, enabled: bool) -> None:
        self._worker = worker
        self._slot = slot
        self._threads = threads
        self._outbox = outbox
        self._enabled = enabled

    def began(self, turn: Turn, request: Request | None = None, *, parent_turn: str = "") -> None:
        """Report that a turn has begun: by a request of a session, or unasked."""
        if not self._enabled:
            return
        traceparent, tracestate = "", ""
        came_at, sent_at = turn.began_at, None
        if request is not None:
            traceparent, tracestate = turn_spans.trace_of(request.others.get("trace"))
            came_at, sent_at = request.came_at, request.first_sent_at
        turn.span = TurnBegan(
            turn_id=turn.id,
            thread_id=turn.thread_id,
            came_at=came_at,
            sent_at=sent_at,
            traceparent=traceparent,
            tracestate=tracestate,
            parent_turn=parent_turn,
            principal=self._threads.owner_of(turn.thread_id) or "",
            worker=self._worker,
            slot=self._slot,
        )
        self._outbox.put(ToTracer(turn_spans.encode(turn.span)))

    def ended(self, turn: Turn, status: str) -> None:
        """Report that a turn has ended."""
        if turn.span is None:
            return
        thread = self._threads.get(turn.thread_id)
        line = TurnEnded(
            began=turn.span,
            ended_at=self._outbox.now,
            status=status,
            model=(thread.record.model if thread is not None else None) or "",
            provider=(thread.record.model_provider if thread is not None else None) or "",
            tokens=turn.tokens,
            first_delta_at=turn.first_delta_at,
        )
        self._outbox.put(ToTracer(turn_spans.encode(line)))
