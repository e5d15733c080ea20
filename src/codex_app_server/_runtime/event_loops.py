"""LoopOwner: the event loop that the async objects of one client belong to.

What waits in a loop is woken by that loop alone: from another one it would wait without end, deadline or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from ..errors import WrongEventLoopError
from . import fork


class LoopOwner(fork.ProcessBound):
    """The loop in which a client was first used."""

    _called = "client"

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread_id = 0
        self._bind_to_process()

    @property
    def is_known(self) -> bool:
        return self.loop is not None

    @property
    def is_here(self) -> bool:
        """True if this is the thread of the loop."""
        return self._thread_id == threading.get_ident()

    @property
    def is_current(self) -> bool:
        """True if the loop is the one that runs here."""
        return self.loop is not None and asyncio._get_running_loop() is self.loop

    def enter(self) -> asyncio.AbstractEventLoop:
        """Return the loop, which is the running one. Raises WrongEventLoopError, WrongProcessError."""
        running = asyncio._get_running_loop()
        if running is self.loop and running is not None and self._made_in == os.getpid():
            return running
        self._check_process()
        if running is None:
            raise WrongEventLoopError(_NO_LOOP + _hint())
        if self.loop is None:
            self.loop, self._thread_id = running, threading.get_ident()
            return running
        raise WrongEventLoopError(self._elsewhere())

    def check(self) -> None:
        """Raises WrongEventLoopError in another loop, WrongProcessError. Where no loop runs all is well."""
        self._check_process()
        running = asyncio._get_running_loop()
        if running is not None and self.loop is not None and running is not self.loop:
            raise WrongEventLoopError(self._elsewhere())

    def check_may_close(self) -> None:
        """Raises WrongEventLoopError in another loop while the own one runs, where its things cannot be touched."""
        running = asyncio._get_running_loop()
        if running is None:
            raise WrongEventLoopError(_NO_LOOP + _hint())
        if self.loop is not None and running is not self.loop and self.loop.is_running():
            raise WrongEventLoopError(
                "this client belongs to an event loop that runs in another thread; close it there: "
                "asyncio.run_coroutine_threadsafe(client.close(), loop)"
            )

    def call_soon(self, function: Callable[..., object], *args: Any) -> bool:
        """Call a function on the loop, from any thread. False when there is no loop, or it is closed."""
        if self.loop is None:
            return False
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            return False
        return True

    def _elsewhere(self) -> str:
        assert self.loop is not None
        state = "is closed" if self.loop.is_closed() else "runs" if self.loop.is_running() else "does not run now"
        return (
            f"this client belongs to another event loop, which {state}; use an async client within one asyncio.run() "
            "only, make one for each event loop, or, from another thread, use asyncio.run_coroutine_threadsafe"
        )

    def _let_go(self) -> None:
        # A fork copies a loop, but not what the kernel watches for it, nor the pair of sockets that wakes it: a child
        # that ends its copy of the loop would make that of its parent deaf. The copy gets its own, on the same numbers.
        loop: Any = self.loop
        epoll = fork.descriptor_of(getattr(loop, "_selector", None))
        ends = [fork.descriptor_of(getattr(loop, name, None)) for name in ("_ssock", "_csock")]
        if epoll is None or None in ends or not sys.platform.startswith("linux"):
            return
        import select
        import socket

        with select.epoll() as empty:
            os.dup2(empty.fileno(), epoll, inheritable=False)
        for own, end in zip(socket.socketpair(), ends, strict=True):
            assert end is not None
            with own:
                own.setblocking(False)
                os.dup2(own.fileno(), end, inheritable=False)
        with contextlib.suppress(OSError):
            loop._selector._selector.register(ends[0], select.EPOLLIN)


_NO_LOOP = "an async client needs asyncio, and no asyncio event loop runs here: call it in a coroutine of asyncio.run()"


def _hint() -> str:
    """The remedy under another library of coroutines that is seen to be in use."""
    if "trio" in sys.modules:
        return "; under trio use Codex in a thread (trio.to_thread.run_sync), or trio-asyncio"
    if "curio" in sys.modules:
        return "; under curio use Codex in a thread (curio.run_in_thread)"
    return ""
