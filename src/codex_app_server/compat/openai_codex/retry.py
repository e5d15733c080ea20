"""Repeating a call while the server reports an overload."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from codex_app_server.retry import retry_while

from .errors import is_retryable_error

T = TypeVar("T")

__all__ = ["retry_on_overload"]


def retry_on_overload(
    op: Callable[[], T],
    *,
    max_attempts: int = 3,
    initial_delay_s: float = 0.25,
    max_delay_s: float = 2.0,
    jitter_ratio: float = 0.2,
) -> T:
    """Call `op`; while it raises an error that `is_retryable_error` accepts, wait and call it again.

    As `codex_app_server.retry_on_overload`, with the published SDK's sense of what is retryable.
    """
    return retry_while(
        is_retryable_error,
        op,
        max_attempts=max_attempts,
        initial_delay_s=initial_delay_s,
        max_delay_s=max_delay_s,
        jitter_ratio=jitter_ratio,
    )
