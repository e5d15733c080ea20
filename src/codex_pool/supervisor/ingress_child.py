"""The ingress as a child of the supervisor (see codex_pool.ingress).

The supervisor has the listening socket: while the ingress is being replaced the port stays taken, and clients that
connect wait in the backlog. The ingress is replaced alone, whatever the broker does, and never ends the pool; only
one that has never been ready, for a reason that it gives, is a failed start.

    to the ingress      {"ping": number}
    from the ingress    {"event": "ready" | "failed" | "pong", "reason", "lost_lines"}
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket

from ..ingress.arguments import IngressArguments
from ..protocol.endpoints import EndpointError
from .child_process import Child
from .handover import KeptEntrance
from .launchers import Launcher
from .restarted_child import Entrance

LONGEST_DELAY_S = 0.5
BACKLOG = 1024


class IngressProcess(Entrance):
    """Starts the ingress, and again when it has died.

    `listen`: tcp://HOST:PORT, or None for a pool without an ingress; `link`: path of the socket on which the broker
    takes the ingress's link; `secret` is for both. Raises EndpointError when it cannot listen there.
    """

    name = "ingress"

    def __init__(
        self, listen: str | None, keys: str | None, link: str, launcher: Launcher, kept: KeptEntrance | None = None
    ) -> None:
        super().__init__("codex_pool.ingress", launcher, longest_delay_s=LONGEST_DELAY_S, is_wanted=listen is not None)
        self._keys = keys
        self._link = link
        self.secret = secrets.token_hex(32)
        self._listener = None if listen is None else _listen(listen) if kept is None else _listener_of(kept)
        if kept is not None:
            self.secret = kept.secret
            self.restore(kept)

    def kept(self) -> KeptEntrance:
        """Return the state that the next supervisor needs to go on with the ingress."""
        kept = super().kept()
        kept.secret, kept.was_ready = self.secret, self.was_ready
        kept.listener = None if self._listener is None else self._listener.fileno()
        return kept

    def start(self, now: float) -> Child:
        """Start it. Raises StartError."""
        assert self._listener is not None and self._keys is not None
        fd = self._listener.fileno()
        arguments = IngressArguments(listen_fd=fd, keys=self._keys, link=self._link, secret=self.secret)
        return self.launch(arguments, now, (fd,))

    def close(self) -> None:
        """Close the listening socket."""
        if self._listener is not None:
            self._listener.close()


def _listener_of(kept: KeptEntrance) -> socket.socket:
    assert kept.listener is not None
    return socket.socket(fileno=kept.listener)


def _listen(endpoint: str) -> socket.socket:
    """A socket that listens on tcp://HOST:PORT. Raises EndpointError."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    try:
        if host == "*":
            host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
        family, _, _, _, address = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                with contextlib.suppress(OSError):
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise EndpointError(f"cannot listen on {endpoint}: {error.strerror or os.strerror(error.errno or 0)}") from None
    return listener
