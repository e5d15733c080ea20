"""The user's command at the end of a run."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import IO

NOTIFY_LIMIT_S = 60.0
SAID_BYTES = 8 * 1024


def _file() -> IO[bytes]:
    """Open a file for what the command prints; /dev/null if none can be made."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return open(os.devnull, "r+b")


def notify(command: str, directory: Path, state: str, code: int) -> tuple[str, str | None]:
    """Run the user's command at the end of a run; return what it printed, and what went wrong.

    In a session of its own, and with no stream of ours: neither a terminal that is closed nor a pipe without a reader
    ends it or holds it up.
    """
    variables = {"CODEX_POOL_RUN": str(directory), "CODEX_POOL_STATE": state, "CODEX_POOL_EXIT_CODE": str(code)}
    try:
        with _file() as printed:
            try:
                done = subprocess.run(
                    command,
                    shell=True,
                    env={**os.environ, **variables},
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=printed,
                    timeout=NOTIFY_LIMIT_S,
                    start_new_session=True,
                )
                wrong = None if done.returncode == 0 else f"exit code {done.returncode}"
            except subprocess.TimeoutExpired:
                wrong = f"it took more than {NOTIFY_LIMIT_S:.0f} s"
            printed.seek(0)
            return printed.read(SAID_BYTES).decode("utf-8", "replace"), wrong
    except (OSError, subprocess.SubprocessError) as error:
        return "", str(error)
