"""What the worker's core asks the loop to do, and the outbox in which its rooms gather that. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from codex_pool import wire


@dataclass(frozen=True, slots=True)
class ToAppServer:
    """Write this line to the app-server's stdin."""

    line: bytes


@dataclass(frozen=True, slots=True)
class ToBroker:
    """Send these frames."""

    frames: list[bytes]


@dataclass(frozen=True, slots=True)
class BulkToBroker:
    """Send these frames after all that is not bulk, in their order."""

    frames: list[bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Ready:
    """The app-server has answered `initialize`: the worker may register."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The worker cannot go on; it ends with this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the log."""

    message: str


Effect = ToAppServer | ToBroker | BulkToBroker | Ready | Fail | Note

LINES = wire.encode(wire.Lines())


class Outbox:
    """The effects of the event that is being handled, and its time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._effects: list[Effect] = []

    def take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def put(self, effect: Effect) -> None:
        self._effects.append(effect)

    def app_server(self, line: bytes) -> None:
        self._effects.append(ToAppServer(line))

    def broker(self, *frames: bytes) -> None:
        self._effects.append(ToBroker([*frames]))

    def bulk(self, *frames: bytes | memoryview) -> None:
        self._effects.append(BulkToBroker([*frames]))

    def messages(self, messages: Iterable[list[bytes]]) -> None:
        self._effects += [ToBroker(frames) for frames in messages]

    def sessions(self, sessions: list[wire.SessionId], lines: bytes) -> None:
        """Lines outside of turns for these sessions; for all of them when the list is empty."""
        self.broker(wire.encode(wire.ToSessions(sessions)), LINES, lines)

    def note(self, message: str) -> None:
        self._effects.append(Note(message))
