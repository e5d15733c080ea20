"""A run in the background: the same command once more, in a session of its own, with its messages in a file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from codex_pool import start

from .store import RunDirectoryError, layout, open_run

OUTPUT = "batch.log"
START_LIMIT_S = 90.0
_POLL_S = 0.05


def detach(command: Sequence[str], output: Path) -> int:
    """Start `codex-pool COMMAND` without its --detach; its exit code if it ended at once, 0 when it runs.

    Says on stderr what it says, until it has begun; what it says later stands in `output`/batch.log.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        log = (output / OUTPUT).open("ab+")
    except OSError as error:
        print(f"codex-pool: {output} cannot be a run directory: {error.strerror}; name another", file=sys.stderr)
        return 2
    with log:
        began = log.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            start.python("codex_pool.cli", *(word for word in command if word != "--detach"), utf8=False),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_LIMIT_S
        while child.poll() is None and not _has_begun(output, child.pid) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        log.seek(began)
        said = log.read().decode(errors="replace")
    if child.returncode is not None:
        sys.stderr.write(said)
        return child.returncode
    print(f"codex-pool: the run goes on in the background (pid {child.pid})", file=sys.stderr)
    print(f"  watch it   codex-pool attach {output}", file=sys.stderr)
    print(f"  stop it    codex-pool runs cancel {output}", file=sys.stderr)
    print(f"  its words  {output / OUTPUT}", file=sys.stderr)
    # Whoever waits for us must not be waited for by the child.
    child.returncode = 0
    return 0


def _has_begun(output: Path, pid: int) -> bool:
    if layout.holder(output) != pid:
        return False
    try:
        with open_run(output, limit_s=0.0) as store:
            return any(launch["pid"] == pid for launch in store.info()["launches"])
    except RunDirectoryError:
        return False
