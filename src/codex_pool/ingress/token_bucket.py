"""Rate limit of one kind for one key. Pure: the clock comes in."""

from __future__ import annotations


class TokenBucket:
    """A token bucket that may go below zero, since what has been read is not given back.

    `rate` is how much it gains each second, `burst` the most that it holds; both in bytes, or in messages.
    """

    __slots__ = ("_at", "_burst", "_rate", "left")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._at = now
        self.left = burst

    def take(self, count: float, now: float) -> None:
        """Take so much of it; 0 only lets time pass."""
        self.left = min(self._burst, self.left + (now - self._at) * self._rate) - count
        self._at = now

    @property
    def overdrawn_s(self) -> float:
        """Seconds from the last `take` until it is no longer below zero."""
        return max(0.0, -self.left / self._rate)

    @property
    def is_half_full(self) -> bool:
        """True when it holds half of what it may."""
        return 2 * self.left >= self._burst

    @property
    def is_full(self) -> bool:
        """True when nothing has been taken for long enough."""
        return self.left >= self._burst
