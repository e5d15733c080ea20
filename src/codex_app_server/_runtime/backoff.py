"""The delay before something that has failed is tried again. Pure."""

from __future__ import annotations


def backoff_s(tried_again: int, first_s: float, longest_s: float, jitter: float = 1.0) -> float:
    """Return the delay in seconds before the next try, `tried_again` delays after the first failure: each is twice the
    one before, and `longest_s` at most. `jitter` in [0, 1] leaves half of it to all of it."""
    delay_s = first_s * 2.0 ** min(max(tried_again, 0), 60)
    return min(longest_s, delay_s) * (0.5 + jitter / 2)
