"""The canary process: tries a codex binary out before any worker has it, in a home of its own.

codex_pool.supervisor.canary      start arguments: one JSON line on stdin, which then stays open as death pipe
                                  stdout: JSON lines for the supervisor - {"event": "step", "step"},
                                  {"event": "passed", "version"} or {"event": "failed", "reason"} last
                                  stderr: log
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from ...runtime import log, processes, startup
from ...runtime.processes import identify
from .arguments import CanaryArguments
from .checks import CheckError, run


def main() -> int:
    """Entry of the process."""
    log.begin("canary", *sys.argv[1:2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    startup.survive_hang_up()
    processes.become_subreaper()
    arguments = startup.decode_arguments(startup.read_line(0), CanaryArguments)
    _remove_left_over(Path(arguments.directory).parent)
    threading.Thread(target=_end_with_supervisor, args=(arguments.directory,), daemon=True).start()
    try:
        version = run(arguments, lambda step: _report({"event": "step", "step": step}))
        last = {"event": "passed", "version": version}
    except CheckError as error:
        last = {"event": "failed", "reason": str(error)}
    finally:
        _leave(arguments.directory)
    _report(last)
    return 0


def _report(record: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(1, json.dumps({**record, "lost_lines": log.lost()}).encode() + b"\n")


def _end_with_supervisor(directory: str) -> None:
    """End this process once the supervisor has, or wants it to."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    _leave(directory)
    os._exit(1)


def _leave(directory: str) -> None:
    processes.sweep(os.getpid())
    shutil.rmtree(directory, ignore_errors=True)


def _remove_left_over(directory: Path) -> None:
    """Remove homes of canaries that were killed; the name of each begins with the pid of its supervisor."""
    for path in directory.glob("[0-9]*-*"):
        if identify(int(path.name.partition("-")[0])) is None:
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
