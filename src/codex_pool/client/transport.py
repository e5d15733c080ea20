"""PoolTransport: carries lines between a client and a pool, over ZeroMQ: a thin loop around `session`.

To the client above it a pool looks like one big app-server. One I/O thread owns the socket and beats. For a client of
asyncio the event loop does its work: between them a thread would have to be woken for each message, and to wait for the
interpreter's lock. The thread then only looks whether the loop is late, and does what is due if so: a pool lets go of
clients that it does not hear.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import zmq

from codex_app_server import _fork, _threads
from codex_app_server._waking import Latch, WakePipe
from codex_app_server.envelope import RequestId
from codex_app_server.errors import CLOSED, InvalidInputError, StartError, TransportClosedError
from codex_app_server.transport import DEFAULT_TIMEOUT_S, Interest, Receiver
from codex_pool import endpoints, keys, sockets, wire
from codex_pool.broker.identity import MAX_MESSAGE_BYTES
from codex_pool.client import session as session_
from codex_pool.client.effects import Connect, Deliver, Disconnect, Effect, Failed, Send, Welcomed
from codex_pool.client.on_loop import OnLoop
from codex_pool.client.session import Session
from codex_pool.sockets import READABLE, WRITABLE

if TYPE_CHECKING:
    import asyncio

MESSAGES_PER_BATCH = 500
# Of slow turns each message comes alone; a receipt for each would go as far as the message itself.
RECEIPT_DELAY_S = 0.1
# How long after the news that a connection broke its last messages may come out of the socket.
LAST_MESSAGES_MS = 10
# What an event loop may be late with what is due before the thread does it.
LATE_S = 0.5
# It takes half a second; bounded, since a handler of the program's logging may block the thread without end.
CLOSE_LIMIT_S = 30.0

log = logging.getLogger("codex_app_server")


class PoolTransport(_fork.ProcessBound):
    """A session on the pool at `endpoint`. `client` is the name that `codex-pool status` shows.

    `key`: the key file for an endpoint of the form tcp://HOST:PORT.
    `priority` is that of its turns where they wait: four interactive ones start for one of a batch. `when_gone` says
    what becomes of its turns when it is away for longer than the pool waits. `explain`: gives the error that the
    session ends with, in place of the one that ended it. Raises EndpointError for an endpoint that cannot be one.
    """

    # Other clients run turns there, which can be joined.
    shared = True
    _called = "client"

    def __init__(
        self,
        endpoint: str,
        *,
        client: str = "",
        key: str | os.PathLike[str] | None = None,
        priority: wire.Priority = "interactive",
        when_gone: wire.WhenGone = "interrupt",
        explain: Callable[[TransportClosedError], TransportClosedError] | None = None,
    ) -> None:
        endpoints.check_client(endpoint, key)
        self._explain = explain or (lambda error: error)
        self._key = keys.read_client_key(key) if key is not None else None
        self._path = endpoints.ipc_path(endpoint) if key is None else None
        self._max_line_bytes = wire.MAX_BODY_BYTES if key is None else MAX_MESSAGE_BYTES
        self._endpoint = endpoint
        self._session = Session(
            f"s{os.getpid()}-{os.urandom(4).hex()}",
            client or f"pid {os.getpid()}",
            endpoint=endpoint,
            no_pool=self._no_pool,
            jitter=random.random,
            priority=priority,
            when_gone=when_gone,
            receipt_delay_s=RECEIPT_DELAY_S,
        )
        # What other threads want done, in their order.
        self._wanted: deque[Callable[[], list[Effect]]] = deque()
        self._outgoing: deque[list[bytes]] = deque()
        self._closing = False
        self._welcome = Latch()
        self._ended = Latch()
        self._error: TransportClosedError | None = None
        self._thread: threading.Thread | None = None
        self._wake_pipe: WakePipe | None = None
        self._woken = False
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._connection: _Connection | None = None
        # The loop that may work, whether it does just now, and what is held by whoever works or says who does.
        self._on_loop: OnLoop | None = None
        self._lent = False
        self._work_lock = threading.Lock()
        self._failure: BaseException | None = None
        self._explained: TransportClosedError | None = None
        self._bind_to_process()

    def start(self, receiver: Receiver) -> None:
        """Begin the session. Raises TransportClosedError, which says how to start a pool, if there is none."""
        self._check_process()
        _threads.check_patches(blocks=True)
        why = endpoints.why_unreachable(self._path) if self._path is not None else None
        if self._path is not None and why is not None and not endpoints.is_held(self._path):
            raise self._explain(TransportClosedError(self._no_pool(why)))
        self._receiver = receiver
        with _fork.opening():
            # No variable has it, which an error raised here would hold, and the descriptors with it.
            self._wake_pipe = WakePipe()
        self._wake_descriptor = self._wake_pipe.descriptor
        self._idle_poller = zmq.Poller()
        self._idle_poller.register(self._wake_descriptor, READABLE)
        thread = threading.Thread(target=self._run, name="codex-pool-io", daemon=True)
        self._thread = thread
        try:
            _threads.start(thread, "for the connection to the pool")
        except StartError as error:
            self._thread = self._wake_pipe = None
            raise TransportClosedError(f"cannot connect to the pool: {error}") from None
        self._welcome.wait(session_.FIRST_LIMIT_S + 1)
        if self._error is not None:
            self.close()
            raise self._error

    def send(self, line: bytes, *, interest: Interest = "full", timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        self._check_process()
        if self._error is not None:
            raise self._error
        if self._closing or self._thread is None:
            raise TransportClosedError(f"the connection is closed, or was never started: {CLOSED}")
        if len(line) > self._max_line_bytes:
            raise InvalidInputError(f"a request of {len(line)} bytes; the limit is {self._max_line_bytes}")
        self._want(lambda: self._session.line(line, interest, timeout_s))

    def move_to(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Have `loop` do the work from now on, None: the I/O thread. Called on that loop, or when it is closed."""
        if self._is_inherited:
            return
        on_loop, self._on_loop = self._on_loop, None
        if on_loop is not None:
            with self._work_lock:
                self._lent = False
            on_loop.close()
        if loop is not None:
            self._on_loop = OnLoop(loop, self._work_on_loop)
        self._wake()

    def cancel(self, request_id: RequestId) -> None:
        if self._thread is not None and not self._is_inherited:
            self._want(lambda: self._session.cancel(request_id))

    def fail(self, error: TransportClosedError) -> None:
        """End the session with this error: the pool is gone. From any thread."""
        if self._is_inherited:
            return
        self._explained = self._failure = error
        self._wake()

    def close_soon(self) -> None:
        if self._is_inherited:
            return
        self._closing = True
        # In any case: who has noted that the thread was woken may have been interrupted before it did so.
        wake_pipe = self._wake_pipe
        if wake_pipe is not None:
            wake_pipe.wake()

    def close(self) -> None:
        if self._is_inherited:
            return
        self.close_soon()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        if not self._ended.wait(CLOSE_LIMIT_S):
            log.error("the connection to the pool was not closed within %g s", CLOSE_LIMIT_S)

    def _let_go(self) -> None:
        wake_pipe, on_loop = self._wake_pipe, self._on_loop
        if wake_pipe is not None:
            _fork.let_go(*wake_pipe.descriptors)
        if on_loop is not None:
            on_loop.let_go()
        # pyzmq neither closes the sockets nor ends the context of another process; that would wait for its threads.
        _fork.keep(self._context, self._connection, on_loop)

    def _want(self, what: Callable[[], list[Effect]]) -> None:
        self._wanted.append(what)
        on_loop = self._on_loop
        # Not at once: what all of the loop's tasks want now is one piece of work.
        if not self._lent or on_loop is None or not on_loop.soon():
            self._wake()

    def _wake(self) -> None:
        if self._woken:
            # It has not looked since, and when it does it sees all that is wanted.
            return
        self._woken = True
        wake_pipe = self._wake_pipe
        if wake_pipe is not None:
            wake_pipe.wake()

    def _no_pool(self, why: str) -> str:
        if self._key is not None:
            return (
                f"no pool at {self._endpoint}: {why}; see that codex-pool serve --listen runs there, and that the key "
                f"of {self._key.name} is on its allow-list: codex-pool keys list"
            )
        default = self._endpoint == endpoints.default_endpoint()
        command = "codex-pool serve" if default else f"codex-pool serve --endpoint {self._endpoint}"
        return f"no pool at {self._endpoint}: {why}; start one with: {command}"

    # The I/O thread.

    def _run(self) -> None:
        error = TransportClosedError(CLOSED)
        try:
            self._pump()
        except TransportClosedError as reason:
            error = reason if reason is self._explained else self._explain(reason)
        except BaseException as failure:
            error = TransportClosedError(f"the connection to the pool failed: {failure!r}")
        self._error = error
        self._welcome.open()
        try:
            self._receiver.on_closed(error)
        finally:
            self._wake_pipe = None
            self._ended.open()

    def _pump(self) -> None:
        self._context = zmq.Context()
        try:
            self._apply(self._session.start(time.monotonic()))
            self._flush()
            while not self._closing:
                if self._failure is not None:
                    raise self._failure
                if self._lent:
                    self._stand_by()
                elif not self._lend():
                    self._turn()
        finally:
            with self._work_lock:
                self._lent = False
            on_loop = self._on_loop
            if on_loop is not None and not on_loop.soon():
                # It is closed, and does not look any more.
                on_loop.close()
            if self._connection is not None:
                with contextlib.suppress(zmq.ZMQError, TransportClosedError):
                    # What was wanted before the end was said is still sent.
                    while self._wanted and self._session.open:
                        self._apply(self._wanted.popleft()())
                    self._flush()
                    self._connection.socket.send(wire.encode(wire.Bye()), zmq.NOBLOCK)
                self._connection.close(linger_ms=500 if self._session.open and self._failure is None else 0)
                self._connection = None
            self._context.term()

    def _turn(self) -> None:
        """One turn of the thread's own loop."""
        connection = self._connection
        if connection is None:
            poller = self._idle_poller
        else:
            poller = connection.poller
            poller.register(connection.socket, READABLE | (WRITABLE if self._outgoing else 0))
        left_s = max(0.0, self._session.next_deadline - time.monotonic())
        ready = dict(poller.poll(int(left_s * 1000) + 1))
        if self._wake_descriptor in ready:
            self._slept()
        self._work()
        if connection is not None and connection.monitor in ready:
            while connection is self._connection and connection.socket.poll(LAST_MESSAGES_MS):
                self._receive(connection)
            if connection is self._connection:
                self._apply(self._session.lost("it was closed, or nothing listens", time.monotonic()))
            self._flush()

    def _slept(self) -> None:
        assert self._wake_pipe is not None
        self._wake_pipe.clear()
        self._woken = False

    # The event loop, and the thread while that works.

    def _lend(self) -> bool:
        """Let the loop work if there is one and all is well. Whether it does."""
        on_loop = self._on_loop
        if on_loop is None or self._connection is None or not self._session.open:
            return False
        with self._work_lock:
            # Another may have been told of meanwhile.
            self._lent = on_loop is self._on_loop and on_loop.soon()
        if not self._lent and on_loop is self._on_loop:
            # It is closed.
            self._on_loop = None
            on_loop.close()
        return self._lent

    def _stand_by(self) -> None:
        """Sleep until the loop is late with what is due, which is done here then, or somebody wakes the thread."""
        with self._work_lock:
            left_s = self._session.next_deadline + LATE_S - time.monotonic()
            if left_s <= 0:
                # Once it has done what is due the thread lends the work again.
                self._lent = False
        if left_s <= 0:
            self._work()
        elif self._idle_poller.poll(int(left_s * 1000) + 1):
            self._slept()
            on_loop = self._on_loop
            if self._wanted and on_loop is not None:
                on_loop.soon()

    def _work_on_loop(self) -> None:
        if self._is_inherited:
            # The loop was copied into a child with what it was about to call.
            return
        on_loop = self._on_loop
        assert on_loop is not None
        with self._work_lock:
            connection = self._connection
            if self._lent and connection is not None:
                try:
                    on_loop.watch(
                        connection,
                        {
                            connection.descriptor: self._work_on_loop,
                            connection.monitor_descriptor: self._look_at_monitor,
                        },
                    )
                    if self._work():
                        on_loop.soon()
                except BaseException as error:
                    self._failure, self._lent = error, False
                if connection is not self._connection or not self._session.open:
                    # To connect again takes waiting.
                    self._lent = False
            lent = self._lent
        if lent:
            on_loop.wake_at(self._session.next_deadline)
        else:
            on_loop.unwatch()
            self._wake()

    def _look_at_monitor(self) -> None:
        """On the loop: if the connection is broken that is the thread's affair."""
        if self._is_inherited:
            return
        on_loop, connection = self._on_loop, self._connection
        with self._work_lock:
            if self._lent and connection is not None and not sockets.is_readable(connection.monitor):
                return
            self._lent = False
        if on_loop is not None:
            on_loop.unwatch()
        self._wake()

    # Either.

    def _work(self) -> bool:
        """Do what there is to do, without waiting. Whether there is more."""
        while self._wanted:
            self._apply(self._wanted.popleft()())
        self._apply(self._session.tick(time.monotonic()))
        self._flush()
        connection = self._connection
        if connection is None or (not self._receive(connection) and not self._outgoing):
            return False
        self._flush()
        # Sending may have taken the news of what has come meanwhile.
        return connection is self._connection and sockets.is_readable(connection.socket)

    def _receive(self, connection: _Connection) -> bool:
        """All messages that are there, as one batch. Whether there may be more."""
        messages: list[list[bytes]] = []
        more = True
        while more and len(messages) < MESSAGES_PER_BATCH:
            message = sockets.receive(connection.socket)
            if message is None:
                more = False
            else:
                messages.append(message)
        if messages:
            self._apply(self._session.messages(messages, time.monotonic()))
        return more

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._outgoing.append(effect.frames)
                case Deliver():
                    self._receiver.on_batch(effect.batch)
                case Connect():
                    assert self._context is not None
                    self._connection = _Connection(self._context, self._endpoint, effect.identity, self._key)
                    self._connection.poller.register(self._wake_descriptor, READABLE)
                case Disconnect():
                    if self._connection is not None:
                        self._connection.close(linger_ms=0)
                    self._connection = None
                    self._outgoing.clear()
                case Welcomed():
                    self._welcome.open()
                case Failed():
                    raise TransportClosedError(effect.message)

    def _flush(self) -> None:
        while self._outgoing and self._connection is not None:
            try:
                sockets.send(self._connection.socket, self._outgoing[0])
            except zmq.Again:
                return
            self._outgoing.popleft()


class _Connection:
    """A socket that connects once, and the one that tells when it is broken."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, identity: str, key: keys.ClientKey | None
    ) -> None:
        self.socket, self.monitor = sockets.dealer_once(context, endpoint, identity, key)
        self.poller = zmq.Poller()
        self.poller.register(self.monitor, READABLE)
        self.descriptor = sockets.descriptor(self.socket)
        self.monitor_descriptor = sockets.descriptor(self.monitor)

    def close(self, linger_ms: int) -> None:
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=linger_ms)
