"""Threads that may not start: what is done then, so that nobody waits for what nobody does."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import StartError

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


def start(thread: threading.Thread, what: str) -> None:
    """Start a thread that does `what`. Raises StartError when the system has none left, or Python is ending."""
    try:
        thread.start()
    except RuntimeError as error:
        raise StartError(
            f"no thread could be started {what}: {error}; end other threads or processes, or raise the limit "
            "(ulimit -u, or the pids limit of the container)",
            "too_many_processes",
        ) from error


async def in_thread(function: Callable[[], T]) -> T:
    """Call a function that blocks on a thread of its own, and wait for what it comes to.

    Without the executor of the loop, whose threads may all be taken by others. Where no thread can be started it is
    called here, which blocks the loop for once.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    call = contextvars.copy_context().run

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def run() -> None:
        result: Any = None
        failure: BaseException | None = None
        try:
            result = call(function)
        except BaseException as error:
            failure = error
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failure)

    try:
        threading.Thread(target=run, name="codex-blocking-call", daemon=True).start()
    except RuntimeError:
        return function()
    return await future


def check_unpatched() -> None:
    """Raises StartError where gevent or eventlet has replaced the threads of Python by its own."""
