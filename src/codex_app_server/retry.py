"""Trying again when the server says that it is overloaded."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from .errors import is_retryable_error

T = TypeVar("T")


def retry_on_overload(
    op: Callable[[], T],
    *,
    max_attempts: int = 3,
    initial_delay_s: float = 0.25,
    max_delay_s: float = 2.0,
    jitter_ratio: float = 0.2,
) -> T:
    """Call `op`; while it raises `ServerBusyError`, wait and call it again, at most `max_attempts` times in all.

    The wait doubles from `initial_delay_s` up to `max_delay_s`, each time moved by up to `jitter_ratio` of itself.
    Any other error, and the last overload, is raised as it came. Raises ValueError for `max_attempts` below 1.
    """
    if max_attempts < 1:
        raise ValueError(f"max_attempts is {max_attempts}; it must be at least 1")
    delay_s = initial_delay_s
    for attempt in range(1, max_attempts + 1):
        try:
            return op()
        except Exception as error:
            if attempt == max_attempts or not is_retryable_error(error):
                raise
        time.sleep(max(0.0, delay_s * (1 + random.uniform(-jitter_ratio, jitter_ratio))))
        delay_s = min(max_delay_s, delay_s * 2)
    raise AssertionError("unreachable")
