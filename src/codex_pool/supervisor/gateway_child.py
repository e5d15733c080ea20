"""The gateway as a child of the supervisor (see codex_pool.gateway).

It opens its listeners itself: while it is being replaced clients are refused, and try again. It is replaced alone,
whatever the broker does, and never ends the pool; only one that has never been ready, for a reason that it gives, is a
failed start.

    to the gateway      {"ping": number}
    from the gateway    {"event": "ready" | "failed" | "pong", "reason", "lost_lines", "counts": of its listeners}
"""

from __future__ import annotations

import secrets
from typing import Any

from ..gateway.arguments import GatewayArguments
from ..gateway.sessions import ListenerConfig
from .child_process import Child
from .handover import KeptEntrance
from .launchers import Launcher
from .restarted_child import Entrance

LONGEST_DELAY_S = 1.0


class GatewayProcess(Entrance):
    """Starts the gateway, and again when it has died.

    `listeners`: where it lets clients in, None for a pool without a gateway; `link`: path of the socket on which the
    broker takes its link; `secret` is for both; `endpoint`: the pool's.
    """

    name = "gateway"

    def __init__(self, listeners: ListenerConfig | None, link: str, endpoint: str, launcher: Launcher) -> None:
        super().__init__(
            "codex_pool.gateway", launcher, longest_delay_s=LONGEST_DELAY_S, is_wanted=listeners is not None
        )
        self._listeners = listeners
        self._link = link
        self._endpoint = endpoint
        self.secret = secrets.token_hex(32)
        self._is_ready = False
        # Numbers of its listeners, as it has reported them last.
        self._counts: dict[str, Any] = {}

    def start(self, now: float) -> Child:
        """Start it. Raises StartError."""
        assert self._listeners is not None, "a pool without listeners has no gateway"
        self._is_ready, self._counts = False, {}
        arguments = GatewayArguments(
            link=self._link, secret=self.secret, endpoint=self._endpoint, listeners=self._listeners
        )
        return self.launch(arguments, now)

    def kept(self) -> KeptEntrance:
        """Return the state that the next supervisor needs to go on with the gateway."""
        kept = super().kept()
        kept.secret, kept.was_ready = self.secret, self.was_ready
        return kept

    def restore(self, kept: KeptEntrance) -> None:
        """Go on with a gateway of before."""
        super().restore(kept)
        self.secret, self._is_ready = kept.secret, kept.was_ready

    def take(self, record: dict[str, Any]) -> None:
        """Take a report."""
        super().take(record)
        match record:
            case {"event": "ready"}:
                self._is_ready = True
            case {"event": "pong", "counts": dict(counts)}:
                self._counts = counts

    def row(self) -> dict[str, Any]:
        """The gateway as status shows it."""
        child = self.child
        state = "waiting" if child is None else "ready" if self._is_ready else "starting"
        pid = child.pid if child is not None else None
        return {"state": state, "pid": pid, "restarts": max(0, self.starts - 1), **self._counts}
