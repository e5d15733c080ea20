"""TokenRelay: an HTTP endpoint on loopback, at which the pool of a host renews the tokens of a log-in that it is lent.

A refresh request waits here until the run, which has the log-in, has seen it in a report and answered.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .messages import Renewed

BODY_LIMIT_BYTES = 64 * 1024
# The pool asks again after a failure that may pass; it waits for 30 s.
ANSWER_LIMIT_S = 25.0
CONNECTION_LIMIT_S = 10.0


class TokenRelay:
    """See the module's docstring. `on_asked` is called on the event loop that made it, when there is a new request."""

    def __init__(self, on_asked: Callable[[], None]) -> None:
        self._on_asked = on_asked
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[Renewed]] = {}
        self._path = f"/{secrets.token_urlsafe(32)}/oauth/token"
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="tokens", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The URL of the endpoint, secret as a whole."""
        return f"http://127.0.0.1:{self._server.server_port}{self._path}"

    @property
    def asked(self) -> tuple[str, ...]:
        """Tokens that are to be exchanged for others."""
        with self._lock:
            return tuple(self._waiting)

    def answer(self, renewed: Renewed) -> None:
        """Answer the requests with a token."""
        with self._lock:
            future = self._waiting.pop(renewed.asked, None)
        if future is not None:
            future.set_result(renewed)

    def close(self) -> None:
        """End the endpoint; requests that wait are answered with 503."""
        for token in self.asked:
            self.answer(Renewed(token, 503, b"{}"))
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def respond(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Return HTTP status and body for a request, when the run has answered; 503 if it has not in time."""
        try:
            token = json.loads(body)["refresh_token"] if secrets.compare_digest(path, self._path) else None
        except (ValueError, TypeError, KeyError):
            token = None
        if not isinstance(token, str):
            return 404, b"{}"
        with self._lock:
            future = self._waiting.setdefault(token, Future())
        self._loop.call_soon_threadsafe(self._on_asked)
        try:
            renewed = future.result(ANSWER_LIMIT_S)
        except NoAnswer:
            with self._lock:
                self._waiting.pop(token, None)
            return 503, b'{"error":{"message":"the run that lends the log-in has not answered"}}'
        return renewed.status, renewed.body


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, relay: TokenRelay) -> None:
        self.relay = relay
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CONNECTION_LIMIT_S

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdecimal() or int(length) > BODY_LIMIT_BYTES:
            self.send_error(413)
            return
        status, body = self.server.relay.respond(self.path, self.rfile.read(int(length)))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: the path is secret."""
