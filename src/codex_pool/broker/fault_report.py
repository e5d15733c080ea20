"""FaultReport: contradictions in the broker's state, looked for and reported with the events before them. Pure.

A contradiction is an error in the broker. It ends nothing: it is logged with the log of events, and shown by status.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from .state import BrokerState

# Lines of the log of events that are written when a contradiction is found, or the broker fails.
DUMPED_EVENTS = 100
MAX_REPORTS = 5
WHAT = "broker's state"


class FaultReport:
    """See the module's docstring."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state
        self._reports = 0
        self._rows: list[dict[str, Any]] = []

    def tick(self) -> None:
        """Compare the totals, which costs little; of what differs report each kind once, and MAX_REPORTS in all."""
        found = self._state.requests.totals_differ()
        self._rows = [row for row in self._rows if found]
        if not found or self._rows or self._reports >= MAX_REPORTS:
            return
        self._reports += 1
        message = "; ".join(found)
        self._rows = [{"what": WHAT, "message": message, "tries": 1, "since": self._state.now}]
        self._state.log(f"{WHAT} is inconsistent, which is an error in codex-pool: {message}; the last events:")
        for line in self.lines():
            self._state.log(line)

    def problems(self) -> list[dict[str, Any]]:
        """Rows of status for what was found at the last tick (see `codex_pool.runtime.problems`)."""
        return self._rows

    def lines(self) -> list[str]:
        """The last events, as lines of a log."""
        return [f"  {line}" for line in self._state.events.lines(self._state.now)[-DUMPED_EVENTS:]]

    def trace(self) -> dict[str, Any]:
        """The trace of pool/status: events, requests by state and by what they wait for, and all contradictions."""
        state = self._state
        held = Counter(request.queue.reason for request in state.requests.by_state["held"] if request.queue is not None)
        return {
            "requests": state.requests.counts(),
            "held": dict(held),
            "sessions": dict(Counter(session.state for session in state.sessions.values())),
            "faults": state.faults(),
            "events": state.events.rows(state.now),
        }
