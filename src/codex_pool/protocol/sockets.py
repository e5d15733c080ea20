"""ZeroMQ sockets with the options that the pool needs. One thread at a time uses a socket."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import zmq

from . import wire

HIGH_WATER_MARK = 10_000
# Plain numbers: those of pyzmq are enums, whose operators cost as much as a send.
READABLE, WRITABLE = int(zmq.POLLIN), int(zmq.POLLOUT)
_EVENTS = int(zmq.EVENTS)
# Past the wrappers of pyzmq, which look every option up in an enum: they cost as much as the rest of a message.
_send, _recv, _get = zmq.backend.Socket.send, zmq.backend.Socket.recv, zmq.backend.Socket.get
_NOW, _NOW_AND_MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
# -1 would drop messages that were received and not read yet.
NEVER_MS = 1_000_000_000
# How many messages of a burst are looked for before it counts as a long one.
UNCHECKED_AFTER = 4


class CurveKey(Protocol):
    """The key of a client, in Z85: its own pair, and the public key of its server."""

    @property
    def public_key(self) -> str: ...
    @property
    def secret_key(self) -> str: ...
    @property
    def server_public_key(self) -> str: ...


def send(socket: zmq.Socket[bytes], frames: Sequence[bytes | memoryview]) -> None:
    """Send a message, or raise Again, and then nothing of it was taken."""
    for frame in frames[:-1]:
        _send(socket, frame, _NOW_AND_MORE)
    _send(socket, frames[-1], _NOW)


def receive(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    """A message, if one is there."""
    # A check costs less than an exception, with which every turn of a loop would end.
    return _receive(socket) if is_readable(socket) else None


def messages(socket: zmq.Socket[bytes], limit: int) -> Iterator[list[bytes]]:
    """The messages of a socket that a poll has found readable, at most so many."""
    for number in range(limit):
        # Of many messages one exception at the end costs less than a check for each.
        if 0 < number < UNCHECKED_AFTER and not is_readable(socket):
            return
        message = _receive(socket)
        if message is None:
            return
        yield message


def _receive(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    try:
        frame = _recv(socket, _NOW, False)
    except zmq.Again:
        return None
    frames = [frame.bytes]
    while frame.more:
        frame = _recv(socket, _NOW, False)
        frames.append(frame.bytes)
    return frames


def is_readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(_get(socket, _EVENTS) & READABLE)  # type: ignore[operator]


def descriptor(socket: zmq.Socket[bytes]) -> int:
    """File descriptor that is readable when the socket has changed since it was last polled, sent to or read from."""
    return int(socket.getsockopt(zmq.FD))


def _address(endpoint: str) -> Any:
    """An endpoint as ZeroMQ takes it, whatever the encoding of its path: pyzmq takes bytes, though undocumented."""
    return os.fsencode(endpoint)


def dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, identity: str) -> zmq.Socket[bytes]:
    """A DEALER connected to `endpoint`. The identity is never used twice."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, identity.encode())
    _configure(socket)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5000)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, 5000)
    socket.connect(_address(endpoint))
    return socket


def dealer_once(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, identity: str, key: CurveKey | None = None
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """A DEALER that connects to `endpoint` once, with CURVE if there is a key, and its monitor.

    The monitor has a message when that is over. What came before the end can still be read. By default ZeroMQ would
    connect again and hide what was lost meanwhile.
    """
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, identity.encode())
    _configure(socket)
    socket.setsockopt(zmq.RECONNECT_IVL, NEVER_MS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, 5000)
    if key is not None:
        use_key(socket, key)
    monitor: zmq.Socket[bytes] = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
    socket.connect(_address(endpoint))
    return socket, monitor


def router(context: zmq.Context[zmq.Socket[bytes]], endpoint: str | None = None) -> zmq.Socket[bytes]:
    """A ROUTER that reports what it cannot deliver instead of dropping it, bound to `endpoint` if there is one.

    Raises OSError.
    """
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    _configure(socket)
    if endpoint is not None:
        bind(socket, endpoint)
    return socket


def bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind it to an ipc endpoint; to the same one again where the socket file was removed. Raises OSError.

    What has connected before stays connected (libzmq 4.3.5): each call makes a listener of its own, which lasts as long
    as the socket. A socket file that is there is replaced.
    """
    # The socket file follows the umask; only its owner may connect.
    before = os.umask(0o177)
    try:
        socket.bind(_address(endpoint))
    except (zmq.ZMQError, TypeError):
        # pyzmq 27.1 makes its own message for ENOENT, and cannot do that with an address of bytes.
        number = zmq.zmq_errno()
        raise OSError(number, os.strerror(number), endpoint.removeprefix("ipc://")) from None
    finally:
        os.umask(before)


def _configure(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.LINGER, 1000)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_BODY_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)


def use_key(socket: zmq.Socket[bytes], key: CurveKey) -> None:
    """Make a client's socket, before it connects, speak CURVE with this key."""
    socket.setsockopt_string(zmq.CURVE_PUBLICKEY, key.public_key)
    socket.setsockopt_string(zmq.CURVE_SECRETKEY, key.secret_key)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt_string(zmq.CURVE_SERVERKEY, key.server_public_key)
