"""Programs that the runtime package brings beside codex, and where they belong on PATH."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

ASK_LIMIT_S = 5.0


def with_tools(path: str, *, packaged: bool = True) -> str:
    """PATH with the runtime package's tools in front; the same where no runtime package is installed.

    `packaged`: whether codex itself is the packaged one; another one brings tools of its own.

    A bubblewrap before 0.9.0, as in Debian 12, is stepped over in favour of the packaged one: codex takes the first
    one on PATH, and through one that cannot set argv[0] it has to find a helper in its CODEX_HOME, which a permission
    profile may deny, or which it does not make below the directory for temporary files (measured on codex 0.163.0).
    A newer one of the system stays in use, since it may be the only one that the system permits to make namespaces.
    """
    try:
        from codex_cli_bin import bundled_path_dir
    except ImportError:
        return path
    directory = bundled_path_dir()
    if directory is None:
        return path
    tools = [str(directory)] if packaged else []
    resources = Path(directory).parent / "codex-resources"
    found = shutil.which("bwrap", path=path) if sys.platform.startswith("linux") else None
    if found is not None and (resources / "bwrap").is_file() and not _sets_argv0(found, _changed_at(found)):
        tools.append(str(resources))
    return os.pathsep.join([*tools, *(entry for entry in path.split(os.pathsep) if entry not in tools)])


@functools.lru_cache(maxsize=8)
def _sets_argv0(bwrap: str, changed_at: int) -> bool:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [bwrap, "--help"], stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_LIMIT_S, check=False
        )
        return b"--argv0" in done.stdout + done.stderr
    return False


def _changed_at(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
