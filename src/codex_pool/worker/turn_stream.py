"""Stream of a turn: the numbers of its notifications, its subscribers, and the division into runs. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from codex_app_server.generated.routing import NOTIFICATIONS

from ..protocol import wire
from ..protocol.turn_spans import TurnBegan

if TYPE_CHECKING:
    from .subscription import Subscription

_DROPPABLE = frozenset(name for name, entry in NOTIFICATIONS.items() if entry.droppable)
# Beginnings of every turn: a subscriber that does not read in full waits for none of these, nor for its own message.
_OPENING = frozenset({"pool/turn/assigned", "turn/started"})
_OF_ITEMS = frozenset({"item/started", "item/completed"})
_OWN_MESSAGE = b'"params":{"item":{"type":"userMessage"'
_OWN_MESSAGE_WITHIN_BYTES = 80
_FINAL = frozenset({"item/completed", "thread/tokenUsage/updated", "error", "turn/started", "turn/completed"})


@dataclass(slots=True, eq=False)
class Turn:
    """A running turn. `last` is the highest number given out; `subscribers` are those that get it, by session.

    `held` are notifications without a number yet, `held_bytes` their size and `held_at` the time of the first one;
    `has_news`: they are more than the beginning of every turn.
    """

    id: str
    thread_id: str
    # Turns of a worker are numbered as they begin.
    number: int = 0
    last: int = 0
    subscribers: dict[wire.SessionId, Subscription] = field(default_factory=dict)
    held: tuple[list[bytes], list[str]] = field(default_factory=lambda: ([], []))
    held_bytes: int = 0
    held_at: float = 0.0
    has_news: bool = False
    # The app-server has begun it unasked.
    is_own: bool = False
    # Marks that have yet to be taken out of its items (`message_marks`).
    marks: int = 0
    # A session that has left it wants it to go on.
    kept: bool = False
    began_at: float = 0.0
    # When its last notification came.
    heard_at: float = 0.0
    # Its tokens, and those of its thread before it; None before they are reported (see `activity`).
    tokens: wire.Tokens | None = None
    used_before: wire.Tokens | None = None
    # How long its request waited in the broker; when the first piece of its answer came; set with its end: its counts.
    queued_ms: int | None = None
    first_delta_at: float | None = None
    counts: wire.TurnCounts | None = None
    # What was reported of its beginning to the tracer; None in a pool without one.
    span: TurnBegan | None = None

    @property
    def has_readers(self) -> bool:
        """Return True if any subscriber reads in full: one that wants no deltas waits for the result."""
        for subscription in self.subscribers.values():  # noqa: SIM110 - asked for every read, and any() costs thrice
            if subscription.interest == "full":
                return True
        return False

    def hold(self, lines: list[bytes], methods: list[str], now: float) -> None:
        held_lines, held_methods = self.held
        if not held_lines:
            self.held_at = now
        self.has_news = self.has_news or any(map(_is_news, lines, methods))
        held_lines += lines
        held_methods += methods
        self.held_bytes += sum(map(len, lines))

    def take_held(self) -> tuple[list[bytes], list[str]]:
        held, self.held, self.held_bytes, self.has_news = self.held, ([], []), 0, False
        return held


def split_runs(lines: list[bytes], methods: list[str], interest: wire.Interest) -> tuple[list[wire.Run], list[bytes]]:
    """Runs of one class each, and their bodies; what the interest leaves out is left out."""
    if interest == "full" and lines and _DROPPABLE.issuperset(methods):
        return [wire.Run(len(lines), "droppable")], [b"\n".join(lines)]
    runs: list[wire.Run] = []
    bodies: list[bytes] = []
    current: list[bytes] = []
    current_class: wire.Class = "kept"

    def finish() -> None:
        if current:
            runs.append(wire.Run(len(current), current_class))
            bodies.append(b"\n".join(current) if len(current) > 1 else current[0])
            current.clear()

    for line, method in zip(lines, methods, strict=True):
        droppable = method in _DROPPABLE
        if interest != "full" and (droppable or (interest == "final" and not _is_final(method))):
            continue
        cls: wire.Class = "droppable" if droppable else "kept"
        if cls != current_class:
            finish()
            current_class = cls
        current.append(line)
    finish()
    return runs, bodies


def _is_news(line: bytes, method: str) -> bool:
    if method in _DROPPABLE or method in _OPENING:
        return False
    return method not in _OF_ITEMS or _OWN_MESSAGE not in line[:_OWN_MESSAGE_WITHIN_BYTES]


def _is_final(method: str) -> bool:
    return method in _FINAL or method.startswith("pool/")
