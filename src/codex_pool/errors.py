"""Errors of a pool: it could not start, or has ended unexpectedly."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

from codex_app_server.errors import StartError, StartErrorKind, TransportClosedError


class PoolStartError(TransportClosedError, StartError):
    """The pool could not start; `stderr_lines` are the last words of the app-server.

    `kind` is that of a StartError when a process could not be started; None when the app-server was, and has ended.
    """

    def __init__(self, message: str, stderr_lines: Sequence[str] = (), kind: StartErrorKind | None = None) -> None:
        TransportClosedError.__init__(self, message, stderr_lines)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.stderr_lines, self.kind)


class PoolLostError(TransportClosedError):
    """A pool of this program has ended unexpectedly: its supervisor was killed, or has given up.

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
        """The reason and the exit status, and where the log is."""
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
