"""The workers as children of the supervisor (see codex_pool.worker), each with a SQLite home.

to a worker      {"limits": {...}}: other limits of turns, as of TurnLimits
                 {"broker": "new"}: the broker that it is registered with has died and been replaced
                 {"stop": "acknowledged"}: it is to end once its turns are over, and its clients have all that it
                 has for them
from a worker    {"event": "ready", "app_server_pid", "codex_version"}  {"event": "memory", "memory_bytes"}
                 {"event": "load", "turns", "threads", "running", "lost_lines"}
                 {"event": "exit", "reason", "stderr", "kind", "lost_lines", "tally": as of `protocol.tally`, "events"}
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from codex_app_server.errors import StartError

from ..runtime import processes
from ..runtime.processes import ProcessId
from ..runtime.startup import as_utf8
from ..worker.arguments import WorkerArguments
from .arguments import SupervisorArguments
from .child_process import Child
from .handover import KeptWorkers
from .launchers import Launcher
from .sqlite_homes import SqliteHomes, with_sqlite_home

_log = logging.getLogger(__name__)


class Ended(NamedTuple):
    """The end of a worker; `stderr` and `kind` are those of its app-server, as it has reported. `tally`: what it has
    counted, None if it has not ended in order."""

    reason: str
    stderr: tuple[str, ...]
    kind: str | None
    tally: list[Any] | None = None


class WorkerProcesses:
    """Starts workers. `children`: those that run, by name; `endpoint`: where they connect to the broker; `tracer`: the
    path of the tracer's socket, "" without one."""

    def __init__(
        self,
        arguments: SupervisorArguments,
        endpoint: str,
        launcher: Launcher,
        kept: KeptWorkers | None = None,
        *,
        tracer: str = "",
    ) -> None:
        self._arguments = arguments
        self._tracer = tracer
        self._endpoint = endpoint
        self._launcher = launcher
        self._used_homes: dict[str, Path] = {}
        self._app_servers: dict[str, ProcessId] = {}
        self.children: dict[str, Child] = {}
        root = Path(arguments.sqlite_root)
        if kept is None:
            self._homes = SqliteHomes(root, arguments.options.workers)
            return
        self._homes = SqliteHomes.taken_over(
            root,
            [Path(path) for path in kept.homes],
            {Path(path): fd for path, fd in kept.locks.items()},
            {Path(path): slot for path, slot in kept.in_use.items()},
        )
        self._used_homes = {name: Path(path) for name, path in kept.used_homes.items()}
        self._app_servers = {name: ProcessId(*process) for name, process in kept.app_servers.items()}
        self.children = {name: Child.taken_over(child) for name, child in kept.children.items()}

    def kept(self) -> KeptWorkers:
        """Return the state that the next supervisor needs to go on with the workers."""
        homes = self._homes
        return KeptWorkers(
            children={name: child.kept() for name, child in self.children.items()},
            used_homes={name: as_utf8(path) for name, path in self._used_homes.items()},
            app_servers={name: (process.pid, process.start_ticks) for name, process in self._app_servers.items()},
            homes=[as_utf8(path) for path in homes.paths],
            locks={as_utf8(path): fd for path, fd in homes.locks.items()},
            in_use={as_utf8(path): slot for path, slot in homes.in_use.items()},
        )

    @property
    def warm_home(self) -> Path:
        """The SQLite home of a slot, to be copied."""
        return self._homes.paths[0]

    def take_home(self, slot: int) -> Path:
        """A directory for the databases of a worker of this slot. Raises OSError."""
        return self._homes.take(slot)

    def start(self, slot: int, name: str, home: Path, environ: dict[str, str], binary: str) -> Child:
        """Start a worker on a home; `binary` is its codex. `environ` goes on top of the supervisor's environment.

        Raises StartError.
        """
        arguments, options = self._arguments, self._arguments.options
        argv = [binary, *arguments.argv[1:]]
        if arguments.configurable:
            argv = with_sqlite_home(argv, home)
        started = WorkerArguments(
            slot=slot,
            worker=name,
            endpoint=self._endpoint,
            argv=argv,
            cwd=arguments.cwd,
            environ={**environ, "CODEX_SQLITE_HOME": str(home)},
            initialize=arguments.initialize,
            turn_idle_limit_s=options.turn_idle_limit_s,
            turn_wall_limit_s=options.turn_wall_limit_s,
            approval_timeout_s=options.approval_timeout_s,
            tracer=self._tracer,
        )
        try:
            # Should the supervisor be killed, no other pool takes the home before the worker is gone.
            child = self._launcher.launch("codex_pool.worker", started, inherit=(self._homes.lock_of(home),))
        except StartError:
            self._homes.give_back(home)
            raise
        self._used_homes[name] = home
        self.children[name] = child
        return child

    def app_server_started(self, name: str, pid: int) -> bool:
        """Keep which process is the app-server of a worker; return True if it still exists."""
        process = processes.identify(pid)
        if process is not None:
            self._app_servers[name] = process
        return process is not None

    def started(self) -> list[tuple[int, str]]:
        """The processes that a supervisor after this one has to end, should this one be killed."""
        workers = [(child.pid, f"worker {name}") for name, child in self.children.items()]
        return workers + [(process.pid, f"app-server of {name}") for name, process in self._app_servers.items()]

    def remove(self, name: str) -> Child:
        """Take a worker that has ended off `children`."""
        self._app_servers.pop(name, None)
        return self.children.pop(name)

    def ended(self, name: str, child: Child, how: str, living: frozenset[int]) -> Ended:
        """Fence a worker that was removed, before its death is reported: what it could not end itself is ended.

        `living`: the pids of the supervisor's other children.
        """
        reported = child.last_report if child.last_report.get("event") == "exit" else {}
        reason = str(reported.get("reason", how))
        swept = processes.sweep(os.getpid(), spare=living)
        processes.reap_orphans(living)
        _log.warning(f"{name} has ended, noticed by its sentinel: {reason}; {len(swept)} processes swept")
        stderr = tuple(str(line) for line in reported.get("stderr", ()))
        for line in stderr[-5:]:
            _log.warning(f"{name} stderr: {line}")
        for event in reported.get("events", ()):
            _log.warning(f"{name} event: {event}")
        self._homes.give_back(self._used_homes.pop(name))
        kind = reported.get("kind")
        return Ended(reason, stderr, None if kind is None else str(kind), reported.get("tally"))

    def close(self) -> None:
        """Release the homes."""
        self._homes.close()
