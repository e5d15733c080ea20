"""Threads that no session follows: when they are unsubscribed, and those that cannot be resumed after that. Pure.

codex (0.163, measured) sends a connection nothing more of a thread that it has unsubscribed, not even the end of a
turn, and unloads the thread, with its MCP servers, once it was idle for 30 minutes. A stored thread can be resumed; one
that is ephemeral, or has no turn yet, cannot, though it is still loaded: it is let go.
"""

from __future__ import annotations

from codex_app_server._runtime.bounded import BoundedDict

# A goal begins its next turn within this time of the last one's end.
UNSUBSCRIBE_AFTER_S = 5.0
# Of a thread that cannot be resumed and whose last session has ended without unsubscribing: another may follow it.
ABANDON_AFTER_S = 60.0
# The same, if that session has wanted its turns to go on: as long as the app-server keeps a thread that is idle.
KEEP_S = 30 * 60.0
UNLOADED_AFTER_S = 30 * 60.0 + 60.0
MAX_LET_GO = 10_000


class Unfollowed:
    """See the module's docstring. The length is the number of threads that were let go and may still be loaded."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        # When they were let go.
        self._let_go: BoundedDict[str, float] = BoundedDict(MAX_LET_GO)

    def __len__(self) -> int:
        return len(self._let_go)

    def unsubscribe_at(self, thread_id: str, at: float) -> None:
        self._due[thread_id] = at

    def stays(self, thread_id: str) -> None:
        """Keep a thread that is followed again, or forget one that is not here any more."""
        self._due.pop(thread_id, None)

    def due(self, now: float) -> list[str]:
        """Threads whose time has come, each once."""
        due = [thread_id for thread_id, at in self._due.items() if at <= now]
        for thread_id in due:
            del self._due[thread_id]
        while self._let_go and next(iter(self._let_go.values())) < now - UNLOADED_AFTER_S:
            self._let_go.popitem(last=False)
        return due

    def let_go(self, thread_id: str, now: float) -> None:
        self._let_go[thread_id] = now

    def was_let_go(self, thread_id: str | None) -> bool:
        return thread_id in self._let_go
