"""Connections of a session, one after the other: the state of the session, and how long each state may last. Pure.

    state        the session                                      next states
    new          was not started                                  connecting
    connecting   has sent Hello on a connection                   open, lost, closed
    open         was welcomed on its connection                   lost, closed
    lost         waits until it tries the next connection         connecting, closed
    closed       has ended                                        -

What happens on a connection is for `session`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from codex_app_server._runtime.backoff import backoff_s

from ..protocol import wire

SILENT_S = 3 * wire.BEAT_S
FIRST_LIMIT_S = 10.0
RECONNECT_LIMIT_S = 60.0
# How long one connection may take to be welcomed, when it is not the first.
WELCOME_LIMIT_S = 5.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 2.0

State = Literal["new", "connecting", "open", "lost", "closed"]
TRANSITIONS: dict[State, frozenset[State]] = {
    "new": frozenset({"connecting"}),
    "connecting": frozenset({"open", "lost", "closed"}),
    "open": frozenset({"lost", "closed"}),
    "lost": frozenset({"connecting", "closed"}),
    "closed": frozenset(),
}


class Due(NamedTuple):
    """An action that is due; `why` the connection is to be lost, or the session to be given up."""

    action: Literal["connect", "beat", "lose", "give up"]
    why: str = ""


class Connections:
    """See the module's docstring.

    `jitter()` is in [0, 1). The first connection may take `first_limit_s`. Without `beats` no beats are due, and
    silence is no fault.
    """

    def __init__(self, *, first_limit_s: float, beats: bool, jitter: Callable[[], float]) -> None:
        self._first_limit_s = first_limit_s
        self._beats = beats
        self._jitter = jitter
        self.state: State = "new"
        # It was welcomed once.
        self.begun = False
        self.count = 0
        self._tries = 0
        # Until when it goes on trying; why the session lost its connection, and the error of the last try.
        self._limit = 0.0
        self._why = ""
        self._last_try = ""
        # Until when it waits for Welcome (connecting), or for the next try (lost).
        self._until = 0.0
        self._heard_at = self._next_beat = self._ticked_at = 0.0

    def _move(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"a session goes from {self.state} to {state}"
        self.state = state

    def start(self, now: float) -> None:
        """Begin the time within which the first connection must be welcomed."""
        self._limit = now + self._first_limit_s

    def connect(self, now: float) -> None:
        """Begin the next connection."""
        self.count += 1
        self._move("connecting")
        self._until = now + WELCOME_LIMIT_S if self.begun else self._limit
        self._ticked_at = now

    def heard(self, now: float) -> None:
        """Note that something has come from the pool."""
        self._heard_at = now
        if self.begun and self.state == "connecting":
            # A broker that has just started waits for its workers, and beats.
            self._until = now + WELCOME_LIMIT_S

    def welcomed(self, now: float) -> None:
        """Note that the connection is open."""
        self._move("open")
        self.begun = True
        self._last_try = ""
        self._next_beat = wire.next_beat(now)

    def lose(self, why: str, now: float) -> None:
        """Wait until the next connection is to be tried."""
        if self.state == "open":
            self._limit = now + RECONNECT_LIMIT_S
            self._why, self._tries = why, 0
        else:
            self._last_try = f": {why}"
        self._move("lost")
        self._until = now + backoff_s(self._tries, BACKOFF_FIRST_S, BACKOFF_MOST_S, self._jitter())
        self._tries += 1

    def end(self) -> None:
        """Note that there are no more connections."""
        self._move("closed")

    def due(self, now: float) -> Due | None:
        """The action that is due at this time; call it again after that."""
        if now - self._ticked_at > 2 * wire.BEAT_S:
            # This process was suspended: messages that came meanwhile may not have been read yet.
            self._heard_at = max(self._heard_at, now - SILENT_S + wire.BEAT_S)
        self._ticked_at = now
        if self.state in ("connecting", "lost") and now >= self._limit:
            return Due("give up", self._why_given_up() + self._last_try)
        if self.state == "connecting" and now >= self._until:
            return Due("lose", "no answer")
        if self.state == "lost" and now >= self._until:
            return Due("connect")
        if self.state == "open" and self._beats and now >= self._heard_at + SILENT_S:
            return Due("lose", f"it was silent for {SILENT_S:.0f} s")
        if self.state == "open" and self._beats and now >= self._next_beat:
            self._next_beat = wire.next_beat(now)
            return Due("beat")
        return None

    @property
    def next_deadline(self) -> float:
        if self.state == "open":
            return min(self._next_beat, self._heard_at + SILENT_S) if self._beats else math.inf
        return min(self._until, self._limit)

    def _why_given_up(self) -> str:
        if self.begun:
            return f"the connection was lost ({self._why}) and did not come back within {RECONNECT_LIMIT_S:.0f} s"
        return f"no answer within {self._first_limit_s:g} s"
