"""Outbox: messages that the peers of a ROUTER socket cannot take now, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import zmq

from ..protocol import sockets


def _ignore(peer: bytes) -> None:
    pass


class Outbox:
    """See the module's docstring. `skip` is how many bytes of a peer's name are not of its routing id.

    `overflow` is called for a peer for which more than `max_bytes` wait, and `unreachable` for one that is gone. What
    waits for it has been dropped by then.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        *,
        skip: int = 0,
        max_bytes: int | None = None,
        overflow: Callable[[bytes], None] = _ignore,
        unreachable: Callable[[bytes], None] = _ignore,
    ) -> None:
        self._socket = socket
        self._skip = skip
        self._max_bytes = max_bytes
        self._overflow = overflow
        self._unreachable = unreachable
        self._waiting: dict[bytes, deque[list[bytes]]] = {}
        self._bytes: dict[bytes, int] = {}

    def __bool__(self) -> bool:
        """True while something waits."""
        return bool(self._waiting)

    def send(self, peer: bytes, frames: list[bytes]) -> None:
        """Send a message, or have it wait. Raises ZMQError for a socket that cannot be used."""
        waiting = self._waiting.get(peer)
        if waiting is None:
            try:
                sockets.send(self._socket, [peer[self._skip :], *frames])
                return
            except zmq.Again:
                waiting = self._waiting[peer] = deque()
                self._bytes[peer] = 0
            except zmq.ZMQError as error:
                self._fail(peer, error)
                return
        waiting.append(frames)
        self._bytes[peer] += sum(map(len, frames))
        if self._max_bytes is not None and self._bytes[peer] > self._max_bytes:
            self.drop(peer)
            self._overflow(peer)

    def flush(self) -> None:
        """Send what waits, as far as it is taken."""
        for peer, waiting in list(self._waiting.items()):
            try:
                while waiting:
                    sockets.send(self._socket, [peer[self._skip :], *waiting[0]])
                    self._bytes[peer] -= sum(map(len, waiting.popleft()))
            except zmq.Again:
                continue
            except zmq.ZMQError as error:
                self._fail(peer, error)
                continue
            self.drop(peer)

    def drop(self, peer: bytes) -> None:
        """Drop what waits for a peer."""
        self._waiting.pop(peer, None)
        self._bytes.pop(peer, None)

    def _fail(self, peer: bytes, error: zmq.ZMQError) -> None:
        self.drop(peer)
        if error.errno != zmq.EHOSTUNREACH:
            raise error
        self._unreachable(peer)
