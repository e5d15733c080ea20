"""BrokerLink: the socket between the ingress and the broker, which carries the messages of all clients.

It is connected again whenever it ends. The connections of all clients end with it: the next broker does not know them.
"""

from __future__ import annotations

import math
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from codex_app_server._runtime import reads

from ..protocol import ingress_frames
from .core import IngressCore

RETRY_S = 0.05
READ_BYTES = 256 * 1024
WRITE_BYTES = 256 * 1024
# Small, so that what waits in the link does not delay the key that is next.
BUFFER_BYTES = 32 * 1024

_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT
_BROKEN = select.EPOLLHUP | select.EPOLLERR


class BrokerLink:
    """See the module's docstring. `joined` and `lost` are called when the broker takes messages, and no longer does."""

    def __init__(
        self,
        epoll: select.epoll,
        core: IngressCore,
        path: str,
        secret: str,
        *,
        joined: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._epoll = epoll
        self._core = core
        self._path = path
        self._secret = secret
        self._on_joined = joined
        self._on_lost = lost
        self._socket: socket.socket | None = None
        self.is_joined = False
        self._due = time.monotonic()
        self._decoder = ingress_frames.Decoder(ingress_frames.FromBroker)
        self._read_bytes = reads.LITTLE_BYTES
        self._unsent = bytearray()
        self._writes = False
        # Messages that the broker has not taken.
        self._on_the_way = 0

    @property
    def descriptor(self) -> int:
        """File descriptor of the link, -1 while it is not connected."""
        return self._socket.fileno() if self._socket is not None else -1

    @property
    def due_at(self) -> float:
        """Time of the next `connect`, by the monotonic clock in seconds; infinite while the link is connected."""
        return self._due if self._socket is None else math.inf

    def connect(self) -> None:
        """Connect, if it is not connected and the time has come."""
        if self._socket is not None or time.monotonic() < self._due:
            return
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        connection.setblocking(False)
        try:
            connection.connect(os.fsencode(self._path))
        except OSError:
            connection.close()
            self._due = time.monotonic() + RETRY_S
            return
        self._socket = connection
        self._decoder = ingress_frames.Decoder(ingress_frames.FromBroker)
        self._unsent = bytearray(ingress_frames.encode(ingress_frames.Join(self._secret, ingress_frames.INGRESS)))
        self._writes = False
        self._on_the_way = 0
        self._epoll.register(connection.fileno(), _READ)
        self._write()

    def receive(self, events: int, now: float) -> None:
        """Read and write as far as its events of epoll allow."""
        assert self._socket is not None, "only a connected socket has events"
        if events & (_READ | _BROKEN):
            try:
                data = self._socket.recv(self._read_bytes)
            except BlockingIOError:
                data = None
            except OSError:
                data = b""
            if data == b"":
                self._lose()
                return
            if data:
                self._read_bytes = reads.next_bytes(len(data), READ_BYTES)
                self._decoder.feed(data)
                while (frame := self._decoder.next()) is not None:
                    self._on_frame(frame, now)
        if events & _WRITE:
            self._write()

    def pump(self, now: float) -> None:
        """Pass on what waits for the broker, as long as the link takes it."""
        more = True
        while more and self.is_joined and not self._writes:
            while more and len(self._unsent) < BUFFER_BYTES:
                frame = self._core.next_for_broker(now) if self._on_the_way < ingress_frames.WINDOW else None
                if frame is None:
                    more = False
                else:
                    self._on_the_way += isinstance(frame, ingress_frames.Message)
                    self._unsent += ingress_frames.encode(frame)
            if self._unsent:
                self._write()

    def _on_frame(self, frame: Any, now: float) -> None:
        match frame:
            case ingress_frames.Send():
                self._core.send(frame.connection, frame.frames, now)
            case ingress_frames.End():
                self._core.end(frame.connection, now)
            case ingress_frames.Taken():
                self._on_the_way -= frame.messages
            case ingress_frames.Joined():
                self.is_joined = True
                self._on_joined()

    def _write(self) -> None:
        if self._socket is None:
            return
        try:
            while self._unsent:
                with memoryview(self._unsent) as view:
                    sent = self._socket.send(view[:WRITE_BYTES])
                del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._lose()
            return
        if bool(self._unsent) != self._writes:
            self._writes = bool(self._unsent)
            self._epoll.modify(self._socket.fileno(), _READ | (_WRITE if self._writes else 0))

    def _lose(self) -> None:
        if self._socket is None:
            return
        self._epoll.unregister(self._socket.fileno())
        self._socket.close()
        self._socket, self.is_joined = None, False
        self._due = time.monotonic() + RETRY_S
        self._core.disconnect_all()
        self._on_lost()
