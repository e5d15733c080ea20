"""Files of keys: read strictly, written whole or not at all, private to this user."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TypeVar

import msgspec

from codex_app_server._runtime.files import write_atomic

from ..protocol.endpoints import EndpointError

MAX_FILE_BYTES = 1024 * 1024
MAX_FILES = 10_000

FILE_MODE, DIRECTORY_MODE = 0o600, 0o700
OUT_OF_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

T = TypeVar("T")


class KeysError(EndpointError):
    """Keys that cannot be used; the message gives the reason and the remedy."""


def check_owner(path: Path, status: os.stat_result, mode: int) -> None:
    """Check that a path is this user's, of the right kind, and not readable for others. Raises KeysError."""
    directory = mode == DIRECTORY_MODE
    expected = "directory" if directory else "file"
    if not (stat.S_ISDIR(status.st_mode) if directory else stat.S_ISREG(status.st_mode)):
        raise KeysError(f"{path} is not a {expected}; remove it, or name another place with --keys")
    if status.st_uid != os.getuid():
        raise KeysError(f"{path} belongs to user {status.st_uid}, not to {os.getuid()}; name another with --keys")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise KeysError(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, so that others may use it; expected {mode:04o}: "
            f"chmod {mode:o} {path}, and make new keys if others have read them"
        )


def read(path: Path, type: type[T]) -> T:
    """Raises FileNotFoundError, KeysError for what is wrong with the file, and OSError when the system is short."""
    try:
        # A symbolic link, or something that blocks when it is opened, is no key file.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in OUT_OF_MEANS:
            raise
        raise KeysError(f"{path} cannot be opened: {error.strerror}; expected a file of this user") from None
    with open(fd, "rb") as file:
        check_owner(path, os.fstat(fd), FILE_MODE)
        content = file.read(MAX_FILE_BYTES)
    try:
        return msgspec.json.decode(content, type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise KeysError(f"{path} is not a key file: {error}; make a new key") from None


def names_in(directory: Path) -> list[str]:
    """Names of the files of a directory, without .json."""
    try:
        found = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [name.removesuffix(".json") for name in found if name.endswith(".json")][:MAX_FILES]


def write_new(path: Path, value: msgspec.Struct) -> None:
    """Write a file that is not there yet, whole or not at all. Raises FileExistsError."""
    temporary = write_temporary(path, value)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()


def replace(path: Path, value: msgspec.Struct) -> None:
    """Write a file that may be there already, whole or not at all."""
    write_atomic(path, _encode(value), mode=FILE_MODE, is_synced=True, is_shared=True)


def write_temporary(path: Path, value: msgspec.Struct) -> Path:
    """Write a file beside this one."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    try:
        with open(fd, "wb") as file:
            file.write(_encode(value))
            file.flush()
            os.fsync(fd)
    except BaseException:
        temporary.unlink()
        raise
    return temporary


def _encode(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
