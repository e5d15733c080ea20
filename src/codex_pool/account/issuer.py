"""Asking the issuer of ChatGPT tokens for new ones.

URL, client id and the form of the request are those of codex-rs/login/src/auth/manager.rs. Proxies are taken from the
environment, root certificates from CODEX_CA_CERTIFICATE, SSL_CERT_FILE or the system, as codex does.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .auth_content import tokens_in
from .holder import Answer

if TYPE_CHECKING:
    import ssl

URL_VARIABLE = "CODEX_REFRESH_TOKEN_URL_OVERRIDE"
ISSUER_URL = "https://auth.openai.com/oauth/token"
CLIENT_ID = "app_EMoamEEZ73f0CkXaXp7hrann"
# For the connection, and for whatever is waited for on it; for all of it together.
TIMEOUT_S = 30.0
LIMIT_S = 35.0
ANSWER_LIMIT_BYTES = 1024 * 1024
# Where systems keep their root certificates, for a Python that was built for another one.
CA_FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


def refresh_body(refresh_token: str, request: Mapping[str, Any] | None = None) -> bytes:
    """The body of a refresh request with this token; all else is as in `request`, if there was one."""
    own = {"client_id": os.environ.get("CODEX_APP_SERVER_LOGIN_CLIENT_ID") or CLIENT_ID, "grant_type": "refresh_token"}
    return json.dumps({**(own if request is None else request), "refresh_token": refresh_token}).encode()


def ask(url: str, body: bytes, headers: Mapping[str, str], limit_s: float = LIMIT_S) -> Answer:
    """POST to the issuer, for at most `limit_s`.

    A refusal is passed on as it is, without following redirects. An answer with tokens has status 200. If the issuer
    cannot be reached, sends too much, takes too long or grants without an access token, the answer is 502 or 504, which
    codex takes for something that may pass.
    """
    # The timeout of a socket starts again with each byte that comes.
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    ask = threading.Thread(target=lambda: answers.put(_ask(url, body, headers)), name="ask", daemon=True)
    try:
        ask.start()
    except RuntimeError as error:
        return failure(503, f"the issuer of tokens was not asked: {error}")
    try:
        return answers.get(timeout=limit_s)
    except queue.Empty:
        return failure(504, f"the issuer of tokens has not answered within {limit_s:g} s")


def _ask(url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    # Loaded here, because most holders never ask.
    import http.client
    import urllib.error
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    try:
        opener = urllib.request.build_opener(NoRedirect, urllib.request.HTTPSHandler(context=_context()))
        request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers}, method="POST")
        try:
            with opener.open(request, timeout=TIMEOUT_S) as response:
                return _checked(response.status, response.read(ANSWER_LIMIT_BYTES + 1))
        except urllib.error.HTTPError as error:
            with error:
                return _checked(error.code, error.read(ANSWER_LIMIT_BYTES + 1))
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        return failure(502, f"the issuer of tokens cannot be reached: {type(reason).__name__}: {reason}")


def failure(status: int, message: str) -> Answer:
    """An answer of the holder itself."""
    return Answer(status, json.dumps({"error": {"message": message, "type": "codex_pool", "code": None}}).encode())


def _checked(status: int, body: bytes) -> Answer:
    if len(body) > ANSWER_LIMIT_BYTES:
        return failure(502, f"the issuer of tokens has answered with more than {ANSWER_LIMIT_BYTES} bytes")
    if not 200 <= status < 300:
        return Answer(status, body)
    if "access_token" not in tokens_in(body):
        return failure(502, f"the issuer of tokens has answered HTTP status {status} without an access token")
    return Answer(200, body)


def _context() -> ssl.SSLContext:
    import ssl

    ca_file = os.environ.get("CODEX_CA_CERTIFICATE") or os.environ.get("SSL_CERT_FILE") or None
    paths = ssl.get_default_verify_paths()
    if ca_file is None and paths.cafile is None and paths.capath is None:
        ca_file = next((path for path in CA_FILES if os.path.exists(path)), None)
    return ssl.create_default_context(cafile=ca_file)
