"""The broker process: one thread, two sockets, the supervisor's pipe, in named phases around `core`.

    python -m codex_pool.broker       start arguments: one JSON line on stdin; then JSON lines of the supervisor
                                      (lost, slots, drain, ping); its end is the supervisor's death
                                      stdout: JSON lines for the supervisor - ready, registered, suspect, drained, pong
                                      stderr: log

What a peer cannot take now waits in its outbox, bounded in bytes; a client beyond the bound has to connect anew.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from typing import Any

import msgspec
import zmq

from codex_app_server.lines import LineSplitter, LongLine
from codex_pool import endpoints, sockets, start
from codex_pool.broker.arguments import BrokerArguments
from codex_pool.broker.core import BrokerCore
from codex_pool.broker.records import Drained, Effect, Forget, Note, Registered, Suspect, ToClient, ToWorker

MESSAGES_PER_PHASE = 500
MAX_OUTBOX_BYTES = 64 * 1024 * 1024
OUTBOX_RETRY_MS = 5


class Broker:
    """See the module's docstring."""

    def __init__(self, arguments: BrokerArguments) -> None:
        self._arguments = arguments
        self._context = zmq.Context()
        # Workers first: once clients can see their socket, the pool is there.
        self._workers = sockets.router(self._context, arguments.workers_endpoint)
        self._clients = sockets.router(self._context, arguments.clients_endpoint)
        self._core = BrokerCore(
            slots=arguments.slots,
            turns_per_worker=arguments.turns_per_worker,
            now=time.monotonic(),
            expect=arguments.expect,
            unix_offset=time.time() - time.monotonic(),
        )
        self._commands = LineSplitter()
        self._outboxes: dict[tuple[bool, bytes], deque[list[bytes]]] = {}
        self._outbox_bytes: dict[tuple[bool, bytes], int] = {}

    def run(self) -> None:
        """Work until the supervisor is gone."""
        poller = zmq.Poller()
        for source in (self._workers, self._clients, 0):
            poller.register(source, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll(self._wait_ms()))
                # Workers first: what one has sent before it died comes before the news of its death.
                if self._workers in ready:
                    self._phase_receive(self._workers, self._core.worker_message)
                if 0 in ready and not self._phase_supervisor():
                    self._apply(self._core.shut_down())
                    return
                if self._clients in ready:
                    self._phase_receive(self._clients, self._core.client_message)
                if self._outboxes:
                    self._phase_outboxes()
                self._apply(self._core.tick(time.monotonic()))
        finally:
            self._clients.close(linger=200)
            self._workers.close(linger=0)
            self._context.term()
            for endpoint in (self._arguments.clients_endpoint, self._arguments.workers_endpoint):
                endpoints.ipc_path(endpoint).unlink(missing_ok=True)

    def _wait_ms(self) -> int:
        if self._outboxes:
            return OUTBOX_RETRY_MS
        return max(0, round((self._core.next_deadline - time.monotonic()) * 1000) + 1)

    def _phase_supervisor(self) -> bool:
        chunk = os.read(0, 65536)
        if not chunk:
            return False
        for line in self._commands.feed(chunk):
            command: dict[str, Any] = msgspec.json.decode(b"{}" if isinstance(line, LongLine) else line)
            now = time.monotonic()
            if "lost" in command:
                self._apply(self._core.worker_lost(command["lost"], command.get("reason", "unknown"), now))
            elif "drain" in command:
                self._apply(self._core.drain(command["drain"], now))
            elif "slots" in command:
                self._apply(self._core.slots(command["slots"]))
            elif "ping" in command:
                report({"event": "pong"})
        return True

    def _phase_receive(self, socket: zmq.Socket[bytes], handle: Any) -> None:
        now = time.monotonic()
        for _ in range(MESSAGES_PER_PHASE):
            try:
                identity, *frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._apply(handle(identity, frames or [b""], now))

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case ToClient():
                    self._send(self._clients, effect.peer, effect.frames)
                case ToWorker():
                    self._send(self._workers, effect.peer, effect.frames)
                case Forget():
                    self._drop_outbox((True, effect.peer))
                case Registered():
                    report({"event": "registered", "worker": effect.worker})
                case Suspect():
                    report({"event": "suspect", "worker": effect.worker, "reason": effect.reason})
                case Drained():
                    report({"event": "drained", "worker": effect.worker})
                case Note():
                    log(effect.message)

    def _send(self, socket: zmq.Socket[bytes], peer: bytes, frames: list[bytes]) -> None:
        key = (socket is self._clients, peer)
        outbox = self._outboxes.get(key)
        if outbox is None:
            try:
                socket.send_multipart([peer, *frames], zmq.NOBLOCK)
                return
            except zmq.Again:
                outbox = self._outboxes[key] = deque()
                self._outbox_bytes[key] = 0
            except zmq.ZMQError as error:
                self._unreachable(key, error)
                return
        outbox.append(frames)
        self._outbox_bytes[key] += sum(map(len, frames))
        if key[0] and self._outbox_bytes[key] > MAX_OUTBOX_BYTES:
            self._drop_outbox(key)
            log(f"client {peer!r} has more than {MAX_OUTBOX_BYTES} bytes waiting: its connection is over")
            self._apply(self._core.client_overflow(peer, time.monotonic()))

    def _phase_outboxes(self) -> None:
        for key, outbox in list(self._outboxes.items()):
            is_client, peer = key
            socket = self._clients if is_client else self._workers
            try:
                while outbox:
                    socket.send_multipart([peer, *outbox[0]], zmq.NOBLOCK)
                    self._outbox_bytes[key] -= sum(map(len, outbox.popleft()))
            except zmq.Again:
                continue
            except zmq.ZMQError as error:
                self._drop_outbox(key)
                self._unreachable(key, error)
                continue
            self._drop_outbox(key)

    def _drop_outbox(self, key: tuple[bool, bytes]) -> None:
        self._outboxes.pop(key, None)
        self._outbox_bytes.pop(key, None)

    def _unreachable(self, key: tuple[bool, bytes], error: zmq.ZMQError) -> None:
        if error.errno != zmq.EHOSTUNREACH:
            raise error
        # A worker's death is the supervisor's to tell.
        if key[0]:
            self._apply(self._core.client_unreachable(key[1], time.monotonic()))


def report(record: dict[str, Any]) -> None:
    """One JSON line for the supervisor."""
    os.write(1, msgspec.json.encode(record) + b"\n")


def log(message: str) -> None:
    print(f"broker: {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Entry of the broker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    arguments = msgspec.json.decode(start.read_line(0), type=BrokerArguments)
    broker = Broker(arguments)
    report({"event": "ready"})
    broker.run()
