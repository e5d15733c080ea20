"""RestartedChild: a child of the supervisor that is replaced alone, however it ends, and never ends the pool.

to the child      {"ping": number}
from the child    any report, such as {"event": "pong", "lost_lines"}, is a sign of life
"""

from __future__ import annotations

import logging
import math
from typing import Any

import msgspec

from codex_app_server._runtime.backoff import backoff_s

from .child_process import Child
from .handover import KeptEntrance
from .launchers import Launcher

# Delay before it is replaced the first time; after so long without a death it is that again.
BACKOFF_FIRST_S = 0.05
STABLE_S = 30.0
# Counted, not timed: the supervisor may have been stopped itself.
UNANSWERED_PINGS = 5
# Until its first report: on a machine that is short of CPU it takes long to load.
UNANSWERED_PINGS_AT_START = 30

_log = logging.getLogger(__name__)


class RestartedChild:
    """See the module's docstring. `child` is None while there is none; `due` is when it is to be started, infinite
    while it is not wanted. `longest_delay_s` is the longest delay before it is replaced.
    """

    name = "child"

    def __init__(self, module: str, launcher: Launcher, *, longest_delay_s: float) -> None:
        self._module = module
        self._launcher = launcher
        self._longest_delay_s = longest_delay_s
        self._started_at = 0.0
        self._failures = 0
        self._unanswered_pings = 0
        self.child: Child | None = None
        self.due = math.inf
        self.starts = 0

    def start(self, now: float) -> Child:
        """Start it. Raises StartError."""
        raise AssertionError("each kind of child has arguments of its own")

    def launch(self, arguments: msgspec.Struct, now: float, inherit: tuple[int, ...] = ()) -> Child:
        """Start it with these arguments and descriptors. Raises StartError."""
        self._started_at, self._unanswered_pings = now, 0
        self.child = self._launcher.launch(self._module, arguments, inherit=inherit)
        self.starts += 1
        return self.child

    def take(self, record: dict[str, Any]) -> None:
        """Take a report: it is alive."""
        self._unanswered_pings = 0

    def ping(self) -> bool:
        """Ask for a sign of life; return True if it is killed, because it has not given any for too long."""
        if self.child is None:
            return False
        if self._unanswered_pings >= (UNANSWERED_PINGS if self.child.last_report else UNANSWERED_PINGS_AT_START):
            self.child.kill()
            return True
        self._unanswered_pings += 1
        self.child.send({"ping": self._unanswered_pings})
        return False

    def died(self, now: float) -> float:
        """Note its death, or a start that failed; return in how many seconds it is to be started again."""
        self.child = None
        if now - self._started_at >= STABLE_S:
            self._failures = 0
        delay_s = backoff_s(self._failures, BACKOFF_FIRST_S, self._longest_delay_s)
        self._failures += 1
        self.due = now + delay_s
        return delay_s

    def kept(self) -> KeptEntrance:
        """Return the state that the next supervisor needs to go on with this child."""
        return KeptEntrance(
            child=None if self.child is None else self.child.kept(),
            starts=self.starts,
            due=None if self.due == math.inf else self.due,
        )

    def restore(self, kept: KeptEntrance) -> None:
        """Go on with a child of before."""
        self.child = None if kept.child is None else Child.taken_over(kept.child)
        self.starts, self.due = kept.starts, math.inf if kept.due is None else kept.due

    def close(self) -> None:
        """Close what the supervisor holds for it."""


class Entrance(RestartedChild):
    """A child that lets clients in. One that has never been ready, for a reason that it gives, is a failed start.

        from the child    {"event": "ready" | "failed", "reason"}

    `is_wanted`: the pool has it. `was_ready`: it has let clients in, or is not wanted. `failure`: the reason why it
    cannot start.
    """

    def __init__(self, module: str, launcher: Launcher, *, longest_delay_s: float, is_wanted: bool) -> None:
        super().__init__(module, launcher, longest_delay_s=longest_delay_s)
        self.is_wanted = is_wanted
        self.due = 0.0 if is_wanted else math.inf
        self.was_ready = not is_wanted
        self.failure = ""

    def restore(self, kept: KeptEntrance) -> None:
        """Go on with a child of before."""
        super().restore(kept)
        self.was_ready = self.was_ready or kept.was_ready

    def take(self, record: dict[str, Any]) -> None:
        """Take a report."""
        super().take(record)
        match record:
            case {"event": "failed", "reason": str(reason)}:
                if self.was_ready:
                    _log.warning(reason)
                else:
                    self.failure = reason
            case {"event": "ready"}:
                self.was_ready = True
