"""Idle batching: notifications of a turn that no session reads in full are collected, and sent together. Pure.

While all subscribers of a turn want its items or its end, no deltas, its notifications are held until the next tick,
HELD_BYTES or its end, and those with which every turn begins until OPENING_S: an app-server writes each line alone,
and a message for each would cost more than all else together.
"""

from __future__ import annotations

from collections.abc import Collection

from ..protocol import wire
from .effects import Outbox
from .subscriptions import Subscriptions
from .turn_stream import Turn

HELD_BYTES = 64 * 1024
OPENING_S = 1.0


class IdleBatching:
    """See the module's docstring. The length is the number of turns of which something is held."""

    def __init__(self, outbox: Outbox, subscriptions: Subscriptions) -> None:
        self._outbox = outbox
        self._subscriptions = subscriptions
        self._holding: dict[str, Turn] = {}
        # Those of them of which more is held than the beginning of every turn.
        self._news: set[str] = set()

    def __len__(self) -> int:
        return len(self._holding)

    @property
    def waits(self) -> bool:
        """Return True if anything is to be sent at the next tick."""
        return bool(self._news)

    def publish(self, turn: Turn, lines: list[bytes], methods: list[str], *, ended: str | None = None) -> None:
        """Number notifications of a turn, and send or hold them; `ended` is its last status."""
        if not turn.has_readers:
            turn.hold(lines, methods, self._outbox.now)
            if ended is None and turn.held_bytes < HELD_BYTES:
                self._holding[turn.id] = turn
                if turn.has_news:
                    self._news.add(turn.id)
                return
            lines, methods = self._take_held(turn)
        now = self._outbox.now
        self._outbox.messages(self._subscriptions.publish(turn, lines, methods, ended=ended, now=now))

    def insert(self, turn: Turn, lines: list[bytes], methods: list[str], only: Collection[wire.SessionId]) -> None:
        """Number notifications that only these sessions get, behind what was published before, and send them."""
        self.flush(turn)
        messages = self._subscriptions.publish(turn, lines, methods, now=self._outbox.now, only=only)
        self._outbox.messages(messages)

    def flush(self, turn: Turn) -> None:
        """Send what is held of a turn."""
        if turn.id in self._holding:
            lines, methods = self._take_held(turn)
            self._outbox.messages(self._subscriptions.publish(turn, lines, methods, now=self._outbox.now))

    def tick(self) -> None:
        """Send what has been held for long enough."""
        for turn in list(self._holding.values()):
            if turn.has_news or self._outbox.now - turn.held_at >= OPENING_S:
                self.flush(turn)

    def _take_held(self, turn: Turn) -> tuple[list[bytes], list[str]]:
        self._holding.pop(turn.id, None)
        self._news.discard(turn.id)
        return turn.take_held()
