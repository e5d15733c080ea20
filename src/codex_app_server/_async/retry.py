"""Trying again when the server reports that it is overloaded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from .._core.retry_delays import delays_s, hint_s
from ..errors import is_retryable_error
from .waiting import pause

T = TypeVar("T")


async def aretry_on_overload(
    op: Callable[[], Awaitable[T]],
    *,
    max_attempts: int = 3,
    initial_delay_s: float = 0.25,
    max_delay_s: float = 2.0,
    jitter_ratio: float = 0.2,
) -> T:
    """Call `op`; while it raises `ServerBusyError`, wait and call it again, at most `max_attempts` times in all.

    The wait doubles from `initial_delay_s` up to `max_delay_s`, moved by up to `jitter_ratio` of itself. It is
    no shorter than a server's own hint (`retryAfterMs` in the error's data).
    Example: `await aretry_on_overload(lambda: thread.run("..."))`.
    Any other error, and the last overload, is raised as it came. Raises ValueError for `max_attempts` below 1.
    """
    return await aretry_while(
        is_retryable_error,
        op,
        max_attempts=max_attempts,
        initial_delay_s=initial_delay_s,
        max_delay_s=max_delay_s,
        jitter_ratio=jitter_ratio,
    )


async def aretry_while(
    is_retryable: Callable[[BaseException], bool],
    op: Callable[[], Awaitable[T]],
    *,
    max_attempts: int,
    initial_delay_s: float,
    max_delay_s: float,
    jitter_ratio: float,
) -> T:
    """Retry as `aretry_on_overload` does, for the errors that `is_retryable` accepts."""
    delays = delays_s(max_attempts, initial_delay_s, max_delay_s, jitter_ratio)
    while True:
        try:
            return await op()
        except Exception as error:
            delay_s = next(delays, None)
            if delay_s is None or not is_retryable(error):
                raise
            delay_s = max(delay_s, hint_s(error))
        await pause(delay_s)
