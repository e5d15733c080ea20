"""Sessions of a hostile client, over TCP or through the gateway's WebSocket listener. For bench/floods.py."""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
from collections.abc import Iterator
from typing import Any, Protocol

import zmq
from websocket_client import WebSocketClient, frame

from codex_pool.auth.keys import ClientKey
from codex_pool.protocol import sockets, wire

MIB = 1024 * 1024
# So much may wait in one socket before its flood goes on with the next.
QUEUED_MESSAGES = 20
QUEUED_BYTES = 8 * MIB


class Session(Protocol):
    """A raw session; what comes in is thrown away unless it is asked for."""

    def begin(self, **fields: Any) -> object:
        """Say who it is: Hello with these fields, or `initialize`."""

    def close(self) -> None: ...

    def send(self, head: wire.Head | bytes, *bodies: bytes) -> bool:
        """Return True if there was room for it. Through the gateway only calls are sent, and what is no message."""

    def call(self, method: str, params: Any, *, id: Any = None) -> bool: ...

    def lines(self) -> Iterator[bytes]:
        """The lines that have come."""

    def wait(self, seconds: float) -> None:
        """Wait until something comes, or so long."""

    def attend(self) -> None:
        """Read and throw away; connect again when the pool has ended this connection."""


class TcpSession:
    """See `Session`; over ZeroMQ."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, key: ClientKey, *, hello: bool = True) -> None:
        self._endpoint, self._key, self._context = endpoint, key, context
        self.id = secrets.token_hex(8)
        self._next = itertools.count(1)
        self._connection = itertools.count(1)
        self.socket: zmq.Socket[bytes] | None = None
        self.connect(hello=hello)

    def begin(self, **fields: Any) -> object:
        return self.send(wire.Hello(self.id, "mallory", **fields))

    def connect(self, *, hello: bool = True) -> None:
        self.close()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        self.socket.setsockopt(zmq.IDENTITY, f"{self.id}/{next(self._connection)}".encode())
        sockets.use_key(self.socket, self._key)
        self.socket.connect(self._endpoint)
        if hello:
            self.begin()

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close(0)
            self.socket = None

    def send(self, head: wire.Head | bytes, *bodies: bytes) -> bool:
        assert self.socket is not None
        first = head if isinstance(head, bytes) else wire.encode(head)
        try:
            self.socket.send_multipart([first, *bodies], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def call(self, method: str, params: Any, *, id: Any = None) -> bool:
        id = next(self._next) if id is None else id
        return self.send(wire.Call(), json.dumps({"id": id, "method": method, "params": params}).encode())

    def receive(self) -> Iterator[list[bytes]]:
        assert self.socket is not None
        with contextlib.suppress(zmq.Again):
            while True:
                yield self.socket.recv_multipart(zmq.NOBLOCK)

    def lines(self) -> Iterator[bytes]:
        for frames in self.receive():
            for body in frames[1:]:
                yield from filter(None, body.split(b"\n"))

    def wait(self, seconds: float) -> None:
        assert self.socket is not None
        self.socket.poll(round(seconds * 1000))

    def attend(self) -> None:
        for frames in self.receive():
            with contextlib.suppress(wire.WireError):
                if isinstance(wire.decode_to_client(frames[0]), wire.Closed | wire.Refused):
                    self.connect()
                    return
        self.send(wire.Beat())


class GatewaySession:
    """See `Session`; over WebSocket."""

    def __init__(self, endpoint: str, token: str, *, hello: bool = True) -> None:
        self._endpoint, self._token = endpoint, token
        self._next = itertools.count(1)
        self.client: WebSocketClient | None = None
        self._begins = hello
        self._connect()

    def _connect(self) -> None:
        self.close()
        # It may be turned away, and then tries again with its next message.
        with contextlib.suppress(OSError):
            self.client = WebSocketClient(self._endpoint, self._token)
        if self._begins:
            self.begin()

    def begin(self, **fields: Any) -> object:
        self._begins = True
        info = {"name": "mallory", "title": None, "version": "1"}
        self.call("initialize", {"clientInfo": info, "capabilities": {"experimentalApi": True}})
        return self.write(frame(b'{"method":"initialized"}'))

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None

    def write(self, data: bytes) -> bool:
        """Bytes as they are; True if there was room for them."""
        if self.client is None:
            return False
        self.client.flush()
        if self.client.unsent_bytes > QUEUED_BYTES:
            return False
        self.client.write(data)
        return True

    def send(self, head: wire.Head | bytes, *bodies: bytes) -> bool:
        if isinstance(head, bytes):
            return self.write(frame(head))
        if isinstance(head, wire.Call):
            return self.write(b"".join(frame(body) for body in bodies))
        return True

    def call(self, method: str, params: Any, *, id: Any = None) -> bool:
        id = next(self._next) if id is None else id
        return self.write(frame(json.dumps({"id": id, "method": method, "params": params}).encode()))

    def lines(self) -> Iterator[bytes]:
        if self.client is not None:
            yield from self.client.messages()

    def wait(self, seconds: float) -> None:
        if self.client is not None:
            self.client.wait(seconds)

    def attend(self) -> None:
        for _ in self.lines():
            pass
        if self.client is None or self.client.is_over:
            self._connect()
