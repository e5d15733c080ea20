"""TurnCounter: counts the turns of a worker as they end, for metrics. Pure."""

from __future__ import annotations

from ..protocol import wire
from ..protocol.tally import Tally
from . import peek
from .turn_stream import Turn

# The notification with which the answer of a turn begins.
DELTA = "item/agentMessage/delta"


class TurnCounter:
    """Counts the turns of a worker as they end. `tally` has all so far."""

    def __init__(self) -> None:
        self.tally = Tally()

    def ended(self, turn: Turn, status: str, principal: str, now: float, line: bytes = b"") -> None:
        """Count the end of a turn, and leave its counts there, for the broker.

        `principal` is that of its thread; `line` its turn/completed, where the app-server has ended it.
        """
        first_at = turn.first_delta_at
        turn.counts = wire.TurnCounts(
            principal,
            _ms(now - turn.began_at),
            turn.queued_ms,
            _ms(first_at - turn.began_at) if first_at is not None else None,
            _login_refused(status, line),
        )
        self.tally.count(status, turn.counts, turn.tokens, now)


def _login_refused(status: str, line: bytes) -> bool | None:
    if status == "completed":
        return False
    return True if status == "failed" and peek.refuses_login(line) else None


def _ms(seconds: float) -> int:
    return round(max(0.0, seconds) * 1000)
