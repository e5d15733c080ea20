"""A bounded log of what a core has done last, for the report of an error in it. Pure."""

from __future__ import annotations

from collections import deque

MAX_EVENTS = 200
MAX_TEXT = 80


class InvariantError(Exception):
    """A state that the core excludes was reached: an error in this program."""


class EventLog:
    """The last MAX_EVENTS events: names, ids and counts, never the content of a message."""

    def __init__(self) -> None:
        self._events: deque[tuple[float, str, tuple[object, ...]]] = deque(maxlen=MAX_EVENTS)

    def add(self, now: float, name: str, *details: object) -> None:
        """Record an event at `now` (monotonic seconds)."""
        self._events.append((now, name, details))

    def lines(self) -> list[str]:
        """The events as text, oldest first, with their time in seconds before the last one."""
        if not self._events:
            return []
        last = self._events[-1][0]
        return [
            f"{at - last:+.3f} s {' '.join([name, *(str(each)[:MAX_TEXT] for each in details)])}"
            for at, name, details in self._events
        ]
