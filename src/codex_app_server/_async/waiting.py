"""Waiting on an event loop for a time."""

from __future__ import annotations

from .._core.deadlines import left_s


async def pause(pause_s: float, deadline: float | None = None) -> None:
    """Wait. Raises TimeoutError at the deadline, if that comes before."""
    import asyncio

    rest_s = left_s(deadline)
    if rest_s is not None and rest_s < pause_s:
        await asyncio.sleep(rest_s)
        raise TimeoutError
    await asyncio.sleep(pause_s)
