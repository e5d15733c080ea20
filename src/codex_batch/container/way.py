"""The way to the exec-server of a container that has no network: a port of this machine's loopback address.

The exec-server listens on the loopback address of the container's own network namespace, where nothing but the
container itself comes. A socket that is made in that namespace stays in it, wherever it is used. Linux, root.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import threading
import time

from codex_app_server._runtime import threads

from .errors import ContainerError

READY_LIMIT_S = 30.0
_POLL_S = 0.02
_CHUNK_BYTES = 1 << 16
_CLONE_NEWNET = 0x40000000


class Way:
    """A listener on this machine that leads every connection to one port inside."""

    def __init__(self, pid: int, port: int) -> None:
        self._pid = pid
        self._port = port
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()

    async def open(self) -> str:
        """Wait until the port is served; return the address of the listener. Raises ContainerError."""
        deadline = time.monotonic() + READY_LIMIT_S
        while True:
            try:
                (await self._connect()).close()
                break
            except OSError as error:
                gone = not os.path.exists(f"/proc/{self._pid}/ns/net")
                if gone or isinstance(error, PermissionError) or time.monotonic() > deadline:
                    raise ContainerError(f"its exec-server cannot be reached: {error.strerror or error}") from None
            await asyncio.sleep(_POLL_S)
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"ws://{host}:{port}"

    def close(self) -> None:
        """End the listener and its connections."""
        if self._server is not None:
            self._server.close()
        for task in self._passing:
            task.cancel()

    async def _connect(self) -> socket.socket:
        inside = await threads.in_thread(socket_in, self._pid)
        try:
            await asyncio.get_running_loop().sock_connect(inside, ("127.0.0.1", self._port))
        except BaseException:
            inside.close()
            raise
        return inside

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        try:
            inside_reader, inside_writer = await asyncio.open_connection(sock=await self._connect())
            passing = [_pass(reader, inside_writer), _pass(inside_reader, writer)]
            tasks = [asyncio.ensure_future(each) for each in passing]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in tasks:
                    each.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                inside_writer.close()
        except (OSError, asyncio.CancelledError):
            # The container is gone, or the way is closed: the client sees the end of its connection.
            pass
        finally:
            self._passing.discard(task)
            writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while part := await reader.read(_CHUNK_BYTES):
            writer.write(part)
            await writer.drain()


def socket_in(pid: int) -> socket.socket:
    """Make a TCP socket in the network namespace of a process. Raises OSError."""
    made: list[socket.socket | OSError] = []

    def make() -> None:
        # A thread that ends with this: the namespace is that of the thread alone.
        try:
            descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
            finally:
                os.close(descriptor)
            found = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            made.append(found)
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make, name="codex-container-socket", daemon=True)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]
