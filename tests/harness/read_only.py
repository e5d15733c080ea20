"""A directory that nobody can write, root included, as a command sees it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_LIMIT_S = 10.0
_BIND = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


def read_only(path: Path) -> tuple[Path, list[str]]:
    """Such a directory, and what has to stand before a command that is to see it so.

    For a plain user its mode is enough. Root gets a read-only bind mount in a mount namespace, or, in a container that
    permits none, /sys, which is read-only there. What it was is printed.
    """
    if os.geteuid() != 0:
        print("read-only by its mode")
        path.chmod(0o555)
        return path, []
    within = ["unshare", "--mount", "sh", "-c", _BIND, str(path)]
    if subprocess.run([*within, "true"], capture_output=True, timeout=_LIMIT_S).returncode == 0:
        print("read-only by a bind mount")
        return path, within
    print("read-only as /sys is in a container")
    assert not os.access("/sys", os.W_OK), "expected CAP_SYS_ADMIN for a bind mount, or a read-only /sys"
    return Path("/sys"), []
