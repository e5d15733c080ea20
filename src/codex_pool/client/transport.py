"""PoolTransport: carries lines between a client and a pool, over ZeroMQ: a thin loop around `session_io`.

To the client above it a pool looks like one big app-server. One I/O thread owns the socket and sends beats. For a
client of asyncio it delegates its work to the event loop: between them a thread would have to be woken for each
message, and to wait for the interpreter's lock. The thread is then a watchdog: it does what is due if the loop is late
with it, since a pool ends sessions that are silent.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import zmq

from codex_app_server._protocol.envelope import RequestId
from codex_app_server._runtime import fork, threads
from codex_app_server._runtime.wakeup import Latch, WakePipe
from codex_app_server.errors import CLOSED, InvalidInputError, StartError, TransportClosedError
from codex_app_server.transport import DEFAULT_TIMEOUT_S, Interest, Receiver

from ..auth import keys
from ..auth.principal import MAX_MESSAGE_BYTES
from ..protocol import endpoints, sockets, wire
from ..protocol.sockets import READABLE, WRITABLE
from . import connections
from .effects import Effect
from .on_loop import OnLoop
from .session import Session
from .session_io import SessionIO
from .unreachable import check_listens, no_pool

if TYPE_CHECKING:
    import asyncio

# Of slow turns each message comes alone; an acknowledgement of each would cost as much as the message itself.
ACK_DELAY_S = 0.1
# What an event loop may be late with what is due before the thread does it.
LATE_S = 0.5
# It takes half a second; bounded, since a handler of the program's logging may block the thread without end.
CLOSE_LIMIT_S = 30.0

log = logging.getLogger("codex_app_server")


class PoolTransport(fork.ProcessBound):
    """A session on the pool at `endpoint`. `client` is the name that `codex-pool status` shows.

    `key`: the key file for an endpoint of the form tcp://HOST:PORT.
    `priority` is that of its turns where they wait: four interactive ones start for one of a batch. `when_gone` says
    what becomes of its turns when it is away for longer than the pool waits. `all_turns`: the session gets every turn
    of the threads that it is subscribed to, whoever starts it, as a connection of an app-server does. `knows_queue`:
    the receiver understands `pool/queued`; otherwise it gets a `warning`, as of codex, for a turn that has to wait.
    `explain`: gives the error that the session ends with, in place of the one that ended it. `first_limit_s`: how many
    seconds the first connection may take, by default 10. Raises EndpointError for an endpoint that cannot be one.
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
        all_turns: bool = False,
        knows_queue: bool = True,
        explain: Callable[[TransportClosedError], TransportClosedError] | None = None,
        first_limit_s: float | None = None,
    ) -> None:
        endpoints.check_client(endpoint, key)
        self._explain = explain or (lambda error: error)
        self._key = keys.read_client_key(key) if key is not None else None
        self._path = endpoints.ipc_path(endpoint) if key is None else None
        self._max_line_bytes = wire.MAX_BODY_BYTES if key is None else MAX_MESSAGE_BYTES
        self._endpoint = endpoint
        self._first_limit_s = connections.FIRST_LIMIT_S if first_limit_s is None else first_limit_s
        self._session = Session(
            f"s{os.getpid()}-{os.urandom(4).hex()}",
            client or f"pid {os.getpid()}",
            endpoint=endpoint,
            no_pool=self._no_pool,
            jitter=random.random,
            priority=priority,
            when_gone=when_gone,
            all_turns=all_turns,
            knows_queue=knows_queue,
            ack_delay_s=ACK_DELAY_S,
            first_limit_s=self._first_limit_s,
        )
        self._io: SessionIO | None = None
        self._closing = False
        self._welcome = Latch()
        self._ended = Latch()
        self._error: TransportClosedError | None = None
        self._thread: threading.Thread | None = None
        self._wake_pipe: WakePipe | None = None
        self._woken = False
        # The loop that may work, whether the work is delegated to it, and the lock of both decisions and work.
        self._on_loop: OnLoop | None = None
        self._delegated = False
        self._work_lock = threading.Lock()
        self._failure: BaseException | None = None
        self._explained: TransportClosedError | None = None
        self._bind_to_process()

    def start(self, receiver: Receiver) -> None:
        """Begin the session. Raises TransportClosedError, which names the way to start a pool, if there is none."""
        self._check_process()
        threads.check_patches(blocks=True)
        if self._path is not None:
            try:
                check_listens(self._endpoint, self._path)
            except TransportClosedError as error:
                raise self._explain(error) from None
        self._receiver = receiver
        with fork.opening():
            # Not in a variable: an error raised here would keep it, and its descriptors, open.
            self._wake_pipe = WakePipe()
        self._wake_descriptor = self._wake_pipe.descriptor
        self._idle_poller = zmq.Poller()
        self._idle_poller.register(self._wake_descriptor, READABLE)
        self._io = SessionIO(
            self._session,
            self._endpoint,
            self._key,
            receiver=receiver,
            wake_descriptor=self._wake_descriptor,
            on_welcome=self._welcome.open,
        )
        thread = threading.Thread(target=self._run, args=(self._io,), name="codex-pool-io", daemon=True)
        self._thread = thread
        try:
            threads.start(thread, "for the connection to the pool")
        except StartError as error:
            self._thread = self._wake_pipe = self._io = None
            raise TransportClosedError(f"cannot connect to the pool: {error}") from None
        self._welcome.wait(self._first_limit_s + 1)
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
                self._delegated = False
            on_loop.close()
        if loop is not None:
            self._on_loop = OnLoop(loop, self._work_on_loop)
        self._wake()

    def cancel(self, request_id: RequestId) -> None:
        if self._thread is not None and not self._is_inherited:
            self._want(lambda: self._session.cancel(request_id))

    def hold(self, is_held: bool) -> None:
        """Withhold acknowledgements while True: workers then keep what is beyond 4 MiB of a turn, 16 MiB in all."""
        if self._thread is not None and not self._is_inherited:
            self._want(lambda: self._session.hold_acks(is_held))

    @property
    def server_info(self) -> bytes:
        """The result of `initialize` as JSON, as the pool's app-servers have answered it; empty before `start`."""
        return self._session.server_info

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
        # In any case: a thread that has noted that it wakes the pipe may have been interrupted before it did so.
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
            fork.let_go(*wake_pipe.descriptors)
        if on_loop is not None:
            on_loop.let_go()
        # pyzmq neither closes the sockets nor ends the context of another process; that would wait for its threads.
        io = self._io
        fork.keep(io.context if io is not None else None, io.connection if io is not None else None, on_loop)

    def _want(self, call: Callable[[], list[Effect]]) -> None:
        io, on_loop = self._io, self._on_loop
        assert io is not None, "a transport that was not started"
        io.want(call)
        # Not at once: the calls of all tasks of the loop are done together.
        if not self._delegated or on_loop is None or not on_loop.soon():
            self._wake()

    def _wake(self) -> None:
        if self._woken:
            # It has not cleared the pipe since, and does all that is wanted after that.
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
        return no_pool(self._endpoint, why)

    # The I/O thread.

    def _run(self, io: SessionIO) -> None:
        error = TransportClosedError(CLOSED)
        try:
            self._pump(io)
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

    def _pump(self, io: SessionIO) -> None:
        try:
            io.start()
            while not self._closing:
                if self._failure is not None:
                    raise self._failure
                if self._delegated:
                    self._watch_loop(io)
                elif not self._delegate(io):
                    self._turn(io)
        finally:
            with self._work_lock:
                self._delegated = False
            on_loop = self._on_loop
            if on_loop is not None and not on_loop.soon():
                # The loop is closed, and does not call any more.
                on_loop.close()
            io.close(has_failed=self._failure is not None)

    def _turn(self, io: SessionIO) -> None:
        """Run the thread's own loop once."""
        connection = io.connection
        if connection is None:
            poller = self._idle_poller
        else:
            poller = connection.poller
            poller.register(connection.socket, READABLE | (WRITABLE if io.has_outgoing else 0))
        left_s = max(0.0, self._session.next_deadline - time.monotonic())
        ready = dict(poller.poll(int(left_s * 1000) + 1))
        if self._wake_descriptor in ready:
            self._clear_wake()
        io.work()
        if connection is not None and connection.monitor in ready:
            io.on_broken(connection)

    def _clear_wake(self) -> None:
        assert self._wake_pipe is not None
        self._wake_pipe.clear()
        self._woken = False

    # The event loop, and the thread while that works.

    def _delegate(self, io: SessionIO) -> bool:
        """Delegate the work to the loop, if there is one and the session is open. Whether it is delegated."""
        on_loop = self._on_loop
        if on_loop is None or io.connection is None or not self._session.open:
            return False
        with self._work_lock:
            # Another loop may have been named meanwhile.
            self._delegated = on_loop is self._on_loop and on_loop.soon()
        if not self._delegated and on_loop is self._on_loop:
            # The loop is closed.
            self._on_loop = None
            on_loop.close()
        return self._delegated

    def _watch_loop(self, io: SessionIO) -> None:
        """Sleep until the loop is late with what is due, and do it then, or until the thread is woken."""
        with self._work_lock:
            left_s = self._session.next_deadline + LATE_S - time.monotonic()
            if left_s <= 0:
                # Once it has done what is due the thread delegates the work again.
                self._delegated = False
        if left_s <= 0:
            io.work()
        elif self._idle_poller.poll(int(left_s * 1000) + 1):
            self._clear_wake()
            on_loop = self._on_loop
            if io.has_wanted and on_loop is not None:
                on_loop.soon()

    def _work_on_loop(self) -> None:
        if self._is_inherited:
            # The loop was copied into a forked child with the calls that it had scheduled.
            return
        on_loop, io = self._on_loop, self._io
        assert on_loop is not None and io is not None
        with self._work_lock:
            connection = io.connection
            if self._delegated and connection is not None:
                try:
                    on_loop.watch(
                        connection,
                        {
                            connection.descriptor: self._work_on_loop,
                            connection.monitor_descriptor: self._look_at_monitor,
                        },
                    )
                    if io.work():
                        on_loop.soon()
                except BaseException as error:
                    self._failure, self._delegated = error, False
                if connection is not io.connection or not self._session.open:
                    # To connect again the thread has to wait.
                    self._delegated = False
            delegated = self._delegated
        if delegated:
            on_loop.wake_at(self._session.next_deadline)
        else:
            on_loop.unwatch()
            self._wake()

    def _look_at_monitor(self) -> None:
        """Take the work back to the thread if the connection is broken. Called on the loop."""
        if self._is_inherited:
            return
        on_loop, io = self._on_loop, self._io
        connection = io.connection if io is not None else None
        with self._work_lock:
            if self._delegated and connection is not None and not sockets.is_readable(connection.monitor):
                return
            self._delegated = False
        if on_loop is not None:
            on_loop.unwatch()
        self._wake()
