"""A raw client of the gateway's WebSocket listener, for benches: frames as they are, and nothing that waits."""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections.abc import Iterator

LIMIT_S = 10.0
TEXT, PING, CLOSE = 1, 9, 8


def frame(payload: bytes, opcode: int = TEXT, *, final: bool = True) -> bytes:
    """A frame of a client, masked with zeros."""
    head = bytes([(0x80 if final else 0) | opcode])
    size = len(payload)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += b"\xfe" + struct.pack("!H", size)
    else:
        head += b"\xff" + struct.pack("!Q", size)
    return head + bytes(4) + payload


class WebSocketClient:
    """A connection to ws://HOST:PORT with this token. Raises OSError if it is refused, or not answered in LIMIT_S."""

    def __init__(self, endpoint: str, token: str) -> None:
        host, _, port = endpoint.removeprefix("ws://").rpartition(":")
        self.socket = socket.create_connection((host, int(port)), LIMIT_S)
        self._in = bytearray()
        self._out = bytearray()
        self.is_over = False
        lines = ["GET / HTTP/1.1", f"Host: {host}", "Connection: Upgrade", "Upgrade: websocket"]
        lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
        lines += [f"Authorization: Bearer {token}", "", ""]
        try:
            self.socket.sendall("\r\n".join(lines).encode())
            while (end := self._in.find(b"\r\n\r\n")) < 0:
                data = self.socket.recv(4096)
                if not data:
                    raise ConnectionError("the handshake was not answered")
                self._in += data
            if b" 101 " not in self._in[:end]:
                raise ConnectionError(self._in[: self._in.find(b"\r\n")].decode(errors="replace"))
        except OSError:
            self.socket.close()
            raise
        del self._in[: end + 4]
        self.socket.setblocking(False)

    @property
    def unsent_bytes(self) -> int:
        return len(self._out)

    def close(self) -> None:
        self.is_over = True
        self.socket.close()

    def write(self, data: bytes) -> None:
        """Bytes as they are, once the socket takes them."""
        self._out += data
        self.flush()

    def flush(self) -> None:
        """Send what can be sent at once."""
        while self._out and not self.is_over:
            try:
                with memoryview(self._out) as view:
                    sent = self.socket.send(view[: 1024 * 1024])
            except BlockingIOError:
                return
            except OSError:
                self.is_over = True
                return
            del self._out[:sent]

    def messages(self) -> Iterator[bytes]:
        """The messages that have come."""
        while not self.is_over:
            try:
                data = self.socket.recv(256 * 1024)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.is_over = True
                break
            self._in += data
        while (found := self._next()) is not None:
            opcode, payload = found
            if opcode == CLOSE:
                self.is_over = True
            elif opcode == TEXT:
                yield payload

    def call(self, method: str, params: object, *, id: int) -> dict[str, object]:
        """Send a request and wait for its answer; other messages are thrown away. Raises TimeoutError, OSError."""
        self.write(frame(json.dumps({"id": id, "method": method, "params": params}).encode()))
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            for message in self.messages():
                line: dict[str, object] = json.loads(message)
                if line.get("id") == id and "method" not in line:
                    return line
            if self.is_over:
                raise ConnectionError("the connection has ended")
            self.flush()
            self.wait(0.5)
        raise TimeoutError(f"no answer to {method} within {LIMIT_S:g} s")

    def wait(self, seconds: float) -> None:
        """Wait until something comes, or so long."""
        select.select([self.socket], [], [], seconds)

    def _next(self) -> tuple[int, bytes] | None:
        buffer = self._in
        if len(buffer) < 2:
            return None
        size, start = buffer[1] & 0x7F, 2
        if size > 125:
            start = 4 if size == 126 else 10
            if len(buffer) < start:
                return None
            size = int.from_bytes(buffer[2:start], "big")
        if len(buffer) < start + size:
            return None
        payload = bytes(buffer[start : start + size])
        opcode = buffer[0] & 0xF
        del buffer[: start + size]
        return opcode, payload
