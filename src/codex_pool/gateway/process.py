"""The gateway process: an event loop with the listeners, the sessions of their clients and the link to the broker.

    python -m codex_pool.gateway      start arguments: one JSON line on stdin, which then stays open as death pipe;
                                      JSON lines of the supervisor on it (ping)
                                      stdout: JSON lines for the supervisor - ready, failed, pong
                                      stderr: log

It may be killed at any time: the supervisor starts another one, clients connect again, and resume their threads; the
turns go on meanwhile. It limits its own memory (RLIMIT_DATA), and dies at the limit.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from codex_app_server._protocol.framing import LineSplitter, LongLine

from ..protocol.endpoints import EndpointError
from ..runtime import log, startup
from . import direct_loop
from .arguments import GatewayArguments
from .pool_sessions import PoolSessions
from .sessions import ListenerConfig, Sessions

# How long the clients' connections may take to end.
CLOSE_LIMIT_S = 0.7

_log = logging.getLogger(__name__)


class Listeners(Protocol):
    """Listeners that are open."""

    async def close(self) -> None:
        """End all clients, which may connect again, and remove own socket files."""

    def counts(self) -> dict[str, object]:
        """Numbers for status."""


OpenListeners = Callable[[ListenerConfig, Sessions], Awaitable[Listeners]]


async def serve(arguments: GatewayArguments, open_listeners: OpenListeners) -> None:
    """Let clients in until the supervisor is gone. Raises EndpointError and OSError if it cannot listen."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_on_exception)
    is_over, joined = asyncio.Event(), asyncio.Event()
    sessions = PoolSessions(
        link=arguments.link,
        secret=arguments.secret,
        endpoint=arguments.endpoint,
        instance=f"g{os.getpid()}-{os.urandom(4).hex()}",
        joined=joined.set,
    )
    supervisor = _SupervisorPipe(loop, is_over)
    try:
        listeners = await open_listeners(arguments.listeners, sessions)
        supervisor.listeners = listeners
        over = loop.create_task(is_over.wait())
        await asyncio.wait([over, loop.create_task(joined.wait())], return_when=asyncio.FIRST_COMPLETED)
        if not is_over.is_set():
            report({"event": "ready"})
        await over
        try:
            await asyncio.wait_for(listeners.close(), CLOSE_LIMIT_S)
        except asyncio.TimeoutError:
            _log.warning(f"connections of clients were not ended within {CLOSE_LIMIT_S:g} s")
    finally:
        await sessions.close()


class _SupervisorPipe:
    """Answers the pings of the supervisor, and sets `is_over` at the end of its pipe."""

    def __init__(self, loop: asyncio.AbstractEventLoop, is_over: asyncio.Event) -> None:
        self._loop = loop
        self._is_over = is_over
        self._commands = LineSplitter()
        self.listeners: Listeners | None = None
        loop.add_reader(0, self._read)

    def _read(self) -> None:
        chunk = os.read(0, 4096)
        for line in self._commands.feed(chunk):
            if not isinstance(line, LongLine) and "ping" in msgspec.json.decode(line, type=dict[str, Any]):
                counts = self.listeners.counts() if self.listeners is not None else {}
                report({"event": "pong", "lost_lines": log.lost(), "counts": counts})
        if not chunk:
            self._loop.remove_reader(0)
            self._is_over.set()


def _on_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, MemoryError):
        # Whatever it was about to do: it comes back empty.
        log.last_words("the limit of memory is reached: ending")
        os._exit(1)
    _log.error(f"{context['message']}", exc_info=error)


def report(record: dict[str, Any]) -> None:
    """Write one JSON line for the supervisor; nothing if it has just died."""
    try:
        os.write(1, msgspec.json.encode(record) + b"\n")
    except BrokenPipeError:
        return


def main(open_listeners: OpenListeners) -> None:
    """Entry of the gateway's process."""
    log.begin("gateway", *sys.argv[1:2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    startup.survive_hang_up()
    arguments = startup.decode_arguments(startup.read_line(0), GatewayArguments)
    resource.setrlimit(resource.RLIMIT_DATA, (arguments.memory_bytes, arguments.memory_bytes))
    startup.descriptors()
    startup.collect_rarely()
    try:
        direct_loop.run(serve(arguments, open_listeners))
    except (EndpointError, OSError) as error:
        report({"event": "failed", "reason": f"the gateway cannot start: {error}"})
        sys.exit(1)
    except MemoryError:
        log.last_words("the limit of memory is reached: ending")
        os._exit(1)
