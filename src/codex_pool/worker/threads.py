"""Threads: those that this app-server holds, with their records; how they come from another worker, and leave. Pure.

A thread that is adopted takes no request until it is as it was: taken out of the archive if it was put away for this,
resumed with its settings, refused unless the answer names its sandbox or permission profile (`adoption`), and named.

A thread that no session follows and on which nothing runs is unsubscribed (see `unfollowed`). A stored one sleeps: the
next request for it resumes it first. One that cannot be resumed is held no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from codex_app_server import errors
from codex_app_server._message_router import MessageRouter
from codex_pool import rpc, wire
from codex_pool.worker import adoption, reading
from codex_pool.worker.effects import Outbox
from codex_pool.worker.requests import Request, Requests
from codex_pool.worker.unfollowed import ABANDON_AFTER_S, UNSUBSCRIBE_AFTER_S, Unfollowed

MAX_CHILDREN = 10_000
MAX_DEPTH = 64
# These need no subscription.
_LEAVES_ASLEEP = frozenset({"thread/archive", "thread/delete", "thread/read"})

_NOT_LOADED = b'"notLoaded"'
# What a thread says of being carried from one worker to another is no news to its followers.
_OF_MOVING = frozenset({"thread/archived", "thread/unarchived", "thread/closed"})


class Waiter(Protocol):
    """Who gets the requests back that waited for a thread."""

    def go_on(self, request: Request) -> None: ...

    def refuse(self, request: Request, code: int, message: str, data: dict[str, object] | None) -> None: ...


@dataclass(slots=True)
class Thread:
    """A thread that is held. `adopted` says that it was another worker's, `interests` what its sessions wanted last.

    `goal` says that it may begin turns by itself, `asleep` that it is unsubscribed. `let_go`: its last session has
    unsubscribed from it; `kept`: one that is over wanted its turns to go on.
    """

    record: wire.ThreadRecord
    restore_sandbox: bool = False
    adopted: bool = False
    goal: bool = False
    asleep: bool = False
    let_go: bool = False
    kept: bool = False
    interests: dict[wire.SessionId, wire.Interest] = field(default_factory=dict)


@dataclass(slots=True)
class _Adoption:
    """A thread on its way here: the record to restore, and the requests that wait for it.

    `woken` is the thread, if it is here and was asleep.
    """

    record: wire.ThreadRecord
    waiter: Waiter
    waiting: list[Request] = field(default_factory=list)
    woken: Thread | None = None


class Threads:
    """See the module's docstring."""

    def __init__(self, *, router: MessageRouter, requests: Requests, outbox: Outbox) -> None:
        self._router = router
        self._requests = requests
        self._outbox = outbox
        # Of the app-server, as it has answered `initialize`; its version says what else its answers must have.
        self.user_agent = ""
        self._threads: dict[str, Thread] = {}
        self._adopting: dict[str, _Adoption] = {}
        self._leaving: set[str] = set()
        # Sub-agents' threads that are loaded, and whose they are.
        self._parents: dict[str, str] = {}
        # All that the broker was told of, for the next one.
        self._spawned: dict[str, str] = {}
        self._unfollowed = Unfollowed()
        # Sleeping threads whose unsubscribing is not answered yet.
        self._unsubscribing: set[str] = set()
        # Threads that the app-server was made to load.
        self.loads = 0

    def __len__(self) -> int:
        return len(self._threads) + len(self._parents) + len(self._unfollowed)

    def get(self, thread_id: str | None) -> Thread | None:
        return self._threads.get(thread_id or "")

    @property
    def held(self) -> dict[str, int]:
        return {
            "adopting": len(self._adopting),
            "leaving": len(self._leaving),
            "unsubscribing": len(self._unsubscribing),
        }

    @property
    def records(self) -> list[wire.ThreadRecord]:
        """Of those that are here or on their way here."""
        here = [thread.record for thread in self._threads.values()]
        return here + [under_way.record for under_way in self._adopting.values()]

    # Who follows them.

    @property
    def followers(self) -> dict[str, list[wire.SessionId]]:
        return {thread_id: self.followers_of(thread_id) for thread_id in (*self._threads, *self._adopting)}

    def followers_of(self, thread_id: str) -> list[wire.SessionId]:
        followers = self._router.thread_followers(thread_id)
        return [session for session in followers if isinstance(session, wire.SessionId)]

    def follow(self, head: wire.Follow) -> None:
        """A session follows a thread, and its sub-agents', or no longer."""
        if head.on and head.thread_id not in self._threads and head.thread_id not in self._adopting:
            return
        for thread_id in self.family(head.thread_id):
            if head.on:
                self._router.follow_thread(thread_id, head.session)
            else:
                self._router.unfollow_thread(thread_id, head.session)
        thread = self._threads.get(head.thread_id)
        if thread is not None:
            thread.let_go = not head.on
            self.idle(head.thread_id)

    def forget_session(self, session: wire.SessionId, *, keep: bool) -> None:
        """Drop what a session follows. With `keep` its turns go on, and a client may come for what they say."""
        for thread_id in (*self._threads, *self._adopting, *self._parents):
            if session in self.followers_of(thread_id):
                self._router.unfollow_thread(thread_id, session)
                if (thread := self._threads.get(thread_id)) is not None:
                    thread.kept = thread.kept or keep
                self.idle(thread_id)
        for thread in self._threads.values():
            thread.interests.pop(session, None)

    def begun(self, line: bytes) -> list[wire.SessionId]:
        """A thread/started line: a sub-agent's thread is followed by those of its parent's, who are told."""
        thread_id, parent = reading.parent_of(line)
        if parent is None or not thread_id:
            return []
        self.spawned(parent, [thread_id])
        return self.followers_of(thread_id) if thread_id in self._parents else []

    def spawned(self, parent: str, children: list[str], subscribers: Iterable[wire.SessionId] = ()) -> None:
        """The app-server has made threads for sub-agents; whose they are, the broker keeps before anybody hears.

        They are followed by those who follow the parent, or the turn that has made them.
        """
        if children:
            self._outbox.broker(wire.encode(wire.Children(parent, children)))
            self._spawned.update((child, parent) for child in children)
            while len(self._spawned) > MAX_CHILDREN:
                del self._spawned[next(iter(self._spawned))]
        for child in children:
            self._load_child(child, parent, subscribers)

    def adopt_agent(self, thread_id: str, parent: str, subscribers: Iterable[wire.SessionId]) -> None:
        """A turn on this thread works for one of `parent`: a sub-agent that was closed, say, has been resumed.

        The model names such a thread as it likes. It is followed if it was made for a sub-agent here, or if the
        parent is of the pool's owner, who may follow any.
        """
        if thread_id in self._threads or thread_id in self._parents:
            return
        thread = self.get(self._top(parent))
        if thread_id in self._spawned or (thread is not None and not thread.record.owner):
            self._load_child(thread_id, self._spawned.get(thread_id, parent), subscribers)

    def _load_child(self, child: str, parent: str, subscribers: Iterable[wire.SessionId]) -> None:
        followers = [*self.followers_of(parent), *subscribers]
        is_here = parent in self._threads or parent in self._parents
        if child in self._threads or not (is_here or followers):
            return
        self._parents[child] = parent
        if len(self._parents) > MAX_CHILDREN:
            self._drop_child(next(iter(self._parents)))
        for session in followers:
            self._router.follow_thread(child, session)

    def _above(self, thread_id: str) -> Iterator[str]:
        """The threads that this one is a sub-agent's of, the nearest first."""
        for _ in range(MAX_DEPTH):
            parent = self._parents.get(thread_id)
            if parent is None:
                return
            yield parent
            thread_id = parent

    def _top(self, thread_id: str) -> str:
        """The thread that is no sub-agent's: above this one, or itself."""
        return [thread_id, *self._above(thread_id)][-1]

    def family(self, thread_id: str) -> list[str]:
        """The thread and those of its sub-agents, however deep."""
        return [thread_id, *(child for child in self._parents if thread_id in self._above(child))]

    def tell_spawned(self) -> None:
        """Another broker is there: it may not have heard of sub-agents' threads. A parent comes before its children."""
        for child, parent in self._spawned.items():
            self._outbox.broker(wire.encode(wire.Children(parent, [child])))

    def interest_of(self, thread_id: str, session: wire.SessionId) -> wire.Interest:
        """What this session wanted of the thread's last turn, or of its parent's."""
        thread = self.get(self._top(thread_id))
        return thread.interests.get(session, "full") if thread is not None else "full"

    # What answers and notifications say about them.

    def hold(self, line: bytes, request: Request) -> wire.ThreadRecord | None:
        """The thread in this response is held from now on."""
        known = self.get(request.thread_id)
        # A thread that was resumed or forked has a history; a new one is not on disk before its first turn.
        asked = rpc.asked_profile(request.line)
        record = rpc.record_of(line, turns=0 if request.method == "thread/start" else 1, asked_profile=asked)
        if record is None:
            return None
        untrusted, without_agents = rpc.asks_untrusted(request.line), rpc.asks_without_agents(request.line)
        if known is not None and known.record.thread_id == record.thread_id:
            before = known.record
            record = msgspec.structs.replace(
                record,
                name=record.name or before.name,
                turns=before.turns,
                owner=before.owner,
                untrusted=before.untrusted or untrusted,
                without_agents=before.without_agents or without_agents,
            )
            if known.restore_sandbox:
                record = msgspec.structs.replace(record, sandbox=known.record.sandbox)
            known.record = record
        else:
            record = msgspec.structs.replace(
                record, owner=request.owner, untrusted=untrusted, without_agents=without_agents
            )
            self._threads[record.thread_id] = Thread(record)
            self.loads += 1
        if not request.gone:
            for thread_id in self.family(record.thread_id):
                self._router.follow_thread(thread_id, request.session)
        self.idle(record.thread_id)
        return record

    def release(self, thread_id: str, *, keep: bool) -> None:
        """The app-server no longer holds it."""
        self._drop(thread_id)
        self._outbox.broker(wire.encode(wire.ThreadGone(thread_id, keep)))

    def heed(self, thread_id: str | None, line: bytes, method: str) -> None:
        """What a notification says about the books: settings, names, threads that were unloaded."""
        if thread_id in self._parents:
            # Closing a sub-agent unloads its thread, and says so by its status alone.
            if method == "thread/closed" or (method == "thread/status/changed" and _NOT_LOADED in line):
                for child in self.family(thread_id):
                    self._drop_child(child)
            return
        thread = self.get(thread_id)
        if thread is None:
            return
        if method in ("thread/settings/updated", "thread/name/updated"):
            self._change(thread, rpc.updated_record(thread.record, method, line))
        elif method in ("thread/goal/updated", "thread/goal/cleared"):
            thread.goal = method == "thread/goal/updated" and reading.goal_goes_on(line)
            self.idle(thread.record.thread_id)
        elif method == "thread/closed" and thread_id not in self._leaving and not thread.asleep:
            self.release(thread.record.thread_id, keep=True)

    def named(self, thread_id: str | None, name: str | None) -> None:
        """A client was told that the thread has this name; the notification may come too late for the next worker."""
        thread = self.get(thread_id)
        if thread is not None and name is not None:
            self._change(thread, msgspec.structs.replace(thread.record, name=name))

    def _change(self, thread: Thread, record: wire.ThreadRecord) -> None:
        if record != thread.record:
            thread.record = record
            self._outbox.broker(wire.encode(wire.ThreadChanged(record)))

    def is_moving(self, thread_id: str, method: str) -> bool:
        """Whether this notification comes only of the thread's being carried from one worker to another."""
        return method in _OF_MOVING and (thread_id in self._leaving or thread_id in self._adopting)

    def turn_started(self, thread_id: str, session: wire.SessionId | None, interest: wire.Interest) -> None:
        """A turn runs on it, of this session unless the app-server started it itself."""
        thread = self.get(thread_id)
        if thread is not None:
            thread.record = msgspec.structs.replace(thread.record, turns=thread.record.turns + 1)
            if session is not None:
                thread.interests[session] = interest

    # Coming.

    def wait(self, request: Request, head: wire.Dispatch, waiter: Waiter) -> bool:
        """Whether this request must wait for its thread to be adopted; if so it will."""
        if request.thread_id is None:
            return False
        under_way = self._adopting.get(request.thread_id)
        if under_way is None and head.adopt is not None and request.thread_id not in self._threads:
            record = head.adopt
            if rpc.asks_without_agents(request.line):
                # Once it is loaded, resuming it changes nothing of its tools.
                record = msgspec.structs.replace(record, without_agents=True)
            under_way = self._adopting[request.thread_id] = _Adoption(record, waiter)
            if head.archived:
                # If it is in no archive after all, the resume says so.
                self._ask("thread/unarchive", record, {}, lambda *_: self._resume(record))
            else:
                self._resume(record)
        if under_way is None and request.method not in _LEAVES_ASLEEP:
            under_way = self._wake(request.thread_id, waiter)
        if under_way is None:
            return False
        under_way.waiting.append(request)
        return True

    def withdraw(self, session: wire.SessionId) -> list[Request]:
        """Take out the requests of this session that wait for a thread."""
        taken: list[Request] = []
        for under_way in self._adopting.values():
            taken += [request for request in under_way.waiting if request.session == session]
            under_way.waiting = [request for request in under_way.waiting if request.session != session]
        return taken

    def _resume(self, record: wire.ThreadRecord) -> None:
        self._ask("thread/resume", record, rpc.resume_params(record), lambda *answer: self._resumed(record, *answer))

    def _resumed(self, wanted: wire.ThreadRecord, line: bytes, is_error: bool) -> None:
        adopted = self._adopting.pop(wanted.thread_id)
        problem = rpc.error_of(line) if is_error else adoption.problem_of(wanted, rpc.result_of(line), self.user_agent)
        if problem is not None:
            # Kept in the broker's books, so that the next request cannot have it with another sandbox either.
            self.release(wanted.thread_id, keep=True)
            how = "was unsubscribed" if adopted.woken is not None else "is no longer with its worker"
            message = (
                f"thread {wanted.thread_id} {how} and could not be resumed as it was: {problem}; start a new thread"
            )
            for waiting in adopted.waiting:
                adopted.waiter.refuse(waiting, errors.THREAD_LOST, message, {"safeToRetry": True})
            return
        self.loads += 1
        thread = adopted.woken or Thread(wanted, adopted=True)
        # It may have been unloaded meanwhile.
        thread.restore_sandbox, thread.asleep = not wanted.profile, False
        self._threads[wanted.thread_id] = thread
        self.idle(wanted.thread_id)
        if wanted.name is not None and adopted.woken is None:
            self._ask("thread/name/set", wanted, {"name": wanted.name}, lambda *_: None)
        for waiting in adopted.waiting:
            adopted.waiter.go_on(waiting)

    def _ask(
        self, method: str, record: wire.ThreadRecord, params: dict[str, object], then: Callable[[bytes, bool], None]
    ) -> None:
        params = {"threadId": record.thread_id, **params}
        self._requests.ask(method, params, then, thread_id=record.thread_id)

    # Unfollowed.

    def idle(self, thread_id: str) -> None:
        """Note that the thread may be needed no more; a later `tick` looks."""
        self._unfollowed.stays(thread_id)
        thread = self._threads.get(thread_id)
        if thread is None or thread.asleep or self.followers_of(thread_id):
            return
        if _is_stored(thread) or thread.let_go:
            self._unfollowed.unsubscribe_at(thread_id, self._outbox.now + UNSUBSCRIBE_AFTER_S)
        elif not thread.kept:
            self._unfollowed.unsubscribe_at(thread_id, self._outbox.now + ABANDON_AFTER_S)

    def was_let_go(self, thread_id: str | None) -> bool:
        """Return True if a thread can have no more requests: it is unsubscribed and cannot be resumed."""
        return self._unfollowed.was_let_go(thread_id)

    def tick(self, runs_on: Callable[[str], bool]) -> None:
        """Unsubscribe threads that nobody needs; `runs_on` says whether a turn runs on one."""
        for thread_id in self._unfollowed.due(self._outbox.now):
            thread = self._threads.get(thread_id)
            if thread is None or thread.goal or thread_id in self._leaving or self.followers_of(thread_id):
                continue
            if any(map(runs_on, self.family(thread_id))) or self._requests.concern(thread_id):
                self.idle(thread_id)
            elif _is_stored(thread):
                self._unsubscribe(thread_id, thread)
            else:
                self.release(thread_id, keep=True)
                self._unfollowed.let_go(thread_id, self._outbox.now)
                params: dict[str, object] = {"threadId": thread_id}
                self._requests.ask("thread/unsubscribe", params, lambda *_: None, thread_id=thread_id)

    def _unsubscribe(self, thread_id: str, thread: Thread) -> None:
        thread.asleep = True
        self._unsubscribing.add(thread_id)

        def then(_: bytes, is_error: bool) -> None:
            self._unsubscribing.discard(thread_id)
            under_way = self._adopting.get(thread_id)
            if under_way is not None and under_way.woken is not None:
                self._resume(under_way.record)
            elif is_error:
                thread.asleep = False

        self._requests.ask("thread/unsubscribe", {"threadId": thread_id}, then, thread_id=thread_id)

    def _wake(self, thread_id: str, waiter: Waiter) -> _Adoption | None:
        """Resume a thread that is asleep; None if it is not."""
        thread = self._threads.get(thread_id)
        if thread is None or not thread.asleep or thread_id in self._leaving:
            return None
        del self._threads[thread_id]
        under_way = self._adopting[thread_id] = _Adoption(thread.record, waiter, woken=thread)
        if thread_id not in self._unsubscribing:
            self._resume(thread.record)
        return under_way

    # Leaving.

    def put_away(self, thread_id: str, children: Iterable[str], answered: Callable[[bool, bytes], None]) -> None:
        """Let go of a thread, so that another worker can take it; `answered` gets what came of it, as a line.

        Only archiving lets go of it. It is taken out of the archive here too: another app-server would look for it in
        its own database, and find it where it was before, if it knows it at all. `children`, the threads of its
        sub-agents, are archived with it, but come back only one by one; one that is not there is no matter.
        """
        if thread_id not in self._threads:
            # It was unloaded meanwhile: who wants it can have it.
            answered(True, b'{"id":null,"result":{}}')
            return
        below = [*dict.fromkeys((*self.family(thread_id)[1:], *children))]
        self._leaving.update((thread_id, *below))
        self._unfollowed.stays(thread_id)

        def then(line: bytes, is_error: bool) -> None:
            if is_error:
                self._leaving.difference_update((thread_id, *below))
                self.idle(thread_id)
                answered(False, rpc.with_id(line, b"null"))
                return
            self._drop(thread_id)
            back()

        def back(*_: object) -> None:
            # The thread itself comes last: whoever waits for the answer may resume it at once.
            if below:
                self._requests.ask("thread/unarchive", {"threadId": below[-1]}, child_back, thread_id=below[-1])
            else:
                self._requests.ask("thread/unarchive", {"threadId": thread_id}, done, thread_id=thread_id)

        def child_back(*_: object) -> None:
            child = below.pop()
            self._leaving.discard(child)
            if child in self._threads:
                self.release(child, keep=True)
            back()

        def done(*_: object) -> None:
            # If that failed it is in the archive, where the next worker looks for it first.
            self._leaving.discard(thread_id)
            answered(True, b'{"id":null,"result":{}}')

        self._requests.ask("thread/archive", {"threadId": thread_id}, then, thread_id=thread_id)

    def _drop(self, thread_id: str) -> None:
        self._threads.pop(thread_id, None)
        self._unfollowed.stays(thread_id)
        for session in self._router.thread_followers(thread_id):
            self._router.unfollow_thread(thread_id, session)
        for child in self.family(thread_id)[1:]:
            self._drop_child(child)

    def _drop_child(self, thread_id: str) -> None:
        del self._parents[thread_id]
        for session in self._router.thread_followers(thread_id):
            self._router.unfollow_thread(thread_id, session)


def _is_stored(thread: Thread) -> bool:
    """Return True if it can be resumed: a thread without a turn is not on disk."""
    return not thread.record.ephemeral and thread.record.turns > 0
