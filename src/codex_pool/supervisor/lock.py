"""The lock of an endpoint, which one pool holds, and the list of processes that a pool has started there.

Both lie beside the socket. The list lets the next pool on the endpoint end what a killed one could not: a worker that
is stopped does not see its death pipe.

    NAME.lock        the pid of the supervisor that holds the endpoint; it stays
    NAME.processes   mode 0600; JSON lines {"pid", "start_ticks", "what"}, the first of which is the supervisor; it is
                     renewed with each start of a process and removed at an orderly end

Files can be removed while a pool runs. So the lock has two more proofs: a name that lies in no directory
(`endpoint_name`), and a process that listens on the socket. And it is looked at (`look`) and made again (`lock_again`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from ..protocol import endpoints
from ..runtime import endpoint_name, processes
from ..runtime.endpoint_name import NameTakenError
from ..runtime.processes import ProcessId
from .recheck import EndpointFiles, Step

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
    steal it. Raises EndpointTakenError, EndpointError, and OSError for a lock file that cannot be opened.

    What a killed pool has left on the endpoint is swept first; `swept` names it. Its broker holds the lock too, until
    it has removed its sockets: that is waited for. That the pid or the list cannot be written is not an error here;
    `look` reports.
    """

    def __init__(self, path: Path, limit_s: float = LOCK_LIMIT_S) -> None:
        self._paths(path)
        deadline = time.monotonic() + limit_s
        self._name = self._take_name(deadline)
        try:
            self.fd = self._take_lock(deadline)
            try:
                self._await_silence(deadline)
            except BaseException:
                os.close(self.fd)
                raise
        except BaseException:
            self._close_name()
            raise
        # Before the sweep, which takes a while: another process that reads the lock meanwhile finds its holder.
        with contextlib.suppress(OSError):
            self.write_pid()
        self._sweep()
        with contextlib.suppress(OSError):
            self.remember([])

    @classmethod
    def taken_over(cls, path: Path, fd: int, name: int | None) -> EndpointLock:
        """The lock of this process from before it became another program, by its descriptors (see `kept`)."""
        lock = cls.__new__(cls)
        lock._paths(path)
        lock.fd = fd
        lock._name = None if name is None else socket.socket(fileno=name)
        return lock

    def kept(self) -> tuple[int, int | None]:
        """The descriptors of the lock and of the name."""
        return self.fd, None if self._name is None else self._name.fileno()

    def _paths(self, path: Path) -> None:
        self._path = path
        self._lock = path.with_suffix(".lock")
        self._list = path.with_suffix(".processes")
        # Of the list as it was written last, and whether the lock holds the pid.
        self._listed: tuple[int, ...] | None = None
        self._has_pid = False
        self.swept: list[str] = []

    def _take_name(self, deadline: float) -> socket.socket | None:
        while True:
            try:
                return endpoint_name.hold(self._path)
            except NameTakenError as error:
                # Its process may be about to end.
                if time.monotonic() > deadline or error.pid == 0 or processes.identify(error.pid) is not None:
                    raise self._taken(str(error.pid or "")) from None
            time.sleep(0.05)

    def _take_lock(self, deadline: float) -> int:
        """The descriptor of the lock file, locked, which is at its path."""
        while True:
            fd = _open_lock(self._lock)
            if _try_lock(fd):
                if _names(self._lock, fd):
                    return fd
                # It was removed meanwhile.
                os.close(fd)
                continue
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            # Only what the dead have left is swept, and it may be what keeps the lock.
            orphaned = not holder.isdigit() or processes.identify(int(holder)) is None
            if orphaned:
                self._sweep()
            if time.monotonic() > deadline or not orphaned:
                raise self._taken(holder)
            time.sleep(0.05)

    def _await_silence(self, deadline: float) -> None:
        """Wait until no process listens on the socket: the lock of one that does was removed."""
        swept = False
        while True:
            try:
                pid = endpoints.listener_of(self._path)
            except OSError:
                return
            if not swept:
                self._sweep()
                swept = True
            elif time.monotonic() > deadline:
                raise EndpointTakenError(
                    f"a process (pid {pid or 'unknown'}) listens on ipc://{self._path}, whose lock nobody holds; "
                    "end it or use another endpoint"
                )
            else:
                time.sleep(0.05)

    def _taken(self, holder: str) -> EndpointTakenError:
        return EndpointTakenError(
            f"a pool is already running on ipc://{self._path} (supervisor pid {holder or 'unknown'}); "
            "stop it or use another endpoint"
        )

    def look(self) -> EndpointFiles:
        """Compare the files of the endpoint with how this process has left them."""
        if self._name is not None:
            endpoint_name.let_go(self._name)
        return EndpointFiles(
            directory=self._path.parent.is_dir(),
            lock=_names(self._lock, self.fd),
            pid=self._has_pid,
            list=self._listed is not None and _signature(self._list) == self._listed,
        )

    def path_of(self, step: Step) -> Path:
        """The file, or directory, that a step makes or writes."""
        paths: dict[Step, Path] = {"runtime directory": self._path.parent, "list of processes": self._list}
        return paths.get(step, self._lock)

    def make_directory(self) -> None:
        """Make the directory again. Raises EndpointError."""
        endpoints.make_again(self._path.parent)

    def lock_again(self) -> None:
        """Lock the file that is at the path now, or a new one. Raises EndpointError, OSError, EndpointTakenError."""
        endpoints.check_private(self._path.parent)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(self._lock.lstat().st_mode):
                endpoints.move_aside(self._lock)
        fd = _open_lock(self._lock)
        if not _try_lock(fd):
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise self._taken(holder)
        # The broker still holds the one before, until it ends.
        os.close(self.fd)
        self.fd, self._has_pid = fd, False
        if not _names(self._lock, fd):
            raise FileNotFoundError(f"{self._lock} was removed at once")

    def write_pid(self) -> None:
        """Write the holder's pid into the lock. Raises OSError."""
        # Never empty: another process that reads it meanwhile finds a pid.
        pid = b"%d\n" % os.getpid()
        os.pwrite(self.fd, pid, 0)
        os.ftruncate(self.fd, len(pid))
        self._has_pid = True

    def remember(self, started: Iterable[tuple[int, str]]) -> None:
        """Write the list of this pool's processes, each as (pid, what). Raises OSError; then the list is as it was."""
        self._listed = None
        own = [(os.getpid(), "supervisor"), *started]
        lines = [
            msgspec.json.encode(Started(*process, what)) + b"\n"
            for pid, what in own
            if (process := processes.identify(pid)) is not None
        ]
        # Renewed as a whole, and never read by halves.
        partial = self._list.with_suffix(".processes.new")
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(b"".join(lines))
            partial.replace(self._list)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        self._listed = _signature(self._list)

    def release(self) -> None:
        """Release the lock: nothing is left of this pool."""
        if _names(self._lock, self.fd):
            with contextlib.suppress(OSError):
                self._list.unlink(missing_ok=True)
        # The lock file stays: removing it would let two supervisors hold locks on different files.
        os.close(self.fd)
        self._close_name()

    def _close_name(self) -> None:
        if self._name is not None:
            self._name.close()

    def _sweep(self) -> None:
        """End what is left of the pool that has written the list, if its supervisor is dead."""
        try:
            lines = self._list.read_bytes().splitlines()
        except OSError:
            return
        started = []
        for line in lines:
            # Any other line belongs to no process.
            with contextlib.suppress(msgspec.MsgspecError, ValueError):
                started.append(msgspec.json.decode(line, type=Started))
        if not started or processes.identify(started[0].pid) == started[0].id:
            return
        for one in started[1:]:
            if processes.end_tree(one.id, SWEEP_LIMIT_S):
                self.swept.append(f"{one.what} (pid {one.pid})")


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _names(path: Path, fd: int) -> bool:
    """True if the open file has this name."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except OSError:
        return False


def _signature(path: Path) -> tuple[int, ...] | None:
    """Another one when the file is another one, or was written to; None if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
