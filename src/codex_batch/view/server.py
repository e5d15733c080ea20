"""Server of the pages: HTTP on loopback, one thread a connection, bounded."""

from __future__ import annotations

import secrets
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..report.page import runs_page
from ..store import RunDirectoryError
from .access import Refused, Request, admit
from .runs import Runs

HOST = "127.0.0.1"
MAX_CONNECTIONS = 64
TIMEOUT_S = 30.0
_PAGE, _TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class ViewServer(ThreadingHTTPServer):
    """Serves pages of runs at `address`, which has a random token. Raises OSError for a port that is taken."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, runs: Runs, port: int = 0) -> None:
        self.runs = runs
        self.token = secrets.token_urlsafe(18)
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """The address to open, with its token."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, or close it at once if there are too many."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection on its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a browser that went away."""

    def server_bind(self) -> None:
        """Bind without asking the resolver for this machine's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = HOST, self.socket.getsockname()[1]


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        try:
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = admit(self.command, self.path, headers, self.server.token)
            status, kind, text = self._answer(request)
        except Refused as error:
            status, kind, text = error.status, _TEXT, f"{error}\n"
        except RunDirectoryError as error:
            status, kind, text = HTTPStatus.CONFLICT, _TEXT, f"{error}\n"
        if kind == "":
            self._redirect(text)
            return
        body = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != HTTPStatus.NO_CONTENT and self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_GET

    def _answer(self, request: Request) -> tuple[int, str, str]:
        """Return status, content type and text; no type: the text is where the page is. Raises Refused."""
        runs, version = self.server.runs, request.query.get("version", "")
        match request.path:
            case ("",):
                only = None if "list" in request.query else runs.only()
                return (200, _PAGE, runs_page()) if only is None else (302, "", f"run/{only}/")
            case ("runs",):
                return _changed(runs.changes(version))
            case ("run", key, *rest):
                try:
                    result = runs.result(key)
                except KeyError:
                    raise Refused(404, "there is no such run any more; see the list of runs") from None
                match rest:
                    case [""]:
                        return 200, _PAGE, result.page()
                    case ["changes"]:
                        return _changed(result.changes(version))
                    case ["sample", number] if number.isascii() and number.isdigit() and len(number) < 16:
                        try:
                            return 200, _TEXT, result.sample(int(number))
                        except KeyError:
                            raise Refused(404, "this run has no such sample any more") from None
        raise Refused(404, "there is no such page")

    def _redirect(self, where: str) -> None:
        self.send_response(HTTPStatus.FOUND)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: addresses have the token."""

    def version_string(self) -> str:
        return "codex-pool"


def _changed(text: str | None) -> tuple[int, str, str]:
    return (HTTPStatus.NO_CONTENT, _TEXT, "") if text is None else (200, _TEXT, text)
