"""Input and output of a session: what it wants done on its socket, and what is received there.

One thread at a time uses it - the I/O thread, or an event loop's - except for `want`, which any thread may call.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable

import zmq

from codex_app_server.errors import TransportClosedError
from codex_app_server.transport import Receiver

from ..auth import keys
from ..protocol import sockets, wire
from ..protocol.sockets import READABLE
from .effects import Connect, Deliver, Disconnect, Effect, Failed, Send, Welcomed
from .session import Session

MESSAGES_PER_BATCH = 500
# How long after a connection broke its last messages may come out of the socket.
LAST_MESSAGES_MS = 10
# How long messages that were not sent may take when the session is closed.
LINGER_MS = 500


class Connection:
    """A socket that connects once, and its monitor, which reports when it is broken."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, identity: str, key: keys.ClientKey | None
    ) -> None:
        self.socket, self.monitor = sockets.dealer_once(context, endpoint, identity, key)
        self.poller = zmq.Poller()
        self.poller.register(self.monitor, READABLE)
        self.descriptor = sockets.descriptor(self.socket)
        self.monitor_descriptor = sockets.descriptor(self.monitor)

    def close(self, linger_ms: int) -> None:
        """Close it; messages that were not sent have `linger_ms` for that."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=linger_ms)


class SessionIO:
    """See the module's docstring. `on_welcome` is called once the session has begun."""

    def __init__(
        self,
        session: Session,
        endpoint: str,
        key: keys.ClientKey | None,
        *,
        receiver: Receiver,
        wake_descriptor: int,
        on_welcome: Callable[[], None],
    ) -> None:
        self.session = session
        self._endpoint = endpoint
        self._key = key
        self._receiver = receiver
        self._wake_descriptor = wake_descriptor
        self._on_welcome = on_welcome
        # Calls that other threads want done, in their order.
        self._wanted: deque[Callable[[], list[Effect]]] = deque()
        self._outgoing: deque[list[bytes]] = deque()
        self.context: zmq.Context[zmq.Socket[bytes]] | None = None
        self.connection: Connection | None = None

    @property
    def has_wanted(self) -> bool:
        """Return True if a call waits to be done."""
        return bool(self._wanted)

    @property
    def has_outgoing(self) -> bool:
        """Return True if a message waits until the socket takes it."""
        return bool(self._outgoing)

    def want(self, call: Callable[[], list[Effect]]) -> None:
        """Have `work` call this and do its effects. From any thread."""
        self._wanted.append(call)

    def start(self) -> None:
        """Make the first connection."""
        self.context = zmq.Context()
        self._apply(self.session.start(time.monotonic()))
        self._flush()

    def work(self) -> bool:
        """Do all that can be done without waiting. Whether there is more."""
        while self._wanted:
            self._apply(self._wanted.popleft()())
        self._apply(self.session.tick(time.monotonic()))
        self._flush()
        connection = self.connection
        if connection is None or (not self._receive(connection) and not self._outgoing):
            return False
        self._flush()
        # Sending may have taken the event of messages that have come meanwhile.
        return connection is self.connection and sockets.is_readable(connection.socket)

    def on_broken(self, connection: Connection) -> None:
        """Receive the last messages of a connection whose monitor reports its end, and report that to the session."""
        while connection is self.connection and connection.socket.poll(LAST_MESSAGES_MS):
            self._receive(connection)
        if connection is self.connection:
            self._apply(self.session.lost("it was closed, or nothing listens", time.monotonic()))
        self._flush()

    def close(self, *, has_failed: bool) -> None:
        """Send what was wanted before, then Bye, and close the socket."""
        if self.connection is not None:
            with contextlib.suppress(zmq.ZMQError, TransportClosedError):
                while self._wanted and self.session.open:
                    self._apply(self._wanted.popleft()())
                self._flush()
                self.connection.socket.send(wire.encode(wire.Bye()), zmq.NOBLOCK)
            self.connection.close(linger_ms=LINGER_MS if self.session.open and not has_failed else 0)
            self.connection = None
        if self.context is not None:
            self.context.term()

    def _receive(self, connection: Connection) -> bool:
        """Receive all messages that are there, as one batch. Whether there may be more."""
        messages: list[list[bytes]] = []
        more = True
        while more and len(messages) < MESSAGES_PER_BATCH:
            message = sockets.receive(connection.socket)
            if message is None:
                more = False
            else:
                messages.append(message)
        if messages:
            self._apply(self.session.messages(messages, time.monotonic()))
        return more

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._outgoing.append(effect.frames)
                case Deliver():
                    self._receiver.on_batch(effect.batch)
                case Connect():
                    assert self.context is not None
                    self.connection = Connection(self.context, self._endpoint, effect.identity, self._key)
                    self.connection.poller.register(self._wake_descriptor, READABLE)
                case Disconnect():
                    if self.connection is not None:
                        self.connection.close(linger_ms=0)
                    self.connection = None
                    self._outgoing.clear()
                case Welcomed():
                    self._on_welcome()
                case Failed():
                    raise TransportClosedError(effect.message)

    def _flush(self) -> None:
        while self._outgoing and self.connection is not None:
            try:
                sockets.send(self.connection.socket, self._outgoing[0])
            except zmq.Again:
                return
            self._outgoing.popleft()
