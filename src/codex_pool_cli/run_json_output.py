"""Output of `codex-pool run --json`: the events of its turn, as JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from . import run_events
from .run_output import TextOutput

if TYPE_CHECKING:
    from .line_client import Notice
    from .turn_reader import TurnReader


class JsonOutput(TextOutput):
    """The events of a turn on stdout, one JSON line each, as they come; messages on stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._events = run_events.RunEvents()

    def thread_started(self, thread_id: str, codex_version: str | None) -> None:
        self._write([run_events.thread_started(thread_id, codex_version)])

    def queue(self, ahead: int | None) -> None:
        super().queue(ahead)
        self._write([run_events.dequeued() if ahead == -1 else run_events.queued(ahead)])

    def of_turn(self, notice: Notice) -> None:
        self._write(self._events.of(*notice))

    def of_thread(self, notice: Notice) -> None:
        self._write(self._events.of_thread(*notice))

    def end(self, turn: TurnReader, error: dict[str, Any] | None) -> None:
        self._write(self._events.end(turn.usage, turn.final_response, error))

    def _write(self, events: Iterable[run_events.Event]) -> None:
        for event in events:
            sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
        sys.stdout.flush()
