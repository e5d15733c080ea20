"""The table: every fault, at every process, in every phase, and what the caller must see, or why nothing is to be seen.

Patterns are matched at the beginning of what is seen (see driver.py for its form).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
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
TARGETS = ("app-server", "worker", "broker", "supervisor", "gateway", "client")
PHASES = ("starting", "idle", "mid-turn", "draining")


@dataclass(frozen=True)
class Run:
    """Patterns of what must be seen of a cell, which is run."""

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
    # In the phase draining: whether the worker drains, or dies, in the end.
    drains: bool = True
    # Clients of the gateway lose their connection.
    reconnects: bool = False
    # In the quick part, which `make test` runs.
    quick: bool = False
    scenario: dict[str, Any] = field(default_factory=dict)
    pool: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NotApplicable:
    reason: str


@dataclass(frozen=True)
class Todo:
    """Parts that are missing before a cell can be run, and how it will be."""

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

KILLED = r"has ended, noticed by its sentinel: the app-server has ended \(killed by SIGKILL\)"
ENDED = r"has ended, noticed by its sentinel: the app-server has ended \(exit code 0\)"
NO_PROBE = "the app-server has not answered a probe for 20 s"
LOST = r"lost: worker \S+ died: {}"
LOST_APP_SERVER = LOST.format(r"the app-server has ended \({}\)")
NOT_READY = "killing .*: not ready within 40 s"
# What runs goes on.
UNMOVED = Run(turn="completed", open_gate_first=True, restarts=0)
QUIET = Run(restarts=0)

_put(
    "SIGKILL",
    "app-server",
    starting=Run(restarts=1, log=(KILLED,)),
    idle=Run(real=True, restarts=1, log=(KILLED,)),
    mid_turn=Run(
        real=True, hang=True, turn=LOST_APP_SERVER.format("killed by SIGKILL"), restarts=1, log=(KILLED,), quick=True
    ),
    draining=Run(turn=LOST_APP_SERVER.format("killed by SIGKILL"), log=(KILLED,)),
)
_put(
    "SIGSTOP",
    "app-server",
    starting=Run(restarts=1, log=(NOT_READY,)),
    idle=Run(real=True, restarts=1, log=(NO_PROBE,)),
    mid_turn=Run(real=True, hang=True, turn=LOST.format(NO_PROBE), restarts=1),
    draining=Run(turn=LOST.format(NO_PROBE), log=(NO_PROBE,)),
)
_put(
    "SIGTERM",
    "app-server",
    starting=Run(restarts=1, log=(r"the app-server has ended \(killed by SIGTERM\)",)),
    # The real one ends at once, whatever it runs.
    idle=Run(real=True, restarts=1, log=(ENDED,)),
    mid_turn=Run(real=True, hang=True, turn=LOST_APP_SERVER.format("exit code 0"), restarts=1, log=(ENDED,)),
    draining=Run(turn=LOST_APP_SERVER.format("killed by SIGTERM")),
)
_put(
    "exit 0",
    "app-server",
    starting=Run(restarts=1, log=(ENDED,)),
    idle=Run(restarts=1, log=(ENDED,)),
    mid_turn=Run(turn=LOST_APP_SERVER.format("exit code 0"), restarts=1, log=(ENDED,)),
    draining=Run(turn=LOST_APP_SERVER.format("exit code 0"), log=(ENDED,)),
)
STUBBORN = {"ignore": ["stdin", "SIGTERM"]}
_put(
    "stdout closed",
    "app-server",
    starting=Run(restarts=1, log=("the app-server has ended",)),
    idle=Run(restarts=1, log=("the app-server has ended",)),
    # It does not want to end either, and is killed before anybody hears of it.
    mid_turn=Run(turn=LOST_APP_SERVER.format("killed by SIGKILL"), restarts=1, log=(KILLED,), scenario=STUBBORN),
    draining=Run(turn=LOST_APP_SERVER.format("exit code 0")),
)
_put("stderr flood", "app-server", starting=QUIET, idle=QUIET, mid_turn=UNMOVED, draining=UNMOVED)
TOO_LONG = r"failed: .*a line of 104857600 bytes .*is beyond the size cap"
_put(
    "100 MB line",
    "app-server",
    starting=QUIET,
    idle=QUIET,
    mid_turn=Run(turn=TOO_LONG, restarts=0, quick=True),
    draining=Run(turn=TOO_LONG),
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
    mid_turn=Run(turn=LOST_APP_SERVER.format("exit code 0"), restarts=1),
    draining=Run(turn=LOST_APP_SERVER.format("exit code 0")),
)
_put("bad UTF-8", "app-server", starting=QUIET, idle=QUIET, mid_turn=UNMOVED, draining=UNMOVED)
_put(
    "duplicate response id",
    "app-server",
    starting=QUIET,
    idle=Run(request="answered", restarts=0, log=("a response to request .*, which was never sent",)),
    mid_turn=UNMOVED,
    draining=UNMOVED,
)
_put(
    "-32001 storm",
    "app-server",
    starting=Run(restarts=1, log=("initialize failed: .*overloaded all the time",)),
    # Tried again inside, until it is answered.
    idle=Run(request="answered", restarts=0),
    mid_turn=UNMOVED,
    draining=UNMOVED,
)
# The others have an item open while they wait, which stops their watchdogs.
STALLED = Run(
    turn=r"stalled: turn \S+ was stalled: nothing was heard of it for 2 s, and it could not be interrupted",
    scenario={"open_item": True},
    pool={"turn_idle_limit_s": 2},
)
_put(
    "turn never completed",
    "app-server",
    starting=NotApplicable("no turn runs before the pool is ready"),
    idle=NotApplicable("no turn runs that could end"),
    mid_turn=STALLED,
    draining=STALLED,
)
_put(
    "requests never answered",
    "app-server",
    starting=Run(restarts=1, log=(NOT_READY,)),
    # A probe is not answered either.
    idle=Run(
        request="RequestTimeoutError: no answer to thread/name/set within",
        request_timeout_s=2.0,
        restarts=1,
        log=(NO_PROBE,),
    ),
    mid_turn=Run(turn=LOST.format(NO_PROBE), restarts=1),
    draining=Run(turn=LOST.format(NO_PROBE), log=(NO_PROBE,)),
)

# worker

LOST_KILLED = LOST.format("killed by SIGKILL")
SENTINEL = "has ended, noticed by its sentinel: {}"
NUMBERED = (
    "a worker's answers go by the call's number, which is forgotten with the first: "
    "what is doubled or refused is its app-server's"
)

_put(
    "SIGKILL",
    "worker",
    starting=Run(restarts=1, log=(SENTINEL.format("killed by SIGKILL"),)),
    idle=Run(real=True, restarts=1, log=(SENTINEL.format("killed by SIGKILL"),)),
    mid_turn=Run(real=True, hang=True, turn=LOST_KILLED, restarts=1, quick=True),
    draining=Run(turn=LOST_KILLED, quick=True),
)
NO_BEAT = "killing .*: no beat for 10 s"
_put(
    "SIGSTOP",
    "worker",
    starting=Run(restarts=1, log=(NOT_READY,)),
    idle=Run(restarts=1, log=(NO_BEAT,)),
    mid_turn=Run(turn=LOST.format("no beat for 10 s; killed by SIGKILL"), restarts=1, log=(NO_BEAT,)),
    draining=Run(turn=LOST.format("no beat for 10 s; killed by SIGKILL"), log=(NO_BEAT,)),
)
ASKED = "the supervisor asked this worker to stop by SIGTERM"
_put(
    "SIGTERM",
    "worker",
    starting=Run(restarts=1, log=(ASKED,)),
    idle=Run(restarts=1, log=(ASKED,)),
    mid_turn=Run(turn=LOST.format(ASKED), restarts=1),
    draining=Run(turn=LOST.format(ASKED)),
)
_put(
    "exit 0",
    "worker",
    starting=Run(restarts=1, log=(SENTINEL.format("exit code 0"),)),
    idle=Run(restarts=1, log=(SENTINEL.format("exit code 0"),)),
    mid_turn=Run(turn=LOST.format("exit code 0"), restarts=1),
    draining=Run(turn=LOST.format("exit code 0")),
)
_put(
    "stdout closed",
    "worker",
    # Its sentinel says that it has ended, so it is ended.
    starting=Run(restarts=1, log=(SENTINEL.format("killed by SIGKILL"),)),
    idle=Run(restarts=1, log=(SENTINEL.format("killed by SIGKILL"),)),
    mid_turn=Run(turn=LOST_KILLED, restarts=1),
    draining=Run(turn=LOST_KILLED),
)
for _fault in ("stderr flood", "100 MB line", "half a line", "bad UTF-8"):
    # Its stderr is the pool's log, its stdout the supervisor's to read: nobody else notices.
    _put(_fault, "worker", starting=QUIET, idle=QUIET, mid_turn=UNMOVED, draining=UNMOVED)
for _fault in ("duplicate response id", "-32001 storm"):
    _row(_fault, "worker", NotApplicable(NUMBERED))
_row("turn never completed", "worker", NotApplicable("a worker ends no turn by itself: its app-server does, see there"))
# Wedged: it beats, and its loop does not turn.
WEDGED = "its loop has not turned for 10 s: wedged"
_put(
    "requests never answered",
    "worker",
    starting=Run(restarts=1, log=(NOT_READY,)),
    idle=Run(restarts=1, log=(WEDGED,)),
    mid_turn=Run(turn=LOST.format(f"{WEDGED}; killed by SIGKILL"), restarts=1),
    draining=Run(turn=LOST.format(f"{WEDGED}; killed by SIGKILL")),
)

# broker: it is replaced, and nothing is lost.

for _fault, _words in {
    "SIGKILL": "killed by SIGKILL",
    "SIGTERM": "killed by SIGTERM",
    "exit 0": "exit code 0",
    # Its sentinel says that it has ended, so it is ended.
    "stdout closed": "killed by SIGKILL",
    # It does not answer the supervisor's pings, and is ended; by then a worker that it did not greet may be as well.
    "SIGSTOP": "killed by SIGKILL",
    "requests never answered": "killed by SIGKILL",
}.items():
    _log = (f"the broker has ended, noticed by its sentinel: {_words}; it is replaced",)
    _put(
        _fault,
        "broker",
        starting=Run(restarts=None if _fault in ("SIGSTOP", "requests never answered") else 0, log=_log),
        idle=Run(restarts=0, log=_log),
        mid_turn=replace(UNMOVED, log=_log, real=_fault == "SIGKILL", quick=_fault == "SIGKILL"),
        # What it took while it was dumb is sent again: a real history tells that it did not get through.
        draining=replace(UNMOVED, log=_log, real=_fault == "stdout closed"),
    )
for _fault in ("stderr flood", "100 MB line", "bad UTF-8"):
    _put(_fault, "broker", starting=QUIET, idle=QUIET, mid_turn=UNMOVED, draining=UNMOVED)
_put(
    "half a line",
    "broker",
    # The report that follows is lost with it: who has registered is told again with the answer to the next ping.
    starting=QUIET,
    idle=QUIET,
    mid_turn=UNMOVED,
    draining=UNMOVED,
)
for _fault in ("duplicate response id", "-32001 storm", "turn never completed"):
    _row(_fault, "broker", NotApplicable("a broker passes answers and ends on: see app-server and client"))

# supervisor: with it goes the pool, and nothing of it is left.

CLOSED = "PoolLostError: "
DIED = "its supervisor died"
NO_START = f"PoolStartError: the pool could not start .*: {DIED}"
OVER = Run(turn=CLOSED, then=CLOSED, bystander=CLOSED, failure=DIED)
for _fault in ("SIGKILL", "SIGTERM", "exit 0"):
    _put(
        _fault,
        "supervisor",
        starting=Run(start=NO_START, then=None),
        idle=replace(OVER, turn=None),
        mid_turn=replace(OVER, quick=_fault == "SIGKILL"),
        draining=OVER,
    )
for _fault in ("SIGSTOP", "requests never answered"):
    # The pool goes on without it; closing it ends everything all the same.
    _put(
        _fault,
        "supervisor",
        starting=Run(start="PoolStartError: the pool was not ready within 90 s", then=None),
        idle=QUIET,
        mid_turn=UNMOVED,
        # Nobody is there to stop the worker that has drained.
        draining=replace(UNMOVED, drains=False),
    )
_put(
    "stdout closed",
    "supervisor",
    # To its parent that is its end.
    starting=Run(start=NO_START, then=None),
    idle=replace(QUIET, failure=DIED),
    mid_turn=replace(UNMOVED, failure=DIED),
    draining=replace(UNMOVED, failure=DIED),
)
for _fault in ("stderr flood", "100 MB line", "half a line", "bad UTF-8"):
    _idle = replace(QUIET, quick=_fault == "half a line")
    _put(_fault, "supervisor", starting=QUIET, idle=_idle, mid_turn=UNMOVED, draining=UNMOVED)
for _fault in ("duplicate response id", "-32001 storm", "turn never completed"):
    _row(_fault, "supervisor", NotApplicable("a supervisor answers no requests and runs no turns"))

# gateway: its clients come back to their turns, and nobody else notices.

DRAINS = NotApplicable("a gateway knows no workers: what drains is behind the broker, see mid-turn")
for _fault, _words in {
    "SIGKILL": "killed by SIGKILL",
    "SIGTERM": "killed by SIGTERM",
    "exit 0": "exit code 0",
    # Its sentinel says that it has ended, so it is ended.
    "stdout closed": "killed by SIGKILL",
    # It does not answer the supervisor's pings, and is ended.
    "SIGSTOP": "killed by SIGKILL",
    "requests never answered": "killed by SIGKILL",
}.items():
    _run = Run(restarts=1, reconnects=True, log=(f"the gateway has ended.*{_words}",))
    _put(
        _fault,
        "gateway",
        starting=replace(_run, restarts=None),
        idle=_run,
        mid_turn=replace(_run, turn="completed", quick=_fault == "SIGKILL"),
        draining=DRAINS,
    )
for _fault in ("stderr flood", "100 MB line", "half a line", "bad UTF-8"):
    # Its stderr is the pool's log, its stdout the supervisor's to read: nobody else notices.
    _put(_fault, "gateway", starting=QUIET, idle=QUIET, mid_turn=Run(turn="completed", restarts=0), draining=DRAINS)
for _fault in ("duplicate response id", "-32001 storm", "turn never completed"):
    _row(_fault, "gateway", NotApplicable("a gateway passes answers and ends on: see app-server and client"))

# client: what a bystander sees, and what the pool makes of it.

for _fault in ("SIGKILL", "SIGSTOP", "SIGTERM", "exit 0"):
    _put(
        _fault,
        "client",
        starting=Run(victim="gone", restarts=0),
        idle=Run(victim="gone", restarts=0),
        mid_turn=Run(victim="gone", turn="interrupted", restarts=0),
        draining=Run(victim="gone", turn="interrupted", restarts=0),
    )
for _fault in ("stdout closed", "stderr flood"):
    _row(_fault, "client", NotApplicable("nobody reads a client's stdout or stderr"))
SAME = NotApplicable("what a client sends is read by the broker, whatever its worker is about to do: see mid-turn")
NO_SESSION = NotApplicable("before its Welcome a client has nothing to say but Hello; see raw bytes")
NO_QUESTION = NotApplicable("the app-server asks only in a turn")
_put(
    "100 MB line",
    "client",
    starting=NO_SESSION,
    idle=Run(victim="answered", restarts=0),
    mid_turn=Run(victim="answered", turn="interrupted", restarts=0),
    draining=SAME,
)
NO_MESSAGE = "error -32700: not a message of this protocol"
_put(
    "half a line",
    "client",
    # Half a frame, and then nothing.
    starting=Run(victim="answered", restarts=0),
    idle=Run(victim=NO_MESSAGE, restarts=0),
    mid_turn=Run(victim=NO_MESSAGE, turn="interrupted", restarts=0),
    draining=SAME,
)
NO_REQUEST = "error -32600: not a request of this protocol"
_put(
    "bad UTF-8",
    "client",
    starting=NO_SESSION,
    idle=Run(victim=NO_REQUEST, restarts=0),
    mid_turn=Run(victim=NO_REQUEST, turn="interrupted", restarts=0),
    draining=SAME,
)
ASK = {
    "ask": {
        "method": "item/commandExecution/requestApproval",
        "params": {"itemId": "i", "startedAtMs": 1, "command": "ls"},
        "when": "ask me",
    }
}
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
