"""Coalescing of notifications without a thread: each method at most once a second, and only if it changed. Pure."""

from __future__ import annotations

from dataclasses import dataclass

INTERVAL_S = 1.0


@dataclass(slots=True)
class _Kind:
    sent: bytes
    sent_at: float
    waiting: bytes | None = None


class NotificationCoalescer:
    """Keeps of each method the line that was sent last, and the newer one that waits."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def offer(self, method: str, line: bytes, now: float) -> bytes | None:
        """The line, if it is to be sent now."""
        kind = self._kinds.get(method)
        if kind is None:
            self._kinds[method] = _Kind(line, now)
            return line
        if line == kind.sent:
            kind.waiting = None
            return None
        kind.waiting = line
        return self._take(kind, now) if now - kind.sent_at >= INTERVAL_S else None

    def due(self, now: float) -> list[bytes]:
        """The lines that may be sent now."""
        due = [kind for kind in self._kinds.values() if kind.waiting is not None and now - kind.sent_at >= INTERVAL_S]
        return [self._take(kind, now) for kind in due]

    @property
    def waits(self) -> bool:
        """Return True if any line waits."""
        return any(kind.waiting is not None for kind in self._kinds.values())

    @staticmethod
    def _take(kind: _Kind, now: float) -> bytes:
        assert kind.waiting is not None
        kind.sent, kind.sent_at, kind.waiting = kind.waiting, now, None
        return kind.sent
