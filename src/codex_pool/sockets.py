"""ZeroMQ sockets as the house wants them. One thread owns a socket."""

from __future__ import annotations

import os

import zmq

from codex_pool import wire

HIGH_WATER_MARK = 10_000


def dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, identity: str) -> zmq.Socket[bytes]:
    """A DEALER connected to `endpoint`. The identity is never used twice."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, identity.encode())
    _configure(socket)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5000)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, 5000)
    socket.connect(endpoint)
    return socket


def router(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A ROUTER bound to `endpoint` that reports what it cannot deliver instead of dropping it."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    _configure(socket)
    # The socket file of an ipc endpoint follows the umask; only its owner may connect.
    before = os.umask(0o077)
    try:
        socket.bind(endpoint)
    finally:
        os.umask(before)
    return socket


def _configure(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.LINGER, 1000)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_BODY_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
