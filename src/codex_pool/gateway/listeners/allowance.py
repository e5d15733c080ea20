"""Allowance: what a key may send in a second, on all its connections to the gateway. Pure: the clock comes in."""

from __future__ import annotations

import math

from ...ingress.token_bucket import TokenBucket
from . import limits


class Allowance:
    """Token buckets of one key: bytes, messages, and the CPU time that reading them has taken.

    Short frames cost far more time a byte than long ones, and some of them make no message. `since` is the time now.
    `exhausted_since` is when the key had sent as much as it may, infinite since half of all that is there again.
    """

    def __init__(self, since: float) -> None:
        self._bytes = TokenBucket(limits.RATE_BYTES, limits.BURST_BYTES, since)
        self._messages = TokenBucket(limits.RATE_MESSAGES, limits.BURST_MESSAGES, since)
        self._cpu = TokenBucket(limits.RATE_CPU_S, limits.BURST_CPU_S, since)
        self._buckets = (self._bytes, self._messages, self._cpu)
        self.exhausted_since = math.inf

    def take(self, now: float, *, size: int = 0, messages: int = 0, cpu_s: float = 0.0) -> float:
        """Take so much of it; the seconds until more may be read, 0 while something is left."""
        self._bytes.take(size, now)
        self._messages.take(messages, now)
        self._cpu.take(cpu_s, now)
        wait_s = max(self._bytes.overdrawn_s, self._messages.overdrawn_s, self._cpu.overdrawn_s)
        if wait_s:
            self.exhausted_since = min(self.exhausted_since, now)
        elif self.exhausted_since < math.inf and all(bucket.is_half_full for bucket in self._buckets):
            self.exhausted_since = math.inf
        return wait_s

    def is_full(self, now: float) -> bool:
        """True when nothing has been taken for long enough."""
        self.take(now)
        return all(bucket.is_full for bucket in self._buckets)
