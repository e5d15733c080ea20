"""The app-server's protocol on two descriptors, a pool on the other side: what `codex app-server` is to its client.

Lines pass as they are, but for what `protocol.plain_client` says. Connections to the pool that are lost are made again
by its transport; what could not be kept then comes to the client in the app-server's own terms, as errors and as turns
that failed. It ends as the app-server does (measured on codex 0.163.0): with its input, or with SIGTERM, at once and
with exit code 0, whatever runs; a client that no longer reads is no reason to end. What runs goes on in the pool.

A client that reads slowly stops its own work and nothing else: beyond HIGH_BYTES of output that waits, its requests are
not read and notifications are not acknowledged, so that the pool stops sending.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from codex_app_server._protocol import envelope
from codex_app_server._protocol.framing import LineSplitter, LongLine
from codex_app_server._runtime import reads
from codex_app_server._runtime.paths import check_utf8
from codex_app_server._runtime.wakeup import WakePipe
from codex_app_server.errors import INVALID_REQUEST, InvalidInputError, TransportClosedError
from codex_app_server.transport import TurnLines

from .client.transport import PoolTransport
from .protocol import endpoints, jsonrpc, wire
from .protocol.plain_client import PlainClient, to_client
from .runtime import startup

if TYPE_CHECKING:
    from .pool import Pool

# The name of its sessions in `codex-pool status`, and what they ask of a pool.
NAME = "codex-pool bridge"
SESSION: dict[str, Any] = {"when_gone": "keep", "all_turns": True, "knows_queue": False}

READ_BYTES = 256 * 1024
# Output that waits: beyond the first no more is asked for, below the second it is again.
HIGH_BYTES = 8 * 1024 * 1024
LOW_BYTES = 1024 * 1024
# Answers to requests of before come all the same; a line has at most 64 MiB.
MAX_WAITING_BYTES = 256 * 1024 * 1024
# How long the last output may take at the end.
LAST_OUTPUT_S = 1.0


class NotReadError(Exception):
    """The client does not read what it has asked for."""


class Bridge:
    """See the module's docstring. `connect` first, then `run`, once, in the main thread."""

    def __init__(self, transport: PoolTransport, client: PlainClient, *, stdin: int = 0, stdout: int = 1) -> None:
        self._transport = transport
        self._client = client
        self._stdin = stdin
        self._read_bytes = reads.LITTLE_BYTES
        self._stdout = stdout
        self._lines = LineSplitter(wire.MAX_BODY_BYTES)
        # Written by the main thread, from `_offset` of the first on; the transport's adds to it as well.
        self._outgoing: deque[bytes] = deque()
        self._offset = 0
        self._lock = threading.Lock()
        self._added_bytes = self._written_bytes = 0
        self._is_held = False
        # Without a reader output is dropped.
        self._has_reader = True
        self._error: TransportClosedError | None = None
        self._wake_pipe = WakePipe()

    @property
    def server_info(self) -> bytes:
        """The result of `initialize` as JSON, as the pool's app-servers have answered it; empty before `connect`."""
        return self._transport.server_info

    def connect(self) -> None:
        """Begin the session on the pool; nothing of the client has been read then. Raises TransportClosedError."""
        self._transport.start(self)

    def close(self) -> None:
        """End the session without having run."""
        self._transport.close()

    def run(self) -> int | None:
        """Carry lines until the client ends it: return the signal that did, None for the end of its input.

        Raises TransportClosedError when the pool is gone for good, and NotReadError.
        """
        signals = startup.signal_descriptor(signal.SIGTERM, signal.SIGINT)
        try:
            return self._run(signals)
        finally:
            self._transport.close()
            self._write_last()

    # The transport's thread, or the main one while it connects.

    def on_batch(self, batch: list[bytes | LongLine | TurnLines]) -> None:
        """Queue what the pool has sent for the client."""
        lines: list[bytes] = []
        for each in batch:
            assert not isinstance(each, LongLine), "lines of a pool are whole"
            found = each.lines if isinstance(each, TurnLines) else [each]
            lines += (line for line in map(to_client, found) if line is not None)
        if lines:
            self._add(lines)
            self._wake_pipe.wake()

    def on_closed(self, error: TransportClosedError) -> None:
        """Note that the pool is gone."""
        self._error = error
        self._wake_pipe.wake()

    def _add(self, lines: list[bytes]) -> None:
        data = b"\n".join((*lines, b""))
        with self._lock:
            if self._has_reader:
                self._added_bytes += len(data)
                self._outgoing.append(data)

    # The main thread.

    @property
    def _waiting_bytes(self) -> int:
        return self._added_bytes - self._written_bytes

    def _run(self, signals: int) -> int | None:
        poller = select.poll()
        wake = self._wake_pipe.descriptor
        for descriptor in (signals, wake):
            poller.register(descriptor, select.POLLIN)
        while True:
            if self._error is not None:
                raise self._error
            self._bound()
            poller.register(self._stdin, 0 if self._is_held else select.POLLIN)
            if self._has_reader:
                poller.register(self._stdout, select.POLLOUT if self._outgoing else 0)
            ready = dict(poller.poll())
            if signals in ready and (number := _first(signals)) is not None:
                return number
            if wake in ready:
                self._wake_pipe.clear()
            if self._has_reader and self._stdout in ready:
                self._write()
                if not self._has_reader:
                    poller.unregister(self._stdout)
            if self._stdin in ready and not self._read():
                return None

    def _bound(self) -> None:
        """Hold the pool and the client while too much output waits. Raises NotReadError."""
        waiting = self._waiting_bytes
        if waiting > MAX_WAITING_BYTES:
            raise NotReadError(f"the client has not read {waiting} bytes of what it asked for")
        if waiting > HIGH_BYTES and not self._is_held:
            self._is_held = True
            self._transport.hold(True)
        elif waiting < LOW_BYTES and self._is_held:
            self._is_held = False
            self._transport.hold(False)

    def _read(self) -> bool:
        """Read what the client has sent; return False at its end."""
        try:
            chunk = os.read(self._stdin, self._read_bytes)
        except BlockingIOError:
            return True
        except OSError:
            chunk = b""
        self._read_bytes = reads.next_bytes(len(chunk), READ_BYTES)
        for line in self._lines.feed(chunk):
            self._receive(line)
        if not chunk and (rest := self._lines.rest()):
            self._receive(rest)
        return bool(chunk)

    def _receive(self, line: bytes | LongLine) -> None:
        if isinstance(line, LongLine):
            self._refuse(line, f"a message of {line.size_bytes} bytes; the limit is {wire.MAX_BODY_BYTES}")
            return
        received = self._client.receive(line)
        if received.to_client is not None:
            self._add([received.to_client])
        if received.to_pool is not None:
            try:
                # An app-server sets no limits of time to what its client asks.
                self._transport.send(received.to_pool, timeout_s=None)
            except InvalidInputError as error:
                self._refuse(LongLine(line[:READ_BYTES], line[-READ_BYTES:], len(line)), str(error))
            except TransportClosedError as error:
                self._error = self._error or error

    def _refuse(self, line: LongLine, why: str) -> None:
        """Answer a request that is too long to be sent."""
        request_id = envelope.scan_truncated(line.head, line.tail).id
        if request_id is not None:
            self._add([jsonrpc.error_line(jsonrpc.encode(request_id), INVALID_REQUEST, why)])

    def _write(self) -> None:
        """Write what the client's side takes now."""
        poller = select.poll()
        poller.register(self._stdout, select.POLLOUT)
        try:
            while self._outgoing and _is_writable(poller):
                data = self._outgoing[0]
                # Of this size no write blocks. The flags of the descriptor, which others may share, are left alone.
                count = os.write(self._stdout, data[self._offset : self._offset + select.PIPE_BUF])
                self._written_bytes += count
                self._offset += count
                if self._offset == len(data):
                    self._outgoing.popleft()
                    self._offset = 0
            # Without output too: a poll reports the end of the reader all the time.
            _is_writable(poller)
        except BlockingIOError:
            # Another program has made it non-blocking.
            return
        except OSError:
            self._has_reader = False
            with self._lock:
                self._outgoing.clear()
                self._written_bytes = self._added_bytes

    def _write_last(self) -> None:
        """Write what is left at the end, as long as the client reads."""
        until = time.monotonic() + LAST_OUTPUT_S
        poller = select.poll()
        poller.register(self._stdout, select.POLLOUT)
        while self._outgoing and (left_s := until - time.monotonic()) > 0 and poller.poll(left_s * 1000):
            self._write()


def _is_writable(poller: select.poll) -> bool:
    """Return True if something can be written. Raises OSError when there is no reader."""
    events = 0
    for _, found in poller.poll(0):
        events |= found
    if events & (select.POLLERR | select.POLLNVAL):
        raise BrokenPipeError
    return bool(events & select.POLLOUT)


def _first(signals: int) -> int | None:
    """The first signal that has come."""
    try:
        return os.read(signals, 1)[0]
    except BlockingIOError:
        return None


def to_endpoint(
    endpoint: str,
    *,
    key: str | os.PathLike[str] | None = None,
    limit_s: float | None = None,
    start_config: Mapping[str, Any] | None = None,
    thread_config: Mapping[str, Any] | None = None,
) -> Bridge:
    """A bridge to the pool at `endpoint`; connecting may take `limit_s` seconds, by default 10. Configurations as for
    PlainClient.

    Raises EndpointError, KeysError and InvalidInputError.
    """
    transport = PoolTransport(endpoint, client=NAME, key=key, first_limit_s=limit_s, **SESSION)
    cwd = None if endpoints.is_tcp(endpoint) else _working_directory()
    return Bridge(transport, PlainClient(cwd, start_config=start_config, thread_config=thread_config))


def to_pool(pool: Pool) -> Bridge:
    """A bridge to a pool of this process. Raises TransportClosedError when it does not run."""
    transport = PoolTransport(pool.endpoint, client=NAME, explain=pool.explained, **SESSION)
    pool.notify_of_end(transport)
    return Bridge(transport, PlainClient(_working_directory()))


def _working_directory() -> str | None:
    """The directory that clients of this process mean by default. Raises InvalidInputError if it is not UTF-8."""
    try:
        cwd = os.getcwd()
    except FileNotFoundError:
        return None
    check_utf8("cwd", cwd)
    return cwd
