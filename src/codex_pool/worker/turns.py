"""Turn: the numbers of one turn's notifications, who gets them, and how they are divided into runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from codex_app_server.generated.routing import NOTIFICATIONS
from codex_pool import wire

if TYPE_CHECKING:
    from codex_pool.worker.subscriptions import Subscription

NO_COUNTS: Mapping[int, int] = {}

_DROPPABLE = frozenset(name for name, entry in NOTIFICATIONS.items() if entry.droppable)
# With what its client has said itself, and with deltas, nobody who does not read along waits for these.
_OPENING = frozenset({"pool/turn/assigned", "turn/started"})
_OF_ITEMS = frozenset({"item/started", "item/completed"})
_OWN_MESSAGE = b'"params":{"item":{"type":"userMessage"'
_OWN_MESSAGE_WITHIN_BYTES = 80
_FINAL = frozenset({"item/completed", "thread/tokenUsage/updated", "error", "turn/started", "turn/completed"})


@dataclass(slots=True, eq=False)
class Turn:
    """A running turn. `last` is the highest number given out; `subscribers` are those that get it, by session.

    `held` is what has come of it and has no number yet, `held_bytes` how much that is and `held_at` since when;
    `has_news` whether it is more than the beginning of every turn.
    """

    id: str
    thread_id: str
    # Turns of a worker are numbered as they begin.
    number: int = 0
    last: int = 0
    subscribers: dict[wire.SessionId, Subscription] = field(default_factory=dict)
    held: tuple[list[bytes], list[str], dict[int, int]] = field(default_factory=lambda: ([], [], {}))
    held_bytes: int = 0
    held_at: float = 0.0
    has_news: bool = False
    # The app-server has begun it by itself.
    is_own: bool = False

    @property
    def has_readers(self) -> bool:
        """Whether anybody reads along: who wants no deltas wants to know what the turn comes to."""
        for subscription in self.subscribers.values():  # noqa: SIM110 - asked for every read, and any() costs thrice
            if subscription.interest == "full":
                return True
        return False

    def hold(self, lines: list[bytes], methods: list[str], counts: Mapping[int, int], now: float) -> None:
        held_lines, held_methods, held_counts = self.held
        if not held_lines:
            self.held_at = now
        self.has_news = self.has_news or any(map(_is_news, lines, methods))
        for place, count in counts.items():
            held_counts[place + len(held_lines)] = count
        held_lines += lines
        held_methods += methods
        self.held_bytes += sum(map(len, lines))

    def take_held(self) -> tuple[list[bytes], list[str], dict[int, int]]:
        held, self.held, self.held_bytes, self.has_news = self.held, ([], [], {}), 0, False
        return held


def split_runs(
    lines: list[bytes], methods: list[str], interest: wire.Interest, counts: Mapping[int, int] = NO_COUNTS
) -> tuple[list[wire.Run], list[bytes]]:
    """Runs of one class each, and their bodies; what the interest leaves out is left out.

    `counts` says where more than one line stands in a place of `lines`, and how many.
    """
    if interest == "full" and lines and _DROPPABLE.issuperset(methods):
        return [wire.Run(len(lines) + sum(counts.values()) - len(counts), "droppable")], [b"\n".join(lines)]
    runs: list[wire.Run] = []
    bodies: list[bytes] = []
    current: list[bytes] = []
    current_class: wire.Class = "kept"
    more = 0

    def finish() -> None:
        if current:
            runs.append(wire.Run(len(current) + more, current_class))
            bodies.append(b"\n".join(current) if len(current) > 1 else current[0])
            current.clear()

    for place, (line, method) in enumerate(zip(lines, methods, strict=True)):
        droppable = method in _DROPPABLE
        if interest != "full" and (droppable or (interest == "final" and not _is_final(method))):
            continue
        cls: wire.Class = "droppable" if droppable else "kept"
        if cls != current_class:
            finish()
            current_class, more = cls, 0
        if place in counts:
            more += counts[place] - 1
        current.append(line)
    finish()
    return runs, bodies


def _is_news(line: bytes, method: str) -> bool:
    if method in _DROPPABLE or method in _OPENING:
        return False
    return method not in _OF_ITEMS or _OWN_MESSAGE not in line[:_OWN_MESSAGE_WITHIN_BYTES]


def _is_final(method: str) -> bool:
    return method in _FINAL or method.startswith("pool/")
