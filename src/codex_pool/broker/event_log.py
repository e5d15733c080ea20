"""EventLog: the last events of a core, with ids and without bodies, for the analysis of faults. Pure.

Recording costs a tuple and an append to a bounded deque; text is made only when it is read.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ..protocol.wire import SessionId

MAX_EVENTS = 512
# Ids come from clients: of a longer one the beginning is shown.
MAX_ID_CHARS = 64


# The time of the monotonic clock in seconds, the kind, and the ids that it is about, "" for none: subject, session,
# request, thread, worker.
Event = tuple[float, str, str, SessionId | None, str, str, str]


class EventLog:
    """See the module's docstring. `append` takes an event whose ids have at most MAX_ID_CHARS."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.append = self._events.append

    def __len__(self) -> int:
        return len(self._events)

    def record(
        self,
        at: float,
        kind: str,
        subject: str = "",
        session: SessionId | None = None,
        thread: str = "",
        worker: str = "",
    ) -> None:
        """Add an event; beyond MAX_EVENTS the oldest one goes."""
        self.append((at, kind, subject[:MAX_ID_CHARS], session, "", thread[:MAX_ID_CHARS], worker))

    def rows(self, now: float) -> list[dict[str, Any]]:
        """The events as plain JSON values, the oldest first, with their age in milliseconds."""
        return [_row(event, now) for event in self._events]

    def lines(self, now: float) -> list[str]:
        """The events as lines of a log, the oldest first."""
        return [line_of(row) for row in self.rows(now)]


def _row(event: Event, now: float) -> dict[str, Any]:
    at, kind, subject, session, request, thread, worker = event
    row: dict[str, Any] = {"ageMs": round((now - at) * 1000), "kind": kind}
    for name, value in (
        ("subject", subject),
        ("principal", session.principal if session is not None else ""),
        ("session", session.session if session is not None else ""),
        ("request", request),
        ("thread", thread),
        ("worker", worker),
    ):
        if value:
            row[name] = value[:MAX_ID_CHARS]
    return row


def line_of(row: dict[str, Any]) -> str:
    """Format one row as text: age in seconds, kind, then the ids."""
    ids = " ".join(f"{name} {value}" for name, value in row.items() if name not in ("ageMs", "kind", "subject"))
    return " ".join(filter(None, (f"-{row['ageMs'] / 1000:.3f} s", row["kind"], row.get("subject", ""), ids)))
