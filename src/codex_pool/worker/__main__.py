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

from codex_app_server import _process
from codex_app_server.errors import AppServerError
from codex_pool import processes, start


def main() -> int:
    """Entry of the worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Before there is an app-server: whoever ends this process early is to hear from it, and to leave nothing below it.
    signals = start.signal_descriptor(signal.SIGTERM)
    start.survive_hang_up()
    processes.become_subreaper()
    line = start.read_line(0)
    arguments = json.loads(line)
    # Before it is there: what it reads at its start is at least as new.
    started_at = time.monotonic()
    environ = {**os.environ, **arguments["environ"]}
    try:
        process = _process.spawn(arguments["argv"], environ=environ, cwd=arguments["cwd"])
    except AppServerError as error:
        kind = getattr(error, "kind", None)
        print(json.dumps({"event": "exit", "reason": str(error), "stderr": [], "kind": kind}), flush=True)
        return 1
    from codex_pool.worker.loop import work

    return work(line, process, signals, started_at)


if __name__ == "__main__":
    sys.exit(main())
