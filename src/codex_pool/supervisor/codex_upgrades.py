"""CodexUpgrades: upgrades of codex, as requests, with the canary and what log and status show of them."""

from __future__ import annotations

import logging
import os
import shutil
from typing import Any

from codex_app_server.errors import StartError

from ..runtime import processes
from .arguments import SupervisorArguments
from .broker_child import BrokerProcess
from .canary_child import Canary
from .children import Children
from .commands import CommandError, Params, Result
from .core import SupervisorCore
from .effects import Effect
from .handover import KeptUpgrade
from .launchers import Launcher
from .slots import Build
from .steering import Steering
from .upgrade import UNDER_WAY, State, Upgrade
from .worker_children import WorkerProcesses

_log = logging.getLogger(__name__)


class CodexUpgrades:
    """See the module's docstring. `use` comes before all else."""

    def __init__(
        self, arguments: SupervisorArguments, core: SupervisorCore, steering: Steering, launcher: Launcher
    ) -> None:
        self._upgrade = Upgrade(core, build_at(arguments.argv[0]))
        self._steering = steering
        # Else a command was given that need not be codex.
        self._is_possible = arguments.configurable
        self._shown: dict[str, Any] = {}
        self.canary = Canary(arguments, launcher)

    def use(self, children: Children, workers: WorkerProcesses) -> None:
        """Have the canary be one of `children`; its databases are copies of those of `workers`."""
        self._children = children
        self._workers = workers

    @property
    def is_under_way(self) -> bool:
        """True from the request for an upgrade to its end."""
        return self._upgrade.state in UNDER_WAY

    def kept(self) -> KeptUpgrade:
        """Return the state that the next supervisor needs of the upgrades so far; none is under way."""
        before, wanted, version, state, problem = self._upgrade.kept()
        return KeptUpgrade(
            builds=self._upgrade.builds,
            before=before,
            wanted=wanted,
            version=version,
            state=state,
            problem=problem,
        )

    def restore(self, kept: KeptUpgrade) -> None:
        """Go on after the upgrades of a supervisor before."""
        self._upgrade.builds = kept.builds
        state: State = kept.state if kept.state in ("done", "failed") else ""  # type: ignore[assignment]
        self._upgrade.restore(kept.before, kept.wanted, kept.version, state, kept.problem)
        # The supervisor before has logged it.
        self._shown = self._upgrade.row

    def binary_of(self, build: int) -> str:
        """The path of a build."""
        return self._upgrade.builds[build].path

    def take(self, params: Params, environ: dict[str, str], now: float) -> Result:
        """Begin an upgrade to the file that is named, or to what the path that is in use has now.

        `environ` is as of `WorkerProcesses.start`. Raises CommandError.
        """
        path = params.get("codex_bin") or self._upgrade.build.path
        try:
            self._check(path)
            result = self._upgrade.begin(build_at(path))
        except CommandError as error:
            _log.info(f"upgrade is refused: {error}")
            raise
        _log.info(f"upgrade: {result['message']}")
        if result["changed"]:
            self._start_canary(path, environ, now, probe_turn=bool(params.get("probe_turn")))
        return result

    def step(self, now: float) -> list[Effect]:
        """Do what is next. Called after each event, and at `canary.until`."""
        if now >= self.canary.until and self.canary.child is not None:
            self._upgrade.failed(f"{self._path}: {self._at} has not ended in time")
            self.canary.child.kill()
        return self._upgrade.step(now)

    def show(self, broker: BrokerProcess, *, again: bool = False) -> None:
        """Send the broker the state of the upgrade, for status, if it has changed or is to be sent `again`; log it."""
        row = self._upgrade.row
        if row and (again or row != self._shown):
            before, self._shown = self._shown.get("state"), row
            if row["state"] != before:
                _log_state(row)
            broker.send({"upgrade": row})

    # The canary.

    @property
    def _path(self) -> str:
        return self._upgrade.builds[-1].path

    @property
    def _at(self) -> str:
        return f"its check at {self.canary.step}" if self.canary.step else "the start of its checks"

    def _start_canary(self, path: str, environ: dict[str, str], now: float, *, probe_turn: bool) -> None:
        try:
            child = self.canary.begin(path, self._workers.warm_home, environ, now, probe_turn=probe_turn)
        except StartError as error:
            self._upgrade.failed(f"{path} could not be tried out: {error}")
            return
        self._children.watch(child, self._on_canary)

    def _on_canary(self) -> None:
        child = self.canary.child
        assert child is not None
        records, ended = child.reports()
        for record in records:
            self.canary.take(record)
            match record:
                case {"event": "passed", "version": str(version)}:
                    self._upgrade.passed(version)
                case {"event": "failed", "reason": str(reason)}:
                    self._upgrade.failed(reason)
        if ended:
            how = self._children.ended(child)
            self.canary.ended()
            living = self._children.living()
            processes.sweep(os.getpid(), spare=living)
            processes.reap_orphans(living)
            self._upgrade.failed(f"{self._path} could not be tried out: {self._at} has ended: {how}")

    def _check(self, path: str) -> None:
        if not self._is_possible:
            raise CommandError("the app-servers of this pool are not started from a codex binary")
        if self._steering.mode.stopping:
            raise CommandError("the pool is stopping")
        if os.path.dirname(path) and not os.path.isabs(path):
            raise CommandError(f"{path} is relative; name the file by its absolute path on the daemon's machine")
        if shutil.which(path) is None:
            what = "not executable" if os.path.isfile(path) else "not a file" if os.path.exists(path) else "not there"
            raise CommandError(f"{path} is {what}; name a codex binary on the daemon's machine")


def build_at(path: str) -> Build:
    """The binary at a path, or of that name in PATH, as it is now. A link stays one: it may lead elsewhere later."""
    try:
        found = os.stat(shutil.which(path) or path)
    except OSError:
        return Build(path)
    return Build(path, f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}")


def _log_state(row: dict[str, Any]) -> None:
    version = f"{row['codexBin']} (codex {row['codexVersion']})"
    match row["state"]:
        case "replacing":
            _log.info(f"upgrade: {version} works; the workers are replaced")
        case "done":
            _log.info(f"upgrade: all workers run {version}")
        case "going back" | "failed":
            _log.error(f"upgrade to {row['codexBin']}: {row['problem']}")
