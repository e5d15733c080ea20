"""SelfUpgrade: another codex-pool for a daemon that runs, without a failed turn.

    --ask--> checking --fits--> this process becomes the other program --> replacing --all children are new--> done
               `--it does not fit--> failed                                    `--a child does not start--> failed

A check process of the installed files is given the state first. Then the supervisor executes them in place: it keeps
its pid, its children, their pipes, the lock and the listening sockets (see `handover`). After that gateway, ingress and
holder of the account are ended and started again, one after the other; then the broker, whose clients and workers come
back to the next one; then each worker is recycled. At the first that does not start nothing further is replaced: what
is left of the program before goes on.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from codex_app_server.errors import StartError

from ..runtime import log, startup
from .broker_child import BrokerProcess
from .children import Children
from .commands import CommandError, Result
from .core import SupervisorCore
from .effects import Effect
from .handover import Handover, as_memory, inherited
from .launchers import Launcher
from .restarted_child import RestartedChild

CHECK_LIMIT_S = 90.0
# For the end of a child and the start of the next, which take long on a machine that is short of CPU. One that ends at
# its start is tried so often. Workers have limits of their own.
START_LIMIT_S = 120.0
STARTS = 4
SETTLE_S = 1.0
# At the installed files.
LOOK_EVERY_S = 2.0
TAKE_OVER = "--take-over="
_HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PACKAGE = Path(__file__).parents[1]

_log = logging.getLogger(__name__)


class SelfUpgrade:
    """See the module's docstring. `state_of` gives the state of the supervisor; `old`: workers of the program before.

    `check` is the check process; `until` is when it is killed, or a child that is replaced has not started in time.
    """

    def __init__(self, launcher: Launcher, core: SupervisorCore, state_of: Callable[[], Handover]) -> None:
        self._core = core
        self._state_of = state_of
        self.check = RestartedChild("codex_pool.supervisor.handover_check", launcher, longest_delay_s=math.inf)
        self.until = math.inf
        self._files = _files()
        # What the check process has reported.
        self._fits, self._reason = False, ""
        self._old: frozenset[str] = frozenset()
        self._asked: set[str] = set()
        # The child that is to come next, "" for workers, and the starts of all before it; the failed starts of slots
        # before their workers were replaced.
        self._awaited, self._starts = "", 0
        self._failed_starts: dict[int, int] = {}
        self._state = ""
        self._problem = ""
        self._count = 0
        self._has_logged = False
        self._look_at = 0.0

    def use(
        self, children: Children, broker: BrokerProcess, restarted: Sequence[RestartedChild], log_file: str | None
    ) -> None:
        """Have these processes be those that are replaced."""
        self._children, self._broker, self._restarted = children, broker, restarted
        self._log_file = log_file

    @property
    def count(self) -> int:
        """Number of times that this process has become another program."""
        return self._count

    @property
    def is_under_way(self) -> bool:
        """True from the request for an upgrade to its end."""
        return self._state in ("checking", "replacing")

    def taken_over(self, count: int, workers: frozenset[str], from_version: str) -> None:
        """Begin to replace the children of the program before."""
        self._state, self._count, self._old = "replacing", count, workers
        _log.info(
            f"upgrade: codex-pool {running_version()} has taken over from {from_version}; its children are replaced"
        )

    def ask(self) -> Result:
        """Begin an upgrade to the files that are installed now. Raises CommandError."""
        if self.is_under_way:
            return self._result("an upgrade of codex-pool is under way already", changed=False)
        if not hasattr(os, "memfd_create"):
            raise CommandError("an upgrade of codex-pool in place needs Linux; restart the daemon")
        if not self._core.is_ready:
            raise CommandError("the pool is still starting; repeat this once it is ready")
        self._state, self._problem, self._reason = "checking", "", ""
        try:
            child = self.check.launch(self._state_of(), 0.0)
        except StartError as error:
            self._failed(str(error))
            return self._result(f"codex-pool cannot be upgraded: {error}", changed=False)
        self._children.watch(child, self._on_check)
        return self._result("codex-pool is replaced by the one that is installed; turns go on", changed=True)

    def _on_check(self) -> None:
        child = self.check.child
        assert child is not None
        records, ended = child.reports()
        for record in records:
            match record:
                case {"event": "fits"}:
                    self._fits = True
                case {"event": "failed", "reason": str(reason)}:
                    self._reason = reason
        if ended:
            how = self._children.ended(child)
            self.check.child, self.until = None, math.inf
            if not self._fits:
                self._failed(self._reason or f"the codex-pool that is installed does not start: {how}; see the log")

    def step(self, now: float) -> list[Effect]:
        """Do what is next. Called after each event, and at `until`."""
        if self._state == "checking" and self.check.child is not None:
            if self.until == math.inf:
                self.until = now + CHECK_LIMIT_S
            elif now >= self.until:
                self.check.child.kill()
        elif self._state == "checking" and self._fits:
            self._become()
        elif self._state == "replacing":
            return self._replace(now)
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._look()
        return []

    @property
    def row(self) -> dict[str, Any]:
        """The row of status."""
        return {
            "version": running_version(),
            # Whether other files are installed than this process has loaded.
            "isOutdated": self._has_logged,
            # "", "checking", "replacing", "done" or "failed", with the reason.
            "state": self._state,
            "problem": self._problem,
            "upgrades": self._count,
        }

    # The other program.

    def _become(self) -> None:
        """Execute the installed program in this process; comes back only if that cannot be."""
        self._fits = False
        state = self._state_of()
        state.loop.upgrades = self._count + 1
        named = () if self._log_file is None else (self._log_file,)
        try:
            memory = as_memory(state)
        except OSError as error:
            self._failed(f"its state cannot be handed over: {error.strerror}")
            return
        argv = [*startup.python("codex_pool.supervisor", *named), f"{TAKE_OVER}{memory}"]
        _log.info("upgrade: the supervisor becomes the codex-pool that is installed")
        log.settle(SETTLE_S)
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
        try:
            with inherited((*state.descriptors, memory)):
                os.execv(argv[0], argv)
        except OSError as error:
            self._failed(f"{argv[0]} cannot be executed: {error.strerror}")
        finally:
            os.close(memory)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)

    # The children of the program before.

    def _replace(self, now: float) -> list[Effect]:
        awaited = self._next_child()
        starts = sum(each.starts for each in self._restarted) + self._broker.starts
        if awaited != self._awaited:
            self._awaited, self._starts, self.until = awaited, starts, now + START_LIMIT_S if awaited else math.inf
        if awaited:
            if now >= self.until or starts > self._starts + STARTS:
                what = "has not started in time" if now >= self.until else f"has ended at its start {STARTS} times"
                self._stop(f"the {awaited} of codex-pool {running_version()} {what}")
            return []
        left = [slot for slot in self._core.slots if slot.worker is not None and slot.worker.name in self._old]
        for slot in left:
            if slot.failed_starts > self._failed_starts.setdefault(slot.number, slot.failed_starts):
                self._stop(f"slot {slot.number}: its new worker could not start: {slot.problem}")
                self._core.keep(left)
                return []
        out: list[Effect] = []
        for slot in left:
            worker = slot.worker
            if worker is not None and worker.state == "ready" and not slot.renewal:
                out += self._core.renew(worker.name, f"upgrade of codex-pool to {running_version()}", now)
        if not any(slot.worker is not None and slot.worker.state == "ready" for slot in left):
            self._state, self._old = "done", frozenset()
            _log.info(f"upgrade: all processes run codex-pool {running_version()}")
        return out

    def _next_child(self) -> str:
        """Have the next child of the program before end; return the name of the one that is awaited, "" for none."""
        for each in self._restarted:
            if each.child is None and each.due == math.inf:
                continue
            if each.child is None or not self._is_new(each.name, each.child.is_taken_over, each.child.close_stdin):
                return each.name
            if not each.child.last_report:
                return each.name
        broker = self._broker.child
        # An orderly end would remove what the next one reads.
        if broker is None or not self._is_new("broker", broker.is_taken_over, broker.kill) or not broker.last_report:
            return "broker"
        return ""

    def _is_new(self, name: str, is_taken_over: bool, end: Callable[[], None]) -> bool:
        if is_taken_over and name not in self._asked:
            self._asked.add(name)
            end()
        return not is_taken_over

    # The rest.

    def _look(self) -> None:
        """Log that other files are installed than this process has loaded: what is started next has them."""
        if not self._has_logged and _files() != self._files:
            self._has_logged = True
            _log.warning(
                f"another codex-pool is installed than the daemon runs ({running_version()}): processes that are "
                "started from now on are of the other one; `codex-pool upgrade --self` replaces all"
            )

    def _failed(self, problem: str) -> None:
        self._state, self._problem = "failed", f"{problem}; the daemon goes on with codex-pool {running_version()}"
        _log.error(f"upgrade of codex-pool: {self._problem}")

    def _stop(self, problem: str) -> None:
        """Replace nothing further."""
        remedy = "install one that works, and repeat `codex-pool upgrade --self`"
        self._state, self._old, self.until = "failed", frozenset(), math.inf
        self._problem = f"{problem}; what was not replaced yet goes on; {remedy}"
        _log.error(f"upgrade of codex-pool: {self._problem}")

    def _result(self, message: str, *, changed: bool) -> Result:
        return {"changed": changed, "message": message, "codexPool": self.row}


def take_over_descriptor() -> int | None:
    """The descriptor with the state, in a process that has become this program; it is taken off `sys.argv`."""
    if sys.argv[-1].startswith(TAKE_OVER):
        return int(sys.argv.pop().removeprefix(TAKE_OVER))
    return None


def release_signals() -> None:
    """Take the signals that were held back while this process became another program."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)


def running_version() -> str:
    """The version of codex-pool that this process has loaded."""
    from .. import __version__

    return __version__


def _files() -> tuple[tuple[int, int, int], ...]:
    """Identity of the installed packages; an installation writes all files."""
    found = []
    for path in (_PACKAGE / "__init__.py", _PACKAGE.with_name("codex_app_server") / "__init__.py"):
        try:
            status = path.stat()
        except OSError:
            found.append((0, 0, 0))
            continue
        found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)
