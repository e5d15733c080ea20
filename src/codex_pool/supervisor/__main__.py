"""Entry of the supervisor process."""

from __future__ import annotations

import sys

from codex_app_server.errors import StartError

from ..protocol.endpoints import EndpointError
from ..runtime import log, processes, startup
from .arguments import SupervisorArguments
from .child_process import Reports
from .launchers import LocalLauncher
from .lock import EndpointTakenError
from .loop import Supervisor


def main() -> None:
    """Read the start arguments, and run the pool; its exit code is that of the process."""
    log.begin("supervisor", *sys.argv[1:2])
    processes.become_subreaper()
    arguments = startup.decode_arguments(startup.read_line(0), SupervisorArguments)
    reports = Reports()
    try:
        code = Supervisor(arguments, LocalLauncher(*sys.argv[1:2]), reports).run()
    except (EndpointTakenError, EndpointError, StartError, OSError) as error:
        kind = error.kind if isinstance(error, StartError) else None
        reports.last({"event": "failed", "reason": str(error), "stderr": [], "kind": kind})
        code = 1
    sys.exit(code)


main()
