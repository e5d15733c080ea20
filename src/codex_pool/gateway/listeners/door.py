"""A listening socket of the gateway: accepts connections, as fast as strangers may come."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from ...ingress.token_bucket import TokenBucket
from . import limits
from .admission import Rules
from .connection import Connection
from .socket_files import LOCK_LIMIT_S, ControlSocket, SocketFile

# How long accepting pauses while the process has no descriptors left.
PAUSE_S = 0.5
# Connections that are accepted before others have their turn.
AT_ONCE = 16


class Visitors(Protocol):
    """The listeners, as their doors see them."""

    def welcome(self, accepted: socket.socket, door: Door) -> None:
        """Take over a connection."""

    def refused(self, reason: str) -> None:
        """Count a refusal."""


class Door:
    """A listening socket, with what holds for its clients. `make` makes its file, given the seconds for its lock.

    `strangers` are those without a handshake so far, the first that came first.
    """

    def __init__(
        self,
        visitors: Visitors,
        rules: Rules,
        listener: socket.socket | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        make: Callable[[float], SocketFile | ControlSocket] | None = None,
    ) -> None:
        self.rules = rules
        self.tls = tls
        self.make = make
        self.file = make(LOCK_LIMIT_S) if make is not None else None
        self.strangers: dict[Connection, None] = {}
        self._visitors = visitors
        self._loop = asyncio.get_running_loop()
        self._bucket = TokenBucket(limits.RATE_STRANGERS, limits.BURST_STRANGERS, self._loop.time())
        self._pause: asyncio.TimerHandle | None = None
        found = listener if self.file is None else self.file.socket
        assert found is not None
        self.socket = found
        self._loop.add_reader(self.socket, self._accept)

    def close(self) -> None:
        """Stop listening; its connections stay."""
        self._stop()
        if self.file is not None:
            self.file.close()
        self.socket.close()

    def replace(self, file: SocketFile | ControlSocket) -> None:
        """Listen at another file instead."""
        self.close()
        self.file, self.socket = file, file.socket
        self._loop.add_reader(self.socket, self._accept)

    def make_room(self, most: int) -> None:
        """End the connection that came first if there are as many without a handshake as there may be."""
        if len(self.strangers) >= most:
            self._visitors.refused("too many connections without a handshake")
            oldest = next(iter(self.strangers))
            oldest.abort()
            oldest.forget()

    def _stop(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._loop.remove_reader(self.socket)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            self._bucket.take(0, self._loop.time())
            if self._bucket.overdrawn_s:
                self._wait(self._bucket.overdrawn_s)
                return
            try:
                accepted, _peer = self.socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._visitors.refused(f"no connection can be accepted: {error}")
                self._wait(PAUSE_S)
                return
            self._bucket.take(1, self._loop.time())
            self._visitors.welcome(accepted, self)

    def _wait(self, seconds: float) -> None:
        self._stop()
        self._pause = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self.socket, self._accept)
