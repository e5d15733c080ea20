"""The client's side of ZMTP with CURVE, byte by byte, to do with it what libzmq would not."""

from __future__ import annotations

import os
import socket
import struct

from nacl.bindings import (
    crypto_box_beforenm,
    crypto_box_easy_afternm,
    crypto_box_keypair,
    crypto_box_open_easy_afternm,
)

from codex_pool.auth import z85
from codex_pool.auth.keys import ClientKey

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
METADATA = b"\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x04same"


def number(value: int) -> bytes:
    return struct.pack(">Q", value)


def command(body: bytes) -> bytes:
    return bytes([4, len(body)]) + body if len(body) < 256 else b"\x06" + number(len(body)) + body


def long_frame(body: bytes) -> bytes:
    return b"\x02" + number(len(body)) + body


class CurveClient:
    """`hello`, then `initiate` of what WELCOME said, then `message` as often as wanted; `nonce` may be set."""

    def __init__(self, public_key: bytes, secret_key: bytes, server_key: bytes) -> None:
        self.public_key, self.secret_key, self.server_key = public_key, secret_key, server_key
        self.short_public, self.short_secret = crypto_box_keypair()
        self.nonce = 0
        self.shared = b""
        self.cookie = b""

    def take(self) -> bytes:
        self.nonce += 1
        return number(self.nonce)

    def hello(self) -> bytes:
        nonce = self.take()
        shared = crypto_box_beforenm(self.server_key, self.short_secret)
        box = crypto_box_easy_afternm(bytes(64), b"CurveZMQHELLO---" + nonce, shared)
        return command(b"\x05HELLO\x01\0" + bytes(72) + self.short_public + nonce + box)

    def welcome(self, body: bytes) -> None:
        """Read the body of WELCOME."""
        assert body.startswith(b"\x07WELCOME") and len(body) == 168
        shared = crypto_box_beforenm(self.server_key, self.short_secret)
        plain = crypto_box_open_easy_afternm(body[24:], b"WELCOME-" + body[8:24], shared)
        self.shared, self.cookie = crypto_box_beforenm(plain[:32], self.short_secret), plain[32:]
        self._server_short = plain[:32]

    def initiate(self, metadata: bytes = METADATA) -> bytes:
        vouch_nonce, nonce = os.urandom(16), self.take()
        shared = crypto_box_beforenm(self._server_short, self.secret_key)
        vouch = crypto_box_easy_afternm(self.short_public + self.server_key, b"VOUCH---" + vouch_nonce, shared)
        plain = self.public_key + vouch_nonce + vouch + metadata
        box = crypto_box_easy_afternm(plain, b"CurveZMQINITIATE" + nonce, self.shared)
        return command(b"\x08INITIATE" + self.cookie + nonce + box)

    def message(self, part: bytes, *, more: bool = False, flags: int | None = None) -> bytes:
        nonce = self.take()
        plain = bytes([int(more) if flags is None else flags]) + part
        box = crypto_box_easy_afternm(plain, b"CurveZMQMESSAGEC" + nonce, self.shared)
        return long_frame(b"\x07MESSAGE" + nonce + box)

    def open(self, body: bytes) -> bytes:
        """The part of a MESSAGE of the server, its flags first."""
        assert body.startswith(b"\x07MESSAGE")
        plain: bytes = crypto_box_open_easy_afternm(body[16:], b"CurveZMQMESSAGES" + body[8:16], self.shared)
        return plain


class RawClient:
    """A CurveClient on a socket."""

    def __init__(self, port: int, key: ClientKey, timeout_s: float = 20.0) -> None:
        self.curve = CurveClient(*map(z85.decode, (key.public_key, key.secret_key, key.server_public_key)))
        self.socket = socket.create_connection(("127.0.0.1", port), timeout_s)

    def handshake(self) -> RawClient:
        self.socket.sendall(GREETING + self.curve.hello())
        assert self.exactly(64)[:10] == GREETING[:10]
        self.curve.welcome(self.frame())
        self.socket.sendall(self.curve.initiate())
        assert self.frame().startswith(b"\x05READY")
        return self

    def exactly(self, size: int) -> bytes:
        out = bytearray()
        while len(out) < size:
            data = self.socket.recv(size - len(out))
            if not data:
                raise ConnectionError("the server has closed the connection")
            out += data
        return bytes(out)

    def frame(self) -> bytes:
        flags = self.exactly(1)[0]
        size = struct.unpack(">Q", self.exactly(8))[0] if flags & 2 else self.exactly(1)[0]
        return self.exactly(size)

    def part(self) -> bytes:
        return self.curve.open(self.frame())[1:]

    def is_ended(self) -> bool:
        """Wait until the server has ended the connection; what it says before is passed over."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def close(self) -> None:
        self.socket.close()
