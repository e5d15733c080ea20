"""Notifications that the app-server sends to each new connection, such as `configWarning`. Pure.

codex 0.163.0 sends them after its answer to `initialize`, and before any other answer. The worker is one connection:
it keeps them for the broker, which sends them to each session that begins.
"""

from __future__ import annotations

from ..protocol import wire
from .effects import Outbox

METHODS = frozenset({"configWarning", "deprecationNotice", "remoteControl/status/changed", "warning"})
MAX_LINES = 64
MAX_LINE_BYTES = 64 * 1024


class StartNotices:
    """See the module's docstring. Begins with the answer to `initialize`, and ends with the next answer."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._lines: list[bytes] = []
        self._is_over = False

    def take(self, method: str, line: bytes) -> bool:
        """Keep a notification; False if it is not one of them, but of what happens later."""
        if self._is_over or method not in METHODS:
            return False
        if len(self._lines) < MAX_LINES and len(line) <= MAX_LINE_BYTES:
            self._lines.append(line)
            self.report()
        return True

    def end(self) -> None:
        """Note that what follows is of no connection in particular."""
        self._is_over = True

    def report(self) -> None:
        """Send the broker all of them."""
        if self._lines:
            self._outbox.broker(wire.encode(wire.StartNotices()), b"\n".join(self._lines))
