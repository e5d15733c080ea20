"""RateLimiter: how many turns the whole pool may run, after the account's rate limit was met. Pure.

Half as many at each sign of a limit, at most once in DECREASE_EVERY_S; one more for every INCREASE_EVERY_S in which
turns completed and no sign came; none at all until the limit's reset, where that is known.
"""

from __future__ import annotations

DECREASE_EVERY_S = 5.0
INCREASE_EVERY_S = 10.0
# No window of a rate limit is longer than a week: what lies beyond is no time of a reset.
MAX_PAUSE_S = 8 * 24 * 3600.0


class RateLimiter:
    """`limit` is None as long as there is none; `capacity` is how many turns the pool may run."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.limit: int | None = None
        self.kind = ""
        self._paused_until = 0.0
        self._changed_at = float("-inf")
        self._succeeded = False

    def resize(self, capacity: int) -> None:
        """Note that the pool may run so many turns from now on."""
        self._capacity = capacity

    def limited(self, kind: str, reset_in_s: float | None, running: int, now: float) -> None:
        """The rate limit was met while so many turns ran; it is over in `reset_in_s`, where that is known."""
        self.kind = kind
        if reset_in_s is not None and 0 < reset_in_s <= MAX_PAUSE_S:
            self._paused_until = max(self._paused_until, now + reset_in_s)
        self._succeeded = False
        if now - self._changed_at < DECREASE_EVERY_S and self.limit is not None:
            return
        before = self._capacity if self.limit is None else self.limit
        # What did not run cannot have been too much.
        self.limit = max(1, min(before, max(running, 1)) // 2)
        self._changed_at = now

    def completed(self) -> None:
        """Note that a turn has completed."""
        self._succeeded = True

    def tick(self, now: float) -> bool:
        """Raise the limit if its time has come; whether more may run than before."""
        if self.limit is None or now < self._paused_until:
            return False
        if self._paused_until:
            self._paused_until, self._changed_at = 0.0, now
            return True
        if not self._succeeded or now - self._changed_at < INCREASE_EVERY_S:
            return False
        self.limit += 1
        self._changed_at, self._succeeded = now, False
        if self.limit >= self._capacity:
            self.limit, self.kind = None, ""
        return True

    def allows(self, running: int, now: float) -> bool:
        """Return True if one more turn may start."""
        if self.limit is None:
            return True
        return now >= self._paused_until and running < self.limit

    def status(self, now: float) -> dict[str, object]:
        """Return the entry for pool/status."""
        return {"limit": self.limit, "pausedMs": max(0, round((self._paused_until - now) * 1000)), "reason": self.kind}
