"""One HTTP/1.1 request on a connection from an app-server, and its answer. The connection is closed afterwards."""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import time
from dataclasses import dataclass
from typing import Any

from .holder import Answer

HEAD_LIMIT_BYTES = 16 * 1024
BODY_LIMIT_BYTES = 64 * 1024
# Passed on to the issuer.
HEADERS = ("user-agent", "originator", "x-openai-internal-codex-residency")


class RequestError(ValueError):
    """A request that is not answered with tokens; `status`: the HTTP status of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, repr=False)
class RefreshRequest:
    """The JSON object of a refresh request, whose `refresh_token` is a string, and the headers to pass on."""

    body: dict[str, Any]
    headers: dict[str, str]


def read_request(connection: socket.socket, path: str, *, timeout_s: float) -> RefreshRequest:
    """The refresh request that comes within `timeout_s` and has this secret path. Raises RequestError."""
    deadline = time.monotonic() + timeout_s
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0 and len(data) <= HEAD_LIMIT_BYTES:
        data += _receive(connection, deadline)
    if not 0 <= end <= HEAD_LIMIT_BYTES:
        raise RequestError(431, f"the request's head is over {HEAD_LIMIT_BYTES} bytes")
    lines = bytes(data[:end]).decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    pairs = (line.partition(":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if len(words) != 3 or not hmac.compare_digest(words[1].encode("latin-1"), path.encode()):
        raise RequestError(404, "there is nothing here")
    if words[0] != "POST":
        raise RequestError(405, "only POST is served here")
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdecimal() and len(length) < 9):
        raise RequestError(411, "the request has no Content-Length")
    if int(length) > BODY_LIMIT_BYTES:
        raise RequestError(413, f"a body of {length} bytes came, the limit is {BODY_LIMIT_BYTES}")
    del data[: end + 4]
    while len(data) < int(length):
        data += _receive(connection, deadline)
    try:
        body = json.loads(bytes(data[: int(length)]))
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or body.get("grant_type") != "refresh_token":
        raise RequestError(400, "only JSON objects with grant_type refresh_token are served here")
    if not isinstance(body.get("refresh_token"), str) or not body["refresh_token"]:
        raise RequestError(400, "the request has no refresh_token")
    return RefreshRequest(body, {name: headers[name] for name in HEADERS if name in headers})


def send_answer(connection: socket.socket, answer: Answer) -> None:
    """Send it; a client that has gone gets nothing."""
    head = f"HTTP/1.1 {answer.status} -\r\nContent-Type: application/json\r\nContent-Length: {len(answer.body)}\r\n"
    with contextlib.suppress(OSError):
        connection.settimeout(5.0)
        connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + answer.body)
        connection.shutdown(socket.SHUT_WR)


def _receive(connection: socket.socket, deadline: float) -> bytes:
    left_s = deadline - time.monotonic()
    try:
        connection.settimeout(max(0.001, left_s))
        chunk = connection.recv(16384)
    except OSError:
        raise RequestError(408, "the request did not come in time") from None
    if not chunk:
        raise RequestError(400, "the connection ended in the middle of the request")
    return chunk
