"""Notifications that an app-server sends to all of its connections, and which sessions get them here. Pure.

Measured on codex 0.163.0, for `thread/closed` assumed: what is in METHODS goes to every connection that is initialized,
all else of a thread to those that are subscribed to it. Lists of threads, as a picker shows them, are kept up to date
by these. Here they go to the sessions that get all turns and that have the principal of the thread.
"""

from __future__ import annotations

from collections.abc import Collection

from ..protocol import wire
from .session_options import SessionOptions
from .threads import Threads

METHODS = frozenset(
    {
        "thread/started",
        "thread/status/changed",
        "thread/name/updated",
        "thread/goal/updated",
        "thread/goal/cleared",
        "thread/archived",
        "thread/unarchived",
        "thread/deleted",
        "thread/closed",
    }
)


class Broadcasts:
    """See the module's docstring."""

    def __init__(self, threads: Threads, options: SessionOptions) -> None:
        self._threads = threads
        self._options = options

    def others(
        self, thread_id: str, methods: Collection[str], sessions: Collection[wire.SessionId]
    ) -> list[wire.SessionId]:
        """The sessions beside these that get those of the notifications that are in METHODS."""
        if not self._options.all_turns or METHODS.isdisjoint(methods):
            return []
        owner = self._threads.owner_of(thread_id)
        return [each for each in self._options.all_turns if each.principal == owner and each not in sessions]
