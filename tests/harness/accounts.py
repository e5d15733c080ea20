"""Tools for tests about accounts: a relay that remembers the key of each model request, and an issuer of log-ins."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from codex_app_server.testing.loopback import LoopbackModel, write_loopback_home


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """An HTTP server on loopback; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Relay:
    """Passes requests on to the model; `keys` are those that they carried. Those in `expired` are answered with 401."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.expired: set[str] = set()
        self.refused = 0

    @contextmanager
    def before(self, model: LoopbackModel) -> Iterator[str]:
        relay = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                self._answer(200, b'{"models":[],"data":[]}')

            def do_POST(self) -> None:
                body = self._body()
                key = self.headers.get("authorization", "(none)").removeprefix("Bearer ")
                if key in relay.expired:
                    relay.refused += 1
                    self._answer(401, b'{"error":{"message":"expired"}}')
                    return
                if self.path.endswith("/responses"):
                    relay.keys.append(key)
                request = Request(f"http://127.0.0.1:{model.port}{self.path}", body, dict(self.headers))
                with urlopen(request, timeout=30) as answer:
                    self._answer(answer.status, answer.read(), answer.headers["content-type"])

        with serving(Handler) as url:
            yield url


def write_home(home: Path, model: LoopbackModel, relay_url: str, *, issuer_url: str = "") -> None:
    """A home whose model is behind the relay and wants an account; it begins with the key sk-first."""
    write_loopback_home(home, model.base_url)
    path = home / "config.toml"
    text = path.read_text().replace(f"http://127.0.0.1:{model.port}/", f"{relay_url}/")
    text = text.replace('wire_api = "responses"', 'wire_api = "responses"\nrequires_openai_auth = true')
    if issuer_url:
        text = f'chatgpt_base_url = "{issuer_url}/backend-api"\n{text}'
    path.write_text(text)
    (home / "auth.json").write_text('{"OPENAI_API_KEY": "sk-first"}')


def token_of(account: str, number: int) -> str:
    """An access token as codex reads it; it never expires."""
    claims = {
        "exp": 4_102_444_800,
        "number": number,
        "email": f"{account}@example.org",
        "https://api.openai.com/auth": {
            "chatgpt_account_id": account,
            "chatgpt_plan_type": "pro",
            "chatgpt_user_id": f"user-{account}",
        },
    }
    return ".".join([_base64({"alg": "none"}), _base64(claims), "c2ln"])


def _base64(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


class Issuer:
    """Lets users log in by device code, as soon as `approved` says so, as `account`; `tokens` are those given out."""

    def __init__(self) -> None:
        self.account = "first"
        self.approved = False
        self.tokens: list[str] = []

    @contextmanager
    def running(self) -> Iterator[str]:
        issuer = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                names = ("first", "second", "external")
                entries = [
                    {
                        "id": name,
                        "name": name,
                        "plan_type": "pro",
                        "structure": "personal",
                        "account_user_role": "owner",
                        "workspace_backend_origin": "https://127.0.0.1:9",
                        "account_routing_override": "us",
                        "profile_picture_url": None,
                    }
                    for name in names
                ]
                answer = {"accounts": entries, "default_account_id": "first", "account_ordering": list(names)}
                self._answer(200, json.dumps(answer if self.path.endswith("/accounts/check") else {}).encode())

            def do_POST(self) -> None:
                self._body()
                status, answer = issuer.answer(self.path)
                self._answer(status, json.dumps(answer).encode())

        with serving(Handler) as url:
            yield url

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        if path.endswith("/deviceauth/usercode"):
            return 200, {"device_auth_id": "device", "user_code": "AB-CD", "interval": "1"}
        if path.endswith("/deviceauth/token"):
            code = {"authorization_code": "code", "code_challenge": "challenge", "code_verifier": "verifier"}
            return (200, code) if self.approved else (403, {})
        if path.endswith("/oauth/token"):
            token = token_of(self.account, len(self.tokens))
            self.tokens.append(token)
            return 200, {"id_token": token, "access_token": token, "refresh_token": f"refresh-{len(self.tokens)}"}
        return 404, {}
