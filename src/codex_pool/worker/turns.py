"""Turn: the numbers of one turn's notifications, and who wants which of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from codex_app_server.generated.routing import NOTIFICATIONS
from codex_pool import wire

_DROPPABLE = frozenset(name for name, entry in NOTIFICATIONS.items() if entry.droppable)
_FINAL = frozenset({"item/completed", "thread/tokenUsage/updated", "error", "turn/started", "turn/completed"})


@dataclass(slots=True)
class Turn:
    """A running turn. `interest` holds its sessions; `last` is the highest number given out."""

    thread_id: str
    last: int = 0
    interest: dict[str, wire.Interest] = field(default_factory=dict)
    # The number up to which the sessions of each interest are served.
    _served: dict[wire.Interest, int] = field(default_factory=dict)

    def join(self, session: str, interest: wire.Interest) -> None:
        """From now on this session gets the turn's notifications."""
        self.interest.setdefault(session, interest)
        self._served.setdefault(interest, self.last)

    def events(
        self, worker: str, turn_id: str, lines: list[bytes], methods: list[str], *, ended: bool
    ) -> list[list[bytes]]:
        """Number a run of notifications; one message for each interest that anybody has in them."""
        self.last += len(lines)
        wanted: dict[wire.Interest, list[str]] = {}
        for session, interest in self.interest.items():
            wanted.setdefault(interest, []).append(session)
        messages: list[list[bytes]] = []
        for interest, sessions in wanted.items():
            runs, bodies = split_runs(lines, methods, interest)
            if not runs and not ended:
                continue
            after = self._served.get(interest, 0)
            self._served[interest] = self.last
            head = wire.Events(self.thread_id, turn_id, after, self.last, runs, ended, worker)
            messages.append([wire.encode(wire.ToSessions(sessions)), wire.encode(head), *bodies])
        return messages


def split_runs(lines: list[bytes], methods: list[str], interest: wire.Interest) -> tuple[list[wire.Run], list[bytes]]:
    """Runs of one class each, and their bodies; what the interest leaves out is left out."""
    runs: list[wire.Run] = []
    bodies: list[bytes] = []
    current: list[bytes] = []
    current_class: wire.Class = "kept"

    def finish() -> None:
        if current:
            runs.append(wire.Run(len(current), current_class))
            bodies.append(b"\n".join(current))
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


def _is_final(method: str) -> bool:
    return method in _FINAL or method.startswith("pool/")
