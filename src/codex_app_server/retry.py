"""Trying again when the server says that it is overloaded."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from .errors import JsonRpcError, is_retryable_error

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

    The wait doubles from `initial_delay_s` up to `max_delay_s`, moved by up to `jitter_ratio` of itself. It is
    no shorter than a server's own hint (`retryAfterMs` in the error's data).
    Any other error, and the last overload, is raised as it came. Raises ValueError for `max_attempts` below 1.
    """
    return retry_while(
        is_retryable_error,
        op,
        max_attempts=max_attempts,
        initial_delay_s=initial_delay_s,
        max_delay_s=max_delay_s,
        jitter_ratio=jitter_ratio,
    )


def retry_while(
    is_retryable: Callable[[BaseException], bool],
    op: Callable[[], T],
    *,
    max_attempts: int,
    initial_delay_s: float,
    max_delay_s: float,
    jitter_ratio: float,
) -> T:
    """Retry as `retry_on_overload` does, for the errors that `is_retryable` accepts."""
    delays = _delays_s(max_attempts, initial_delay_s, max_delay_s, jitter_ratio)
    while True:
        try:
            return op()
        except Exception as error:
            delay_s = next(delays, None)
            if delay_s is None or not is_retryable(error):
                raise
            delay_s = max(delay_s, _hint_s(error))
        time.sleep(delay_s)


async def aretry_on_overload(
    op: Callable[[], Awaitable[T]],
    *,
    max_attempts: int = 3,
    initial_delay_s: float = 0.25,
    max_delay_s: float = 2.0,
    jitter_ratio: float = 0.2,
) -> T:
    """The same for a coroutine function: `await aretry_on_overload(lambda: thread.run("..."))`."""
    import asyncio

    delays = _delays_s(max_attempts, initial_delay_s, max_delay_s, jitter_ratio)
    while True:
        try:
            return await op()
        except Exception as error:
            delay_s = next(delays, None)
            if delay_s is None or not is_retryable_error(error):
                raise
            delay_s = max(delay_s, _hint_s(error))
        await asyncio.sleep(delay_s)


def _delays_s(max_attempts: int, initial_s: float, max_s: float, jitter_ratio: float) -> Iterator[float]:
    """The waits between the attempts."""
    if max_attempts < 1:
        raise ValueError(f"max_attempts is {max_attempts}; it must be at least 1")

    def delays() -> Iterator[float]:
        for attempt in range(max_attempts - 1):
            delay_s = min(max_s, initial_s * 2**attempt)
            yield max(0.0, delay_s * (1 + random.uniform(-jitter_ratio, jitter_ratio)))

    return delays()


def _hint_s(error: Exception) -> float:
    """How long the server asks to wait; 0 without a hint."""
    data = error.data if isinstance(error, JsonRpcError) else None
    hint_ms = data.get("retryAfterMs") if isinstance(data, dict) else None
    return hint_ms / 1000 if isinstance(hint_ms, int | float) and hint_ms > 0 else 0.0
