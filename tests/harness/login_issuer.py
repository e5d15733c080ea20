"""A small issuer of logins on loopback for codex's own login flows, and a terminal for a program that asks."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

EMAIL, PLAN, CODE = "user@example.com", "plus", "ABCD-1234"
# These reach for the network.
FEATURES_OFF = "[features]\nplugins = false\napps = false\nremote_plugin = false\nshell_snapshot = false\n"
# Codex's callback server has a fixed port, and a second login cancels the first.
_PORT_LOCK = Path(tempfile.gettempdir()) / f"codex-pool-login-port.{os.getuid()}"


class Issuer:
    """`approve` lets a device code in; `deny` makes every exchange of a code fail."""

    def __init__(self) -> None:
        # Of each request its path.
        self.requests: list[str] = []
        self.approved = threading.Event()
        self.deny = False
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer._answer(self, "")

            def do_POST(self) -> None:
                issuer._answer(self, self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.config_toml = f'chatgpt_base_url = "{self.url}/backend-api"\n{FEATURES_OFF}'
        self.env = {
            "CODEX_APP_SERVER_LOGIN_ISSUER": self.url,
            "CODEX_APP_SERVER_LOGIN_CLIENT_ID": "tests",
            "CODEX_REFRESH_TOKEN_URL_OVERRIDE": f"{self.url}/oauth/token",
            "CODEX_REVOKE_TOKEN_URL_OVERRIDE": f"{self.url}/oauth/revoke",
        }

    def __enter__(self) -> Issuer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, body: str) -> None:
        path = urlsplit(handler.path)
        self.requests.append(path.path)
        status, answer, location = 200, {}, None
        if path.path == "/oauth/authorize":
            asked = {name: values[0] for name, values in parse_qs(path.query).items()}
            status, location = 302, f"{asked['redirect_uri']}?code=code-1&state={asked['state']}"
        elif path.path == "/api/accounts/deviceauth/usercode":
            answer = {"device_auth_id": "d", "user_code": CODE, "interval": "1"}
        elif path.path == "/api/accounts/deviceauth/token":
            status = 200 if self.approved.is_set() else 403
            answer = {"authorization_code": "code-1", "code_challenge": "challenge-1", "code_verifier": "verifier-1"}
        elif path.path == "/oauth/token" and (self.deny or "token-exchange" in body):
            status, answer = 400, {"error": "access_denied", "error_description": "the issuer says no"}
        elif path.path == "/oauth/token":
            answer = {"id_token": _jwt(), "access_token": _jwt(), "refresh_token": "refresh-1"}
        elif path.path.endswith("/wham/accounts/check"):
            origin = {"workspace_backend_origin": "https://127.0.0.1", "account_routing_override": "NO_CONSTRAINT"}
            answer = {"accounts": [{"id": "a", "plan_type": PLAN, "structure": "personal", **origin}]}
            answer["account_ordering"] = ["a"]
        elif path.path.endswith("/wham/usage"):
            answer = _usage()
        elif path.path != "/oauth/revoke":
            status = 404
        text = json.dumps(answer).encode()
        handler.send_response(status)
        if location is not None:
            handler.send_header("Location", location)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)


def _jwt() -> str:
    claims = {
        "email": EMAIL,
        "exp": int(time.time()) + 3600,
        "https://api.openai.com/auth": {"chatgpt_plan_type": PLAN, "chatgpt_account_id": "a", "chatgpt_user_id": "u"},
    }
    parts = ({"alg": "none", "typ": "JWT"}, claims)
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts), "c2ln"])


def _usage() -> dict[str, Any]:
    def window(percent: int, seconds: int) -> dict[str, int]:
        resets_at = int(time.time()) + seconds // 2
        return {
            "used_percent": percent,
            "limit_window_seconds": seconds,
            "reset_after_seconds": seconds // 2,
            "reset_at": resets_at,
        }

    limits = {"primary_window": window(23, 5 * 3600), "secondary_window": window(4, 7 * 86400)}
    return {"plan_type": PLAN, "rate_limit": {"allowed": True, "limit_reached": False, **limits}}


@contextmanager
def login_port(limit_s: float = 40.0) -> Iterator[None]:
    """The machine's one port for logins by browser, for this test alone."""
    with open(_PORT_LOCK, "w") as lock:
        deadline = time.monotonic() + limit_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline, f"{_PORT_LOCK} is held by another test"
                time.sleep(0.05)
        yield


_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *command: str, env: dict[str, str]) -> None:
        self._fd, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, sys.executable, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**env, "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(slave)
        self._text = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._fd)

    def wait_for(self, text: str, limit_s: float = 30.0) -> None:
        """Wait until the terminal has shown `text`."""
        with self._changed:
            is_there = self._changed.wait_for(lambda: text in self._text or not self._reader.is_alive(), limit_s)
        assert is_there and text in self._text, f"no {text!r} on the terminal: {self._text}"

    def type(self, keys: str) -> None:
        """Type keys; \\x03 is Ctrl-C."""
        os.write(self._fd, keys.encode())

    def end(self, limit_s: float = 30.0) -> tuple[int, str]:
        """Wait for its end; the exit code and all that was shown."""
        code = self.process.wait(limit_s)
        self._reader.join(limit_s)
        return code, self._text.replace("\r\n", "\n")

    def _read(self) -> None:
        while True:
            try:
                read = os.read(self._fd, 4096)
            except OSError:
                # The program has ended.
                read = b""
            with self._changed:
                self._text += read.decode(errors="replace")
                self._changed.notify_all()
            if not read:
                return
