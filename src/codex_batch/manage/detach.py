"""A run in the background: the same command once more, in a session of its own, with its messages in a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codex_pool.runtime import startup

from ..exit_codes import INTERRUPTED, OK, USAGE
from ..store import RunDirectoryError, layout, open_run

DETACH, FRESH = "--detach", "--fresh"
START_LIMIT_S = 90.0
STOP_LIMIT_S = 20.0
_POLL_S = 0.05


def detach(command: Sequence[str], output: Path) -> int:
    """Start `codex-pool COMMAND` without its --detach; return its exit code if it ended at once, OK when it runs.

    What the command prints is printed on stderr until the run has started; later it stands in `output`/batch.log.
    Until then SIGINT, SIGTERM and SIGHUP stop it; the exit code is INTERRUPTED then.
    """
    kept = output / layout.OUTPUT
    # What --fresh removes may be the log of the run before.
    path = layout.partial(kept) if FRESH in command else kept
    try:
        output.mkdir(parents=True, exist_ok=True)
        log = path.open("w+b" if path != kept else "a+b")
    except OSError as error:
        print(f"codex-pool: {output} cannot be a run directory: {error.strerror}; name another", file=sys.stderr)
        return USAGE
    with log, _Signals() as signals:
        start = log.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            startup.python("codex_pool_cli", *(word for word in command if word != DETACH), utf8=False),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_LIMIT_S
        while signals.number is None and time.monotonic() < deadline:
            if child.poll() is not None or (layout.holder(output) == child.pid and _is_launched(output, child.pid)):
                break
            time.sleep(_POLL_S)
        was_stopped = signals.number is not None and child.poll() is None
        if was_stopped:
            _stop(child)
        if path != kept:
            _keep_or_remove(path, kept, child.returncode is None or _is_launched(output, child.pid))
        if was_stopped:
            print("codex-pool: interrupted; the run was stopped", file=sys.stderr)
            return INTERRUPTED
        log.seek(start)
        printed = log.read().decode(errors="replace")
    if child.returncode is not None:
        sys.stderr.write(printed)
        return child.returncode
    print(f"codex-pool: the run goes on in the background (pid {child.pid})", file=sys.stderr)
    print(f"  watch it   codex-pool attach {output}", file=sys.stderr)
    print(f"  stop it    codex-pool runs cancel {output}", file=sys.stderr)
    print(f"  its words  {kept}", file=sys.stderr)
    # A process that waits for this one must not wait for the child.
    child.returncode = OK
    return OK


class _Signals:
    """Notes SIGINT, SIGTERM and SIGHUP while it is entered; one that is ignored stays so."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: object) -> None:
        self.number = number


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a run: in order, else at once."""
    child.terminate()
    try:
        child.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _is_launched(output: Path, pid: int) -> bool:
    """Return True if a process has noted in the run directory that its run started."""
    try:
        with open_run(output, limit_s=0.0) as store:
            return any(launch["pid"] == pid for launch in store.info()["launches"])
    except RunDirectoryError:
        return False


def _keep_or_remove(path: Path, kept: Path, keep: bool) -> None:
    """Let the output of a run be its log; that of a command that started no run is printed only."""
    with contextlib.suppress(OSError):
        if keep:
            path.replace(kept)
        else:
            path.unlink()
