"""Files and links: those that a user names are opened only if that cannot block, and what is written is there whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_DESCRIPTORS = ("/dev/fd", "/proc/")
_STDIN = "/dev/stdin"

# Of the flags, Windows knows O_BINARY only.
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

PARTIAL = ".partial"
"""Suffix of a file while it is written beside the one that it replaces."""


def open_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file to read bytes. Raises OSError, also for what is no regular file: a FIFO would block.

    /dev/null is an empty file. A descriptor that is open already, as `<(command)` of a shell names it, may be a pipe.
    """
    problem = _kind_problem(path)
    if problem is not None:
        raise problem
    return open(path, "rb")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file. Raises OSError as `open_file` does."""
    with open_file(path) as file:
        return file.read()


def read_text_file(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, with line ends as `\\n`. Raises OSError as `open_file` does, UnicodeDecodeError."""
    return read_file(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], *, mode: int = 0o666, is_synced: bool = False, is_shared: bool = False
) -> Iterator[IO[bytes]]:
    """Open a file beside `path` that takes its place at the end of the block: the file is there whole or as it was.

    `is_synced`: its content is on the disk before. `is_shared`: others may write the same file meanwhile, so the name
    beside it is not used twice. Raises OSError; after any error in the block nothing is left of it.
    """
    target = Path(path)
    partial = target.with_name(target.name + (f".{secrets.token_hex(4)}" if is_shared else "") + PARTIAL)
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, _NEW, mode)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_atomic(
    path: str | os.PathLike[str],
    data: bytes,
    *,
    mode: int = 0o666,
    is_synced: bool = False,
    is_shared: bool = False,
) -> None:
    """Write a file, whole or not at all, as `replacing` does. Raises OSError."""
    with replacing(path, mode=mode, is_synced=is_synced, is_shared=is_shared) as file:
        file.write(data)


def resolved(path: str | os.PathLike[str]) -> Path:
    """The absolute path without symbolic links. A loop of links stays as it is, on each version of Python."""
    return Path(os.path.realpath(path))


def _kind_problem(path: str | os.PathLike[str]) -> OSError | None:
    status = os.stat(path)
    if stat.S_ISREG(status.st_mode) or _is_descriptor(path) or _is_null(status):
        return None
    number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
    words = os.strerror(number) if number == errno.EISDIR else "Not a regular file"
    return OSError(number, words, os.fspath(path))


def _is_descriptor(path: str | os.PathLike[str]) -> bool:
    name = os.fspath(path)
    return name == _STDIN or os.path.dirname(os.path.abspath(name)).startswith(_DESCRIPTORS)


def _is_null(status: os.stat_result) -> bool:
    try:
        return os.path.samestat(status, os.stat(os.devnull))
    except OSError:
        return False
