"""Methods of notifications as raw lines begin with them. Pure."""

from __future__ import annotations

from ..generated.routing import NOTIFICATIONS

_START = b'{"method":"'
_KNOWN = {_START + name.encode(): name for name in NOTIFICATIONS}


def known_method(raw: bytes) -> str | None:
    """The method that a line begins with, as all lines of the real app-server do; None if it has to be looked for."""
    return _KNOWN.get(raw[: raw.find(b'"', len(_START))])


def common_method(block: bytes, count: int) -> str:
    """The method of all `count` lines of a block, if they begin with it and it is one; else ""."""
    head = block[: block.find(b'"', len(_START)) + 1]
    method = _KNOWN.get(head[:-1], "")
    return method if block.count(b"\n" + head) == count - 1 else ""
