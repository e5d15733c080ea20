"""The answer to `initialize` for one client of many: its userAgent names that client, as the app-server's would. Pure.

codex 0.163.0 writes `NAME/VERSION (OS; ARCHITECTURE) TERMINAL (NAME; CLIENT_VERSION)`, VERSION being that of codex. It
refuses a NAME that is not a valid value of an HTTP header.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from .jsonrpc import UNREADABLE, encode

# Of the app-server's version and system, in a userAgent.
_COMMON = re.compile(r".*?/(\d+\.\d+\S* \([^)]*\) \S+)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
MAX_NAME_CHARS = 1024


class ClientInfo(msgspec.Struct):
    """The parts of `clientInfo` that a userAgent has."""

    name: str
    version: str = ""


def problem_with(client: ClientInfo) -> str | None:
    """Return why the app-server would refuse this client's name; None if it would not."""
    if len(client.name) > MAX_NAME_CHARS or _CONTROL.search(client.name):
        return f"Invalid clientInfo.name: '{client.name[:MAX_NAME_CHARS]}'. Must be a valid HTTP header value."
    return None


def for_client(initialized: bytes, client: ClientInfo) -> bytes:
    """The result of `initialize` for this client, made of the one that the worker's app-server has answered."""
    try:
        result: Any = msgspec.json.decode(initialized)
        found = _COMMON.match(result["userAgent"])
    except (*UNREADABLE, KeyError, TypeError):
        return initialized
    if found is None:
        return initialized
    suffix = f"{client.name}; {_CONTROL.sub('_', client.version.strip()[:MAX_NAME_CHARS])}".strip()
    result["userAgent"] = f"{client.name}/{found[1]} ({suffix})"
    return encode(result)
