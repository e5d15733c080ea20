"""Errors of clients that find no pool: what is wrong with its endpoint, and the command that starts one."""

from __future__ import annotations

from pathlib import Path

from codex_app_server.errors import TransportClosedError

from ..protocol import endpoints


def no_pool(endpoint: str, why: str) -> str:
    """The message that no pool is at this ipc endpoint, with the remedy."""
    default = endpoint == endpoints.default_endpoint()
    command = "codex-pool serve" if default else f"codex-pool serve --endpoint {endpoint}"
    return f"no pool at {endpoint}: {why}; start one with: {command}"


def check_listens(endpoint: str, path: Path) -> None:
    """Raises TransportClosedError where nothing listens at the socket `path` and no supervisor is about to."""
    why = endpoints.why_unreachable(path)
    if why is not None and not endpoints.is_held(path):
        raise TransportClosedError(no_pool(endpoint, why))
