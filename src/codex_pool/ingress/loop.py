"""The ingress process: one thread, one epoll over its clients and the link to the broker, around `core`.

    python -m codex_pool.ingress      start arguments: one JSON line on stdin, which then stays open as death pipe;
                                      JSON lines of the supervisor on it (ping)
                                      stdout: JSON lines for the supervisor - ready, failed, pong
                                      stderr: log

It may be killed at any time: the supervisor has the listening socket and starts another one, clients connect again. It
limits its own memory (RLIMIT_DATA), and dies at the limit. Without a link no client is accepted: new ones wait in the
backlog of the listening socket until there is a broker.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import Any

import msgspec

from codex_app_server._protocol.framing import LineSplitter, LongLine

from ..auth import z85
from ..auth.allow_list import AllowedKeys
from ..auth.keys import KeyStore
from ..auth.principal import Identity
from ..protocol import ingress_frames
from ..protocol.endpoints import EndpointError
from ..runtime import log, startup
from .arguments import IngressArguments
from .broker_link import BrokerLink
from .core import IngressCore, ServerKeys
from .limits import FREE_BYTES, REST_AFTER_S, REST_TICK_S, TICK_S

# What is read at once is decrypted at once: of short messages little, so that others come in between.
READ_BYTES = 4 * 1024
MIDDLE_READ_BYTES = 64 * 1024
LONG_READ_BYTES = 256 * 1024
WRITE_BYTES = 256 * 1024
EVENTS_PER_TURN = 512
ACCEPTS_PER_TURN = 32
# A handshake takes some 0.3 ms of CPU; clients do not wait for more than a few.
STRANGERS_PER_TURN = 16
# Clients that have not had their turn by then come first in the next one.
TURN_LIMIT_S = 0.004
# CPU for looks at the keys, of each second: strangers cause them, and with 10,000 keys one takes 20 ms.
LOOKS_S = 0.1
SPARE_DESCRIPTORS = 64
KEEPALIVE_S = 30

_log = logging.getLogger(__name__)

_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT
_BROKEN = select.EPOLLHUP | select.EPOLLERR


class Ingress:
    """See the module's docstring. Raises EndpointError and OSError when the server's keys cannot be used."""

    def __init__(self, arguments: IngressArguments) -> None:
        self._arguments = arguments
        self._listener = socket.socket(fileno=arguments.listen_fd)
        self._listener.setblocking(False)
        store = KeyStore(arguments.keys)
        pair = store.server()
        self._keys = AllowedKeys(store, lambda line: None)
        self._core = IngressCore(
            ServerKeys(z85.decode(pair.public_key), z85.decode(pair.secret_key)),
            max_connections=min(arguments.max_connections, startup.descriptors() - SPARE_DESCRIPTORS),
            refresh_keys=self._look_at_keys,
        )
        self._epoll = select.epoll()
        self._epoll.register(0, _READ)
        # Connections without a key, apart: however many of them are ready, those with one are served first.
        self._strangers = select.epoll()
        self._epoll.register(self._strangers.fileno(), _READ)
        self._sockets: dict[int, socket.socket] = {}
        self._number_of: dict[int, int] = {}
        self._interest: dict[int, int] = {}
        self._watched_by: dict[int, select.epoll] = {}
        self._commands = LineSplitter()
        self._link = BrokerLink(
            self._epoll, self._core, arguments.link, arguments.secret, joined=self._on_joined, lost=self._on_lost
        )
        self._listens = False
        self._was_ready = False
        self._tick_at = self._looked_at = self._busy_at = 0.0
        self._looks_left_s = LOOKS_S

    def run(self) -> None:
        """Work until the supervisor is gone."""
        while True:
            self._link.connect()
            ready = self._epoll.poll(self._wait_s(), EVENTS_PER_TURN)
            now = time.monotonic()
            if any(fd for fd, _ in ready):
                # Of more than the supervisor, which is at descriptor 0.
                self._busy_at, self._tick_at = now, min(self._tick_at, now + TICK_S)
            for fd, events in ready:
                number = self._number_of.get(fd)
                if number is not None:
                    if time.monotonic() - now <= TURN_LIMIT_S:
                        self._on_client(fd, number, events, now)
                elif fd == 0:
                    if not self._on_supervisor():
                        return
                elif fd == self._link.descriptor:
                    self._link.receive(events, now)
                elif fd == self._listener.fileno():
                    self._accept(now)
            for fd, events in self._strangers.poll(0, STRANGERS_PER_TURN):
                self._on_stranger(fd, events, now)
            if now >= self._tick_at:
                self._tick(now)
            self._link.pump(now)
            self._settle(now)

    def _wait_s(self) -> float:
        until = min(self._tick_at, self._link.due_at)
        return max(0.0, until - time.monotonic())

    def _on_supervisor(self) -> bool:
        chunk = os.read(0, 4096)
        for line in self._commands.feed(chunk):
            if not isinstance(line, LongLine) and "ping" in msgspec.json.decode(line, type=dict[str, Any]):
                report({"event": "pong", "lost_lines": log.lost()})
        return bool(chunk)

    # Clients.

    def _accept(self, now: float) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._core.refusals.add("out of descriptors")
                    self._listen(False)
                return
            number = self._core.accepted(now)
            if not number:
                accepted.close()
                continue
            accepted.setblocking(False)
            # Over a connection that is gone already there is nothing to set.
            with contextlib.suppress(OSError):
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
            fd = accepted.fileno()
            self._sockets[number] = accepted
            self._number_of[fd] = number
            self._interest[number] = _READ
            self._watched_by[number] = self._strangers
            self._strangers.register(fd, _READ)

    def _on_stranger(self, fd: int, events: int, now: float) -> None:
        number = self._number_of[fd]
        self._on_client(fd, number, events, now)
        connection = self._core.connections.get(number)
        if connection is not None and connection.usage is not None:
            self._strangers.unregister(fd)
            self._watched_by[number] = self._epoll
            self._epoll.register(fd, self._interest[number])

    def _on_client(self, fd: int, number: int, events: int, now: float) -> None:
        connection = self._core.connections.get(number)
        if connection is None:
            return
        if events & _WRITE:
            self._core.dirty.add(number)
        if events & _READ and self._core.may_read(connection):
            expects = connection.zmtp.expects
            size = READ_BYTES if expects <= READ_BYTES else MIDDLE_READ_BYTES
            if expects > FREE_BYTES:
                size = LONG_READ_BYTES
            try:
                data = self._sockets[number].recv(size)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self._core.received(number, data, now)
            else:
                self._core.gone(number)
        elif events & _BROKEN:
            self._core.gone(number)

    def _write(self, number: int, now: float) -> None:
        connection = self._core.connections[number]
        while connection.outgoing:
            first = connection.outgoing[0]
            if len(first) < 4096 and len(connection.outgoing) > 1:
                # Short parts leave together.
                pieces: list[bytes | memoryview] = []
                size = 0
                for piece in connection.outgoing:
                    if size + len(piece) > WRITE_BYTES or len(pieces) == 64:
                        break
                    pieces.append(piece)
                    size += len(piece)
            else:
                pieces = [memoryview(first)[:WRITE_BYTES]]
            try:
                sent = self._sockets[number].sendmsg(pieces)
            except BlockingIOError:
                return
            except OSError:
                self._core.gone(number)
                return
            self._core.sent(number, sent, now)
            if number not in self._core.connections:
                return

    def _settle(self, now: float) -> None:
        """Write what can be written, close what is over, and listen to what may be read."""
        core = self._core
        changed = core.dirty | core.resumed
        for number in list(core.dirty):
            self._write(number, now)
        core.dirty.clear()
        core.resumed.clear()
        self._close_over()
        for number in changed:
            self._watch(number)

    def _watch(self, number: int) -> None:
        connection = self._core.connections.get(number)
        if connection is None:
            return
        wanted = (_READ if self._core.may_read(connection) else 0) | (_WRITE if connection.outgoing else 0)
        if wanted != self._interest[number]:
            self._interest[number] = wanted
            self._watched_by[number].modify(self._sockets[number].fileno(), wanted)

    def _close_over(self) -> None:
        over, self._core.over = self._core.over, []
        for number in over:
            gone = self._sockets.pop(number, None)
            if gone is None:
                continue
            del self._number_of[gone.fileno()], self._interest[number], self._watched_by[number]
            gone.close()
        if over and self._link.is_joined and not self._listens:
            self._listen(True)

    def _on_joined(self) -> None:
        self._listen(True)
        if not self._was_ready:
            self._was_ready = True
            report({"event": "ready"})

    def _on_lost(self) -> None:
        self._listen(False)
        self._close_over()

    def _listen(self, on: bool) -> None:
        if on != self._listens:
            self._listens = on
            if on:
                self._epoll.register(self._listener.fileno(), _READ)
            else:
                self._epoll.unregister(self._listener.fileno())

    # The clock, and the keys.

    def _look_at_keys(self) -> None:
        """Read the allow-list if it has changed: at each handshake, as long as that takes little of the CPU."""
        now = time.monotonic()
        self._looks_left_s = min(LOOKS_S, self._looks_left_s + (now - self._looked_at) * LOOKS_S)
        self._looked_at = now
        if self._looks_left_s <= 0:
            return
        began = time.thread_time()
        changed = self._keys.read()
        self._looks_left_s -= time.thread_time() - began
        if changed:
            allowed: dict[bytes, Identity] = {}
            for key, identity in self._keys.clients.items():
                with contextlib.suppress(ValueError):
                    allowed[z85.decode(key)] = identity
            self._core.allow(allowed, time.monotonic())

    def _tick(self, now: float) -> None:
        self._tick_at = now + (TICK_S if now - self._busy_at < REST_AFTER_S else REST_TICK_S)
        self._look_at_keys()
        self._core.tick(now)
        for line in self._core.refusals.news(now):
            _log.warning(line)
        if self._link.is_joined:
            if counts := self._core.refusals.unreported():
                self._core.notices.append(ingress_frames.Refused(counts))
            # Descriptors may be there again.
            self._listen(True)


def report(record: dict[str, Any]) -> None:
    """Write one JSON line for the supervisor."""
    os.write(1, msgspec.json.encode(record) + b"\n")


def main() -> None:
    """Entry of the ingress process."""
    log.begin("ingress", *sys.argv[1:2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    startup.survive_hang_up()
    arguments = startup.decode_arguments(startup.read_line(0), IngressArguments)
    resource.setrlimit(resource.RLIMIT_DATA, (arguments.memory_bytes, arguments.memory_bytes))
    try:
        ingress = Ingress(arguments)
    except (EndpointError, OSError, ValueError) as error:
        report({"event": "failed", "reason": f"the ingress cannot start: {error}"})
        sys.exit(1)
    startup.collect_rarely()
    try:
        ingress.run()
    except MemoryError:
        # Whatever it was about to do: it comes back empty.
        log.last_words("the limit of memory is reached: ending")
        os._exit(1)
