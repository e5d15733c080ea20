"""Silence: when to report that nothing comes of a turn, and why. Pure: the clock is passed in.

While a provider cannot be reached a turn does not fail: codex sends `error` notifications that it will retry, or,
where the provider takes the request and never answers, nothing at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codex_app_server._core.last_error import said
from codex_pool.open_items import OpenItems

if TYPE_CHECKING:
    from .line_client import Notice

# Of nothing at all, and of an error: a stream that was cut is often whole again within a second.
FIRST_S = 5.0
ERROR_S = 2.0
AGAIN_S = 30.0


class Silence:
    """Silence of one turn that begins at `now`. All times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self._received_at = now
        self._next_at = now + FIRST_S
        self._has_said = False
        self._error: Any = None
        self._items = OpenItems()

    def observe(self, notification: Notice, now: float) -> None:
        """A notification has come; an `error` that will be retried is no sign of life of the provider."""
        method = notification.method
        if method == "error":
            params = notification.params
            if params.get("willRetry"):
                if self._error is None and not self._has_said:
                    self._next_at = min(self._next_at, now + ERROR_S)
                self._error = params.get("error")
                self._items.cut()
                return
        elif method in ("item/started", "item/completed"):
            item = notification.params.get("item") or {}
            if method == "item/started":
                self._items.started(item.get("id", ""), item.get("type", ""))
            else:
                self._items.completed(item.get("id", ""))
        self._received_at, self._next_at, self._error, self._has_said = now, now + FIRST_S, None, False

    def wait_s(self, now: float) -> float:
        """Seconds until there may be something to report."""
        return max(0.0, self._next_at - now)

    def due(self, now: float) -> str | None:
        """Return the message that is due now, if it is time for it and no tool explains the silence."""
        if now < self._next_at:
            return None
        self._next_at = now + AGAIN_S
        if self._error is not None:
            self._has_said = True
            why = said(self._error) or "codex tries again"
            return f"the model's provider cannot be reached ({why}); codex goes on trying, Ctrl-C ends the turn"
        if self._items:
            return None
        self._has_said = True
        return f"the model's provider has sent nothing for {now - self._received_at:.0f} s; Ctrl-C ends the turn"
