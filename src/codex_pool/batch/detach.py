"""A run in the background: the same command once more, in a session of its own, with its messages in a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codex_pool import start

from .store import RunDirectoryError, layout, open_run

OUTPUT = "batch.log"
START_LIMIT_S = 90.0
STOP_LIMIT_S = 20.0
INTERRUPTED = 130
_POLL_S = 0.05


def detach(command: Sequence[str], output: Path) -> int:
    """Start `codex-pool COMMAND` without its --detach; its exit code if it ended at once, 0 when it runs.

    Says on stderr what it says, until it has begun; what it says later stands in `output`/batch.log. Until then SIGINT,
    SIGTERM and SIGHUP stop it; the exit code is 130 then.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        log = (output / OUTPUT).open("ab+")
    except OSError as error:
        print(f"codex-pool: {output} cannot be a run directory: {error.strerror}; name another", file=sys.stderr)
        return 2
    with log, _Told() as told:
        began = log.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            start.python("codex_pool.cli", *(word for word in command if word != "--detach"), utf8=False),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_LIMIT_S
        while told.number is None and time.monotonic() < deadline:
            if child.poll() is not None or _has_begun(output, child.pid):
                break
            time.sleep(_POLL_S)
        if told.number is not None and child.poll() is None:
            _stop(child)
            print("codex-pool: interrupted; the run was stopped", file=sys.stderr)
            return INTERRUPTED
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


class _Told:
    """Notes SIGINT, SIGTERM and SIGHUP while it is entered; one that is ignored stays so."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Told:
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


def _has_begun(output: Path, pid: int) -> bool:
    if layout.holder(output) != pid:
        return False
    try:
        with open_run(output, limit_s=0.0) as store:
            return any(launch["pid"] == pid for launch in store.info()["launches"])
    except RunDirectoryError:
        return False
