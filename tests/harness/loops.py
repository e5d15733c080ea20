"""Tests that are coroutine functions."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

LIMIT_S = 50.0


def on_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Decorate a test that is a coroutine function: it runs on an event loop of its own, in bounded time."""

    @functools.wraps(test)
    def call(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            await asyncio.wait_for(test(*args, **kwargs), LIMIT_S)

        asyncio.run(bounded())

    return call
