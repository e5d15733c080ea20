"""A client of the gateway over its Unix socket or with a token over TCP, by hand, for programs without a loop."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway_clients import request

LIMIT_S = 30.0


def frame(payload: bytes, opcode: int = 1, *, final: bool = True) -> bytes:
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


class Refused(Exception):
    """The handshake was not accepted; the text is its first line."""


class WebSocketClient:
    """A connection that has been initialized. `lines` are all messages that have come.

    Raises OSError if nobody listens, and Refused for a handshake that is not accepted.
    """

    def __init__(self, where: Path | int, *headers: str, name: str = "raw", initialize: bool = True) -> None:
        family = socket.AF_UNIX if isinstance(where, Path) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(LIMIT_S)
        self.lines: list[dict[str, Any]] = []
        self.is_over = False
        self._in = bytearray()
        self._last = 0
        try:
            self.socket.connect(str(where) if isinstance(where, Path) else ("127.0.0.1", where))
            self.socket.sendall(request("/rpc", *headers))
            while (end := self._in.find(b"\r\n\r\n")) < 0:
                if not (data := self.socket.recv(4096)):
                    raise ConnectionResetError("the handshake was not answered")
                self._in += data
            if b" 101 " not in self._in[:end]:
                raise Refused(self._in[: self._in.find(b"\r\n")].decode())
            del self._in[: end + 4]
            if initialize:
                self.call("initialize", clientInfo={"name": name, "title": None, "version": "1"})
                self.send({"method": "initialized"})
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> WebSocketClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, message: Any) -> None:
        self.write(frame(json.dumps(message).encode()))

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def begin(self, method: str, **params: Any) -> int:
        """Send a request; its id."""
        self._last += 1
        self.send({"id": self._last, "method": method, "params": params})
        return self._last

    def answer(self, request_id: int) -> dict[str, Any]:
        """The answer to a request, with its result or error."""
        return self.line(lambda line: line.get("id") == request_id and "method" not in line, f"answer {request_id}")

    def call(self, method: str, **params: Any) -> Any:
        """The result of a request."""
        answer = self.answer(self.begin(method, **params))
        assert "result" in answer, answer
        return answer["result"]

    def line(self, wanted: Callable[[dict[str, Any]], bool], what: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The first message, of those that came or will, that is wanted. Raises ConnectionError at the end."""
        seen, deadline = 0, time.monotonic() + limit_s
        while True:
            for line in self.lines[seen:]:
                if wanted(line):
                    return line
            seen = len(self.lines)
            if self.is_over:
                raise ConnectionResetError(f"the connection ended before this came: {what}")
            assert self._receive(deadline - time.monotonic()), f"not within {limit_s:g} s: {what}: {self.lines[-3:]}"

    def notification(self, method: str, **params: Any) -> dict[str, Any]:
        """The params of the first notification, or request, of this method that has these params."""
        found: dict[str, Any] = self.line(
            lambda line: line.get("method") == method and params.items() <= line["params"].items(), method
        )
        return found

    def wait_over(self) -> None:
        """Wait until the connection has ended."""
        deadline = time.monotonic() + LIMIT_S
        while not self.is_over:
            assert self._receive(deadline - time.monotonic()), "the connection does not end"

    def _receive(self, seconds: float) -> bool:
        """Read what comes; False if nothing does for so long."""
        self.socket.settimeout(max(0.001, seconds))
        try:
            data = self.socket.recv(1024 * 1024)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        finally:
            self.socket.settimeout(LIMIT_S)
        self.is_over = not data
        self._in += data
        while (found := self._next()) is not None:
            opcode, payload = found
            if opcode == 1:
                self.lines.append(json.loads(payload))
            elif opcode == 8:
                self.is_over = True
        return True

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


def reconnected(where: Path, *, name: str = "raw", limit_s: float = LIMIT_S) -> WebSocketClient:
    """A client, once a gateway listens there and the pool answers."""
    deadline = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(OSError, Refused):
            return WebSocketClient(where, name=name)
        assert time.monotonic() < deadline, "no gateway came back"
        time.sleep(0.05)
