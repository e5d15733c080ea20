"""Sequence numbers: which notifications of each turn a session has received. Pure.

Notifications of a turn are delivered once and in order. One that comes a second time is left out; if one is missing the
turn ends with an error, so that nothing is lost silently. Only right after a reconnect a turn may be ahead: messages
that its worker sent before it was informed of the reconnect overtake those that it sends again. They are skipped, and
come once more in their place.
"""

from __future__ import annotations

import msgspec

from codex_app_server._protocol.methods import common_method
from codex_app_server._protocol.turn_lines import TurnLines
from codex_app_server._runtime.bounded import BoundedDict

from ..protocol import jsonrpc, turn_ends, wire
from ..protocol.bound_methods import NO_THREAD

MAX_ENDED_TURNS = 4096


class _Turn(msgspec.Struct):
    """`last` is the highest number received, None before the first one. `joined`: it may not run.

    `resumed`: no message has continued it since the reconnect; `skipped` is the highest number that was skipped.
    """

    thread_id: str
    last: int | None = None
    joined: bool = False
    resumed: bool = False
    skipped: int = 0


class TurnSequences:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}
        # Turns that are over: further messages of them are repeats.
        self._over: BoundedDict[str, None] = BoundedDict(MAX_ENDED_TURNS)
        # The workers may not have been informed of the reconnect yet.
        self._resuming = False

    @property
    def turns(self) -> int:
        """Number of turns that are followed."""
        return len(self._turns)

    def follow(self, thread_id: str, turn_id: str, *, joined: bool = False) -> None:
        """Note a turn that runs, though nothing of it was received."""
        if turn_id not in self._over:
            self._turns.setdefault(turn_id, _Turn(thread_id, joined=joined))

    def leave(self, thread_id: str) -> None:
        """Forget the turns of a thread: nothing more of them comes, unless the session joins them again."""
        for turn_id in [turn_id for turn_id, turn in self._turns.items() if turn.thread_id == thread_id]:
            del self._turns[turn_id]

    def not_joined(self, turn_id: str) -> None:
        """Forget a turn that was to be joined and does not run."""
        turn = self._turns.get(turn_id)
        if turn is not None and turn.joined and turn.last is None:
            del self._turns[turn_id]

    def last(self, turn_id: str) -> int | None:
        """The highest number received of a turn; None if it is over, or nothing was received."""
        turn = self._turns.get(turn_id)
        return turn.last if turn is not None else None

    def is_over(self, turn_id: str) -> bool:
        return turn_id in self._over

    def resumed(self) -> None:
        """Note that the session has reconnected: its workers are informed of it, and send again."""
        self._resuming = True
        for turn in self._turns.values():
            turn.resumed, turn.skipped = True, 0

    def settle(self) -> list[TurnLines]:
        """End the turns that still miss something: all workers have been informed of the reconnect by now."""
        self._resuming = False
        ends: list[TurnLines] = []
        for turn_id, turn in list(self._turns.items()):
            turn.resumed = False
            if turn.skipped > (turn.last or 0):
                first = (turn.last or 0) + 1
                ends.append(self.end(turn_id, f"notifications {first} to {turn.skipped} of this turn never came"))
        return ends

    def positions(self) -> list[wire.Position]:
        """The number received of each turn that has not ended."""
        return [wire.Position(turn_id, turn.last or 0, turn.thread_id) for turn_id, turn in self._turns.items()]

    def events(self, head: wire.Events, bodies: list[bytes]) -> TurnLines | None:
        """The new notifications in a message of a turn; None if there are none. Raises WireError."""
        if len(head.runs) != len(bodies):
            raise wire.WireError(f"events with {len(head.runs)} runs and {len(bodies)} bodies; expected one a run")
        if head.turn_id in self._over:
            return None
        turn = self._turns.setdefault(head.turn_id, _Turn(head.thread_id, resumed=self._resuming))
        # A turn that the session has left and joined again begins again, behind what was received.
        last = max(turn.last or 0, head.start)
        if last < head.after and turn.resumed:
            turn.skipped = max(turn.skipped, head.last)
            return None
        turn.resumed = False
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
        lines, methods = _lines(head, bodies, skip)
        return TurnLines(head.thread_id, head.turn_id, lines, head.ended, methods or None)

    def takes_deltas(self, head: wire.Events) -> bool:
        """Note a message of one run of deltas that follow what was received; False for any other, which is not noted.

        What `events` does for the message that is by far the most frequent, with as little as possible.
        """
        turn, runs = self._turns.get(head.turn_id), head.runs
        if (
            turn is None
            or turn.last != head.after
            or turn.resumed
            or head.ended
            or head.start > head.after
            or len(runs) != 1
            or runs[0].cls != "droppable"
        ):
            return False
        turn.last = head.last
        return True

    def ended(self, head: wire.Ended, bodies: list[bytes]) -> TurnLines | None:
        """The last lines of a turn whose worker, which would number them, has died."""
        if head.turn_id in self._over:
            return None
        self._forget(head.turn_id)
        return TurnLines(head.thread_id, head.turn_id, [line for body in bodies for line in body.split(b"\n")], True)

    def end(self, turn_id: str, why: str, kind: str = "failed") -> TurnLines:
        """End a turn here, whatever its worker does."""
        thread_id = self._turns[turn_id].thread_id
        self._forget(turn_id)
        lines = turn_ends.ended_lines(thread_id, turn_id, kind, why, safe_to_retry=False)
        return TurnLines(thread_id, turn_id, lines, True)

    def end_all(self, why: str) -> list[TurnLines]:
        """End all turns as lost, and the streams of no thread."""
        streams = [turn_id for turn_id, turn in self._turns.items() if turn.thread_id == NO_THREAD]
        for stream in streams:
            self._forget(stream)
        return [self.end(turn_id, why, "lost") for turn_id in [*self._turns]]

    def end_streams(self, worker: str) -> None:
        """End the streams of no thread of a worker that has died."""
        beginning = f"{worker}/"
        for turn_id, turn in list(self._turns.items()):
            if turn.thread_id == NO_THREAD and turn_id.startswith(beginning):
                self._forget(turn_id)

    def _forget(self, turn_id: str) -> None:
        self._turns.pop(turn_id, None)
        self._over[turn_id] = None


def _lines(head: wire.Events, bodies: list[bytes], skip: int) -> tuple[list[bytes], list[str]]:
    """The lines of a message without the first `skip` numbers; for a dropped run one line with their count.

    With methods as TurnLines has them, where several deltas are of one.
    """
    lines: list[bytes] = []
    methods: list[str] = []
    for run, body in zip(head.runs, bodies, strict=True):
        if run.cls == "dropped":
            left = run.count - skip
            if left > 0:
                params = {"threadId": head.thread_id, "turnId": head.turn_id, "count": left}
                lines.append(jsonrpc.encode({"method": "sdk/deltas/dropped", "params": params}))
        else:
            new = body.split(b"\n")[skip:]
            method = common_method(body, run.count) if run.cls == "droppable" and run.count > 1 else ""
            if method:
                methods += [""] * (len(lines) - len(methods)) + [method] * len(new)
            lines += new
        skip = max(0, skip - run.count)
    if methods:
        methods += [""] * (len(lines) - len(methods))
    return lines, methods
