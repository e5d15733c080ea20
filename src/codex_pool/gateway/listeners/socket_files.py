"""Unix sockets of the listeners: made where nobody listens, in directories that nobody else can change.

`app-server` of codex makes its sockets in the same way, and looks at the same locks (measured with 0.163): its control
socket is a link to a socket below /tmp, whose name is the SHA-256 of the link's path. Who starts holds the start-up
lock beside the link and a lock beside the socket, connects to both, and replaces what does not answer.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from ...protocol import endpoints
from ...protocol.endpoints import EndpointError
from . import limits

LOCK_LIMIT_S = 5.0
LOCK_RETRY_S = 0.02
STARTUP_LOCK = "app-server-startup.lock"


class SocketFile:
    """A Unix socket that listens at `path` for this user, or for this user and a group.

    Raises EndpointError: for a directory that others can change, or enter where no group may, and for a path where a
    process listens or that is no socket.
    """

    def __init__(self, path: Path, group_id: int | None = None, *, lock_limit_s: float = LOCK_LIMIT_S) -> None:
        self.path = path
        if group_id is None:
            make_private(path.parent)
        else:
            check_shared(path.parent)
        with _locked(path.with_name(f"{path.name}.lock"), lock_limit_s):
            _remove_dead(path)
            self.socket = _listen(path, group_id)
            self._is_ours = _identity(path)

    @property
    def is_there(self) -> bool:
        """True while the path leads to this socket."""
        return self._is_ours is not None and _identity(self.path) == self._is_ours

    @property
    def is_free(self) -> bool:
        """True if nothing is at the path any more."""
        return not os.path.lexists(self.path)

    def close(self) -> None:
        """Stop listening, and remove the socket if it is still this one."""
        if self.is_there:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.socket.close()


class ControlSocket:
    """The socket where a plain `codex` looks for its daemon: a link below CODEX_HOME to a socket below /tmp.

    Raises EndpointError as SocketFile does; a socket of a living process is never replaced.
    """

    def __init__(self, path: Path, *, below: Path = Path("/tmp"), lock_limit_s: float = LOCK_LIMIT_S) -> None:
        self.path = path
        make_private(path.parent)
        self.target = target_of(path, below)
        with _locked(path.with_name(STARTUP_LOCK), lock_limit_s, is_removed=False):
            _remove_dead(path)
            self._file = SocketFile(self.target, lock_limit_s=lock_limit_s)
            try:
                path.symlink_to(self.target)
            except OSError as error:
                self._file.close()
                raise EndpointError(f"{path} cannot be made: {error.strerror}") from None

    @property
    def socket(self) -> socket.socket:
        """The listening socket."""
        return self._file.socket

    @property
    def is_there(self) -> bool:
        """True while the path leads to this socket."""
        return _link(self.path) == str(self.target) and self._file.is_there

    @property
    def is_free(self) -> bool:
        """True if nothing is at the path any more, or a link of ours to a socket that was removed."""
        return not os.path.lexists(self.path) or (_link(self.path) == str(self.target) and self._file.is_free)

    def close(self) -> None:
        """Stop listening, and remove link and socket if they are still these."""
        if self.is_there:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._file.close()


def target_of(path: Path, below: Path = Path("/tmp")) -> Path:
    """The place where the control socket at `path` really is. codex derives it in this way, whatever TMPDIR is."""
    real = Path(os.path.realpath(path.parent)) / path.name
    return below / f"codex-daemon-{os.getuid()}" / hashlib.sha256(os.fsencode(real)).hexdigest()


def make_private(path: Path) -> None:
    """Make a directory of mode 0700, or check that only this user can enter the one that is there.

    Raises EndpointError.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EndpointError(f"{path}, the directory for a socket, cannot be made: {error.strerror}") from None
    check_private(path)


def check_private(path: Path) -> None:
    """Check that only this user can enter a directory; one that is missing passes. Raises EndpointError."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise EndpointError(f"{path}, the directory for a socket, cannot be used: {error.strerror}") from None
    _check_directory(path, status, (os.getuid(),))
    if status.st_mode & 0o077:
        raise EndpointError(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, so that others can enter it; a socket needs a "
            f"directory of mode 0700: chmod 700 {path} if nobody else uses it, or put the socket into one that does "
            "not exist yet"
        )


def check_shared(path: Path) -> None:
    """Check a directory with a socket for a group: nobody else can put another file in its place.

    Raises EndpointError.
    """
    try:
        status = path.lstat()
    except OSError as error:
        raise EndpointError(
            f"{path}, the directory for a socket of a group, cannot be used: {error.strerror}; make it so that the "
            f"group can enter it: install -d -m 750 -g GROUP {path}"
        ) from None
    _check_directory(path, status, (os.getuid(), 0))
    if status.st_mode & 0o022:
        raise EndpointError(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, so that others can put another socket there; use a "
            f"directory of its own: install -d -m 750 -g GROUP {path}/codex-pool"
        )


def _check_directory(path: Path, status: os.stat_result, owners: tuple[int, ...]) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise EndpointError(f"{path} is not a directory; remove it, or put the socket elsewhere")
    if status.st_uid not in owners:
        raise EndpointError(
            f"{path} belongs to user {status.st_uid}, not to {os.getuid()}; put the socket into a directory of your own"
        )


def _remove_dead(path: Path) -> None:
    """Remove a socket, or a link to one, on which nobody listens."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not (stat.S_ISSOCK(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        raise EndpointError(f"{path} exists and is not a socket; move it away")
    try:
        pid = _listener(path)
    except (FileNotFoundError, ConnectionRefusedError):
        path.unlink(missing_ok=True)
        return
    except OSError as error:
        raise EndpointError(f"{path} exists and cannot be connected to: {error.strerror}; move it away") from None
    name = f"process {pid}" if pid else "a process"
    raise EndpointError(
        f"{path} is in use: {name} listens there; end it first (a daemon of codex with: codex app-server daemon stop), "
        "or do without this listener"
    )


def _listener(path: Path) -> int:
    """Pid of the process that listens there, 0 if not known. Raises OSError if none listens."""
    target = _link(path)
    if target is not None:
        path = path.parent / target
    if len(os.fsencode(path)) <= endpoints.MAX_IPC_PATH_BYTES:
        return endpoints.listener_of(path)
    # The system cuts longer ones; from its directory it can be named.
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return endpoints.listener_of(Path(f"/proc/self/fd/{fd}/{path.name}"))
    finally:
        os.close(fd)


def _listen(path: Path, group_id: int | None) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody can connect before it listens, and by then its mode is what it is to be.
        listener.bind(os.fspath(path))
        if group_id is not None:
            os.chown(path, -1, group_id)
        os.chmod(path, 0o600 if group_id is None else 0o660)
        listener.listen(limits.BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise EndpointError(f"cannot listen on {path}: {error.strerror or error}") from None
    return listener


@contextlib.contextmanager
def _locked(path: Path, limit_s: float, *, is_removed: bool = True) -> Iterator[None]:
    """Hold a lock file. Raises EndpointError if another process holds it for `limit_s`."""
    until = time.monotonic() + limit_s
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise EndpointError(f"{path}, a lock, cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one before has removed it, and somebody may have made it again.
            if _identity(path) == _identity(fd):
                break
        except BlockingIOError:
            pass
        os.close(fd)
        if time.monotonic() > until:
            raise EndpointError(
                f"another process holds {path}, and so is starting there; wait until it has started, or end it"
            )
        time.sleep(LOCK_RETRY_S)
    try:
        yield
    finally:
        if is_removed:
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(fd)


def _identity(path: Path | int) -> tuple[int, int] | None:
    try:
        status = os.fstat(path) if isinstance(path, int) else path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
