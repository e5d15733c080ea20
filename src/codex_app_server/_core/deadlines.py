"""Deadlines on the monotonic clock, and the intervals that both clients keep. Seconds throughout."""

from __future__ import annotations

import time

# How often a turn is interrupted again that the app-server does not know yet, and for how long.
INTERRUPT_RETRY_S = 0.05
INTERRUPT_LIMIT_S = 10.0
# The app-server never answers an interrupt that comes while the turn is ending of another.
INTERRUPT_ANSWER_S = 1.0
# How often a call is looked at that waits in a queue of the pool, where it has no deadline.
QUEUE_POLL_S = 5.0
# How often a start is tried again while a turn runs on its thread of which no notification has come yet.
BUSY_POLL_S = 0.05


def deadline_after(timeout_s: float | None) -> float | None:
    """The deadline that a timeout sets now; None without one."""
    return None if timeout_s is None else time.monotonic() + timeout_s


def left_s(deadline: float | None) -> float | None:
    """The time to a deadline, at least 0; None without one."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())
