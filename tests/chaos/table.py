"""The table: every fault, at every process, in every phase, and what the caller must see, or why nothing is to be seen.

Patterns are matched at the beginning of what is seen (see driver.py for its form).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

FAULTS = (
    "SIGKILL",
    "SIGSTOP",
    "SIGTERM",
    "exit 0",
    "stdout closed",
    "stderr flood",
    "100 MB line",
    "half a line",
    "bad UTF-8",
    "duplicate response id",
    "-32001 storm",
    "turn never completed",
    "requests never answered",
)
TARGETS = ("app-server", "worker", "broker", "supervisor", "client")
PHASES = ("starting", "idle", "mid-turn", "draining")


@dataclass(frozen=True)
class Run:
    """This cell is run; patterns of what must be seen."""

    # Of the start of the pool ("answered" when it is ready), only in the phase starting.
    start: str = "answered"
    # Of the caller's running turn.
    turn: str | None = None
    # Of a request on the caller's thread after the fault, and its deadline.
    request: str | None = None
    request_timeout_s: float = 30.0
    # Of the caller's next turn, on the same thread.
    then: str | None = "completed"
    # Of the client that is at fault.
    victim: str | None = None
    # Of a turn of another client on another worker.
    bystander: str = "completed"
    # Workers replaced.
    restarts: int | None = None
    # Why the pool has ended.
    failure: str | None = None
    # Words that stand in the pool's log.
    log: tuple[str, ...] = ()
    # On the real binary; with `hang` the model never ends the turn.
    real: bool = False
    hang: bool = False
    # The turn may end before it is looked at.
    open_gate_first: bool = False
    # In the quick part, which `make test` runs.
    quick: bool = False
    scenario: dict[str, Any] = field(default_factory=dict)
    pool: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NotApplicable:
    reason: str


@dataclass(frozen=True)
class Todo:
    """What is missing before it can be run, and how it will be."""

    what: str
    run: Run | None = None


Verdict = Run | NotApplicable | Todo


@dataclass(frozen=True)
class Cell:
    fault: str
    target: str
    phase: str
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.fault}, {self.target}, {self.phase}"


def cells() -> list[Cell]:
    """All of them, in the order of FAULTS, TARGETS, PHASES."""
    return [Cell(*key, VERDICTS[key]) for key in itertools.product(FAULTS, TARGETS, PHASES)]


VERDICTS: dict[tuple[str, str, str], Verdict] = {}


def _put(fault: str, target: str, **by_phase: Verdict) -> None:
    for phase in PHASES:
        key = (fault, target, phase)
        assert key not in VERDICTS, key
        VERDICTS[key] = by_phase[phase.replace("-", "_")]


def _row(fault: str, target: str, verdict: Verdict) -> None:
    """The same in all phases."""
    _put(fault, target, starting=verdict, idle=verdict, mid_turn=verdict, draining=verdict)


# app-server

DRAINING = Todo("recycling")
KILLED = r"has ended, noticed by its sentinel: the app-server has ended \(killed by SIGKILL\)"
ENDED = r"has ended, noticed by its sentinel: the app-server has ended \(exit code 0\)"
LOST = r"lost: worker \S+ died: the app-server has ended \({}\)"

_put(
    "SIGKILL",
    "app-server",
    starting=Run(restarts=1, log=(KILLED,)),
    idle=Run(real=True, restarts=1, log=(KILLED,)),
    mid_turn=Run(real=True, hang=True, turn=LOST.format("killed by SIGKILL"), restarts=1, log=(KILLED,), quick=True),
    draining=DRAINING,
)
_put(
    "SIGSTOP",
    "app-server",
    starting=Run(restarts=1, log=("killing .*: not ready within 30 s",)),
    idle=Todo("probes"),
    mid_turn=Todo("probes"),
    draining=Todo("probes"),
)
_put(
    "SIGTERM",
    "app-server",
    starting=Run(restarts=1, log=(r"the app-server has ended \(killed by SIGTERM\)",)),
    idle=Run(real=True, restarts=1, log=(ENDED,)),
    mid_turn=Run(real=True, hang=True, turn=LOST.format("exit code 0"), restarts=1, log=(ENDED,)),
    draining=DRAINING,
)
_put(
    "exit 0",
    "app-server",
    starting=Run(restarts=1, log=(ENDED,)),
    idle=Run(restarts=1, log=(ENDED,)),
    mid_turn=Run(turn=LOST.format("exit code 0"), restarts=1, log=(ENDED,)),
    draining=DRAINING,
)
_put(
    "stdout closed",
    "app-server",
    starting=Run(restarts=1, log=("the app-server has ended",)),
    idle=Run(restarts=1, log=("the app-server has ended",)),
    # It does not want to end either, and is killed before anybody hears of it.
    mid_turn=Run(
        turn=LOST.format("killed by SIGKILL"), restarts=1, log=(KILLED,), scenario={"ignore": ["stdin", "SIGTERM"]}
    ),
    draining=DRAINING,
)
_put(
    "stderr flood",
    "app-server",
    starting=Run(restarts=0),
    idle=Run(restarts=0),
    mid_turn=Run(turn="completed", open_gate_first=True, restarts=0),
    draining=DRAINING,
)
_put(
    "100 MB line",
    "app-server",
    starting=Run(restarts=0),
    idle=Run(restarts=0),
    mid_turn=Run(turn=r"failed: .*a line of 104857600 bytes .*is beyond the size cap", restarts=0),
    draining=DRAINING,
)
_put(
    "half a line",
    "app-server",
    # And then it ends.
    starting=Run(restarts=1, log=(ENDED,)),
    # The answer to the next request is glued to it: its caller is told by its deadline, the one after is fine.
    idle=Run(
        request="RequestTimeoutError: no answer to thread/name/set within",
        request_timeout_s=2.0,
        restarts=0,
        log=("ignored a line of the app-server",),
    ),
    mid_turn=Run(turn=LOST.format("exit code 0"), restarts=1),
    draining=DRAINING,
)
_put(
    "bad UTF-8",
    "app-server",
    starting=Run(restarts=0),
    idle=Run(restarts=0),
    mid_turn=Run(turn="completed", open_gate_first=True, restarts=0),
    draining=DRAINING,
)
_put(
    "duplicate response id",
    "app-server",
    starting=Run(restarts=0),
    idle=Run(request="answered", restarts=0),
    mid_turn=Run(turn="completed", open_gate_first=True, restarts=0),
    draining=DRAINING,
)
_put(
    "-32001 storm",
    "app-server",
    starting=Run(restarts=1, log=("refused initialize",)),
    idle=Todo("retries inside"),
    mid_turn=Todo("retries inside"),
    draining=DRAINING,
)
_put(
    "turn never completed",
    "app-server",
    starting=NotApplicable("no turn runs before the pool is ready"),
    idle=NotApplicable("no turn runs that could end"),
    mid_turn=Todo("watchdog"),
    draining=DRAINING,
)
_put(
    "requests never answered",
    "app-server",
    starting=Run(restarts=1, log=("killing .*: not ready within 30 s",)),
    idle=Todo("request deadlines and probes"),
    mid_turn=Todo("request deadlines and probes"),
    draining=DRAINING,
)

# worker

GONE = r"lost: worker \S+ died: {}"
NUMBERED = (
    "a worker's answers go by the call's number, which is forgotten with the first: what is doubled is its app-server's"
)

_put(
    "SIGKILL",
    "worker",
    starting=Run(restarts=1, log=("has ended, noticed by its sentinel: killed by SIGKILL",)),
    idle=Run(real=True, restarts=1, log=("has ended, noticed by its sentinel: killed by SIGKILL",)),
    mid_turn=Run(real=True, hang=True, turn=GONE.format("killed by SIGKILL"), restarts=1, quick=True),
    draining=DRAINING,
)
_put(
    "SIGSTOP",
    "worker",
    starting=Run(restarts=1, log=("killing .*: not ready within 30 s",)),
    idle=Run(restarts=1, log=("killing .*: no beat for 10 s",)),
    mid_turn=Run(turn=GONE.format("killed by SIGKILL"), restarts=1, log=("killing .*: no beat for 10 s",)),
    draining=DRAINING,
)
_put(
    "SIGTERM",
    "worker",
    starting=Run(restarts=1, log=("asked this worker to stop by SIGTERM",)),
    idle=Run(restarts=1, log=("asked this worker to stop by SIGTERM",)),
    mid_turn=Run(turn=GONE.format("the supervisor asked this worker to stop by SIGTERM"), restarts=1),
    draining=DRAINING,
)
_put(
    "exit 0",
    "worker",
    starting=Run(restarts=1, log=("noticed by its sentinel: exit code 0",)),
    idle=Run(restarts=1, log=("noticed by its sentinel: exit code 0",)),
    mid_turn=Run(turn=GONE.format("exit code 0"), restarts=1),
    draining=DRAINING,
)
_put(
    "stdout closed",
    "worker",
    # Its sentinel says that it has ended, so it is ended.
    starting=Run(restarts=1, log=("noticed by its sentinel: killed by SIGKILL",)),
    idle=Run(restarts=1, log=("noticed by its sentinel: killed by SIGKILL",)),
    mid_turn=Run(turn=GONE.format("killed by SIGKILL"), restarts=1),
    draining=DRAINING,
)
for _fault in ("stderr flood", "100 MB line", "half a line", "bad UTF-8"):
    # Its stderr is the pool's log, its stdout the supervisor's to read: nobody else notices.
    _put(
        _fault,
        "worker",
        starting=Run(restarts=0),
        idle=Run(restarts=0),
        mid_turn=Run(turn="completed", open_gate_first=True, restarts=0),
        draining=DRAINING,
    )
for _fault in ("duplicate response id", "-32001 storm"):
    _row(_fault, "worker", NotApplicable(NUMBERED))
_row("turn never completed", "worker", NotApplicable("a worker ends no turn by itself: its app-server does, see there"))
# Wedged: it beats, and its loop does not turn.
_put(
    "requests never answered",
    "worker",
    starting=Run(restarts=1, log=("killing .*: not ready within 30 s",)),
    idle=Todo("wedged workers", Run(restarts=1, log=("its loop has not turned for 10 s: wedged",))),
    mid_turn=Todo(
        "wedged workers",
        Run(turn=GONE.format("killed by SIGKILL"), restarts=1, log=("its loop has not turned for 10 s: wedged",)),
    ),
    draining=DRAINING,
)

# broker

for _fault in ("SIGKILL", "SIGTERM", "exit 0", "stdout closed"):
    how = {"SIGKILL": "killed by SIGKILL", "SIGTERM": "killed by SIGTERM", "exit 0": "exit code 0"}.get(_fault, "")
    _put(
        _fault,
        "broker",
        starting=Todo("broker restarts", Run(restarts=0, log=(f"the broker has ended.*{how}",))),
        idle=Todo("broker restarts", Run(restarts=0, log=(f"the broker has ended.*{how}",))),
        mid_turn=Todo(
            "broker restarts",
            Run(
                turn="completed",
                open_gate_first=True,
                restarts=0,
                log=(f"the broker has ended.*{how}",),
                real=_fault == "SIGKILL",
                quick=_fault == "SIGKILL",
            ),
        ),
        draining=DRAINING,
    )
for _fault in ("SIGSTOP", "requests never answered"):
    _put(
        _fault,
        "broker",
        starting=Todo("broker restarts", Run(restarts=0)),
        idle=Todo("broker restarts", Run(restarts=0)),
        mid_turn=Todo("broker restarts", Run(turn="completed", open_gate_first=True, restarts=0)),
        draining=DRAINING,
    )
for _fault in ("stderr flood", "100 MB line", "half a line", "bad UTF-8"):
    _put(
        _fault,
        "broker",
        starting=Run(restarts=0),
        idle=Run(restarts=0),
        mid_turn=Run(turn="completed", open_gate_first=True, restarts=0),
        draining=DRAINING,
    )
for _fault in ("duplicate response id", "-32001 storm", "turn never completed"):
    _row(_fault, "broker", NotApplicable("a broker passes answers and ends on: see app-server and client"))

# supervisor: with it goes the pool, and nothing of it is left.

CLOSED = "TransportClosedError: "
for _fault in ("SIGKILL", "SIGTERM", "exit 0"):
    _over = {"turn": CLOSED, "then": CLOSED, "bystander": CLOSED, "failure": "its supervisor died"}
    _put(
        _fault,
        "supervisor",
        starting=Run(start="PoolStartError: the pool could not start .*: its supervisor died", then=None),
        idle=Run(**{**_over, "turn": None}),
        mid_turn=Run(**_over, quick=_fault == "SIGKILL"),
        draining=DRAINING,
    )
for _fault in ("SIGSTOP", "requests never answered"):
    # The pool goes on without it; closing it ends everything all the same.
    _put(
        _fault,
        "supervisor",
        starting=Run(start="PoolStartError: the pool was not ready within 90 s", then=None),
        idle=Run(restarts=0),
        mid_turn=Run(turn="completed", open_gate_first=True, restarts=0),
        draining=DRAINING,
    )
_put(
    "stdout closed",
    "supervisor",
    # To its parent that is its end.
    starting=Run(start="PoolStartError: the pool could not start .*: its supervisor died", then=None),
    idle=Run(restarts=0, failure="its supervisor died"),
    mid_turn=Run(turn="completed", open_gate_first=True, restarts=0, failure="its supervisor died"),
    draining=DRAINING,
)
for _fault in ("stderr flood", "100 MB line", "half a line", "bad UTF-8"):
    _put(
        _fault,
        "supervisor",
        starting=Run(restarts=0),
        idle=Run(restarts=0),
        mid_turn=Run(turn="completed", open_gate_first=True, restarts=0),
        draining=DRAINING,
    )
for _fault in ("duplicate response id", "-32001 storm", "turn never completed"):
    _row(_fault, "supervisor", NotApplicable("a supervisor answers no requests and runs no turns"))

# client: what a bystander sees, and what the pool makes of it.

for _fault in ("SIGKILL", "SIGSTOP", "SIGTERM", "exit 0"):
    _put(
        _fault,
        "client",
        starting=Run(victim="gone", restarts=0),
        idle=Run(victim="gone", restarts=0),
        mid_turn=Run(victim="gone", turn="interrupted", restarts=0, quick=_fault == "SIGKILL"),
        draining=DRAINING,
    )
for _fault in ("stdout closed", "stderr flood"):
    _row(_fault, "client", NotApplicable("nobody reads a client's stdout or stderr"))
SAME = NotApplicable("what a client sends is read by the broker, whatever its worker is about to do: see mid-turn")
NO_SESSION = NotApplicable("before its Welcome a client has nothing to say but Hello; see raw bytes")
_put(
    "100 MB line",
    "client",
    starting=NO_SESSION,
    idle=Run(victim="answered", restarts=0),
    mid_turn=Run(victim="answered", turn="interrupted", restarts=0),
    draining=SAME,
)
_put(
    "half a line",
    "client",
    # Half a frame, and then nothing.
    starting=Run(victim="answered", restarts=0),
    idle=Run(victim="error -32700: not a message of this protocol", restarts=0),
    mid_turn=Run(victim="error -32700: not a message of this protocol", turn="interrupted", restarts=0),
    draining=SAME,
)
_put(
    "bad UTF-8",
    "client",
    starting=NO_SESSION,
    idle=Run(victim="error -32600: not a request of this protocol", restarts=0),
    mid_turn=Run(victim="error -32600: not a request of this protocol", turn="interrupted", restarts=0),
    draining=SAME,
)
ASK = {
    "ask": {
        "method": "item/commandExecution/requestApproval",
        "params": {"itemId": "i", "startedAtMs": 1, "command": "ls"},
        "when": "ask me",
    }
}
NO_QUESTION = NotApplicable("the app-server asks only in a turn")
_put(
    "duplicate response id",
    "client",
    starting=NO_QUESTION,
    idle=NO_QUESTION,
    # The second answer, which says no, is not passed on.
    mid_turn=Run(victim='{"decision": "accept"}', turn="completed", restarts=0, scenario=ASK),
    draining=SAME,
)
_put(
    "-32001 storm",
    "client",
    starting=NO_QUESTION,
    idle=NO_QUESTION,
    mid_turn=Run(victim='{"code": -32001', turn="completed", restarts=0, scenario=ASK),
    draining=SAME,
)
_row("turn never completed", "client", NotApplicable("a client ends no turn"))
_put(
    "requests never answered",
    "client",
    starting=NO_QUESTION,
    idle=NO_QUESTION,
    # It goes, and what it was asked is declined.
    mid_turn=Run(restarts=0, scenario=ASK),
    draining=SAME,
)
