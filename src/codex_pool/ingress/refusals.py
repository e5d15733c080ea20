"""Counts of what was refused. Pure."""

from __future__ import annotations

from collections import Counter

LOG_EVERY_S = 10.0


class Refusals:
    """Counts by reason, in `counts`; now and then there is something for the log, and for the broker's status.

    `where` is where clients were refused, for the log.
    """

    def __init__(self, where: str = "over TCP") -> None:
        self._where = where
        self.counts: Counter[str] = Counter()
        self._logged: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}
        self._reported: Counter[str] = Counter()

    def add(self, reason: str) -> None:
        """Count one more refusal of this kind."""
        self.counts[reason] += 1

    def news(self, now: float) -> list[str]:
        """Lines for the log: the first of a kind at once, then at most one line of a kind every LOG_EVERY_S."""
        lines = []
        for reason, count in self.counts.items():
            new = count - self._logged[reason]
            if new and now - self._logged_at.get(reason, now - LOG_EVERY_S) >= LOG_EVERY_S:
                self._logged[reason], self._logged_at[reason] = count, now
                lines.append(f"refused {self._where}, {reason}: {new} ({count} in all)")
        return lines

    def unreported(self) -> dict[str, int]:
        """Counts since the last call."""
        new = dict(self.counts - self._reported)
        self._reported = self.counts.copy()
        return new
