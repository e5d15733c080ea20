"""The directories of samples without a workspace: what one leaves empty is renamed for the next.

To make a directory costs more than all else that is done on the disk for a sample of one short turn.
"""

from __future__ import annotations

import contextlib
import os


class EmptyDirectories:
    """Makes directories beside each other. Paths are strings: a sample of thousands needs no more of its own."""

    def __init__(self) -> None:
        self._left: list[str] = []

    def make(self, path: str) -> None:
        """The directory `path`; as it is, if there is one. Raises OSError."""
        while self._left:
            # Over an empty one it may be renamed, and not over one with something in it.
            try:
                os.rename(self._left[-1], path)
            except FileNotFoundError:
                self._left.pop()
                continue
            except OSError:
                break
            self._left.pop()
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)

    def leave(self, path: str) -> None:
        """Note that `path` is no longer in use: an empty directory is kept for the next sample."""
        with contextlib.suppress(OSError):
            if not os.listdir(path):
                self._left.append(path)

    def remove(self) -> None:
        """Remove what is left over."""
        for path in self._left:
            with contextlib.suppress(OSError):
                os.rmdir(path)
        self._left.clear()
