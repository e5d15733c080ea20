"""Notifications of a change, held until no turn is about to begin with the state before it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol.wire import SessionId
from .state import LINES, BrokerState

# How long it waits for turns that are about to begin on stale workers, and for sessions that are away.
LIMIT_S = 30.0


@dataclass(slots=True)
class _Announcement:
    """Lines for these sessions; for all of the pool's owner when there are none. `starts` are calls to wait for."""

    sessions: list[SessionId]
    lines: list[bytes]
    starts: set[int]
    until: float
    # Sent when its sessions are connected: they do not ask again.
    patient: bool


class Announcements:
    """See the module's docstring."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state
        self._waiting: list[_Announcement] = []

    @property
    def held(self) -> int:
        return len(self._waiting)

    def publish(self, sessions: list[SessionId], lines: list[bytes], *, patient: bool = False) -> None:
        """Tell these sessions, or all of the pool's owner, as soon as no turn begins with the state before."""
        if lines:
            workers = self._state.workers.values()
            starts = {number for worker in workers if worker.stale for number in worker.starting}
            until = self._state.now + LIMIT_S
            self._waiting.append(_Announcement(sessions, lines, starts, until, patient))
            self.settle()

    def holds(self, line: bytes) -> bool:
        """Return True while this line has yet to be sent."""
        return any(line in each.lines for each in self._waiting)

    def settle(self) -> None:
        """Send what can be sent now."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if self._must_wait(each):
                self._waiting.append(each)
            else:
                self._state.forward(each.sessions or self._state.unlimited_sessions(), [LINES, b"\n".join(each.lines)])

    def _must_wait(self, announcement: _Announcement) -> bool:
        state = self._state
        sessions = [state.sessions[each] for each in announcement.sessions if each in state.sessions]
        away = announcement.patient and any(session.is_away for session in sessions)
        return state.now < announcement.until and (away or not announcement.starts.isdisjoint(state.requests.by_number))
