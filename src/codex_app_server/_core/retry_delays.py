"""The waits between attempts. Pure but for the random jitter."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .._runtime.backoff import backoff_s
from ..errors import JsonRpcError


def delays_s(max_attempts: int, initial_s: float, max_s: float, jitter_ratio: float) -> Iterator[float]:
    """The waits between `max_attempts` attempts, in seconds. Raises ValueError for less than one attempt."""
    if max_attempts < 1:
        raise ValueError(f"max_attempts is {max_attempts}; it must be at least 1")

    def delays() -> Iterator[float]:
        for attempt in range(max_attempts - 1):
            delay_s = backoff_s(attempt, initial_s, max_s)
            yield max(0.0, delay_s * (1 + random.uniform(-jitter_ratio, jitter_ratio)))

    return delays()


def hint_s(error: Exception) -> float:
    """The wait in seconds that the server asks for; 0 without a hint."""
    data = error.data if isinstance(error, JsonRpcError) else None
    hint_ms = data.get("retryAfterMs") if isinstance(data, dict) else None
    return hint_ms / 1000 if isinstance(hint_ms, int | float) and hint_ms > 0 else 0.0
