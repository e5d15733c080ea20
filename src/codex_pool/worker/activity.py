"""Activity of running turns, for lists of turns: when their last notification came, and their tokens. Pure.

codex (0.163.0) sends `thread/tokenUsage/updated` after each request to the model, with the usage of that request
(`last`) and of the whole thread (`total`), earlier turns included. What the thread had used before a turn is the
`total` of the turn's first report less its `last`.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..protocol import wire
from . import peek
from .turn_stream import Turn

# A little less than the second between two ticks, which are not quite even.
REPORT_EVERY_S = 0.9
USAGE = "thread/tokenUsage/updated"


def note_usage(turn: Turn, lines: list[bytes], methods: list[str]) -> None:
    """Take the tokens of a turn from its notifications, of which at least one is of method USAGE."""
    for line, method in zip(lines, methods, strict=True):
        usage = peek.usage_of(line) if method == USAGE else None
        if usage is not None:
            total, last = usage
            if turn.used_before is None:
                turn.used_before = total - last
            turn.tokens = total - turn.used_before


class ActivityReport:
    """Selects the turns whose activity is to be reported to the broker."""

    def __init__(self) -> None:
        self._reported_at = 0.0

    def renew(self) -> None:
        """Report all turns again: there is a broker that knows nothing of them."""
        self._reported_at = 0.0

    def take(self, turns: Iterable[Turn], now: float) -> wire.Activity | None:
        """Return the activity since the last report; None if there is none, or that was less than a second ago."""
        before = self._reported_at
        if now - before < REPORT_EVERY_S:
            return None
        rows = [wire.TurnActivity(turn.id, turn.heard_at, turn.tokens) for turn in turns if turn.heard_at >= before]
        if not rows:
            return None
        self._reported_at = now
        return wire.Activity(rows)
