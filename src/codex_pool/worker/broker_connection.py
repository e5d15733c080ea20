"""Connection of a worker to the broker: a socket for messages, and another, with a thread of its own, for beats.

Messages to a broker that has died are lost. For the next one the connection is renewed: with sockets of new
identities - `worker/1`, `worker/2`, ... - and nothing of what was queued for the old one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

import zmq

from ..protocol import sockets, wire


class BrokerConnection:
    """See the module's docstring. `progress` gives the content of a beat; it is called on the beat's thread."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, worker: str, progress: Callable[[], wire.Progress]
    ) -> None:
        self._context = context
        self._endpoint = endpoint
        self._worker = worker
        self._progress = progress
        self._number = 0
        self._queue: deque[list[bytes]] = deque()
        # Sent when nothing else is to be sent, a message at a time.
        self._bulk: deque[list[bytes | memoryview]] = deque()
        self.unsent_bytes = 0
        self.socket = self._connect(worker)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._thread.start()

    def renew(self) -> None:
        """Connect to a new broker; drop the messages to the old one."""
        self._number += 1
        self._queue.clear()
        self._bulk.clear()
        self.unsent_bytes = 0
        self.socket.close(linger=0)
        self.socket = self._connect(self._worker)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self.socket.close(linger=200)

    @property
    def has_unsent(self) -> bool:
        return bool(self._queue or self._bulk)

    def send(self, frames: list[bytes]) -> None:
        """Send this as soon as the socket takes it."""
        self._queue.append(frames)
        self.unsent_bytes += sum(map(len, frames))

    def send_bulk(self, frames: list[bytes | memoryview]) -> None:
        """Send this when there is nothing else to send."""
        self._bulk.append(frames)
        self.unsent_bytes += sum(map(len, frames))

    def flush(self) -> None:
        """Send as far as the socket takes it; of bulk messages one."""
        while self._queue:
            try:
                sockets.send(self.socket, self._queue[0])
            except zmq.Again:
                return
            self.unsent_bytes -= sum(map(len, self._queue.popleft()))
        if self._bulk:
            try:
                sockets.send(self.socket, self._bulk[0])
            except zmq.Again:
                return
            self.unsent_bytes -= sum(map(len, self._bulk.popleft()))

    def receive(self) -> list[bytes] | None:
        """A message, if one is there."""
        return sockets.receive(self.socket)

    def _connect(self, name: str) -> zmq.Socket[bytes]:
        identity = f"{name}/{self._number}" if self._number else name
        return sockets.dealer(self._context, self._endpoint, identity)

    def _beat(self) -> None:
        number, socket = self._number, self._connect(f"beat-{self._worker}")
        try:
            while not self._closing.wait(wire.next_beat(now := time.monotonic()) - now):
                if number != self._number:
                    number = self._number
                    socket.close(linger=0)
                    socket = self._connect(f"beat-{self._worker}")
                with contextlib.suppress(zmq.Again):
                    socket.send(wire.encode(self._progress()), zmq.NOBLOCK)
        finally:
            socket.close(linger=0)
