"""Bounded waits for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 30.0


def until(condition: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """The first true result of `condition`, which is called every 20 ms. Fails after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while not (result := condition()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)
    return result
