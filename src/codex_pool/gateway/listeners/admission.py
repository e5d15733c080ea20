"""Admission of requests, decided by their headers alone, before anything is kept for a client. Pure.

Answers are those of the real server where it has them (measured with 0.163): 403 without words for an Origin, 401 for a
token, 405 and 400 for what is no handshake, 200 for /readyz and /healthz, and any other path for clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from . import addresses

PROBES = ("/readyz", "/healthz")
METRICS = "/metrics"


class Answer(NamedTuple):
    """An answer that ends a connection. `reason` names the kind of a refusal for counts and log, "" for none."""

    status: HTTPStatus
    text: str = ""
    reason: str = ""


class Rules(NamedTuple):
    """Rules of a listener. `hosts`: names of its host, None if it does not look at Host and Origin.

    `needs_token`: True if each client needs the token of a key. `has_pages`: it has pages for probes and metrics, and
    lets no client in.
    """

    hosts: frozenset[str] | None
    needs_token: bool
    has_pages: bool = False


UNIX = Rules(hosts=None, needs_token=False)


def answer_to(method: str, path: str, headers: Mapping[str, str], rules: Rules) -> Answer | None:
    """The answer to a request that is no handshake of a client, or refused; None for a handshake.

    Whose the token is remains to be seen. Header names are looked up without regard to case by `headers` itself.
    """
    if (foreign := _foreign(headers, rules)) is not None:
        return foreign
    if method != "GET":
        return Answer(HTTPStatus.METHOD_NOT_ALLOWED, "Request method must be `GET`", "no WebSocket handshake")
    if path in PROBES:
        return Answer(HTTPStatus.OK)
    if rules.needs_token:
        given = headers.get("Authorization")
        if given is None:
            return Answer(HTTPStatus.UNAUTHORIZED, "missing websocket bearer token", "no token")
        if token_of(given) is None:
            return Answer(HTTPStatus.UNAUTHORIZED, "invalid authorization header", "no bearer token")
    if "upgrade" not in _words(headers.get("Connection")):
        return Answer(HTTPStatus.BAD_REQUEST, "Connection header did not include 'upgrade'", "no WebSocket handshake")
    if "websocket" not in _words(headers.get("Upgrade")):
        return Answer(HTTPStatus.BAD_REQUEST, "`Upgrade` header did not include 'websocket'", "no WebSocket handshake")
    if headers.get("Sec-WebSocket-Version") != "13":
        return Answer(
            HTTPStatus.BAD_REQUEST, "`Sec-WebSocket-Version` header did not include '13'", "no WebSocket handshake"
        )
    return None


def page_answer_to(method: str, path: str, headers: Mapping[str, str], rules: Rules) -> Answer | None:
    """The answer to a request for a page that is refused; None for one that is to be answered.

    Whether the token of a request for METRICS is right remains to be seen.
    """
    if (foreign := _foreign(headers, rules)) is not None:
        return foreign
    if method not in ("GET", "HEAD"):
        return Answer(HTTPStatus.METHOD_NOT_ALLOWED, "the method must be GET or HEAD", "a method of no page")
    if headers.get("Content-Length", "0").strip() != "0" or "Transfer-Encoding" in headers:
        return Answer(HTTPStatus.BAD_REQUEST, "a request for a page has no body", "a body")
    if path not in (*PROBES, METRICS):
        return Answer(HTTPStatus.NOT_FOUND, f"there are {', '.join((*PROBES, METRICS))}", "an unknown page")
    if path == METRICS and token_of(headers.get("Authorization")) is None:
        return Answer(HTTPStatus.UNAUTHORIZED, "/metrics needs a token: Authorization: Bearer TOKEN", "no token")
    return None


def _foreign(headers: Mapping[str, str], rules: Rules) -> Answer | None:
    """The answer to a web page, and to a request by another name of this host."""
    if rules.hosts is None:
        return None
    if "Origin" in headers:
        return Answer(HTTPStatus.FORBIDDEN, reason="a web page (Origin)")
    host = headers.get("Host")
    if addresses.is_known_host(host, rules.hosts):
        return None
    return Answer(
        HTTPStatus.FORBIDDEN,
        f"the host {host!r} is not one of this server; serve --allow-host NAME allows it",
        "a foreign Host",
    )


def token_of(authorization: str | None) -> str | None:
    """The token in an Authorization header, None for another scheme, or none."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _words(header: str | None) -> list[str]:
    return [word.strip().lower() for word in (header or "").split(",")]
