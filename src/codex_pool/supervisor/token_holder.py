"""The holder of the account's tokens as a child of the supervisor (see codex_pool.account).

The supervisor has the listening socket, so that the URL lasts as long as the pool: while the holder is being started
or replaced, requests wait in the socket's backlog. It is not started before auth.json holds a ChatGPT login, or an
app-server asks: with an API key, or without a login, there is nothing to refresh.

A pool that is started by a tool of another pool's agent inherits the URL of that pool's holder, and uses it: a holder
of its own would wait for the lock that the other one takes to answer it.

    to the holder      {"ping": number}
    from the holder    {"event": "pong", "lost_lines"}
"""

from __future__ import annotations

import math
import os
import secrets
import socket

from ..account.arguments import HolderArguments
from ..account.issuer import ISSUER_URL, URL_VARIABLE
from .child_process import Child
from .handover import KeptEntrance
from .launchers import Launcher
from .restarted_child import RestartedChild

LONGEST_DELAY_S = 10.0
BACKLOG = 512
MAX_FILE_BYTES = 1024 * 1024
PATH_PREFIX = "/codex-pool-account/"
PROXY_VARIABLES = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
NO_PROXY_VARIABLES = ("NO_PROXY", "no_proxy")


class AccountHolder(RestartedChild):
    """Starts the holder, and again when it has died. `due` is infinite while it is not needed, and for a pool that uses
    the holder of another one. It is killed if it does not answer: one that is stopped has the lock of the file, for
    which those of other pools wait.

    `issuer_url`: where refresh requests go, as codex decides it from its environment.
    """

    name = "holder of the account"

    def __init__(
        self, auth_json: str, environ: dict[str, str], launcher: Launcher, kept: KeptEntrance | None = None
    ) -> None:
        super().__init__("codex_pool.account", launcher, longest_delay_s=LONGEST_DELAY_S)
        self._auth_json = auth_json
        self.issuer_url = environ.get(URL_VARIABLE) or ISSUER_URL
        self._looked_at: tuple[int, int, int] | None = None
        if kept is not None:
            assert kept.listener is not None
            self._listener = socket.socket(fileno=kept.listener)
            self._path, self.issuer_url, self._inherited = kept.path, kept.issuer_url, kept.is_inherited
            self.restore(kept)
            return
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self._path = f"{PATH_PREFIX}{secrets.token_urlsafe(32)}/oauth/token"
        self._inherited = self.issuer_url.startswith("http://127.0.0.1:") and PATH_PREFIX in self.issuer_url

    def kept(self) -> KeptEntrance:
        """Return the state that the next supervisor needs to go on with the holder, at the same URL."""
        kept = super().kept()
        kept.listener, kept.path = self._listener.fileno(), self._path
        kept.issuer_url, kept.is_inherited = self.issuer_url, self._inherited
        return kept

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
        return self.launch(arguments, now, (fd,))

    def close(self) -> None:
        """Close the socket."""
        self._listener.close()
