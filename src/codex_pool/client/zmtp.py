"""The client's side of one ZMTP connection without encryption. Pure: bytes in, messages and bytes out.

The protocol: ZeroMQ RFC 23 (ZMTP 3.0: greeting, mechanism NULL, READY, frames). This side acts as a DEALER, its peer is
a ROUTER of libzmq. This side sends its part of the handshake at once, and messages once it `is_ready`: libzmq ends a
connection on which one comes before it has sent its own READY (measured with 4.3.5). A frame is refused by its size
before any of it is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

GREETING_BYTES = 64
MAX_COMMAND_BYTES = 1024

_MORE, _LONG, _COMMAND = 1, 2, 4
_MECHANISM = b"NULL".ljust(20, b"\0")
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + _MECHANISM + bytes(32)
_LENGTH = struct.Struct(">Q")


class ZmtpError(Exception):
    """The peer has sent what is not of this protocol, or beyond a bound: the connection must end."""


class ClientConnection:
    """See the module's docstring. `identity` is the routing id; a frame of a message has at most `max_bytes`."""

    def __init__(self, identity: bytes, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._is_greeted = self.is_ready = False
        self._parts: list[bytes] = []
        self.greeting = _GREETING + _command(b"READY", {b"Socket-Type": b"DEALER", b"Identity": identity})

    def receive(self, data: bytes) -> list[list[bytes]]:
        """Read what has come; the messages that are complete. Raises ZmtpError."""
        buffer = self._buffer
        buffer += data
        if not self._is_greeted:
            if len(buffer) < GREETING_BYTES:
                return []
            if buffer[0] != 0xFF or buffer[10] < 3 or buffer[12:32] != _MECHANISM:
                raise ZmtpError(f"its greeting is {bytes(buffer[:32])!r}; expected ZMTP 3 without encryption")
            del buffer[:GREETING_BYTES]
            self._is_greeted = True
        messages: list[list[bytes]] = []
        begin, size = 0, len(buffer)
        while size - begin >= 2:
            flags = buffer[begin]
            header = 9 if flags & _LONG else 2
            if size - begin < header:
                break
            length = _LENGTH.unpack_from(buffer, begin + 1)[0] if flags & _LONG else buffer[begin + 1]
            if length > (MAX_COMMAND_BYTES if flags & _COMMAND else self._max_bytes):
                raise ZmtpError(f"a frame of {length} bytes; the limit is {self._max_bytes}")
            end = begin + header + length
            if size < end:
                break
            body = bytes(memoryview(buffer)[begin + header : end])
            begin = end
            if flags & _COMMAND:
                self._on_command(body)
            elif not self.is_ready:
                raise ZmtpError("a message before the end of its handshake")
            else:
                self._parts.append(body)
                if not flags & _MORE:
                    messages.append(self._parts)
                    self._parts = []
        del buffer[:begin]
        return messages

    def _on_command(self, body: bytes) -> None:
        if body.startswith(b"\x05READY"):
            self.is_ready = True
        elif body.startswith(b"\x05ERROR"):
            raise ZmtpError(f"it refuses the connection: {body[7:].decode('utf-8', 'replace')}")


def encode(frames: Sequence[bytes]) -> bytes:
    """Encode a message, one frame for each part."""
    parts: list[bytes] = []
    last = len(frames) - 1
    for number, frame in enumerate(frames):
        more = _MORE if number < last else 0
        size = len(frame)
        parts.append(bytes([more, size]) if size <= 255 else bytes([more | _LONG]) + _LENGTH.pack(size))
        parts.append(frame)
    return b"".join(parts)


def _command(name: bytes, properties: dict[bytes, bytes]) -> bytes:
    body = bytes([len(name)]) + name
    for key, value in properties.items():
        body += bytes([len(key)]) + key + len(value).to_bytes(4, "big") + value
    # A routing id has at most 255 bytes.
    return bytes([_COMMAND | _LONG]) + _LENGTH.pack(len(body)) + body
