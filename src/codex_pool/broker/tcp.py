"""The door on TCP: a ROUTER that speaks CURVE only, the handler that says whose key is let in, a monitor that counts.

The broker's loop polls its sockets like its others, and hands what came to the core under a name that two clients
cannot share, whatever they say of themselves: public key, NUL, identity of the connection.

The handshake's questions are answered in the broker's loop: a loop that is busy delays newcomers, and nobody else.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import zmq

from codex_pool import sockets
from codex_pool.broker.identity import Identity
from codex_pool.broker.zap import ENDPOINT, Refusals, decide
from codex_pool.keys import KeyStore

LOOK_EVERY_S = 1.0
HANDSHAKES_PER_PHASE = 200
# ZeroMQ has no bound on connections, and what is left to others when descriptors run out is bad.
MAX_CONNECTIONS = 4096
SPARE_DESCRIPTORS = 512

# zmq.utils.monitor would bring asyncio with it.
_EVENT = struct.Struct("=Hi")
_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_ACCEPT_FAILED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)


class Message(NamedTuple):
    """What came: from which connection, of which principal, and by which public key."""

    peer: bytes
    who: str
    key: str
    frames: list[bytes]


class TcpDoor:
    """See the module's docstring. Refusals are counted in `counts`.

    `on_allowed` is called with the identities whenever the allow-list has changed.

    Raises KeysError, OSError, and ZMQError when the endpoint cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        store: KeyStore,
        *,
        counts: Counter[str],
        on_allowed: Callable[[list[Identity]], None],
        log: Callable[[str], None],
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._store = store
        self._on_allowed = on_allowed
        self._log = log
        self._max_connections = min(max_connections, sockets.descriptors() - SPARE_DESCRIPTORS)
        self._refusals = Refusals(counts)
        self._allowed: Mapping[str, Identity] = {}
        self._signature: object = None
        self._look_at = 0.0
        self._connections: set[int] = set()
        # The public key of each principal, and the principals whose key is not what it was.
        self._key_of: dict[str, str] = {}
        self._changed: set[str] = set()
        server = store.server()
        self._read_keys()
        self.zap = context.socket(zmq.REP)
        self.zap.setsockopt(zmq.LINGER, 0)
        self.zap.bind(ENDPOINT)
        self.router = sockets.curve_router(context, server.public_key, server.secret_key)
        self.monitor: zmq.Socket[bytes] = self.router.get_monitor_socket(_EVENTS)
        try:
            self.router.bind(endpoint)
        except BaseException:
            self.close()
            raise
        self.endpoint = self.router.getsockopt_string(zmq.LAST_ENDPOINT)

    def close(self) -> None:
        self.router.disable_monitor()
        for each in (self.monitor, self.router, self.zap):
            each.close(linger=200 if each is self.router else 0)

    # Messages.

    def receive(self, most: int) -> tuple[list[Message], list[bytes]]:
        """What has come, and the connections whose key is not allowed any more."""
        messages: list[Message] = []
        revoked: list[bytes] = []
        for _ in range(most):
            try:
                routing_id, *frames = self.router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            key = str(frames[0].get("User-Id")) if frames else ""
            peer = key.encode() + b"\0" + routing_id.bytes
            identity = self._allowed.get(key)
            if identity is None:
                self._refusals.add("revoked key")
                revoked.append(peer)
                continue
            messages.append(Message(peer, identity.principal, key, [frame.bytes for frame in frames]))
        return messages, revoked

    def send(self, peer: bytes, frames: list[bytes]) -> None:
        """To one connection. Raises as a ROUTER does."""
        sockets.send(self.router, [routing_id_of(peer), *frames])

    # Keys.

    def phase_handshakes(self) -> bool:
        """Answer who wants in. Whether a key has been revoked: then `is_revoked` says whose."""
        changed = self._read_keys()
        for _ in range(HANDSHAKES_PER_PHASE):
            try:
                request = self.zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            answer, reason = decide(request, self._allowed)
            if reason is not None:
                self._refusals.add(reason)
            self.zap.send_multipart(answer)
        return changed

    def tick(self, now: float) -> bool:
        """Look at the keys once a second. Whether one has been revoked."""
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_EVERY_S
        for line in self._refusals.news(now):
            self._log(line)
        return self._read_keys()

    def is_revoked(self, who: str, key: str) -> bool:
        """True when the session of this principal, which came in with this public key ("": not known), must end."""
        if not who:
            return False
        if who not in self._key_of:
            return True
        return key != self._key_of[who] if key else who in self._changed

    def _read_keys(self) -> bool:
        try:
            signature = self._store.signature()
            if signature == self._signature:
                return False
            allowed = self._store.allowed()
        except OSError as error:
            # That nothing can be read just now takes nobody's key away.
            self._log(f"the keys cannot be read: {error}")
            return False
        self._signature = signature
        for problem in allowed.problems:
            self._log(f"not allowed: {problem}")
        gone = self._allowed.keys() - allowed.clients.keys()
        self._changed = {self._allowed[key].principal for key in gone}
        self._allowed = allowed.clients
        self._key_of = {identity.principal: key for key, identity in allowed.clients.items()}
        self._on_allowed(list(allowed.clients.values()))
        return bool(gone)

    # Connections.

    def phase_monitor(self) -> None:
        """Count; beyond the limit newcomers are turned away."""
        while self.monitor.poll(0):
            event, _ = self.monitor.recv_multipart(zmq.NOBLOCK)
            kind, value = _EVENT.unpack(event)
            if kind == zmq.EVENT_ACCEPTED and len(self._connections) >= self._max_connections:
                self._refusals.add("too many connections")
                _hang_up(value)
            elif kind == zmq.EVENT_ACCEPTED:
                self._connections.add(value)
            elif kind == zmq.EVENT_DISCONNECTED:
                self._connections.discard(value)
            elif kind == zmq.EVENT_ACCEPT_FAILED:
                self._refusals.add("out of descriptors")
            elif kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self._refusals.add("no handshake")
            else:
                # Two that do not speak the same mechanism, or who believes in another server key.
                mismatch = value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
                self._refusals.add("no key" if mismatch else "bad handshake")


def routing_id_of(peer: bytes) -> bytes:
    """The identity of a connection on its own socket."""
    return peer.partition(b"\0")[2]


def _hang_up(fd: int) -> None:
    """End a connection of ZeroMQ's, which closes it then: to stop listening would end the others with it."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.shutdown(socket.SHUT_RDWR)
