"""Notifications of a change, held until no turn is about to begin with the state before it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from codex_pool.broker.books import LINES, Books
from codex_pool.wire import SessionId

# How long it waits for turns that are about to begin on stale workers, and for sessions that are away.
LIMIT_S = 30.0


@dataclass(slots=True)
class _Announcement:
    """Lines for these sessions; for all of the pool's own user when there are none. `starts` are calls to wait for."""

    sessions: list[SessionId]
    lines: list[bytes]
    starts: set[int]
    until: float
    # Sent when its sessions are connected: they do not ask again.
    patient: bool


class Announcements:
    """See the module's docstring."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._waiting: list[_Announcement] = []

    @property
    def held(self) -> int:
        return len(self._waiting)

    def say(self, sessions: list[SessionId], lines: list[bytes], *, patient: bool = False) -> None:
        """Tell these sessions, or all of the pool's own user, as soon as no turn begins with the state before."""
        if lines:
            workers = self._books.workers.values()
            starts = {number for worker in workers if worker.stale for number in worker.starting}
            until = self._books.now + LIMIT_S
            self._waiting.append(_Announcement(sessions, lines, starts, until, patient))
            self.settle()

    def holds(self, line: bytes) -> bool:
        """Return True while this line has yet to be told."""
        return any(line in each.lines for each in self._waiting)

    def settle(self) -> None:
        """Tell what can be told now."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if self._must_wait(each):
                self._waiting.append(each)
            else:
                self._books.pass_on(each.sessions or self._books.own_sessions(), [LINES, b"\n".join(each.lines)])

    def _must_wait(self, announcement: _Announcement) -> bool:
        books = self._books
        sessions = [books.sessions[each] for each in announcement.sessions if each in books.sessions]
        away = announcement.patient and any(session.away_since is not None for session in sessions)
        return books.now < announcement.until and (away or not announcement.starts.isdisjoint(books.calls))
