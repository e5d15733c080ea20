"""One pool an endpoint: its lock, and the list of processes that a pool has started there.

Both lie beside the socket. The list lets the next pool on the endpoint end what a killed one could not: a worker that
is stopped does not see its death pipe.

    NAME.lock        the pid of the supervisor that holds the endpoint; it stays
    NAME.processes   mode 0600; JSON lines {"pid", "start_ticks", "what"}, the first of which is the supervisor; it is
                     renewed with each start of a process and removed at an orderly end
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from codex_pool import processes
from codex_pool.processes import ProcessId

LOCK_LIMIT_S = 3.0
SWEEP_LIMIT_S = 5.0


class EndpointTakenError(Exception):
    """Another pool holds the endpoint; the message names it."""


class Started(msgspec.Struct, frozen=True):
    """A process that a supervisor has started, or the supervisor itself."""

    pid: int
    start_ticks: int
    what: str

    @property
    def id(self) -> ProcessId:
        return ProcessId(self.pid, self.start_ticks)


class EndpointLock:
    """Holds the endpoint from its making until `release`: a second process that binds the same path would silently
    steal it. Raises EndpointTakenError.

    What a killed pool has left on the endpoint is swept first; `swept` names it. Its broker holds the lock too, until
    it has removed its sockets: that is waited for.
    """

    def __init__(self, path: Path, limit_s: float = LOCK_LIMIT_S) -> None:
        self._list = path.with_suffix(".processes")
        self.swept: list[str] = []
        self.fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + limit_s
        while not self._try_lock():
            holder = os.pread(self.fd, 32, 0).decode("ascii", "replace").strip()
            # Only what the dead have left is swept, and it may be what keeps the lock.
            orphaned = not holder.isdigit() or processes.identify(int(holder)) is None
            if orphaned:
                self._sweep()
            if time.monotonic() > deadline or not orphaned:
                os.close(self.fd)
                raise EndpointTakenError(
                    f"a pool is already running on ipc://{path} (supervisor pid {holder or 'unknown'}); "
                    "stop it or use another endpoint"
                )
            time.sleep(0.05)
        # Never empty: who looks at it meanwhile is to find a pid.
        pid = b"%d\n" % os.getpid()
        os.pwrite(self.fd, pid, 0)
        os.ftruncate(self.fd, len(pid))
        self._sweep()
        self.remember([])

    def remember(self, started: Iterable[tuple[int, str]]) -> None:
        """These (pid, what) are the processes of this pool now."""
        own = [(os.getpid(), "supervisor"), *started]
        lines = [
            msgspec.json.encode(Started(*process, what)) + b"\n"
            for pid, what in own
            if (process := processes.identify(pid)) is not None
        ]
        # Renewed as a whole, and never seen by halves.
        partial = self._list.with_suffix(".processes.new")
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(b"".join(lines))
        partial.replace(self._list)

    def release(self) -> None:
        """Nothing is left of this pool."""
        self._list.unlink(missing_ok=True)
        # The lock file stays: removing it would let two supervisors hold locks on different files.
        os.close(self.fd)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False

    def _sweep(self) -> None:
        """End what is left of the pool that has written the list, if its supervisor is dead."""
        try:
            lines = self._list.read_bytes().splitlines()
        except FileNotFoundError:
            return
        started = []
        for line in lines:
            # Whatever else stands there is nobody's.
            with contextlib.suppress(msgspec.MsgspecError, ValueError):
                started.append(msgspec.json.decode(line, type=Started))
        if not started or processes.identify(started[0].pid) == started[0].id:
            return
        for one in started[1:]:
            if processes.end_tree(one.id, SWEEP_LIMIT_S):
                self.swept.append(f"{one.what} (pid {one.pid})")
