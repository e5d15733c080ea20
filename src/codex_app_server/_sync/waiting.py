"""Waiting in a thread for a time."""

from __future__ import annotations

import time

from .._core.deadlines import left_s


def pause(pause_s: float, deadline: float | None = None) -> None:
    """Wait. Raises TimeoutError at the deadline, if that comes before."""
    rest_s = left_s(deadline)
    if rest_s is not None and rest_s < pause_s:
        time.sleep(rest_s)
        raise TimeoutError
    time.sleep(pause_s)
