"""The spools of a machine: directories of hosts, one a host, below one directory a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from codex_app_server._runtime.files import resolved

from ..store import RunDirectoryError
from .host import Host

# More hosts of one run on one machine are none that anyone starts.
MOST = 1000


def default_root() -> Path:
    """Return the directory of spools, unless another is named."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "codex-pool" / "hosts"


def open_host(root: Path | None, run: str, on_alone: Callable[[], None]) -> Host:
    """Make a host on the first spool of a run that no other process has: what is in it was left by one that died.

    Raises RunDirectoryError, OSError.
    """
    directory = resolved(root or default_root()) / run
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for number in range(MOST):
        try:
            return Host(directory / str(number), on_alone=on_alone)
        except RunDirectoryError as error:
            if "is in use" not in str(error):
                raise
    raise RunDirectoryError(f"{directory}: {MOST} hosts of this run are on this machine; end those that are not used")


def remove_if_empty(host: Path) -> None:
    """Remove the directory that the spool of a host stood in, if it was the last one."""
    with contextlib.suppress(OSError):
        host.parent.rmdir()
