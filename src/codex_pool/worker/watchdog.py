"""Watchdogs: of turns that come to a standstill, and of an app-server that does. Pure."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple

from codex_pool.open_items import OpenItems
from codex_pool.worker import reading

IDLE_LIMIT_S = 600.0
# How long a turn may take to end once it is interrupted.
STALL_LIMIT_S = 10.0

SILENT_S = 10.0
PROBE_LIMIT_S = 20.0
# A clock that jumps by more than this says that it was this process that stood still.
JUMP_S = 5.0

_HEEDED = frozenset({"item/started", "item/completed", "error"})


class Expired(NamedTuple):
    """A turn's time is over: interrupt it, or, with `stalled`, do not wait for its end any longer."""

    turn_id: str
    reason: str
    stalled: bool


@dataclass(slots=True)
class _Watched:
    began_at: float
    heard_at: float
    items: OpenItems = field(default_factory=OpenItems)
    expired_at: float | None = None
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

    def started(self, turn_id: str, now: float) -> None:
        self._turns[turn_id] = _Watched(now, now)

    def heard(self, turn_id: str, lines: list[bytes], methods: list[str], now: float) -> None:
        """What a turn said at once."""
        watched = self._turns[turn_id]
        if _HEEDED.isdisjoint(methods):
            watched.heard_at = now
            return
        for line, method in zip(lines, methods, strict=True):
            if method == "error":
                watched.error = line
                if reading.is_retried(line):
                    watched.items.cut()
                    continue
            elif method == "item/started":
                watched.items.started(*reading.item_of(line))
            elif method == "item/completed":
                watched.items.completed(reading.item_of(line)[0])
            watched.heard_at = now

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

    def due(self, now: float, asking: Container[str]) -> list[Expired]:
        """The turns whose time is over, each once as expired and once as stalled; `asking` have an open question."""
        found: list[Expired] = []
        for turn_id, watched in self._turns.items():
            if watched.expired_at is not None:
                if now - watched.expired_at >= STALL_LIMIT_S:
                    found.append(Expired(turn_id, watched.reason, stalled=True))
                continue
            if watched.items or turn_id in asking:
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
    """Asks an app-server that says nothing whether it is there."""

    def __init__(self) -> None:
        self._heard_at: float | None = None
        self._asked_at: float | None = None
        self._looked_at: float | None = None

    def heard(self, now: float) -> None:
        """It has said something, whatever it was."""
        self._heard_at = now
        self._asked_at = None

    def look(self, now: float) -> bool:
        """Whether to ask now. Nothing happens before it was heard for the first time."""
        jumped = self._looked_at is not None and now - self._looked_at > JUMP_S
        self._looked_at = now
        if self._heard_at is None:
            return False
        if jumped:
            # What it said meanwhile may not have been read yet.
            self._heard_at = now
            self._asked_at = None if self._asked_at is None else now
        if self._asked_at is None and now - self._heard_at >= SILENT_S:
            self._asked_at = now
            return True
        return False

    def is_dead(self, now: float) -> bool:
        return self._asked_at is not None and now - self._asked_at >= PROBE_LIMIT_S
