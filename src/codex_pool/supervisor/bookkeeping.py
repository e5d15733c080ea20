"""Files of an endpoint that its supervisor keeps: looked at every second, and made again when they were removed.

Nothing here raises or ends anything: what cannot be done is a problem, which status shows, and is tried again.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ..protocol.endpoints import EndpointError
from ..runtime.problems import Problems
from .lock import EndpointLock, EndpointTakenError
from .recheck import STEPS, Step, steps

LOOK_EVERY_S = 1.0


class Bookkeeping:
    """See the module's docstring. `holds`: the lock at its path is this process's, so that sockets may be bound."""

    def __init__(self, lock: EndpointLock, problems: Problems, log: Callable[[str], None]) -> None:
        self._lock = lock
        self._problems = problems
        self._log = log
        self._started: list[tuple[int, str]] = []
        self.holds = True

    def remember(self, started: list[tuple[int, str]], now: float) -> None:
        """Write down the processes of this pool, each as (pid, what)."""
        self._started = started
        found = self._lock.look()
        self._round(steps(found._replace(list=False)), now)

    def look(self, now: float) -> None:
        """Make again what was removed, and write what could not be written."""
        todo = steps(self._lock.look())
        for step in todo[:1]:
            if step not in self._problems:
                self._log(f"the {step} is not as it was left: it was removed or changed; it is made again")
        self._round(todo, now)

    def _round(self, todo: list[Step], now: float) -> None:
        do: dict[Step, Callable[[], None]] = {
            "runtime directory": self._lock.make_directory,
            "lock": self._lock.lock_again,
            "pid in the lock": self._lock.write_pid,
            "list of processes": lambda: self._lock.remember(self._started),
        }
        for step in STEPS:
            if step not in todo:
                self._problems.solved(step, now)
        for step in todo:
            done = self._problems.is_due(step, now) and self._try(step, do[step], now)
            if not done and step != "pid in the lock":
                break
        self.holds = not todo or self._lock.look().lock

    def _try(self, step: Step, do: Callable[[], None], now: float) -> bool:
        try:
            do()
        except (EndpointError, EndpointTakenError) as error:
            problem = str(error)
        except OSError as error:
            problem = f"{error.filename or self._lock.path_of(step)}: {error.strerror or os.strerror(error.errno or 0)}"
        else:
            self._problems.solved(step, now)
            return True
        self._problems.failed(step, problem, now)
        return False
