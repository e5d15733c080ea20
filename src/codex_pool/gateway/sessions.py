"""The seam between the listeners of the gateway, which speak to clients, and its sessions on the pool.

A listener calls `Sessions.open` for each client that has authenticated, with the `Client` that it has made for it. All
calls are made on the gateway's event loop; none blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from ..auth.principal import Identity
from ..protocol.pool_report import PoolReport


class ListenerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of the listeners, as the supervisor gives them to the gateway's process.

    `keys` is the directory of keys, empty without one. Paths are absolute.
    """

    unix: str = ""
    unix_group: str = ""
    ws: str = ""
    http: str = ""
    metrics_token: str = ""
    insecure_no_auth: bool = False
    tls_cert: str = ""
    tls_key: str = ""
    allow_hosts: tuple[str, ...] = ()
    control_socket: str = ""
    keys: str = ""


class Client(Protocol):
    """A client's connection, made by a listener."""

    def deliver(self, lines: list[bytes]) -> None:
        """Send JSON-RPC messages, without newlines, in this order; never blocks. The listener bounds what is unsent."""

    def end(self, reason: str, *, again: bool) -> None:
        """End the connection once what was delivered is sent. With `again` the client may connect again at once."""


class ClientSession(Protocol):
    """A client's session on the pool."""

    def receive(self, line: bytes) -> None:
        """Take one JSON-RPC message of the client."""

    @property
    def accepts(self) -> bool:
        """True while more may be received; the listener stops reading from its client while it is False."""

    def congested(self, is_congested: bool) -> None:
        """Tell the session that its client does not take what is delivered (True), or does again (False)."""

    def close(self) -> None:
        """End the session, because its client is gone. Its turns and open approvals are kept."""


class Sessions(Protocol):
    """The pool, as listeners see it."""

    def open(self, client: Client, identity: Identity | None, public_key: str, listener: str = "") -> ClientSession:
        """Open a session for a client. `identity` is None for the pool's owner, and `public_key` is empty then.

        `listener` is the kind of listener that it came in by, "unix" or "ws".
        """

    async def report(self, limit_s: float) -> PoolReport | None:
        """The state of the pool; None if the broker does not answer within so many seconds."""

    def resume_reading(self, session: ClientSession, callback: Callable[[], None]) -> None:
        """Call `callback()` on the event loop once `session.accepts` is True again."""
