"""The canary as a child of the supervisor (see `canary`): one for each upgrade, which ends by itself.

from the canary    {"event": "step", "step"}  {"event": "passed", "version"}  {"event": "failed", "reason"}
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

from .arguments import SupervisorArguments
from .canary.arguments import CanaryArguments
from .child_process import Child
from .launchers import Launcher
from .restarted_child import RestartedChild
from .sqlite_homes import home_of, with_sqlite_home

# Without the turn, and of the turn.
CHECK_LIMIT_S = 180.0
TURN_LIMIT_S = 200.0


class Canary(RestartedChild):
    """Starts a canary. `until` is when it is killed; `step` the check that it is at, as it has reported last."""

    name = "canary"

    def __init__(self, arguments: SupervisorArguments, launcher: Launcher) -> None:
        super().__init__("codex_pool.supervisor.canary", launcher, longest_delay_s=math.inf)
        self._arguments = arguments
        self._directory = Path()
        self.until = math.inf
        self.step = ""

    def begin(self, path: str, databases: Path, environ: dict[str, str], now: float, *, probe_turn: bool) -> Child:
        """Try out the binary `path`. `databases` is a SQLite home of the pool. Raises StartError."""
        arguments = self._arguments
        home = home_of(Path(arguments.sqlite_root))
        self._directory = home / "codex-pool" / "canary" / f"{os.getpid()}-{self.starts}"
        started = CanaryArguments(
            argv=with_sqlite_home([path, *arguments.argv[1:]], self._directory / "sqlite"),
            cwd=arguments.cwd,
            environ=environ,
            initialize=arguments.initialize,
            home=str(home),
            databases=str(databases),
            directory=str(self._directory),
            probe_turn=probe_turn,
        )
        self.step = ""
        child = self.launch(started, now)
        self.until = now + CHECK_LIMIT_S + (TURN_LIMIT_S if probe_turn else 0.0)
        return child

    def take(self, record: dict[str, Any]) -> None:
        """Take a report."""
        super().take(record)
        if record.get("event") == "step":
            self.step = str(record["step"])

    def ended(self) -> None:
        """Note its end, after which there is nothing left of it."""
        self.child, self.until = None, math.inf
        shutil.rmtree(self._directory, ignore_errors=True)
