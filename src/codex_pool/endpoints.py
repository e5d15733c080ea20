"""Where the pool's sockets live: runtime directory and ipc paths. No ZeroMQ here."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import stat
from pathlib import Path

from codex_pool import endpoint_name

MAX_IPC_PATH_BYTES = 107
# Permissions of group and others to write and to enter.
_OTHERS = stat.S_IWGRP | stat.S_IXGRP | stat.S_IWOTH | stat.S_IXOTH

_TCP = re.compile(r"tcp://(\[[0-9A-Fa-f:.]+(%\w+)?\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")


class EndpointError(ValueError):
    """An endpoint that cannot be used; the message says why and what to do."""


def runtime_directory() -> Path:
    """The user's directory for sockets, mode 0700, made if missing. Raises EndpointError.

    `$XDG_RUNTIME_DIR/codex-pool`, or `codex-pool-UID` in the directory for temporary files.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        if not os.path.isabs(base):
            raise EndpointError(f"XDG_RUNTIME_DIR is {base!r}; expected an absolute path; set it to one, or unset it")
        path = Path(base) / "codex-pool"
    else:
        # Loaded by need: broker and workers are told where their sockets are, and are to be small.
        import tempfile

        path = Path(tempfile.gettempdir()) / f"codex-pool-{os.getuid()}"
    make_private(path)
    return path


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
    """As `make_private`, for a directory that was removed while it was in use.

    Raises EndpointError also where others could put theirs in its place: above it is a directory of another user's, or
    one that everybody may write in and that is not sticky.
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
    """Check that nobody else can enter a directory for sockets, or write in it; one that is missing passes.

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
    """Where `codex-pool serve` listens and `--connect` looks unless told otherwise."""
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
    aside = path.with_name(f"{path.name}.aside-{secrets.token_hex(3)}")
    path.rename(aside)
    return aside


def is_tcp(endpoint: str) -> bool:
    """Whether this is for clients with a key."""
    return endpoint.startswith("tcp://")


def check_tcp(endpoint: str) -> str:
    """A TCP endpoint as it was given. Raises EndpointError for what is none."""
    match = _TCP.fullmatch(endpoint)
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
    """Why nobody can connect to this socket file; None if somebody listens there."""
    try:
        listener_of(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return "nothing listens there"
    except OSError as error:
        return error.strerror or str(error)
    return None


def listener_of(path: Path) -> int:
    """The pid of the process that listens on this socket file, 0 if it cannot be told. Raises OSError if none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A listener that is stopped takes nobody in, and must not hold us up.
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return 0
        return endpoint_name.peer_of(probe)[0]


def is_held(path: Path) -> bool:
    """Whether the supervisor that took this endpoint lives: its broker, or its socket, may be on its way.

    Looked at without the lock itself, which a supervisor that starts just now may want.
    """
    try:
        holder = path.with_suffix(".lock").read_text("ascii").strip()
        if holder.isdigit() and Path(f"/proc/{holder}").exists():
            return True
    except (OSError, UnicodeDecodeError):
        # The file was removed, or could not be written.
        pass
    return endpoint_name.holder(path) is not None
