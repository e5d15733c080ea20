"""Checks that the codex-pool that is installed can take a supervisor over, in a process of its own.

    codex_pool.supervisor.handover_check    start arguments: the state, one JSON line on stdin
                                            stdout: {"event": "fits", "version"} or {"event": "failed", "reason"}

It imports all that the next supervisor will import, from the files that are there now.
"""

from __future__ import annotations

import json
import os
import sys

from ..runtime import log, startup
from . import loop
from .handover import HandoverError, decode
from .self_upgrade import running_version


def main() -> int:
    """Entry of the process."""
    log.begin("handover check", *sys.argv[1:2])
    line = startup.read_line(0)
    try:
        decode(line)
        record = {"event": "fits", "version": running_version(), "supervisor": loop.__name__}
    except HandoverError as error:
        record = {"event": "failed", "reason": str(error)}
    os.write(1, json.dumps(record).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
