"""The user's command at the end of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

NOTIFY_LIMIT_S = 60.0


def notify(command: str, directory: Path, state: str, code: int) -> str | None:
    """Run the user's command at the end of a run; what went wrong with it."""
    told = {"CODEX_POOL_RUN": str(directory), "CODEX_POOL_STATE": state, "CODEX_POOL_EXIT_CODE": str(code)}
    try:
        done = subprocess.run(
            command,
            shell=True,
            env={**os.environ, **told},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            timeout=NOTIFY_LIMIT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None if done.returncode == 0 else f"exit code {done.returncode}"
