"""The holder of the account's tokens as a child of the supervisor (see codex_pool.account).

The supervisor has the listening socket, so that the URL lasts as long as the pool: while the holder is being started
or replaced, requests wait in the socket's backlog. It is not started before auth.json holds a ChatGPT login, or an
app-server asks: with an API key, or without a login, there is nothing to refresh.

A pool that is started by a tool of another pool's agent inherits the URL of that pool's holder, and uses it: a holder
of its own would wait for the lock that the other one takes to answer it.
"""

from __future__ import annotations

import math
import os
import secrets
import socket

from codex_pool.account.arguments import HolderArguments
from codex_pool.account.issuer import ISSUER_URL, URL_VARIABLE
from codex_pool.supervisor.launchers import Launcher
from codex_pool.supervisor.process import Child

# Delays before it is replaced: the first, and the longest; after so long without a death it is the first again.
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 10.0
STABLE_S = 30.0
BACKLOG = 512
# Counted, not timed: the supervisor may have been stopped itself.
UNANSWERED_PINGS = 5
MAX_FILE_BYTES = 1024 * 1024
PATH_PREFIX = "/codex-pool-account/"
PROXY_VARIABLES = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
NO_PROXY_VARIABLES = ("NO_PROXY", "no_proxy")


class AccountHolder:
    """Starts the holder, and again when it has died. `child` is None in between; `due` is when it is to be started,
    infinite while it is not needed, and for a pool that uses the holder of another one.

    `issuer_url`: where refresh requests go, as codex decides it from its environment.
    """

    def __init__(self, auth_json: str, environ: dict[str, str], launcher: Launcher) -> None:
        self._auth_json = auth_json
        self._launcher = launcher
        self.issuer_url = environ.get(URL_VARIABLE) or ISSUER_URL
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self._path = f"{PATH_PREFIX}{secrets.token_urlsafe(32)}/oauth/token"
        self._started_at = 0.0
        self._failures = 0
        self._inherited = self.issuer_url.startswith("http://127.0.0.1:") and PATH_PREFIX in self.issuer_url
        self.child: Child | None = None
        self.due = math.inf
        self._looked_at: tuple[int, int, int] | None = None
        self._unanswered_pings = 0

    @property
    def is_asleep(self) -> bool:
        """True while only a request, or a new login, starts it."""
        return self.child is None and self.due == math.inf and not self._inherited

    def fileno(self) -> int:
        """The listening socket: readable when an app-server asks."""
        return self._listener.fileno()

    def wake(self, now: float) -> None:
        """Have it started."""
        self.due = min(self.due, now)

    def look(self, now: float) -> None:
        """Have it started if auth.json, which may be a link or not there, has come to hold a ChatGPT login."""
        if not self.is_asleep:
            return
        try:
            status = os.stat(self._auth_json)
            signature = (status.st_mtime_ns, status.st_size, status.st_ino)
            if signature == self._looked_at:
                return
            with open(self._auth_json, "rb") as file:
                holds_login = b'"refresh_token"' in file.read(MAX_FILE_BYTES)
        except OSError:
            self._looked_at = None
            return
        self._looked_at = signature
        if holds_login:
            self.wake(now)

    def environ(self, environ: dict[str, str]) -> dict[str, str]:
        """Variables that make an app-server refresh at the holder, without a proxy; they go on top of `environ`."""
        own = f"http://127.0.0.1:{self._listener.getsockname()[1]}{self._path}"
        found = {URL_VARIABLE: self.issuer_url if self._inherited else own}
        if any(environ.get(name) for name in PROXY_VARIABLES):
            for name in [name for name in NO_PROXY_VARIABLES if name in environ] or NO_PROXY_VARIABLES[:1]:
                found[name] = ",".join(filter(None, (environ.get(name), "127.0.0.1")))
        return found

    def start(self, now: float) -> Child:
        """Start it. Raises StartError."""
        fd = self._listener.fileno()
        arguments = HolderArguments(
            auth_json=self._auth_json, listen_fd=fd, path=self._path, issuer_url=self.issuer_url
        )
        self._started_at, self._unanswered_pings = now, 0
        self.child = self._launcher.launch("codex_pool.account", arguments, inherit=(fd,))
        return self.child

    def ping(self) -> bool:
        """Ask it for a sign of life, which `heard` takes; True if it is killed, because it has given none. A holder
        that is stopped has the lock of the file, for which those of other pools wait."""
        if self.child is None:
            return False
        if self._unanswered_pings >= UNANSWERED_PINGS:
            self.child.kill()
            return True
        self._unanswered_pings += 1
        self.child.tell({"ping": self._unanswered_pings})
        return False

    def heard(self) -> None:
        """It has answered."""
        self._unanswered_pings = 0

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
        """Close the socket."""
        self._listener.close()
