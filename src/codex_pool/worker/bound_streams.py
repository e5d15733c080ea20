"""Streams of notifications of commands, processes, watches and searches, for the session that each belongs to. Pure.

They are numbered, acknowledged, bounded and sent again as those of turns are (see `subscriptions`). A stream that its
session does not read ends with lines of its own kind, which `ends` supplies.
"""

from __future__ import annotations

from collections.abc import Callable

from ..protocol import wire
from .subscription import Limits, Subscription
from .subscriptions import Subscriptions
from .turn_stream import Turn


class BoundStreams(Subscriptions):
    """See the module's docstring. `ends(stream, why)` returns the last lines of a stream that is not read."""

    def __init__(self, worker: str, limits: Limits, ends: Callable[[Turn, str], list[bytes]]) -> None:
        super().__init__(worker, limits)
        self._ends = ends

    @property
    def unacknowledged(self) -> bool:
        """Return True if anything has been published that its session has not acknowledged."""
        return self._kept_bytes > 0

    def find(self, session_id: wire.SessionId, stream: Turn) -> Subscription | None:
        """The session's part in a stream; None once it has ended, and all of it is acknowledged."""
        session = self._sessions.get(session_id)
        return session.subscriptions.get(stream.id) if session is not None else None

    def is_sent(self, session_id: wire.SessionId, stream: Turn) -> bool:
        """Return True if nothing of this stream waits for credit."""
        subscription = self.find(session_id, stream)
        return subscription is None or not subscription.waiting

    def discard(self, session_id: wire.SessionId, stream: Turn) -> None:
        """Remove a stream of which nothing has been published."""
        stream.subscribers.pop(session_id, None)
        session = self._sessions.get(session_id)
        if session is not None:
            session.subscriptions.pop(stream.id, None)
            if not session.subscriptions:
                del self._sessions[session_id]

    def _end_messages(
        self, turn: Turn, status: str, sessions: list[wire.SessionId], frames: list[bytes]
    ) -> list[list[bytes]]:
        return [[wire.encode(wire.ToSessions(sessions)), *frames]] if frames and sessions else []

    def _overflow_lines(self, turn: Turn, why: str) -> list[bytes]:
        return self._ends(turn, why)
