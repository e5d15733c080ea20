"""Files and links that a user names: opened only if that cannot block, and resolved without an error for a loop."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

_DESCRIPTORS = ("/dev/fd", "/proc/")
_STDIN = "/dev/stdin"


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
