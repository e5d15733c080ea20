"""Access: which requests to the pages are answered. Pure.

The pages show prompts and answers to the user who started the server. Other users of the machine lack the token in the
address; pages of other sites lack it too, and are refused by Host and Origin: a name that resolves to loopback is not
enough.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
METHODS = frozenset({"GET", "HEAD"})


class Refused(Exception):
    """A request that is not answered: the `status` of HTTP and the reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Request(NamedTuple):
    """Parts of the path behind the token, and the query."""

    path: tuple[str, ...]
    query: Mapping[str, str]


def admit(method: str, target: str, headers: Mapping[str, str], token: str) -> Request:
    """Return what is asked for. `headers` have lower-case names. Raises Refused."""
    if method not in METHODS:
        raise Refused(405, f"{method} is not supported; pages are read with GET")
    host = headers.get("host", "")
    if _hostname(f"http://{host}") not in HOSTS:
        raise Refused(403, f"Host {host!r} is not this machine; expected 127.0.0.1 or localhost")
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        raise Refused(403, f"Origin {origin!r} is not of these pages")
    if headers.get("sec-fetch-site") == "cross-site":
        raise Refused(403, "a page of another site asked for this; type the address instead")
    try:
        parts = urlsplit(target)
        first, _, rest = parts.path.removeprefix("/").partition("/")
        query = dict(parse_qsl(parts.query, max_num_fields=10))
    except ValueError:
        raise Refused(400, "the address is malformed") from None
    if not hmac.compare_digest(first.encode(), token.encode()):
        raise Refused(403, "the address lacks its token; open the one that `codex-pool runs view` printed")
    # Relative addresses in the pages begin behind a slash.
    if not parts.path.startswith(f"/{first}/"):
        raise Refused(404, "the address ends in a slash")
    return Request(tuple(unquote(part) for part in rest.split("/")), query)


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
