"""Effects of the worker's core, and the outbox in which its modules collect them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..protocol import packs, wire


class ToAppServer(msgspec.Struct, frozen=True, gc=False):
    """Write this line to the app-server's stdin."""

    line: bytes


class ToBroker(msgspec.Struct, frozen=True, gc=False):
    """Send these frames."""

    frames: list[bytes]


class BulkToBroker(msgspec.Struct, frozen=True, gc=False):
    """Send these frames after all that is not bulk, in their order."""

    frames: list[bytes | memoryview]


class Ready(msgspec.Struct, frozen=True, gc=False):
    """The app-server has answered `initialize`, and is of this version if that is known: the worker may register."""

    codex_version: str | None = None


class Fail(msgspec.Struct, frozen=True, gc=False):
    """The worker cannot go on; it ends with this reason."""

    reason: str


class Note(msgspec.Struct, frozen=True, gc=False):
    """A message for the log."""

    message: str


class FillHistory(msgspec.Struct, frozen=True, gc=False):
    """Add to the app-server's database what others have of this thread, before it is sent what follows."""

    thread_id: str


class ToTracer(msgspec.Struct, frozen=True, gc=False):
    """Send this line, as of `protocol.turn_spans`, or leave it out."""

    line: bytes


Effect = ToAppServer | ToBroker | BulkToBroker | Ready | Fail | Note | FillHistory | ToTracer

LINES = wire.encode(wire.Lines())


class Outbox:
    """The effects of the event that is being handled, and its time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._effects: list[Effect] = []

    def take(self) -> list[Effect]:
        """Take the effects; small messages of notifications that stand together are put together (see `packs`)."""
        effects, self._effects = self._effects, []
        if len(effects) < 2:
            return effects
        taken: list[Effect] = []
        messages: list[list[bytes]] = []
        for effect in effects:
            if isinstance(effect, ToBroker):
                messages.append(effect.frames)
                continue
            taken += map(ToBroker, packs.packed(messages))
            messages = []
            taken.append(effect)
        taken += map(ToBroker, packs.packed(messages))
        return taken

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
