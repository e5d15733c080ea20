"""Protection of an auth.json against readers while an app-server writes it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from .file_replacement import ChangedError, Replacement, is_named

SIZE_LIMIT_BYTES = 1024 * 1024
WRITE_LOOK_S = 0.001
# How long what an app-server writes to the file is waited for, from when it has opened it.
WRITTEN_LIMIT_S = 2.0


class Shield:
    """The file while an app-server writes to it.

    codex 0.163 empties auth.json and then writes it, without a lock. An app-server that reads it in between takes
    itself for logged out, and its turn fails. So a lease is taken on the file: the kernel lets an app-server that opens
    it for writing wait until the holder has put a copy in its place, and what is written then goes to a file that has
    no name any more. `written` is that: it may be a new login. Where there are no leases, as on network file systems,
    app-servers only write one after the other.
    """

    def __init__(self, stamp: Callable[[], tuple[int, ...] | None]) -> None:
        self._stamp = stamp
        self._before = stamp()
        self._fd = -1
        self._copy: Replacement | None = None
        self.written = b""

    def raise_over(self, path: Path, stack: contextlib.ExitStack) -> None:
        """Take the lease, and make the copy. `stack` gives both back. Raises OSError."""
        set_lease = getattr(fcntl, "F_SETLEASE", None)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # To close the descriptor ends the lease.
        stack.callback(os.close, fd)
        if set_lease is None:
            return
        self._path = path
        # The kernel's signal for the end of a lease; this one does nothing, and `wait` polls for it.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, set_lease, fcntl.F_RDLCK)
        copy = stack.enter_context(contextlib.closing(Replacement(path, os.fstat(fd))))
        copy.write(os.pread(fd, SIZE_LIMIT_BYTES, 0))
        self._fd, self._copy = fd, copy

    def wait(self, limit_s: float) -> bool:
        """Wait until an app-server writes to the file; False if none did within `limit_s`."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if self._copy is None:
                if self._stamp() != self._before:
                    return True
            elif fcntl.fcntl(self._fd, fcntl.F_GETLEASE) == fcntl.F_UNLCK:
                # It is not put in the place of a file that has been removed or replaced.
                with contextlib.suppress(OSError, ChangedError):
                    self._copy.put(lambda: is_named(self._path, self._fd), or_overwrite=False)
                fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
                self._read_written(time.monotonic() + WRITTEN_LIMIT_S)
                return True
            time.sleep(WRITE_LOOK_S)
        return False

    def _read_written(self, deadline: float) -> None:
        """Read the file once its writer has closed it: only then can there be a lease again."""
        while not is_named(self._path, self._fd) and time.monotonic() < deadline:
            try:
                fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            except OSError:
                time.sleep(WRITE_LOOK_S)
                continue
            self.written = os.pread(self._fd, SIZE_LIMIT_BYTES, 0)
            return
