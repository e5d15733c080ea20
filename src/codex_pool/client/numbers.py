"""Numbers: how far a session has come in each of its turns. Pure: what a turn sends comes out once and in order.

What comes a second time is left out; what is missing ends the turn loudly, because nothing may be lost in silence. Only
right after a return a turn may be ahead: what its worker sent before it heard of the return overtakes what it sends
again then. That is passed over, and comes once more in its place.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from codex_app_server.notifications import common_method
from codex_app_server.transport import TurnLines
from codex_pool import rpc, wire

MAX_ENDED_TURNS = 4096
# A run of less is taken apart at once.
STRETCH_BYTES = 4096


@dataclass(slots=True)
class _Turn:
    """`last` is the highest number that came, None before the first one. `joined`: it may begin at any number.

    `returned`: nothing of it has fitted since the return; `passed_over` is the highest number that was.
    """

    thread_id: str
    last: int | None = None
    joined: bool = False
    returned: bool = False
    passed_over: int = 0


class Numbers:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}
        # Turns that are over: what still comes of them is a repeat.
        self._over: OrderedDict[str, None] = OrderedDict()
        # Whether the workers may not have heard of the return yet.
        self._returning = False

    @property
    def turns(self) -> int:
        """How many turns are followed."""
        return len(self._turns)

    def follow(self, thread_id: str, turn_id: str, *, joined: bool = False) -> None:
        """A turn is known to run, though nothing of it has come."""
        if turn_id not in self._over:
            self._turns.setdefault(turn_id, _Turn(thread_id, joined=joined))

    def not_joined(self, turn_id: str) -> None:
        """The turn does not run."""
        turn = self._turns.get(turn_id)
        if turn is not None and turn.joined and turn.last is None:
            del self._turns[turn_id]

    def last(self, turn_id: str) -> int | None:
        """The highest number that came of a turn; None if it is over, or nothing came."""
        turn = self._turns.get(turn_id)
        return turn.last if turn is not None else None

    def is_over(self, turn_id: str) -> bool:
        return turn_id in self._over

    def returned(self) -> None:
        """The session is back: its workers hear of it, and send again."""
        self._returning = True
        for turn in self._turns.values():
            turn.returned, turn.passed_over = True, 0

    def settle(self) -> list[TurnLines]:
        """All workers must have heard of the return by now; the ends of turns that still miss something."""
        self._returning = False
        ends: list[TurnLines] = []
        for turn_id, turn in list(self._turns.items()):
            turn.returned = False
            if turn.passed_over > (turn.last or 0):
                first = (turn.last or 0) + 1
                ends.append(self.end(turn_id, f"notifications {first} to {turn.passed_over} of this turn never came"))
        return ends

    def positions(self) -> list[wire.Position]:
        """How far each turn that has not ended has come."""
        return [wire.Position(turn_id, turn.last or 0, turn.thread_id) for turn_id, turn in self._turns.items()]

    def events(self, head: wire.Events, bodies: list[bytes]) -> TurnLines | None:
        """What is new in a message of a turn; None if nothing is. Raises WireError."""
        if len(head.runs) != len(bodies):
            raise wire.WireError(f"events with {len(head.runs)} runs and {len(bodies)} bodies; expected one a run")
        if head.turn_id in self._over:
            return None
        turn = self._turns.setdefault(head.turn_id, _Turn(head.thread_id, returned=self._returning))
        last = turn.last
        if last is None:
            last = 0 if turn.returned and not turn.joined else head.after
        if last < head.after and turn.returned:
            turn.passed_over = max(turn.passed_over, head.last)
            return None
        turn.returned = False
        if last < head.after:
            return self.end(head.turn_id, f"notifications {last + 1} to {head.after} of this turn never came")
        if head.after < last and head.last <= last and not head.ended:
            return None
        skip = last - head.after
        if skip > 0 and head.last > last and sum(run.count for run in head.runs) != head.last - head.after:
            why = f"which of notifications {head.after + 1} to {head.last} of this turn are new cannot be told"
            return self.end(head.turn_id, why)
        turn.last = max(last, head.last)
        if head.ended:
            self._forget(head.turn_id)
        lines, methods, counts = _lines(head, bodies, skip)
        return TurnLines(head.thread_id, head.turn_id, lines, head.ended, methods or None, counts or None)

    def ended(self, head: wire.Ended, bodies: list[bytes]) -> TurnLines | None:
        """The last lines of a turn whose worker cannot number them any more."""
        if head.turn_id in self._over:
            return None
        self._forget(head.turn_id)
        return TurnLines(head.thread_id, head.turn_id, [line for body in bodies for line in body.split(b"\n")], True)

    def end(self, turn_id: str, why: str, kind: str = "failed") -> TurnLines:
        """End a turn from here."""
        thread_id = self._turns[turn_id].thread_id
        self._forget(turn_id)
        lines = rpc.ended_lines(thread_id, turn_id, kind, why, safe_to_retry=False)
        return TurnLines(thread_id, turn_id, lines, True)

    def end_all(self, why: str) -> list[TurnLines]:
        """End all turns as lost: nothing will come of them any more."""
        return [self.end(turn_id, why, "lost") for turn_id in [*self._turns]]

    def _forget(self, turn_id: str) -> None:
        self._turns.pop(turn_id, None)
        self._over[turn_id] = None
        if len(self._over) > MAX_ENDED_TURNS:
            self._over.popitem(last=False)


def _lines(head: wire.Events, bodies: list[bytes], skip: int) -> tuple[list[bytes], list[str], dict[int, int]]:
    """The lines of a message but for the first `skip` numbers; for a dropped run one that says how many there were.

    With them methods and counts as TurnLines has them: a long run of one method is left for its reader to take apart.
    """
    lines: list[bytes] = []
    methods: list[str] = []
    counts: dict[int, int] = {}
    for run, body in zip(head.runs, bodies, strict=True):
        if run.cls == "dropped":
            left = run.count - skip
            if left > 0:
                params = {"threadId": head.thread_id, "turnId": head.turn_id, "count": left}
                lines.append(rpc.encode({"method": "sdk/deltas/dropped", "params": params}))
        elif run.cls == "droppable" and not skip and len(body) > STRETCH_BYTES:
            method = common_method(body, run.count)
            if method:
                methods += [""] * (len(lines) - len(methods)) + [method]
                counts[len(lines)] = run.count
                lines.append(body)
            else:
                lines += body.split(b"\n")
        else:
            lines += body.split(b"\n")[skip:]
        skip = max(0, skip - run.count)
    if methods:
        methods += [""] * (len(lines) - len(methods))
    return lines, methods, counts
