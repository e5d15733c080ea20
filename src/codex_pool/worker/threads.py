"""The threads of this app-server: records and followers, how they are loaded, unsubscribed and unloaded. Pure.

A thread that is adopted from another worker takes no request until its settings are restored: it is taken out of the
archive if it was archived for this, resumed, refused unless the answer names its sandbox or permission profile
(`adoption`), and named.

A thread that no session follows and on which no turn runs is unsubscribed (`unfollowed`). The next request for one that
is stored resumes it first. One that cannot be resumed is held no longer. `thread` has the states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from codex_app_server import errors
from codex_app_server._core.router import MessageRouter

from ..protocol import jsonrpc, thread_records, wire
from . import adoption, peek
from .effects import Outbox
from .parted_threads import PartedThreads
from .request import Request
from .request_table import RequestTable
from .sub_agent_threads import SubAgentThreads, sessions_following
from .thread import Loading, Thread, Waiter
from .thread_tree import ThreadTree
from .unfollowed import ABANDON_AFTER_S, KEEP_S, UNSUBSCRIBE_AFTER_S, Unfollowed

# These need no subscription.
_NEEDS_NO_SUBSCRIPTION = thread_records.READS_HISTORY | {"thread/archive", "thread/delete", "thread/read"}

_NOT_LOADED = b'"notLoaded"'
# Notifications of a thread that come only of its move to another worker are not sent to its followers.
_OF_MOVING = frozenset({"thread/archived", "thread/unarchived", "thread/closed", "thread/status/changed"})
_OF_GOALS = frozenset({"thread/goal/updated", "thread/goal/cleared"})


class Threads:
    """See the module's docstring."""

    def __init__(self, *, router: MessageRouter, requests: RequestTable, outbox: Outbox) -> None:
        self._router = router
        self._requests = requests
        self._outbox = outbox
        # Of the app-server, as it has answered `initialize`; its version determines what else its answers must have.
        self.user_agent = ""
        self._threads: dict[str, Thread] = {}
        self._loading: dict[str, Loading] = {}
        # Threads that are being unloaded for another worker (`unloading`).
        self.leaving: set[str] = set()
        self._tree = ThreadTree()
        self.sub_agents = SubAgentThreads(self._threads, self._tree, router, outbox)
        self._unfollowed = Unfollowed()
        # Unsubscribed threads whose unsubscribing is not answered yet.
        self._unsubscribing: set[str] = set()
        self.parted = PartedThreads()
        # Threads that the app-server was made to load.
        self.loads = 0

    def __len__(self) -> int:
        return len(self._threads) + len(self._tree) + len(self._unfollowed)

    def __contains__(self, thread_id: object) -> bool:
        return thread_id in self._threads

    def get(self, thread_id: str | None) -> Thread | None:
        return self._threads.get(thread_id or "")

    def is_elsewhere(self, thread_id: str) -> bool:
        """Return True for a thread that is neither loaded here nor being loaded: another may have written it."""
        return thread_id not in self._threads and thread_id not in self._loading and thread_id not in self._tree

    @property
    def held(self) -> dict[str, int]:
        return {
            "loading": len(self._loading),
            "leaving": len(self.leaving),
            "unsubscribing": len(self._unsubscribing),
        }

    @property
    def records(self) -> list[wire.ThreadRecord]:
        """Records of threads that are loaded or being loaded."""
        here = [thread.record for thread in self._threads.values()]
        return here + [loading.record for loading in self._loading.values()]

    # Who follows them.

    @property
    def followers(self) -> dict[str, list[wire.SessionId]]:
        return {thread_id: self.followers_of(thread_id) for thread_id in (*self._threads, *self._loading)}

    def followers_of(self, thread_id: str) -> list[wire.SessionId]:
        return sessions_following(self._router, thread_id)

    def follow(self, head: wire.Follow) -> None:
        """Add a follower of a thread and the threads of its sub-agents."""
        if head.thread_id not in self._threads and head.thread_id not in self._loading:
            return
        for thread_id in self.family(head.thread_id):
            self._router.follow_thread(thread_id, head.session)
        if (thread := self._threads.get(head.thread_id)) is not None:
            thread.let_go = False
            self.idle(head.thread_id)

    def unsubscribe(self, thread_id: str, session: wire.SessionId, *, keep: bool) -> str:
        """Remove a follower of a thread and the threads of its sub-agents; the status that the app-server would answer.

        `keep`: turns that run go on, and their requests stay open.
        """
        thread = self._threads.get(thread_id)
        if thread is None and thread_id not in self._loading and thread_id not in self._tree:
            return "notLoaded"
        if session not in self.followers_of(thread_id):
            return "notSubscribed"
        for each in self.family(thread_id):
            self._router.unfollow_thread(each, session)
        if thread is not None:
            thread.let_go, thread.kept = True, thread.kept or keep
            self.idle(thread_id)
        return "unsubscribed"

    def owner_of(self, thread_id: str) -> str | None:
        """The principal of this thread, or of that above it, or who resumes it; None if that is not known."""
        top = self._tree.top(thread_id)
        thread = self._threads.get(top) or self._loading.get(top)
        if thread is not None:
            return thread.record.owner
        resumes = (each for each in self._requests.under_way() if each.method == "thread/resume")
        return next((each.principal for each in resumes if each.thread_id == thread_id), None)

    def resumers(self, thread_id: str, sessions: list[wire.SessionId]) -> list[wire.SessionId]:
        """Select the sessions to which the app-server repeats what it has sent of this thread before."""
        thread = self.get(thread_id)
        return sessions if thread is None else [each for each in sessions if each == thread.resumer]

    def is_kept(self, thread_id: str | None) -> bool:
        """Return True if a session that has left this thread, or that above it, wanted its turns to go on."""
        thread = self.get(self._tree.top(thread_id)) if thread_id is not None else None
        return thread is not None and thread.kept

    def concerned(self, thread_id: str, methods: Collection[str]) -> list[wire.SessionId]:
        """The sessions that get notifications of these methods: the followers of the thread, or those it has had."""
        return self.followers_of(thread_id) or self.parted.take(thread_id, methods)

    def forget_session(self, session: wire.SessionId, *, keep: bool) -> None:
        """Remove a session that is over. With `keep` its turns go on, and another session may follow them."""
        for thread_id in (*self._threads, *self._loading, *self._tree):
            if session in self.followers_of(thread_id):
                self._router.unfollow_thread(thread_id, session)
                if (thread := self._threads.get(thread_id)) is not None:
                    thread.kept = thread.kept or keep
                self.idle(thread_id)
        for thread in self._threads.values():
            thread.interests.pop(session, None)

    def family(self, thread_id: str) -> list[str]:
        """The thread and those of its sub-agents, at any depth."""
        return self._tree.family(thread_id)

    def interest_of(self, thread_id: str, session: wire.SessionId) -> wire.Interest:
        """The interest of this session in the last turn of the thread, or of the thread that it works for."""
        thread = self.get(self._tree.top(thread_id))
        return thread.interests.get(session, "full") if thread is not None else "full"

    # Answers and notifications about them.

    def hold(self, line: bytes, request: Request) -> wire.ThreadRecord | None:
        """Hold the thread in this response from now on."""
        known = self.get(request.thread_id)
        # A thread that was resumed or forked has a history; a new one is stored with its first turn.
        asked = thread_records.asked_profile(request.line)
        record = thread_records.record_of(line, turns=0 if request.method == "thread/start" else 1, asked_profile=asked)
        if record is None:
            return None
        untrusted, without_agents = thread_records.asked_narrowing(request.line)
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
                record, owner=request.principal, untrusted=untrusted, without_agents=without_agents
            )
            self._threads[record.thread_id] = Thread(record)
            self.loads += 1
        self._threads[record.thread_id].let_go = False
        self._threads[record.thread_id].resumer = request.session
        if not request.gone:
            for thread_id in self.family(record.thread_id):
                self._router.follow_thread(thread_id, request.session)
        self.idle(record.thread_id)
        return record

    def release(self, thread_id: str, *, keep: bool) -> None:
        """Drop a thread that the app-server no longer holds, and report that."""
        self.drop(thread_id)
        self._outbox.broker(wire.encode(wire.ThreadGone(thread_id, keep)))

    def observe(self, thread_id: str | None, line: bytes, method: str) -> None:
        """Update the state after a notification: settings, names, threads that were unloaded."""
        if thread_id is not None and thread_id in self._tree:
            # Closing a sub-agent unloads its thread, and is reported by the status alone.
            if method == "thread/closed" or (method == "thread/status/changed" and _NOT_LOADED in line):
                for child in self.family(thread_id):
                    self.sub_agents.drop(child)
            return
        thread = self.get(thread_id)
        if thread is None:
            return
        if method in ("thread/settings/updated", "thread/name/updated"):
            self._change(thread, thread_records.updated_record(thread.record, method, line))
        elif method in ("thread/goal/updated", "thread/goal/cleared"):
            thread.goal = method == "thread/goal/updated" and peek.goal_goes_on(line)
            self.idle(thread.record.thread_id)
        elif method == "thread/closed" and thread_id not in self.leaving and not thread.unsubscribed:
            self.release(thread.record.thread_id, keep=True)

    def named(self, thread_id: str | None, name: str | None) -> None:
        """Note a name that a client has set; its notification may come too late for the next worker."""
        thread = self.get(thread_id)
        if thread is not None and name is not None:
            self._change(thread, msgspec.structs.replace(thread.record, name=name))

    def _change(self, thread: Thread, record: wire.ThreadRecord) -> None:
        if record != thread.record:
            thread.record = record
            self._outbox.broker(wire.encode(wire.ThreadChanged(record)))

    def is_internal(self, thread_id: str, method: str) -> bool:
        """Return True for a notification that comes of what the worker itself does with the thread: it moves to another
        worker, or was resumed here."""
        if method in _OF_MOVING:
            return thread_id in self.leaving or (thread_id in self._loading and method != "thread/status/changed")
        thread = self.get(thread_id) if method in _OF_GOALS else None
        if thread is None:
            return False
        repeats, thread.repeats_goal = thread.repeats_goal, False
        return repeats

    def turn_started(self, thread_id: str, session: wire.SessionId | None, interest: wire.Interest) -> None:
        """Note a turn that runs on it, of this session unless the app-server has begun it unasked."""
        thread = self.get(thread_id)
        if thread is not None:
            thread.record = msgspec.structs.replace(thread.record, turns=thread.record.turns + 1)
            if session is not None:
                thread.interests[session] = interest

    # Loading.

    def wait(self, request: Request, head: wire.Dispatch, waiter: Waiter) -> bool:
        """Have this request wait for its thread if that must be loaded first. Whether it waits."""
        if request.thread_id is None:
            return False
        loading = self._loading.get(request.thread_id)
        if loading is None and head.adopt is not None and request.thread_id not in self._threads:
            record = head.adopt
            if thread_records.asks_without_agents(request.line):
                # Once it is loaded, resuming it changes nothing of its tools.
                record = msgspec.structs.replace(record, without_agents=True)
            loading = self._loading[request.thread_id] = Loading(record, waiter)
            if head.archived:
                # If it is in no archive after all, resuming it fails.
                self._ask("thread/unarchive", record, {}, lambda *_: self._resume(record))
            else:
                self._resume(record)
        if loading is None and request.method not in _NEEDS_NO_SUBSCRIPTION:
            loading = self._resume_unsubscribed(request.thread_id, waiter)
        if loading is None:
            return False
        self._requests.move(request, "loading")
        return True

    def _resume(self, record: wire.ThreadRecord) -> None:
        params = thread_records.resume_params(record)
        self._ask("thread/resume", record, params, lambda *answer: self._resumed(record, *answer))

    def _resumed(self, wanted: wire.ThreadRecord, line: bytes, is_error: bool) -> None:
        loading = self._loading.pop(wanted.thread_id)
        problem = (
            jsonrpc.error_of(line)
            if is_error
            else adoption.problem_of(wanted, jsonrpc.result_of(line), self.user_agent)
        )
        if problem is not None:
            # The broker keeps its record, so that the next request cannot have it with another sandbox either.
            self.release(wanted.thread_id, keep=True)
            how = "was unsubscribed" if loading.resumed is not None else "is no longer with its worker"
            message = (
                f"thread {wanted.thread_id} {how} and could not be resumed as it was: {problem}; start a new thread"
            )
            for waiting in self._requests.loading(wanted.thread_id):
                loading.waiter.refuse(waiting, errors.THREAD_LOST, message, {"safeToRetry": True})
            return
        self.loads += 1
        thread = loading.resumed or Thread(wanted, adopted=True)
        # It may have been unloaded meanwhile.
        thread.restore_sandbox, thread.unsubscribed = not wanted.profile, False
        thread.resumer, thread.repeats_goal = None, True
        self._threads[wanted.thread_id] = thread
        self.idle(wanted.thread_id)
        if wanted.name is not None and loading.resumed is None:
            self._ask("thread/name/set", wanted, {"name": wanted.name}, lambda *_: None)
        for waiting in self._requests.loading(wanted.thread_id):
            loading.waiter.go_on(waiting)

    def _ask(
        self, method: str, record: wire.ThreadRecord, params: dict[str, object], then: Callable[[bytes, bool], None]
    ) -> None:
        params = {"threadId": record.thread_id, **params}
        self._requests.submit_own(method, params, then, thread_id=record.thread_id)

    # Unfollowed.

    def idle(self, thread_id: str) -> None:
        """Note that the thread may be needed no more; a later `tick` looks."""
        self._unfollowed.stays(thread_id)
        thread = self._threads.get(thread_id)
        if thread is None or thread.unsubscribed or self.followers_of(thread_id):
            return
        if thread.is_stored or thread.let_go:
            self._unfollowed.unsubscribe_at(thread_id, self._outbox.now + UNSUBSCRIBE_AFTER_S)
        else:
            after_s = KEEP_S if thread.kept else ABANDON_AFTER_S
            self._unfollowed.unsubscribe_at(thread_id, self._outbox.now + after_s)

    def stays(self, thread_id: str) -> None:
        """Keep a thread subscribed, even without a follower."""
        self._unfollowed.stays(thread_id)

    def was_let_go(self, thread_id: str | None) -> bool:
        """Return True if a thread can have no more requests: it is unsubscribed and cannot be resumed."""
        return self._unfollowed.was_let_go(thread_id)

    def tick(self, runs_on: Callable[[str], bool]) -> None:
        """Unsubscribe threads that no client needs; `runs_on` returns whether a turn runs on one."""
        for thread_id in self._unfollowed.due(self._outbox.now):
            thread = self._threads.get(thread_id)
            if thread is None or thread.goal or thread_id in self.leaving or self.followers_of(thread_id):
                continue
            if any(map(runs_on, self.family(thread_id))) or self._requests.concern(thread_id):
                self.idle(thread_id)
            elif thread.is_stored:
                self._unsubscribe(thread_id, thread)
            else:
                self.release(thread_id, keep=True)
                self._unfollowed.let_go(thread_id, self._outbox.now)
                params: dict[str, object] = {"threadId": thread_id}
                self._requests.submit_own("thread/unsubscribe", params, lambda *_: None, thread_id=thread_id)

    def _unsubscribe(self, thread_id: str, thread: Thread) -> None:
        thread.unsubscribed = True
        self._unsubscribing.add(thread_id)

        def then(_: bytes, is_error: bool) -> None:
            self._unsubscribing.discard(thread_id)
            loading = self._loading.get(thread_id)
            if loading is not None and loading.resumed is not None:
                self._resume(loading.record)
            elif is_error:
                thread.unsubscribed = False

        self._requests.submit_own("thread/unsubscribe", {"threadId": thread_id}, then, thread_id=thread_id)

    def _resume_unsubscribed(self, thread_id: str, waiter: Waiter) -> Loading | None:
        """Resume a thread that is unsubscribed; None if it is not."""
        thread = self._threads.get(thread_id)
        if thread is None or not thread.unsubscribed or thread_id in self.leaving:
            return None
        del self._threads[thread_id]
        loading = self._loading[thread_id] = Loading(thread.record, waiter, resumed=thread)
        if thread_id not in self._unsubscribing:
            self._resume(thread.record)
        return loading

    def drop(self, thread_id: str) -> None:
        """Drop a thread, and those of its sub-agents."""
        self._threads.pop(thread_id, None)
        self._unfollowed.stays(thread_id)
        for session in self._router.thread_followers(thread_id):
            self._router.unfollow_thread(thread_id, session)
        for child in self.family(thread_id)[1:]:
            self.sub_agents.drop(child)
