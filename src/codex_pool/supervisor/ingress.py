"""The ingress as a child of the supervisor (see codex_pool.ingress).

The supervisor has the listening socket: while the ingress is being replaced the port stays taken, and clients that
connect wait in the backlog. The ingress is replaced by itself, whatever the broker does, and never ends the pool; only
one that has never been ready, for a reason that it gives, is a failed start.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import socket

from codex_pool.endpoints import EndpointError
from codex_pool.ingress.arguments import IngressArguments
from codex_pool.supervisor.launchers import Launcher
from codex_pool.supervisor.process import Child

# Delays before it is replaced: the first, and the longest; after so long without a death it is the first again.
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 0.5
STABLE_S = 30.0
BACKLOG = 1024
# As of the broker: counted, because this process may have been stopped itself.
UNANSWERED_PINGS = 5


class IngressProcess:
    """Starts the ingress, and again when it has died. `child` is None in between, `due` is when it is to be started.

    `listen`: tcp://HOST:PORT, or None for a pool without an ingress; `link`: the endpoint (ipc) on which the broker
    takes the link; `secret` is for both. Raises EndpointError when it cannot listen there.
    """

    def __init__(self, listen: str | None, keys: str | None, link: str, launcher: Launcher) -> None:
        self._keys = keys
        self._launcher = launcher
        self.link = link if listen is not None else None
        self.secret = secrets.token_hex(32)
        self.child: Child | None = None
        self.due = math.inf if listen is None else 0.0
        self._listener = None if listen is None else _listen(listen)
        self._started_at = 0.0
        self._failures = 0
        self._unanswered_pings = 0
        self.was_ready = listen is None

    def start(self, now: float) -> Child:
        """Start it. Raises StartError."""
        assert self._listener is not None and self.link is not None and self._keys is not None
        fd = self._listener.fileno()
        arguments = IngressArguments(
            listen_fd=fd, keys=self._keys, link=self.link.removeprefix("ipc://"), secret=self.secret
        )
        self._started_at = now
        self._unanswered_pings = 0
        self.child = self._launcher.launch("codex_pool.ingress", arguments, inherit=(fd,))
        return self.child

    def heard(self) -> None:
        """It has reported something."""
        self._unanswered_pings = 0

    def ping(self) -> bool:
        """Ask for a sign of life; False if it has not given any for too long, and was killed."""
        if self.child is None:
            return True
        if self._unanswered_pings >= UNANSWERED_PINGS:
            self.child.kill()
            return False
        self._unanswered_pings += 1
        self.child.tell({"ping": self._unanswered_pings})
        return True

    def died(self, now: float) -> float:
        """It has died; in how many seconds it is to be started again."""
        self.child = None
        if now - self._started_at >= STABLE_S:
            self._failures = 0
        delay_s: float = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        self.due = now + delay_s
        return delay_s

    def close(self) -> None:
        """Close the listening socket."""
        if self._listener is not None:
            self._listener.close()


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
