"""The transport of a command to a daemon, by the lightest means that its endpoint allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codex_app_server.transport import Transport


def to_daemon(endpoint: str, key: str | None, client: str) -> Transport:
    """A transport to the daemon at an ipc endpoint, or with the key file at a tcp one.

    `client` is the name that `codex-pool status` shows. Raises EndpointError and KeysError.
    """
    if key is None:
        from codex_pool.client.unix_transport import UnixTransport

        return UnixTransport(endpoint, client=client)
    # CURVE is that of libzmq.
    from codex_pool.client.transport import PoolTransport

    return PoolTransport(endpoint, client=client, key=key)
