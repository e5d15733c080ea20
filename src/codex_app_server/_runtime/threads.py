"""Starting threads, and what is done when one cannot start, so that nothing waits for work that is never done."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import StartError

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


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a function that blocks on a thread of its own, and wait for what it comes to.

    Without the executor of the loop, whose threads may all be taken by others. Where no thread can be started it is
    called here, which blocks the loop for once. Raises WrongEventLoopError where no loop runs.
    """
    from .event_loops import LoopOwner

    loop = LoopOwner().enter()
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
            result = call(function, *args)
        except BaseException as error:
            failure = error
        # Nothing waits any more on a loop that is closed.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failure)

    try:
        threading.Thread(target=run, name="codex-blocking-call", daemon=True).start()
    except RuntimeError:
        return function(*args)
    return await future


def check_patches(*, blocks: bool) -> None:
    """Raises StartError where gevent or eventlet has replaced parts of Python that what is started relies upon.

    With gevent the pipes of an app-server work when all is patched, or neither threads nor subprocesses are. What
    `blocks` in C, as a ZeroMQ socket does, stops all greenlets.
    """
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        raise StartError("eventlet has patched the threads of Python, which is not supported; use real threads")
    if gevent is None:
        return
    threads, processes = map(gevent.is_module_patched, ("threading", "subprocess"))
    if threads and blocks:
        raise StartError(
            "gevent has patched the threads of Python, and a client of a pool waits in ZeroMQ, which would stop all "
            "greenlets; use Codex without a pool, or patch with monkey.patch_all(thread=False, subprocess=False)"
        )
    if threads != processes:
        raise StartError(
            f"gevent has patched {'threads' if threads else 'subprocesses'} but not "
            f"{'subprocesses' if threads else 'threads'}, so that the end of an app-server would not be seen; patch "
            "both, or neither: monkey.patch_all(thread=False, subprocess=False)"
        )
