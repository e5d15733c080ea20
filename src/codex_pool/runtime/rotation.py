"""Rotation of a file by size: FILE becomes FILE.1, FILE.1 becomes FILE.2, and the oldest is removed."""

from __future__ import annotations

import contextlib
import os
import stat


class Rotation:
    """Rotates the file at `path` before it grows beyond `max_bytes`; `files` is how many are kept, it among them."""

    def __init__(self, path: str, max_bytes: int, files: int) -> None:
        self._path, self._max_bytes, self._files = path, max_bytes, files

    def make_room(self, fd: int, size: int) -> None:
        """Rotate if `size` more bytes are too many for the file `fd`, which is at the path. Raises nothing.

        One that is not a regular file is left alone. Where renaming fails the file grows on, so that nothing is lost.
        """
        with contextlib.suppress(OSError):
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or not status.st_size or status.st_size + size <= self._max_bytes:
                return
            if not os.path.samestat(os.stat(self._path), status):
                return
            for number in range(self._files - 1, 0, -1):
                before = f"{self._path}.{number - 1}" if number > 1 else self._path
                with contextlib.suppress(FileNotFoundError):
                    os.replace(before, f"{self._path}.{number}")
            if self._files == 1:
                os.unlink(self._path)
