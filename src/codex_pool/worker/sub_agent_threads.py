"""SubAgentThreads: threads that the app-server has made for sub-agents, below those that sessions have loaded. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from codex_app_server._core.router import MessageRouter

from ..protocol import wire
from . import peek
from .effects import Outbox
from .thread import Thread
from .thread_tree import ThreadTree


def sessions_following(router: MessageRouter, thread_id: str) -> list[wire.SessionId]:
    """The sessions that follow a thread."""
    return [session for session in router.thread_followers(thread_id) if isinstance(session, wire.SessionId)]


class SubAgentThreads:
    """See the module's docstring. `threads` are those that sessions have loaded, `tree` has those of sub-agents."""

    def __init__(self, threads: Mapping[str, Thread], tree: ThreadTree, router: MessageRouter, outbox: Outbox) -> None:
        self._threads = threads
        self._tree = tree
        self._router = router
        self._outbox = outbox

    def on_thread_started(self, line: bytes) -> list[wire.SessionId]:
        """Note the thread of a sub-agent in a thread/started line; the sessions that follow its parent, and now it."""
        thread_id, parent = peek.parent_of(line)
        if parent is None or not thread_id:
            return []
        self.spawned(parent, [thread_id])
        return self._followers_of(thread_id) if thread_id in self._tree else []

    def spawned(self, parent: str, children: list[str], subscribers: Iterable[wire.SessionId] = ()) -> None:
        """Note threads that the app-server has made for sub-agents, and report them to the broker first.

        They are followed by the sessions that follow the parent, or the turn that has made them.
        """
        if children:
            self._outbox.broker(wire.encode(wire.Children(parent, children)))
            self._tree.report(parent, children)
        for child in children:
            self._load_child(child, parent, subscribers)

    def adopt(self, thread_id: str, parent: str, subscribers: Iterable[wire.SessionId]) -> None:
        """Note that a turn on this thread works for one of `parent`: a closed sub-agent, for example, was resumed.

        The model chooses such a thread. It is followed if it was made for a sub-agent here, or if the parent belongs to
        the pool's owner, who may follow any.
        """
        if thread_id in self._threads or thread_id in self._tree:
            return
        thread = self._threads.get(self._tree.top(parent))
        reported = self._tree.reported_parent(thread_id)
        if reported is not None or (thread is not None and not thread.record.owner):
            self._load_child(thread_id, reported or parent, subscribers)

    def _load_child(self, child: str, parent: str, subscribers: Iterable[wire.SessionId]) -> None:
        followers = [*self._followers_of(parent), *subscribers]
        is_here = parent in self._threads or parent in self._tree
        if child in self._threads or not (is_here or followers):
            return
        displaced = self._tree.add(child, parent)
        if displaced is not None:
            self.drop(displaced)
        for session in followers:
            self._router.follow_thread(child, session)

    def report(self) -> None:
        """Report the threads of sub-agents to another broker, which may not know them."""
        for parent, child in self._tree.reports:
            self._outbox.broker(wire.encode(wire.Children(parent, [child])))

    def drop(self, thread_id: str) -> None:
        """Drop the thread of a sub-agent."""
        self._tree.remove(thread_id)
        for session in self._router.thread_followers(thread_id):
            self._router.unfollow_thread(thread_id, session)

    def _followers_of(self, thread_id: str) -> list[wire.SessionId]:
        return sessions_following(self._router, thread_id)
