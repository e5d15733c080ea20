"""HTTP/1.1, as far as the scripted model server needs it: the head of a request, and parts of an answer."""

from __future__ import annotations

import http

import msgspec

BODY_LIMIT_BYTES = 64 * 1024 * 1024


class Head:
    """Request line and headers."""

    def __init__(self, data: bytes) -> None:
        lines = data.decode("latin-1").lstrip("\r\n").split("\r\n")
        words = lines[0].split(" ")
        self.method, self.path, self.version = words if len(words) == 3 else ("", "", lines[0])
        pairs = (line.partition(":") for line in lines[1:])
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self.length = int(length) if (length := self.headers.get("content-length", "0")).isdecimal() else -1
        asked = self.headers.get("connection", "").lower()
        self.keep = asked != "close" and (self.version != "HTTP/1.0" or asked == "keep-alive")

    def refusal(self) -> tuple[int, str] | None:
        """Status and text when the request cannot be read."""
        if not self.version.startswith("HTTP/1."):
            return 400, f"{self.version[:80]!r} is not an HTTP/1.1 request line"
        if "transfer-encoding" in self.headers:
            return 411, "chunked request bodies are not read here; send Content-Length"
        if self.headers.get("content-encoding", "identity") != "identity":
            return 415, f"a body in {self.headers['content-encoding']!r} is not read here; send it uncompressed"
        if self.length < 0:
            return 400, f"Content-Length is {self.headers['content-length'][:40]!r}, expected a number"
        if self.length > BODY_LIMIT_BYTES:
            return 413, f"a body of {self.length} bytes came, the limit is {BODY_LIMIT_BYTES}"
        return None

    def bearer_token(self) -> str:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    def ids(self) -> tuple[str | None, str | None, str | None]:
        """Thread, session and turn as codex names them in its headers."""
        turn = None
        if metadata := self.headers.get("x-codex-turn-metadata"):
            try:
                turn = msgspec.json.decode(metadata, type=_TurnMetadata).turn_id
            except msgspec.DecodeError:
                turn = None
        return self.headers.get("thread-id"), self.headers.get("session-id"), turn


class _TurnMetadata(msgspec.Struct):
    turn_id: str | None = None


def head_bytes(status: int, kind: str, length: int | None, keep: bool, extra: bytes = b"") -> bytes:
    size = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    connection = b"keep-alive" if keep else b"close"
    phrase = http.HTTPStatus(status).phrase.encode() if status in http.HTTPStatus._value2member_map_ else b"Error"
    return b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\n%s\r\nConnection: %s\r\n%s\r\n" % (
        status, phrase, kind.encode(), size, connection, extra,
    )  # fmt: skip


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""
