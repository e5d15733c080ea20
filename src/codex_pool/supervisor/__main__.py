"""Entry of the supervisor process."""

from __future__ import annotations

import sys

from codex_app_server.errors import StartError

from ..protocol.endpoints import EndpointError
from ..runtime import log, processes, startup
from .arguments import SupervisorArguments
from .child_process import Reports
from .handover import from_memory
from .launchers import LocalLauncher
from .lock import EndpointTakenError
from .loop import Supervisor
from .self_upgrade import release_signals, take_over_descriptor


def main() -> None:
    """Read the start arguments, and run the pool; its exit code is that of the process."""
    memory = take_over_descriptor()
    log.begin("supervisor", *sys.argv[1:2])
    processes.become_subreaper()
    if memory is None:
        taken = None
        arguments = startup.decode_arguments(startup.read_line(0), SupervisorArguments)
    else:
        taken = from_memory(memory)
        arguments = taken.arguments
    reports = Reports()
    try:
        supervisor = Supervisor(arguments, LocalLauncher(*sys.argv[1:2]), reports, taken)
        release_signals()
        code = supervisor.run()
    except (EndpointTakenError, EndpointError, StartError, OSError) as error:
        kind = error.kind if isinstance(error, StartError) else None
        reports.last({"event": "failed", "reason": str(error), "stderr": [], "kind": kind})
        code = 1
    sys.exit(code)


main()
