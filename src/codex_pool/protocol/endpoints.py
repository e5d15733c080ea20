"""Paths of the pool's sockets: runtime directory and ipc endpoints. Without ZeroMQ."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
from pathlib import Path

from codex_app_server._runtime import fork

from ..runtime import endpoint_name

MAX_IPC_PATH_BYTES = 107
# Permissions of group and others to write and to enter.
_OTHERS = stat.S_IWGRP | stat.S_IXGRP | stat.S_IWOTH | stat.S_IXOTH

_TCP = r"tcp://(\[[0-9A-Fa-f:.]+(%\w+)?\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})"


class EndpointError(ValueError):
    """An endpoint that cannot be used; the message gives the reason and the remedy."""


def runtime_directory() -> Path:
    """The user's directory for sockets, mode 0700, made if missing. Raises EndpointError.

    `$XDG_RUNTIME_DIR/codex-pool`, or `codex-pool-UID` in the directory for temporary files.
    """
    path = runtime_path()
    make_private(path)
    return path


def runtime_path() -> Path:
    """The path of `runtime_directory`, which need not exist. Raises EndpointError."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        if not os.path.isabs(base):
            raise EndpointError(f"XDG_RUNTIME_DIR is {base!r}; expected an absolute path; set it to one, or unset it")
        return Path(base) / "codex-pool"
    # Imported when needed: broker and workers get the paths of their sockets, and have to stay small.
    import tempfile

    return Path(tempfile.gettempdir()) / f"codex-pool-{os.getuid()}"


def make_private(path: Path) -> None:
    """Make a directory for sockets, mode 0700, or check the one that is there, whose mode stays as it is.

    Those above it that are missing are made with the same mode. Raises EndpointError as `check_private` does, and for
    one that cannot be made.
    """
    try:
        _make(path)
    except FileExistsError:
        check_private(path)
    except OSError as error:
        raise EndpointError(
            f"{path}, the directory for sockets, cannot be made: {error.strerror}; set XDG_RUNTIME_DIR to a directory "
            "that can be written, or use an endpoint in another directory"
        ) from None


def make_again(path: Path) -> None:
    """Make a directory as `make_private` does, after it was removed while in use.

    Raises EndpointError also where others could put theirs in its place: above it is a directory of another user's, or
    one that all users may write in and that is not sticky.
    """
    above = path.parent
    while not above.exists() and above != above.parent:
        above = above.parent
    try:
        status = above.stat()
    except OSError as error:
        raise EndpointError(f"{path}, the directory for sockets, cannot be made again: {error}") from None
    if status.st_uid not in (0, os.getuid()) or (status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX):
        raise EndpointError(
            f"{path}, the directory for sockets, was removed and is not made again, because others could replace it in "
            f"{above}; make it with mode 0700"
        )
    make_private(path)


def _make(path: Path) -> None:
    try:
        path.mkdir(mode=0o700)
    except FileNotFoundError:
        if path == path.parent:
            raise
        # Another process may be first.
        with contextlib.suppress(FileExistsError):
            _make(path.parent)
        path.mkdir(mode=0o700)


def check_private(path: Path) -> None:
    """Check that no other user can enter a directory for sockets, or write in it; one that is missing passes.

    Raises EndpointError.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise EndpointError(
            f"{path}, the directory for sockets, cannot be used: {error.strerror}; set XDG_RUNTIME_DIR to a directory "
            "that can be written, or use an endpoint in another directory"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise EndpointError(f"{path} is not a directory; remove it, or use an endpoint in another directory")
    if status.st_uid != os.getuid():
        raise EndpointError(
            f"{path} belongs to user {status.st_uid}, not to {os.getuid()}; use an endpoint in a directory of your own"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS:
        raise EndpointError(
            f"{path} has mode {mode:04o}, so that others can enter it or write in it; sockets need a directory of "
            f"mode 0700: use an endpoint in one that does not exist yet, such as ipc://{path}/codex-pool/pool.sock, "
            f"and it is made so; or chmod 700 {path} if nobody else uses it"
        )


def default_endpoint() -> str:
    """Default endpoint of `codex-pool serve` and `--connect`."""
    return f"ipc://{runtime_directory() / 'default.sock'}"


def ipc_path(endpoint: str) -> Path:
    """The path of an ipc endpoint. Raises EndpointError for another kind, or a path that the system would cut."""
    if not endpoint.startswith("ipc:///"):
        raise EndpointError(f"endpoint {endpoint!r} is not of the form ipc:///absolute/path")
    path = endpoint.removeprefix("ipc://")
    size = len(os.fsencode(path))
    if size > MAX_IPC_PATH_BYTES:
        raise EndpointError(
            f"the socket path {path} is {size} bytes long, the limit is {MAX_IPC_PATH_BYTES}; "
            "use a shorter directory, e.g. by setting XDG_RUNTIME_DIR"
        )
    return Path(path)


def check_socket(path: Path) -> None:
    """Check that a socket can be bound at `path`: what is there already is a socket. Raises EndpointError."""
    try:
        status = path.lstat()
    except OSError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise EndpointError(f"{path} exists and is not a socket; move it away, or use another endpoint")


def move_aside(path: Path) -> Path:
    """Give what is at `path` another name in the same directory, and return that. Raises OSError."""
    # Imported when needed: it brings OpenSSL.
    import secrets

    aside = path.with_name(f"{path.name}.aside-{secrets.token_hex(3)}")
    path.rename(aside)
    return aside


def is_tcp(endpoint: str) -> bool:
    """Return True if this is for clients with a key."""
    return endpoint.startswith("tcp://")


def check_tcp(endpoint: str) -> str:
    """A TCP endpoint as it was given. Raises EndpointError for what is none."""
    match = re.fullmatch(_TCP, endpoint)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise EndpointError(
            f"endpoint {endpoint!r} is not of the form tcp://HOST:PORT, with a port from 1 to 65535, such as "
            "tcp://127.0.0.1:7601 or tcp://[::1]:7601"
        )
    return endpoint


def check_client(endpoint: str, key: object) -> None:
    """Raises EndpointError for an endpoint that cannot be one, or that does not go with this key (None for no key)."""
    if not is_tcp(endpoint):
        ipc_path(endpoint)
        if key is not None:
            raise EndpointError(f"{endpoint} takes no key; a key is for an endpoint of the form tcp://HOST:PORT")
        return
    check_tcp(endpoint)
    if key is None:
        raise EndpointError(
            f"{endpoint} lets in only clients with a key: give the file that the pool's owner has made with "
            "codex-pool keys new NAME, as --key FILE or connect(..., key=FILE)"
        )


def why_unreachable(path: Path) -> str | None:
    """Reason why connections to this socket file fail; None if a process listens there."""
    try:
        listener_of(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return "nothing listens there"
    except OSError as error:
        return error.strerror or str(error)
    return None


def listener_of(path: Path) -> int:
    """Pid of the process that listens on this socket file, 0 if not known. Raises OSError if none listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A listener that is stopped accepts nothing; this must not wait for it.
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return 0
        return endpoint_name.peer_of(probe)[0]


def is_held(path: Path) -> bool:
    """Return True if the supervisor that took this endpoint lives: its broker, or its socket, may be on its way.

    Looked at without the lock itself, which a supervisor that starts just now may want.
    """
    return _locked_by(path) is not None or endpoint_name.holder(path) is not None


def holder_pid(path: Path) -> int | None:
    """Pid of the supervisor that holds this endpoint; None if there is none, or its pid is not known."""
    return endpoint_name.holder(path) or _locked_by(path)


def _locked_by(path: Path) -> int | None:
    """Pid in the lock file, if a process has it."""
    try:
        holder = path.with_suffix(".lock").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        # The file was removed, or could not be written.
        return None
    return int(holder) if holder.isdigit() and Path(f"/proc/{holder}").exists() else None


def running_daemon(endpoint: str) -> str | None:
    """`endpoint` if a pool holds it, else None."""
    path = ipc_path(endpoint)
    with (
        contextlib.suppress(OSError),
        fork.Held(lambda: os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CLOEXEC)) as lock,
    ):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return endpoint
    # The lock file may have been removed, and not been made again yet.
    return endpoint if endpoint_name.holder(path) is not None else None
