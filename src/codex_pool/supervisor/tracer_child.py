"""The tracer as a child of the supervisor (see codex_pool.tracer), in a pool with `traces`.

The supervisor has the listening socket: while the tracer is being replaced, what workers report waits there. It is
replaced alone, however it ends, and no turn waits for it.

    to the tracer      {"ping": number}
    from the tracer    {"event": "pong", "lost_lines", "counts": {"exported", "lost", "waiting", "problem"}}
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
from typing import Any

from ..protocol.endpoints import EndpointError
from ..tracer.arguments import TracerArguments
from .child_process import Child
from .handover import KeptEntrance
from .launchers import Launcher
from .restarted_child import RestartedChild

LONGEST_DELAY_S = 30.0
BACKLOG = 256
_COUNTED = ("exported", "lost")


class TracerProcess(RestartedChild):
    """Starts the tracer, and again when it has died. `path`: where workers connect to, "" in a pool without a tracer.

    Raises EndpointError when it cannot listen there.
    """

    name = "tracer"

    def __init__(self, path: str, launcher: Launcher, kept: KeptEntrance | None = None) -> None:
        super().__init__("codex_pool.tracer", launcher, longest_delay_s=LONGEST_DELAY_S)
        self.path = path
        self.due = 0.0 if path else math.inf
        self._listener: socket.socket | None = None
        if path and kept is not None and kept.listener is not None:
            self._listener = socket.socket(fileno=kept.listener)
            self.restore(kept)
        elif path:
            self._listener = _listen(path)
        self._counts: dict[str, Any] = {}
        # Those of tracers before this one.
        self._before = dict.fromkeys(_COUNTED, 0)

    def kept(self) -> KeptEntrance:
        """Return the state that the next supervisor needs to go on with the tracer; its counts begin again."""
        kept = super().kept()
        kept.listener = None if self._listener is None else self._listener.fileno()
        return kept

    def start(self, now: float) -> Child:
        """Start it. Raises StartError."""
        assert self._listener is not None, "a pool without traces has no tracer"
        fd = self._listener.fileno()
        return self.launch(TracerArguments(listen_fd=fd), now, (fd,))

    def take(self, record: dict[str, Any]) -> None:
        """Take a report."""
        super().take(record)
        match record:
            case {"event": "pong", "counts": dict(counts)}:
                self._counts = counts

    def died(self, now: float) -> float:
        """Note its death; what waited in it is lost."""
        for name in _COUNTED:
            self._before[name] += self._counts.get(name, 0)
        self._before["lost"] += self._counts.get("waiting", 0)
        self._counts = {}
        return super().died(now)

    def row(self) -> dict[str, Any] | None:
        """The tracer as status shows it; None in a pool without one."""
        if self._listener is None:
            return None
        totals = {name: self._before[name] + self._counts.get(name, 0) for name in _COUNTED}
        return {
            "state": "waiting" if self.child is None else "ready" if self._counts else "starting",
            "pid": None if self.child is None else self.child.pid,
            "restarts": max(0, self.starts - 1),
            **totals,
            "waiting": self._counts.get("waiting", 0),
            "problem": self._counts.get("problem", ""),
        }

    def close(self) -> None:
        """Close the listening socket, and remove it."""
        if self._listener is not None:
            self._listener.close()
            with contextlib.suppress(OSError):
                os.unlink(self.path)


def _listen(path: str) -> socket.socket:
    """A socket that listens at this path. Raises EndpointError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise EndpointError(f"cannot listen at {path} for the tracer: {error.strerror}") from None
    return listener
