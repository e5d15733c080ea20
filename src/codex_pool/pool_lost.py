"""PoolLostError: the error of a pool that has ended by itself."""

from __future__ import annotations

import signal
from typing import Any

from codex_app_server.errors import TransportClosedError


class PoolLostError(TransportClosedError):
    """A pool of this program has ended by itself: its supervisor was killed, or has given up.

    Calls, streams and notifications of the clients that `Pool.connect` and `Pool.aconnect` have made end with it.
    `endpoint` is the pool's, `reason` what has become of it, `supervisor_pid` and `exit_status` are those of its
    supervisor (negative: the signal that has ended it; None: not known), `log_file` is where the pool logged (None:
    standard error). `Pool.restart()` starts the pool again.
    """

    def __init__(
        self,
        endpoint: str,
        reason: str,
        supervisor_pid: int | None = None,
        exit_status: int | None = None,
        log_file: str | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.reason = reason
        self.supervisor_pid = supervisor_pid
        self.exit_status = exit_status
        self.log_file = log_file
        super().__init__(f"the pool at {endpoint} is gone: {self.details}; Pool.restart() starts it again")

    @property
    def details(self) -> str:
        """What has become of the pool, and where to look."""
        supervisor = f"supervisor pid {self.supervisor_pid}, {how_it_ended(self.exit_status)}"
        return f"{self.reason} ({supervisor}; its log: {self.log_file or 'standard error'})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.endpoint, self.reason, self.supervisor_pid, self.exit_status, self.log_file)


def how_it_ended(exit_status: int | None) -> str:
    """The exit status of a process in words, as `subprocess` has it."""
    if exit_status is None:
        return "exit status not known"
    if exit_status >= 0:
        return f"exit status {exit_status}"
    try:
        name = signal.Signals(-exit_status).name
    except ValueError:
        name = f"signal {-exit_status}"
    return f"killed by {name}"
