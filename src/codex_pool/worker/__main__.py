"""The worker process: its app-server, and the loop around it.

    codex_pool.worker                 start arguments: one JSON line on stdin; for what follows see `loop`

The app-server is started before anything else is loaded, because it takes as long to be there as that takes to load.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from codex_app_server._runtime import child_process
from codex_app_server.errors import AppServerError

from ..runtime import processes, startup


def main() -> int:
    """Entry of the worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Before there is an app-server: ended early, this process must report that, and leave nothing below it.
    signals = startup.signal_descriptor(signal.SIGTERM)
    startup.survive_hang_up()
    processes.become_subreaper()
    line = startup.read_line(0)
    arguments = json.loads(line)
    # Before it is started: what it reads at its start is at least as new.
    started_at = time.monotonic()
    environ = {**os.environ, **arguments["environ"]}
    try:
        process = child_process.spawn(arguments["argv"], environ=environ, cwd=arguments["cwd"])
    except AppServerError as error:
        kind = getattr(error, "kind", None)
        print(json.dumps({"event": "exit", "reason": str(error), "stderr": [], "kind": kind}), flush=True)
        return 1
    from .loop import work

    return work(line, process, signals, started_at)


if __name__ == "__main__":
    sys.exit(main())
