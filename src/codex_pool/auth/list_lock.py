"""The lock of the allow-list, on its directory: all who change the list hold it, as long as two files are written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from codex_app_server._runtime import fork

LOCK_LIMIT_S = 1.0
LOCK_RETRY_S = 0.02


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock. Raises OSError when another process holds it for more than LOCK_LIMIT_S."""
    with fork.Held(lambda: os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        until = time.monotonic() + LOCK_LIMIT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    why = f"another process has held the lock of {directory} for {LOCK_LIMIT_S:.0f} s"
                    raise TimeoutError(errno.ETIMEDOUT, f"{why}; end it and try again") from None
                time.sleep(LOCK_RETRY_S)
        yield
