"""Sessions by short names: "s1" is the pool owner's session s1."""

from __future__ import annotations

from typing import Any

from codex_pool.protocol.wire import SessionId


def sid(name: str | SessionId) -> SessionId:
    """The session of this name, the owner's unless it says otherwise."""
    return name if isinstance(name, SessionId) else SessionId("", name)


def sids(*names: str | SessionId) -> list[SessionId]:
    return [sid(name) for name in names]


def named(session: Any) -> Any:
    """The opposite of `sid`."""
    return session.session if isinstance(session, SessionId) and not session.principal else session
