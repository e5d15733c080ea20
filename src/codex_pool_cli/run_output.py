"""Output of `codex-pool run`: the text of its turn. Its events as JSON lines are in `run_json_output`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from codex_app_server._runtime.text import plural

if TYPE_CHECKING:
    from .line_client import Notice
    from .turn_reader import TurnReader


class TextOutput:
    """The text of a turn on stdout, as it comes; messages on stderr."""

    def __init__(self) -> None:
        self._at_line_start = True
        self._is_waiting = False

    def thread_started(self, thread_id: str, codex_version: str | None) -> None:
        """The thread has been started or resumed, by an app-server of this version."""

    def queue(self, ahead: int | None) -> None:
        """Show on a terminal that the turn waits behind `ahead` others; -1: no longer."""
        self.clear()
        if ahead != -1 and sys.stderr.isatty():
            behind = f" behind {plural(ahead, 'other')}" if ahead else ""
            self._is_waiting = True
            self._draw(f"codex-pool: waiting for a free turn{behind}; Ctrl-C gives up")

    def clear(self) -> None:
        """Clear what is shown of the queue."""
        if self._is_waiting:
            self._is_waiting = False
            self._draw("\r\x1b[K")

    def _draw(self, text: str) -> None:
        # The stream of a display: it takes the characters that move on the terminal.
        terminal = getattr(sys.stderr, "raw_text", sys.stderr)
        terminal.write(text)
        terminal.flush()

    def of_turn(self, notice: Notice) -> None:
        """A notification of the turn."""
        if notice.method == "item/agentMessage/delta":
            text = str(notice.params.get("delta") or "")
            sys.stdout.write(text)
            sys.stdout.flush()
            self._at_line_start = text.endswith("\n") if text else self._at_line_start

    def of_thread(self, notice: Notice) -> None:
        """A notification that belongs to no turn."""

    def end(self, turn: TurnReader, error: dict[str, Any] | None) -> None:
        """The turn has ended."""
        if not self._at_line_start:
            sys.stdout.write("\n")
            sys.stdout.flush()

    def say(self, message: str) -> None:
        """Write a message to stderr, on a line of its own also where the text so far is on the same terminal."""
        self.clear()
        if not self._at_line_start and sys.stdout.isatty() and sys.stderr.isatty():
            click.echo(err=True)
        click.echo(f"codex-pool: {message}", err=True)
