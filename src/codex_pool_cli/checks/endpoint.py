"""Probe of a daemon's endpoint: the files of the socket, who holds it, and the daemon's answer to pool/status."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from codex_app_server.errors import AppServerError
from codex_pool.protocol import endpoints

from .facts import Endpoint, Listening

STATUS_LIMIT_S = 5.0
# Files of programs that clean the directory for temporary files.
_CLEANERS = {
    "systemd-tmpfiles": ("/etc/tmpfiles.d/tmp.conf", "/usr/lib/tmpfiles.d/tmp.conf"),
    "tmpreaper": ("/etc/cron.daily/tmpreaper",),
    "tmpwatch": ("/etc/cron.daily/tmpwatch",),
}


def default_endpoint() -> str:
    """The endpoint of `codex-pool serve`; its directory is not made. Raises EndpointError."""
    return f"ipc://{endpoints.runtime_path() / 'default.sock'}"


def endpoint_or_default(address: str | None, key: str | None) -> Endpoint:
    """The facts about an endpoint, None for the default one, which may be one that cannot be used."""
    try:
        return endpoint(address or default_endpoint(), key)
    except endpoints.EndpointError as error:
        return Endpoint(address or "default", directory_problem=str(error))


def endpoint(address: str, key: str | None) -> Endpoint:
    """The facts about the endpoint of a daemon. Raises EndpointError for an address that cannot be one."""
    if endpoints.is_tcp(address):
        status, problem = status_of(address, key)
        return Endpoint(address, status=status, problem=problem)
    path = endpoints.ipc_path(address)
    directory_problem = None
    try:
        endpoints.check_private(path.parent)
    except endpoints.EndpointError as error:
        directory_problem = str(error)
    is_there, is_listening = _socket(path)
    socket: Listening = "missing" if not is_there else "yes" if is_listening else "no"
    is_held = endpoints.is_held(path)
    status, problem = status_of(address, None) if is_listening else (None, None)
    return Endpoint(
        address,
        directory_problem=directory_problem,
        holder_pid=endpoints.holder_pid(path),
        is_held=is_held or is_listening,
        socket=socket,
        stale=() if is_held or is_listening else tuple(_left(path)),
        cleaned_by=_cleaner(path),
        status=status,
        problem=problem,
    )


def status_of(address: str, key: str | None) -> tuple[dict[str, Any] | None, str | None]:
    """The answer of the daemon to pool/status with its trace, and why there is none."""
    import msgspec

    try:
        found: dict[str, Any] = msgspec.json.decode(
            ask(address, key, "pool/status", {"trace": True}, "codex-pool doctor")
        )
        return found, None
    except (AppServerError, endpoints.EndpointError, OSError, RuntimeError, msgspec.MsgspecError) as error:
        return None, str(error)


def ask(address: str, key: str | None, method: str, params: dict[str, Any], client_name: str) -> bytes:
    """The result of one request to a daemon, as JSON, asked under a name that status shows.

    Raises what a LineClient raises.
    """
    from ..daemon_client import to_daemon
    from ..line_client import LineClient

    client = LineClient(to_daemon(address, key, client_name), on_queue=lambda ahead: None, on_problem=lambda text: None)
    try:
        client.start()
        return client.call(method, params, timeout_s=STATUS_LIMIT_S)
    finally:
        client.close()


def _socket(path: Path) -> tuple[bool, bool]:
    try:
        is_there = stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return False, False
    return is_there, is_there and endpoints.why_unreachable(path) is None


def _left(path: Path) -> list[str]:
    """Names of files that an ended daemon has left. Its lock file stays always and is no sign of anything."""
    return [
        each.name for each in (path, path.with_suffix(".processes"), path.with_suffix(".w")) if os.path.lexists(each)
    ]


def _cleaner(path: Path) -> str | None:
    try:
        is_temporary = path.is_relative_to(tempfile.gettempdir())
    except OSError:
        return None
    if not is_temporary:
        return None
    return next((name for name, files in _CLEANERS.items() if any(map(os.path.exists, files))), None)
