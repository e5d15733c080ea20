"""Where the pool's sockets live: runtime directory and ipc paths. No ZeroMQ here."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path

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

    Raises EndpointError as `check_private` does, and for one that cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        check_private(path)
    except OSError as error:
        raise EndpointError(
            f"{path}, the directory for sockets, cannot be made: {error.strerror}; set XDG_RUNTIME_DIR to a directory "
            "that can be written, or use an endpoint in another directory"
        ) from None


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
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A listener that is stopped takes nobody in, and must not hold us up.
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return None
        except (FileNotFoundError, ConnectionRefusedError):
            return "nothing listens there"
        except OSError as error:
            return error.strerror or str(error)
    return None


def is_held(path: Path) -> bool:
    """Whether the supervisor that took this endpoint lives: its broker may be on its way.

    Looked at without the lock itself, which a supervisor that starts just now may want.
    """
    try:
        holder = path.with_suffix(".lock").read_text("ascii").strip()
        return holder.isdigit() and Path(f"/proc/{holder}").exists()
    except (OSError, UnicodeDecodeError):
        return False
