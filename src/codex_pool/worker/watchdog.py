"""Watchdogs: of turns that come to a standstill, and of an app-server that does. Pure."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple

from codex_app_server.generated.routing import NOTIFICATIONS

from ..open_items import OpenItems
from . import peek

IDLE_LIMIT_S = 600.0
# How long a turn may take to end once it is interrupted.
STALL_LIMIT_S = 10.0
# How long after its thread is idle the end of a turn may come. codex writes both at once.
END_LIMIT_S = 30.0

SILENT_S = 10.0
PROBE_LIMIT_S = 20.0
# A clock that jumps by more than this shows that this process was suspended.
JUMP_S = 5.0

_OBSERVED = frozenset({"item/started", "item/completed", "error"})


class Expired(NamedTuple):
    """A turn's time is over: interrupt it, or, with `stalled`, do not wait for its end any longer.

    With `unreadable` the app-server reports that it runs nothing, so that its end was sent in an unknown form.
    """

    turn_id: str
    reason: str
    stalled: bool
    unreadable: bool = False


@dataclass(slots=True)
class _Watched:
    began_at: float
    heard_at: float
    items: OpenItems = field(default_factory=OpenItems)
    expired_at: float | None = None
    # Since when its thread has been idle, without a line of the turn.
    idle_at: float | None = None
    reason: str = ""
    error: bytes = b""


class TurnWatchdog:
    """A turn may be silent for `idle_limit_s`, unless a tool or a question of it is open, and run `wall_limit_s`.

    An `error` that is retried counts as silence: while a provider cannot be reached, one comes every few seconds.
    """

    def __init__(self, idle_limit_s: float | None, wall_limit_s: float | None) -> None:
        self._idle_limit_s = idle_limit_s
        self._wall_limit_s = wall_limit_s
        self._turns: dict[str, _Watched] = {}

    def set_limits(self, idle_limit_s: float | None, wall_limit_s: float | None) -> None:
        """Have other limits from now on, for turns that run too; one that has expired stays so."""
        self._idle_limit_s, self._wall_limit_s = idle_limit_s, wall_limit_s

    def started(self, turn_id: str, now: float) -> None:
        self._turns[turn_id] = _Watched(now, now)

    def observe(self, turn_id: str, lines: list[bytes], methods: list[str], now: float) -> None:
        """Notifications of a turn, of one read."""
        watched = self._turns[turn_id]
        # A notification that is not known may be the end.
        if watched.idle_at is not None and not NOTIFICATIONS.keys().isdisjoint(methods):
            watched.idle_at = None
        if _OBSERVED.isdisjoint(methods):
            watched.heard_at = now
            return
        for line, method in zip(lines, methods, strict=True):
            if method == "error":
                watched.error = line
                if peek.is_retried(line):
                    watched.items.cut()
                    continue
            elif method == "item/started":
                watched.items.started(*peek.item_of(line))
            elif method == "item/completed":
                watched.items.completed(peek.item_of(line)[0])
            watched.heard_at = now

    def thread_is_idle(self, turn_id: str, now: float) -> None:
        """Note that the app-server reports that the thread of this turn runs nothing."""
        self._turns[turn_id].idle_at = now

    def ended(self, turn_id: str) -> None:
        self._turns.pop(turn_id, None)

    def reason_of(self, turn_id: str) -> str | None:
        """The limit that the turn has passed, and for which it is being interrupted; None if there is none."""
        watched = self._turns.get(turn_id)
        return watched.reason if watched is not None and watched.expired_at is not None else None

    def error_of(self, turn_id: str) -> bytes:
        """The last `error` line of the turn; b"" without one."""
        watched = self._turns.get(turn_id)
        return watched.error if watched is not None else b""

    def due(self, now: float, waiting: Container[str]) -> list[Expired]:
        """The turns whose time is over, each once as expired and once as stalled; `waiting` have an open request."""
        found: list[Expired] = []
        for turn_id, watched in self._turns.items():
            if watched.idle_at is not None and now - watched.idle_at >= END_LIMIT_S:
                words = f"its thread has been idle for {END_LIMIT_S:g} s, and its end did not come in a known form"
                found.append(Expired(turn_id, words, stalled=True, unreadable=True))
                continue
            if watched.expired_at is not None:
                if now - watched.expired_at >= STALL_LIMIT_S:
                    found.append(Expired(turn_id, watched.reason, stalled=True))
                continue
            if watched.items or turn_id in waiting:
                watched.heard_at = now
            reason = self._reason(watched, now)
            if reason is not None:
                watched.expired_at, watched.reason = now, reason
                found.append(Expired(turn_id, reason, stalled=False))
        return found

    def _reason(self, watched: _Watched, now: float) -> str | None:
        if self._wall_limit_s is not None and now - watched.began_at >= self._wall_limit_s:
            return f"it ran for {self._wall_limit_s:g} s, which is its limit"
        if self._idle_limit_s is not None and now - watched.heard_at >= self._idle_limit_s:
            return f"nothing was heard of it for {self._idle_limit_s:g} s"
        return None


class Probe:
    """Probes an app-server that writes nothing."""

    def __init__(self) -> None:
        self._heard_at: float | None = None
        self._asked_at: float | None = None
        self._looked_at: float | None = None

    def heard(self, now: float) -> None:
        """Note that anything was read from it."""
        self._heard_at = now
        self._asked_at = None

    def look(self, now: float) -> bool:
        """Return True if a probe is to be sent now; never before anything was read."""
        jumped = self._looked_at is not None and now - self._looked_at > JUMP_S
        self._looked_at = now
        if self._heard_at is None:
            return False
        if jumped:
            # Lines that it wrote meanwhile may not have been read yet.
            self._heard_at = now
            self._asked_at = None if self._asked_at is None else now
        if self._asked_at is None and now - self._heard_at >= SILENT_S:
            self._asked_at = now
            return True
        return False

    def is_dead(self, now: float) -> bool:
        return self._asked_at is not None and now - self._asked_at >= PROBE_LIMIT_S
