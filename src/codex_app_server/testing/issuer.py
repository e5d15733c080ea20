"""LoopbackIssuer: an issuer of ChatGPT tokens on loopback, for tests of what happens when tokens expire.

It answers the refresh request of codex as the real issuer does: new tokens for a refresh token that is valid, and the
error code `refresh_token_reused` for one that has been used. Its tokens are JWTs with the claims that codex reads; they
are not signed by anybody, and no real service accepts them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
import time
import weakref
from collections import Counter
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from .._runtime.files import write_atomic
from .._runtime.fork import ProcessBound, descriptor_of, let_go, opening
from .._runtime.threads import start

BODY_LIMIT_BYTES = 64 * 1024
_CONNECTION_TIMEOUT_S = 5.0


class LoopbackIssuer(ProcessBound):
    """An issuer of tokens on 127.0.0.1. Use it as a context manager, or start() and close().

        with LoopbackIssuer(access_lifetime_s=3) as issuer, LoopbackModel(authorize=issuer.accepts) as model:
            write_loopback_home(home, model.base_url, requires_openai_auth=True)
            issuer.write_auth_json(home)
            config = AppServerConfig(env={"CODEX_HOME": str(home), **issuer.environ})

    `access_lifetime_s`: when its access tokens say that they expire, in whole seconds; codex 0.163 refreshes a token
    that expires within 300 s before each request. `accepted_for_s`: how long they are accepted; None: until they
    expire. `answer_after_s`: how long new tokens are on their way; a refusal comes at once. All three may be changed
    while it serves. `counts` has the answers to refresh requests so far: `refreshed`, `reused` (the refresh token had
    been used), `unknown` (it is not one of this issuer), `scripted` (see answer_next); `asked` counts the requests,
    answered or not. In a process forked from the one that made it, it does nothing.
    """

    _called = "issuer"

    def __init__(
        self,
        *,
        access_lifetime_s: int = 3600,
        accepted_for_s: float | None = None,
        answer_after_s: float = 0.0,
        email: str = "user@example.com",
        account_id: str = "account-loopback",
        plan: str = "pro",
    ) -> None:
        self.access_lifetime_s = access_lifetime_s
        self.accepted_for_s = accepted_for_s
        self.answer_after_s = answer_after_s
        self.counts: Counter[str] = Counter()
        self.asked: int = 0
        self._email, self._account_id, self._plan = email, account_id, plan
        self._lock = threading.Lock()
        self._valid_refresh_tokens: set[str] = set()
        self._used_refresh_tokens: set[str] = set()
        # Token -> until when it is accepted.
        self._access_tokens: dict[str, float] = {}
        self._scripted: list[tuple[int, bytes]] = []
        self._server: _Server | None = None
        self._bind_to_process()

    def start(self) -> LoopbackIssuer:
        """Bind a free port and serve; on return clients can connect. Raises StartError."""
        self._check_process()
        if self._server is None:
            handler = type("Handler", (_Handler,), {"issuer": self})
            with opening():
                server = self._server = _Server(("127.0.0.1", 0), handler)
            # Requests under way are finished by close().
            server.daemon_threads = False
            serve = server.serve_forever
            self._thread = threading.Thread(target=serve, args=(0.05,), name="loopback-issuer", daemon=True)
            try:
                start(self._thread, "for the issuer")
            except BaseException:
                self._server = None
                server.server_close()
                raise
        return self

    def _let_go(self) -> None:
        if self._server is not None:
            let_go(descriptor_of(self._server), *map(descriptor_of, list(self._server.connections)))

    def close(self) -> None:
        """Close the port and end the threads. Safe to call twice; in a forked process it does nothing."""
        if self._is_inherited:
            return
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            self._thread.join()
            server.server_close()

    def __enter__(self) -> LoopbackIssuer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Base URL of the server. Raises RuntimeError when it does not serve."""
        if self._server is None:
            raise RuntimeError("the loopback issuer does not serve; use it as a context manager, or call start()")
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that make codex ask this issuer when it refreshes or revokes tokens."""
        return {
            "CODEX_REFRESH_TOKEN_URL_OVERRIDE": f"{self.url}/oauth/token",
            "CODEX_REVOKE_TOKEN_URL_OVERRIDE": f"{self.url}/oauth/revoke",
        }

    def tokens(self) -> dict[str, str]:
        """The tokens of a new login: `id_token`, `access_token`, `refresh_token`, `account_id`."""
        self._check_process()
        with self._lock:
            return {**self._issue(), "account_id": self._account_id}

    def write_auth_json(self, home: str | Path) -> Path:
        """Log in: write the tokens of a new login to auth.json in the CODEX_HOME `home`; the file's path."""
        path = Path(home) / "auth.json"
        last_refresh = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
        text = json.dumps({"OPENAI_API_KEY": None, "tokens": self.tokens(), "last_refresh": last_refresh}, indent=2)
        write_atomic(path, text.encode(), mode=0o600)
        return path

    def accepts(self, access_token: str) -> bool:
        """True if `access_token` is valid now: the `authorize` of a LoopbackModel."""
        self._check_process()
        with self._lock:
            return self._access_tokens.get(access_token, 0.0) > time.time()

    def revoke_access_tokens(self) -> None:
        """Make every access token issued so far invalid; refresh tokens stay valid."""
        self._check_process()
        with self._lock:
            self._access_tokens.clear()

    def answer_next(self, status: int, body: dict[str, Any] | bytes | None = None, *, count: int = 1) -> None:
        """Answer the next `count` refresh requests with this HTTP status and body instead of tokens. `body`: JSON, or
        bytes that are sent as they are."""
        self._check_process()
        with self._lock:
            text = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
            self._scripted += [(status, text)] * count

    def refresh(self, refresh_token: str) -> tuple[int, dict[str, Any]]:
        """The answer to a refresh request with this token, as HTTP status and JSON body."""
        self._check_process()
        with self._lock:
            if refresh_token in self._valid_refresh_tokens:
                self._valid_refresh_tokens.remove(refresh_token)
                self._used_refresh_tokens.add(refresh_token)
                self.counts["refreshed"] += 1
                return 200, dict(self._issue())
            if refresh_token in self._used_refresh_tokens:
                self.counts["reused"] += 1
                text = "Your refresh token has already been used to generate a new access token."
                return 401, _error("refresh_token_reused", text)
            self.counts["unknown"] += 1
            return 401, _error("refresh_token_invalidated", "Your session has ended. Please log in again.")

    def _issue(self) -> dict[str, str]:
        at = time.time()
        now = int(at)
        claims = {
            "iat": now,
            "jti": os.urandom(8).hex(),
            "email": self._email,
            "https://api.openai.com/auth": {
                "chatgpt_plan_type": self._plan,
                "chatgpt_user_id": f"user-{self._account_id}",
                "chatgpt_account_id": self._account_id,
            },
        }
        expires_at = now + self.access_lifetime_s
        access_token, refresh_token = _jwt({**claims, "exp": expires_at}), f"rt-{os.urandom(16).hex()}"
        self._access_tokens[access_token] = expires_at if self.accepted_for_s is None else at + self.accepted_for_s
        self._valid_refresh_tokens.add(refresh_token)
        return {"id_token": _jwt(claims), "access_token": access_token, "refresh_token": refresh_token}

    def _answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/oauth/revoke":
            return 200, b"{}"
        if path != "/oauth/token":
            return 404, json.dumps(_error("not_found", f"{path} is not served here")).encode()
        self.asked += 1
        with self._lock:
            if self._scripted:
                self.counts["scripted"] += 1
                return self._scripted.pop(0)
        try:
            request = json.loads(body)
            refresh_token, grant = request["refresh_token"], request["grant_type"]
        except (ValueError, TypeError, KeyError):
            refresh_token, grant = "", ""
        if grant != "refresh_token":
            return 400, json.dumps(_error("invalid_request", "a JSON object with grant_type refresh_token")).encode()
        status, answer = self.refresh(refresh_token)
        if status == 200:
            time.sleep(self.answer_after_s)
        return status, json.dumps(answer).encode()


class _Server(ThreadingHTTPServer):
    """Knows its connections."""

    def __init__(self, *args: Any) -> None:
        self.connections: weakref.WeakSet[Any] = weakref.WeakSet()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    issuer: ClassVar[LoopbackIssuer]
    timeout = _CONNECTION_TIMEOUT_S

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > BODY_LIMIT_BYTES:
            return self._send(413, b"{}")
        self._send(*self.issuer._answer(self.path, self.rfile.read(int(length))))

    def do_GET(self) -> None:
        # What codex asks its backend for besides: there is none here.
        self._send(404, b"{}")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: tests print what they want."""


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


def _jwt(claims: dict[str, Any]) -> str:
    parts = (json.dumps({"alg": "none", "typ": "JWT"}).encode(), json.dumps(claims).encode(), b"not signed")
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
