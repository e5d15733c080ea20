"""Threads that were put away or taken out of the archive, and the sessions that have yet to be notified of it. Pure.

The notification comes after the answer with which the worker stops holding the thread, and with it its followers
(measured on codex 0.163.0, which sends it to every connection).
"""

from __future__ import annotations

from collections.abc import Collection

from codex_app_server._runtime.bounded import BoundedDict

from ..protocol import wire

_METHODS = frozenset({"thread/archived", "thread/unarchived", "thread/deleted", "thread/closed"})
MAX_PARTED = 1024


class PartedThreads:
    """See the module's docstring. Bounded: the oldest is forgotten first."""

    def __init__(self) -> None:
        self._sessions: BoundedDict[str, list[wire.SessionId]] = BoundedDict(MAX_PARTED)

    def add(self, thread_id: str, sessions: Collection[wire.SessionId]) -> None:
        """Note that these sessions are to be notified."""
        if sessions:
            self._sessions[thread_id] = [*sessions]

    def take(self, thread_id: str, methods: Collection[str]) -> list[wire.SessionId]:
        """The sessions that get these notifications of a thread without followers; each once."""
        if thread_id not in self._sessions or _METHODS.isdisjoint(methods):
            return []
        return self._sessions.pop(thread_id)
