"""UnixTransport: carries lines between a command and a pool on its Unix socket, without libzmq.

A command that runs for a second is over sooner than libzmq and its Python modules are loaded. The session is that of
PoolTransport, and so is what becomes of it: it reconnects, and repeats nothing. One I/O thread owns the socket and
sends beats, whatever its command waits for.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from codex_app_server._protocol.envelope import RequestId
from codex_app_server._protocol.turn_lines import DEFAULT_TIMEOUT_S, Interest
from codex_app_server._runtime import fork, reads, threads
from codex_app_server._runtime.wakeup import Latch, WakePipe
from codex_app_server.errors import CLOSED, InvalidInputError, StartError, TransportClosedError

from ..protocol import endpoints, wire
from . import zmtp
from .effects import Connect, Deliver, Disconnect, Effect, Failed, Send
from .session import Session
from .unreachable import check_listens, no_pool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codex_app_server.transport import Receiver

ACK_DELAY_S = 0.1
READ_BYTES = 256 * 1024
# How long what was not sent may take when the session is closed.
LINGER_S = 0.5
CLOSE_LIMIT_S = 5.0


class _Socket:
    """One connection: what has to be written, and the descriptor that it is written to."""

    def __init__(self, path: str, identity: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._protocol = zmtp.ClientConnection(identity.encode(), wire.MAX_BODY_BYTES)
        self.unsent = bytearray(self._protocol.greeting)
        # Messages for after the handshake.
        self._held: list[bytes] = []
        self._read_bytes = reads.LITTLE_BYTES
        self.descriptor = self._socket.fileno()

    def send(self, frames: list[bytes]) -> None:
        """Have a message written, once the handshake is done."""
        message = zmtp.encode(frames)
        if self._protocol.is_ready:
            self.unsent += message
        else:
            self._held.append(message)

    def write(self) -> None:
        """Write what the socket takes now. Raises OSError."""
        while self.unsent:
            try:
                sent = self._socket.send(self.unsent)
            except BlockingIOError:
                return
            del self.unsent[:sent]

    def read(self) -> list[list[bytes]]:
        """The messages that have come. Raises OSError and ZmtpError, ConnectionResetError at the end of the stream."""
        try:
            data = self._socket.recv(self._read_bytes)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "it was closed")
        self._read_bytes = reads.next_bytes(len(data), READ_BYTES)
        messages = self._protocol.receive(data)
        if self._held and self._protocol.is_ready:
            self.unsent += b"".join(self._held)
            self._held.clear()
        return messages

    def close(self, linger_s: float) -> None:
        """Close it; what was not sent yet has `linger_s` seconds for that."""
        try:
            if self.unsent and linger_s:
                self._socket.settimeout(linger_s)
                self._socket.sendall(self.unsent)
        except OSError:
            # Nobody reads it.
            pass
        finally:
            self._socket.close()


class UnixTransport(fork.ProcessBound):
    """A session on the pool at the ipc `endpoint`. `client` is the name that `codex-pool status` shows.

    `start` does not wait for the pool: what is sent meanwhile goes out once it has welcomed the session, and a pool
    that does not is reported by `on_closed`. Raises EndpointError for an endpoint that cannot be one.
    """

    shared = True
    _called = "client"

    def __init__(self, endpoint: str, *, client: str) -> None:
        self._endpoint = endpoint
        self._path = endpoints.ipc_path(endpoint)
        self._session = Session(
            f"s{os.getpid()}-{os.urandom(4).hex()}",
            client,
            endpoint=endpoint,
            no_pool=lambda why: no_pool(endpoint, why),
            jitter=lambda: os.urandom(1)[0] / 256,
            ack_delay_s=ACK_DELAY_S,
        )
        self._socket: _Socket | None = None
        # Calls that other threads want done, in their order.
        self._wanted: deque[Callable[[], list[Effect]]] = deque()
        self._wake_pipe: WakePipe | None = None
        self._closing = False
        self._ended = Latch()
        self._error: TransportClosedError | None = None
        self._bind_to_process()

    def start(self, receiver: Receiver) -> None:
        """Begin the session. Raises TransportClosedError where nothing listens; it names the way to start a pool."""
        self._check_process()
        check_listens(self._endpoint, self._path)
        self._receiver = receiver
        with fork.opening():
            # Not in a variable: an error that is kept would keep its descriptors open.
            self._wake_pipe = WakePipe()
        thread = threading.Thread(target=self._run, name="codex-pool-io", daemon=True)
        try:
            threads.start(thread, "for the connection to the pool")
        except StartError as error:
            self._wake_pipe = None
            raise TransportClosedError(f"cannot connect to the pool: {error}") from None

    def send(self, line: bytes, *, interest: Interest = "full", timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        self._check_process()
        if self._error is not None:
            raise self._error
        if self._closing or self._wake_pipe is None:
            raise TransportClosedError(f"the connection is closed, or was never started: {CLOSED}")
        if len(line) > wire.MAX_BODY_BYTES:
            raise InvalidInputError(f"a request of {len(line)} bytes; the limit is {wire.MAX_BODY_BYTES}")
        self._want(lambda: self._session.line(line, interest, timeout_s))

    def cancel(self, request_id: RequestId) -> None:
        if not self._is_inherited:
            self._want(lambda: self._session.cancel(request_id))

    def close(self) -> None:
        """End the session, which interrupts its turns, and wait until the I/O thread is done."""
        if self._is_inherited or self._wake_pipe is None:
            return
        self._closing = True
        self._wake()
        self._ended.wait(CLOSE_LIMIT_S)

    def _let_go(self) -> None:
        wake_pipe, connection = self._wake_pipe, self._socket
        fork.let_go(*(wake_pipe.descriptors if wake_pipe is not None else ()))
        fork.let_go(connection.descriptor if connection is not None else None)
        fork.keep(connection)

    def _want(self, call: Callable[[], list[Effect]]) -> None:
        self._wanted.append(call)
        self._wake()

    def _wake(self) -> None:
        wake_pipe = self._wake_pipe
        if wake_pipe is not None:
            wake_pipe.wake()

    # The I/O thread.

    def _run(self) -> None:
        error = TransportClosedError(CLOSED)
        try:
            self._apply(self._session.start(time.monotonic()))
            while not self._closing:
                self._turn()
            self._say_bye()
        except TransportClosedError as reason:
            error = reason
        except BaseException as failure:
            error = TransportClosedError(f"the connection to the pool failed: {failure!r}")
        self._error = error
        if self._socket is not None:
            self._socket.close(LINGER_S if self._session.open else 0)
        try:
            self._receiver.on_closed(error)
        finally:
            self._wake_pipe = None
            self._ended.open()

    def _turn(self) -> None:
        """Wait until there is something to do, and do it."""
        assert self._wake_pipe is not None
        wake_descriptor = self._wake_pipe.descriptor
        poller = select.poll()
        poller.register(wake_descriptor, select.POLLIN)
        connection = self._socket
        if connection is not None:
            poller.register(connection.descriptor, select.POLLIN | (select.POLLOUT if connection.unsent else 0))
        left_s = max(0.0, self._session.next_deadline - time.monotonic())
        ready = dict(poller.poll(left_s * 1000 + 1))
        if wake_descriptor in ready:
            self._wake_pipe.clear()
        while self._wanted:
            self._apply(self._wanted.popleft()())
        if connection is not None and ready.get(connection.descriptor, 0) & ~select.POLLOUT:
            self._try(connection, self._read)
        self._apply(self._session.tick(time.monotonic()))
        self._write()

    def _say_bye(self) -> None:
        while self._wanted and self._session.open:
            self._apply(self._wanted.popleft()())
        if self._socket is not None:
            self._socket.send([wire.encode(wire.Bye())])

    def _read(self, connection: _Socket) -> None:
        messages = connection.read()
        if messages:
            self._apply(self._session.messages(messages, time.monotonic()))

    def _write(self) -> None:
        connection = self._socket
        if connection is not None and connection.unsent:
            self._try(connection, lambda connection: connection.write())

    def _try(self, connection: _Socket, work: Callable[[_Socket], None]) -> None:
        try:
            work(connection)
        except (OSError, zmtp.ZmtpError) as error:
            if connection is self._socket:
                why = error.strerror if isinstance(error, OSError) else str(error)
                self._apply(self._session.lost(why or str(error), time.monotonic()))

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    if self._socket is not None:
                        self._socket.send(effect.frames)
                case Deliver():
                    self._receiver.on_batch(effect.batch)
                case Connect():
                    self._connect(effect.identity)
                case Disconnect():
                    if self._socket is not None:
                        self._socket.close(0)
                    self._socket = None
                case Failed():
                    raise TransportClosedError(effect.message)

    def _connect(self, identity: str) -> None:
        try:
            with fork.opening():
                self._socket = _Socket(os.fspath(self._path), identity)
        except OSError as error:
            is_absent = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
            why = "nothing listens there" if is_absent else error.strerror or str(error)
            # After the effects that follow, which belong to this connection.
            self._wanted.append(lambda: self._session.lost(why, time.monotonic()))
            self._wake()
            return
        self._write()
