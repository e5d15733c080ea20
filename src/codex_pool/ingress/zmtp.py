"""The server's side of one ZMTP connection with CURVE. Pure: bytes in, messages and bytes out.

The protocol: ZeroMQ RFC 23 and 37 (ZMTP 3.0 and 3.1: greeting, frames) and 26 (CurveZMQ: handshake, MESSAGE commands).
The peers are DEALER sockets of libzmq; this side acts as a ROUTER. Metadata of the peer, its routing id among
it, is passed over.

    C -> S   greeting                S -> C   greeting
    C -> S   HELLO, 200 bytes        S -> C   WELCOME, 168 bytes
    C -> S   INITIATE                S -> C   READY, or ERROR "400" as libzmq sends for a key that is refused
    either   MESSAGE                 one part each, encrypted; PING and PONG are encrypted too

Nothing is kept beyond its bound: the size of a frame is compared with what may come at that point before any of it is
kept, so that at most one incomplete frame and the parts before it are held. A message has at most MAX_PARTS parts, and
as many bytes as `allow` has granted. All that a peer does wrong is a ZmtpError, after which nothing more is read.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Callable

from nacl.bindings import (
    crypto_box_beforenm,
    crypto_box_easy_afternm,
    crypto_box_keypair,
    crypto_box_open_easy_afternm,
)
from nacl.exceptions import CryptoError

# A client of this project sends a head and at most one body. A few more are read, so that the broker can answer them.
MAX_PARTS = 8
GREETING_BYTES = 64
HELLO_BYTES = 200
# With metadata: a socket type, and a routing id of at most 255 bytes.
MAX_INITIATE_BYTES = 1024
# Of a PING: TTL, and a context of at most 16 bytes.
MAX_COMMAND_BYTES = 64
# Of a MESSAGE command, beside the part: name, nonce, authenticator, flags.
MESSAGE_OVERHEAD = 8 + 8 + 16 + 1

_MORE, _LONG, _COMMAND = 1, 2, 4
_INNER_MORE, _INNER_COMMAND = 1, 2
_MECHANISM = b"CURVE".ljust(20, b"\0")
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + _MECHANISM + b"\x01" + bytes(31)
_LENGTH = struct.Struct(">Q")
_READY = b"\x0bSocket-Type\0\0\0\x06ROUTER\x08Identity\0\0\0\0"
_ERROR = b"\x05ERROR\x03400"
_MESSAGE = b"\x07MESSAGE"


class ZmtpError(Exception):
    """The connection must end. `reason` is the kind of fault, as it is counted; `size` that of an oversized message."""

    def __init__(self, reason: str, detail: str = "", size: int = 0) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.size = size


class ServerConnection:
    """See the module's docstring.

    `allow` is called once, with the public key (32 bytes) that a peer has proved to own: the largest message in bytes
    that it may send, or None if it is refused. `output` is what must be sent, also after a ZmtpError.
    """

    def __init__(self, public_key: bytes, secret_key: bytes, allow: Callable[[bytes], int | None]) -> None:
        self._public_key, self._secret_key = public_key, secret_key
        self._allow = allow
        self._step = self._greeting
        self._buffer = bytearray()
        # Of the frame that the buffer begins with: where its body begins, and where it ends; 0 while not known.
        self._body_at = self._end = 0
        self._peer_nonce = 0
        self._nonce = 1
        self._shared = b""
        self._parts: list[bytes] = []
        self._held = 0
        self._messages: list[list[bytes]] = []
        self._max_bytes = 0
        self.output = bytearray(_GREETING)
        self.peer_key = b""

    @property
    def is_open(self) -> bool:
        """True once the handshake is done."""
        return bool(self.peer_key)

    @property
    def expects(self) -> int:
        """Bytes that are held or will be until the frame that is incomplete is there, parts before it included."""
        return self._held + max(self._end, len(self._buffer))

    def receive(self, data: bytes) -> list[list[bytes]]:
        """Read what has come; the messages that are complete. Raises ZmtpError."""
        self._buffer += data
        while self._step():
            pass
        messages, self._messages = self._messages, []
        return messages

    def send(self, frames: list[bytes]) -> list[bytes]:
        """Encode a message for the peer, once the handshake is done; in parts, to be sent one after the other."""
        last = len(frames) - 1
        pieces: list[bytes] = []
        for number, frame in enumerate(frames):
            pieces += self._message(_INNER_MORE if number < last else 0, frame)
        return pieces

    # Steps: each reads one thing from the buffer, and returns whether it could.

    def _greeting(self) -> bool:
        buffer = self._buffer
        if (buffer and buffer[0] != 0xFF) or (len(buffer) > 9 and buffer[9] != 0x7F):
            raise ZmtpError("bad handshake", "not a greeting of ZMTP")
        if len(buffer) > 10 and buffer[10] < 3:
            raise ZmtpError("bad handshake", f"version {buffer[10]} of ZMTP; expected 3")
        if len(buffer) < GREETING_BYTES:
            return False
        if buffer[12:32] != _MECHANISM:
            raise ZmtpError("no key", "only the mechanism CURVE is accepted")
        del buffer[:GREETING_BYTES]
        self._step = self._hello
        return True

    def _hello(self) -> bool:
        frame = self._frame(HELLO_BYTES, command=True)
        if frame is None:
            return False
        if len(frame) != HELLO_BYTES or not frame.startswith(b"\x05HELLO\x01\x00"):
            raise ZmtpError("bad handshake", "not HELLO")
        self._client_key, nonce = frame[80:112], frame[112:120]
        try:
            with_server = crypto_box_beforenm(self._client_key, self._secret_key)
            _open(frame[120:200], b"CurveZMQHELLO---" + nonce, with_server)
            self._own_public, self._own_secret = crypto_box_keypair()
            self._shared = crypto_box_beforenm(self._client_key, self._own_secret)
        except (CryptoError, RuntimeError):
            # Of the wrong server, most likely.
            raise ZmtpError("bad handshake", "HELLO is for another server key") from None
        self._advance(nonce)
        # RFC 26 has the server's short-term key in the cookie, to keep no state; the connection itself is state here.
        self._cookie = os.urandom(96)
        long_nonce = os.urandom(16)
        box = crypto_box_easy_afternm(self._own_public + self._cookie, b"WELCOME-" + long_nonce, with_server)
        self._command(b"\x07WELCOME" + long_nonce + box)
        self._step = self._initiate
        return True

    def _initiate(self) -> bool:
        frame = self._frame(MAX_INITIATE_BYTES, command=True)
        if frame is None:
            return False
        if len(frame) < 257 or not frame.startswith(b"\x08INITIATE"):
            raise ZmtpError("bad handshake", "not INITIATE")
        if not hmac.compare_digest(frame[9:105], self._cookie):
            raise ZmtpError("bad handshake", "not the cookie of this connection")
        nonce = frame[105:113]
        self._advance(nonce)
        try:
            plain = _open(frame[113:], b"CurveZMQINITIATE" + nonce, self._shared)
            key = plain[:32]
            vouched = _open(plain[48:128], b"VOUCH---" + plain[32:48], crypto_box_beforenm(key, self._own_secret))
        except (CryptoError, RuntimeError):
            raise ZmtpError("bad handshake", "INITIATE cannot be opened") from None
        if not hmac.compare_digest(vouched, self._client_key + self._public_key):
            raise ZmtpError("bad handshake", "the vouch is for other keys")
        max_bytes = self._allow(key)
        if max_bytes is None:
            self._command(_ERROR)
            raise ZmtpError("unknown key")
        self.peer_key, self._max_bytes = key, max_bytes
        number = self._take_nonce()
        self._command(
            b"\x05READY" + number + crypto_box_easy_afternm(_READY, b"CurveZMQREADY---" + number, self._shared)
        )
        self._step = self._traffic
        return True

    def _traffic(self) -> bool:
        frame = self._frame(self._max_bytes - self._held + MESSAGE_OVERHEAD)
        if frame is None:
            return False
        if len(frame) < MESSAGE_OVERHEAD or not frame.startswith(_MESSAGE):
            raise ZmtpError("bad message", "not MESSAGE")
        nonce = frame[8:16]
        self._advance(nonce)
        try:
            plain = _open(frame[16:], b"CurveZMQMESSAGEC" + nonce, self._shared)
        except CryptoError:
            raise ZmtpError("bad message", "MESSAGE cannot be opened") from None
        flags = plain[0]
        if flags == _INNER_COMMAND:
            self._on_command(plain[1:])
        elif flags > _INNER_MORE:
            raise ZmtpError("bad message", f"flags {flags:#x}")
        else:
            self._parts.append(plain[1:])
            self._held += len(plain) - 1
            if flags == _INNER_MORE and len(self._parts) >= MAX_PARTS:
                raise ZmtpError("too many parts", f"more than {MAX_PARTS}")
            if flags != _INNER_MORE:
                self._messages.append(self._parts)
                self._parts, self._held = [], 0
        return True

    def _on_command(self, command: bytes) -> None:
        if command.startswith(b"\x04PING") and 7 <= len(command) <= MAX_COMMAND_BYTES:
            # Of many PINGs in what is read at once one is answered.
            if not self.output:
                self.output += b"".join(self._message(_INNER_COMMAND, b"\x04PONG" + command[7:23]))
        elif not command.startswith(b"\x04PONG") or len(command) > MAX_COMMAND_BYTES:
            raise ZmtpError("bad message", "an unknown command")

    # Parts of steps.

    def _frame(self, limit: int, *, command: bool = False) -> bytes | None:
        """The body of the next frame, None if it is not all there. Raises ZmtpError for one beyond `limit` bytes."""
        buffer = self._buffer
        if not self._end:
            if not buffer:
                return None
            flags = buffer[0]
            if flags & ~(_MORE | _LONG | _COMMAND) or flags & _MORE or (command and not flags & _COMMAND):
                # Each part is a frame of its own; that more follow is encoded inside, encrypted.
                raise ZmtpError("bad handshake" if command else "bad message", f"frame with flags {flags:#x}")
            header = 9 if flags & _LONG else 2
            if len(buffer) < header:
                return None
            size = _LENGTH.unpack_from(buffer, 1)[0] if flags & _LONG else buffer[1]
            if size > limit:
                if command:
                    raise ZmtpError("bad handshake", f"a command of {size} bytes; at most {limit}")
                raise ZmtpError("oversized message", size=self._held + size - MESSAGE_OVERHEAD)
            self._body_at, self._end = header, header + size
        if len(buffer) < self._end:
            return None
        frame = bytes(memoryview(buffer)[self._body_at : self._end])
        del buffer[: self._end]
        self._body_at = self._end = 0
        return frame

    def _advance(self, nonce: bytes) -> None:
        number = _LENGTH.unpack(nonce)[0]
        if number <= self._peer_nonce:
            raise ZmtpError("bad message", f"nonce {number} after {self._peer_nonce}: replayed, or out of order")
        self._peer_nonce = number

    def _take_nonce(self) -> bytes:
        nonce = _LENGTH.pack(self._nonce)
        self._nonce += 1
        return nonce

    def _command(self, body: bytes) -> None:
        self.output += bytes([_COMMAND, len(body)]) + body

    def _message(self, flags: int, data: bytes) -> list[bytes]:
        """Encode one part as its frame. libzmq does not mark MESSAGE as a command, and neither does this."""
        nonce = self._take_nonce()
        box = crypto_box_easy_afternm(bytes([flags]) + data, b"CurveZMQMESSAGES" + nonce, self._shared)
        size = 16 + len(box)
        header = bytes([0, size]) if size <= 255 else bytes([_LONG]) + _LENGTH.pack(size)
        head = header + _MESSAGE + nonce
        # A long one is not copied once more.
        return [head + box] if len(box) < 4096 else [head, box]


def _open(box: bytes, nonce: bytes, shared: bytes) -> bytes:
    plain: bytes = crypto_box_open_easy_afternm(box, nonce, shared)
    return plain
