"""New content for a file, which replaces it at once, or is written over it where it cannot be replaced."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

PARTIAL_SUFFIX = ".codex-pool.next"
# By how much a file with new tokens may be larger.
ROOM_BYTES = 16 * 1024
# The file can be written to, but not be replaced.
NO_RENAME = (errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS)


class ChangedError(Exception):
    """The file is not what it was, and is left as it is."""


class Replacement:
    """The next content of the file at `path`, in a file beside it, which has one name: a holder that is killed leaves
    at most one, and the next holder looks at it.

    `in_place`: the file cannot be replaced, as one that is a mount of its own, and is written over instead, with one
    write and without being emptied before. Raises OSError.
    """

    def __init__(self, path: Path, owner: os.stat_result, *, in_place: bool = False) -> None:
        self._path, self._owner, self._in_place = path, owner, in_place
        self._partial = partial_path(path)
        self._text = b""
        if in_place:
            self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):
            self._partial.unlink()
        self._fd = os.open(self._partial, flags, 0o600)
        try:
            if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(self._fd, owner.st_uid, owner.st_gid)
            os.pwrite(self._fd, b" " * (owner.st_size + ROOM_BYTES), 0)
            os.fsync(self._fd)
        except BaseException:
            self.close()
            raise

    def write(self, text: bytes) -> None:
        """Have this content beside the file: from then on it outlives the death of this process. Raises OSError."""
        if not self._in_place:
            written = os.pwrite(self._fd, text, 0)
            if written != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._partial))
            os.ftruncate(self._fd, written)
        self._text = text

    def put(self, is_unchanged: Callable[[], bool], *, or_overwrite: bool = True) -> None:
        """Put it in the place of the file, on the disk. Raises OSError, and ChangedError if the file is not as it was:
        the owner has logged out, or in again. `or_overwrite`: a file that cannot be replaced is written over."""
        if not self._text:
            raise OSError(errno.EIO, "the new content could not be written", str(self._partial))
        if not self._in_place:
            os.fsync(self._fd)
        if not is_unchanged():
            raise ChangedError(f"{self._path} has been changed meanwhile")
        if not self._in_place:
            try:
                os.replace(self._partial, self._path)
            except OSError as error:
                if error.errno not in NO_RENAME or not or_overwrite:
                    raise
                self.close()
                self._fd, self._in_place = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC), True
        if self._in_place:
            # Blanks after JSON are no part of it; and a file that is shorter for a moment is none.
            size = os.fstat(self._fd).st_size
            os.pwrite(self._fd, self._text.ljust(size), 0)
            os.fsync(self._fd)
            os.ftruncate(self._fd, len(self._text))
            return
        with contextlib.suppress(OSError):
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def close(self) -> None:
        """Remove what was not put in place."""
        if self._fd >= 0 and not self._in_place:
            with contextlib.suppress(OSError):
                if is_named(self._partial, self._fd):
                    self._partial.unlink()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def partial_path(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL_SUFFIX)


def is_named(path: Path, fd: int) -> bool:
    """True if the open file has this name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False
