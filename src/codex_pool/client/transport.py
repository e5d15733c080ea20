"""PoolTransport: carries lines between a client and a pool, over ZeroMQ. One I/O thread owns the socket and beats.

To the client above it a pool looks like one big app-server.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections import deque

import zmq

from codex_app_server.errors import TransportClosedError
from codex_app_server.lines import LongLine
from codex_app_server.transport import Interest, Receiver, TurnLines
from codex_pool import endpoints, rpc, sockets, wire

WELCOME_LIMIT_S = 10.0
BROKER_SILENT_S = 20.0
MESSAGES_PER_BATCH = 500


class PoolTransport:
    """A session on the pool at `endpoint`. `client` is the name that `codex-pool status` shows.

    Raises EndpointError for an endpoint that cannot be one.
    """

    def __init__(self, endpoint: str, *, client: str = "") -> None:
        self._path = endpoints.ipc_path(endpoint)
        self._endpoint = endpoint
        self._client = client or f"pid {os.getpid()}"
        self._session = f"s{os.getpid()}-{secrets.token_hex(4)}"
        self._outgoing: deque[list[bytes]] = deque()
        self._last: dict[str, int] = {}
        self._closing = False
        self._welcome = threading.Event()
        self._error: TransportClosedError | None = None
        self._thread: threading.Thread | None = None
        self._wake_lock = threading.Lock()
        self._wake_r = self._wake_w = -1

    def start(self, receiver: Receiver) -> None:
        """Begin the session. Raises TransportClosedError, which says how to start a pool, if there is none."""
        if not self._path.exists():
            raise self._no_pool("nothing listens there")
        self._receiver = receiver
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._thread = threading.Thread(target=self._run, name="codex-pool-io", daemon=True)
        self._thread.start()
        self._welcome.wait(WELCOME_LIMIT_S + 1)
        if self._error is not None:
            self.close()
            raise self._error

    def send(self, line: bytes, *, interest: Interest = "full") -> None:
        if self._error is not None:
            raise self._error
        if self._closing or self._thread is None:
            raise TransportClosedError("the client was closed or never started")
        if len(line) > wire.MAX_BODY_BYTES:
            raise TransportClosedError(f"a line of {len(line)} bytes; the limit is {wire.MAX_BODY_BYTES}")
        self._outgoing.append([wire.encode(wire.Call(interest)), line])
        self._wake()

    def close(self) -> None:
        self._closing = True
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._wake()
        if thread is not threading.current_thread():
            thread.join()
            with self._wake_lock:
                os.close(self._wake_r)
                os.close(self._wake_w)
                self._wake_r = self._wake_w = -1

    def _wake(self) -> None:
        # Locked: a descriptor that was closed meanwhile may belong to somebody else by now.
        with self._wake_lock, contextlib.suppress(OSError):
            os.write(self._wake_w, b"\0")

    def _no_pool(self, why: str) -> TransportClosedError:
        default = self._endpoint == endpoints.default_endpoint()
        command = "codex-pool serve" if default else f"codex-pool serve --endpoint {self._endpoint}"
        return TransportClosedError(f"no pool at {self._endpoint}: {why}; start one with: {command}")

    def _run(self) -> None:
        error = TransportClosedError("the client was closed")
        try:
            self._connect_and_pump()
        except TransportClosedError as reason:
            error = reason
        except BaseException as failure:
            error = TransportClosedError(f"the connection to the pool failed: {failure!r}")
        self._error = error
        self._welcome.set()
        self._receiver.on_closed(error)

    def _connect_and_pump(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            socket = sockets.dealer(context, self._endpoint, self._session)
            try:
                self._pump(socket)
            finally:
                with contextlib.suppress(zmq.ZMQError):
                    socket.send(wire.encode(wire.Bye()), zmq.NOBLOCK)
                socket.close(linger=500)
        finally:
            context.term()

    def _pump(self, socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_r, zmq.POLLIN)
        heard_at = beat_at = time.monotonic()
        self._outgoing.appendleft([wire.encode(wire.Hello(self._session, self._client))])
        while not self._closing:
            self._flush(socket)
            poller.register(socket, zmq.POLLIN | (zmq.POLLOUT if self._outgoing else 0))
            ready = dict(poller.poll(int(wire.BEAT_S * 1000)))
            now = time.monotonic()
            if self._wake_r in ready:
                os.read(self._wake_r, 4096)
            if ready.get(socket, 0) & zmq.POLLIN:
                heard_at = now
                self._receive(socket)
            if not self._welcome.is_set():
                if now - heard_at > WELCOME_LIMIT_S:
                    raise self._no_pool(f"no answer within {WELCOME_LIMIT_S:.0f} s")
                continue
            if now - heard_at > BROKER_SILENT_S:
                raise TransportClosedError(f"the pool at {self._endpoint} was silent for {BROKER_SILENT_S:.0f} s")
            if now - beat_at >= wire.BEAT_S:
                beat_at = now
                self._outgoing.append([wire.encode(wire.Beat())])

    def _flush(self, socket: zmq.Socket[bytes]) -> None:
        while self._outgoing:
            try:
                socket.send_multipart(self._outgoing[0], zmq.NOBLOCK)
            except zmq.Again:
                return
            self._outgoing.popleft()

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        """All messages that are there, as one batch."""
        batch: list[bytes | LongLine | TurnLines] = []
        closed: TransportClosedError | None = None
        got: dict[str, dict[str, int]] = {}
        for _ in range(MESSAGES_PER_BATCH):
            try:
                frame, *bodies = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            head = wire.decode_to_client(frame)
            match head:
                case wire.Lines():
                    for body in bodies:
                        batch += body.split(b"\n")
                case wire.Events():
                    batch.append(self._on_events(head, bodies))
                    got.setdefault(head.worker, {})[head.turn_id] = head.last
                case wire.Ended():
                    self._last.pop(head.turn_id, None)
                    batch.append(TurnLines(head.thread_id, head.turn_id, _split(bodies), True))
                case wire.Welcome():
                    self._welcome.set()
                case wire.Refused() | wire.Closed():
                    closed = TransportClosedError(f"the pool at {self._endpoint}: {head.message}")
        for worker, turns in got.items():
            positions = [wire.Position(turn_id, last) for turn_id, last in turns.items()]
            self._outgoing.append([wire.encode(wire.Ack(worker, positions))])
        if batch:
            self._receiver.on_batch(batch)
        if closed is not None:
            raise closed

    def _on_events(self, events: wire.Events, bodies: list[bytes]) -> TurnLines:
        """A run of a turn; a hole in its numbers ends the turn loudly, because nothing may be lost in silence."""
        last = self._last.get(events.turn_id, events.after)
        self._last[events.turn_id] = events.last
        ended = events.ended
        lines = _split(bodies)
        if last != events.after:
            ended = True
            message = f"notifications {last + 1} to {events.after} of this turn never came"
            lines = rpc.ended_lines(events.thread_id, events.turn_id, "failed", message, safe_to_retry=False)
        if ended:
            self._last.pop(events.turn_id, None)
        return TurnLines(events.thread_id, events.turn_id, lines, ended)


def _split(bodies: list[bytes]) -> list[bytes]:
    return [line for body in bodies for line in body.split(b"\n")]
