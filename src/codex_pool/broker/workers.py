"""What workers tell: they register, answer, run turns, hold threads, drain, fall silent and die. Pure."""

from __future__ import annotations

import msgspec

from codex_pool import rpc, wire
from codex_pool.broker.books import WORKER_QUIET_S, Books, Unkept, is_silent
from codex_pool.broker.changes import APPLY
from codex_pool.broker.dispatch import FOLLOW, RELEASE, Dispatcher
from codex_pool.broker.lists import OwnLists
from codex_pool.broker.pace import Pace
from codex_pool.broker.records import (
    ENTRY,
    PAGE,
    Call,
    Drained,
    Registered,
    Renew,
    Suspect,
    Thread,
    ToWorker,
    Turn,
    Worker,
)
from codex_pool.broker.sessions import Sessions
from codex_pool.broker.thread_lists import ThreadLists
from codex_pool.broker.tokens import Tokens

WORKER_SILENT_S = 10.0
WORKER_WEDGED_S = 10.0
LEASE_IDLE_S = 60.0
# Of a worker that drains: from then on its threads that cannot leave it have no more turns.
LEASES_LIMIT_S = 600.0
# A worker that has drained has ended by then (it may wait 25 s for its clients), unless nobody ends it.
DRAINED_LIMIT_S = 40.0
INTERNAL_ERROR = -32603

_MAKES_THREAD = frozenset({"thread/start", "thread/fork"})


class Workers:
    """See the module's docstring. `unix_offset` is what makes the time of events Unix time."""

    def __init__(
        self,
        books: Books,
        dispatcher: Dispatcher,
        sessions: Sessions,
        tokens: Tokens,
        lists: OwnLists,
        thread_lists: ThreadLists,
        pace: Pace,
        *,
        unix_offset: float,
    ) -> None:
        self._books = books
        self._dispatcher = dispatcher
        self._sessions = sessions
        self._tokens = tokens
        self._lists = lists
        self._thread_lists = thread_lists
        self._changes = dispatcher.changes
        self._pace = pace
        self._unix_offset = unix_offset
        # Strangers that were asked who they are, until the next beat.
        self._asked: set[bytes] = set()

    def message(self, identity: bytes, frames: list[bytes]) -> None:
        """A message on the workers' socket."""
        books = self._books
        try:
            route = wire.decode_from_worker(frames[0])
        except wire.WireError as error:
            books.note(f"a worker's message was ignored: {error}")
            return
        if isinstance(route, wire.Progress):
            self._on_progress(route)
            return
        if isinstance(route, wire.Register):
            self._on_register(identity, route, frames)
            return
        worker = books.workers.get(books.worker_of.get(identity, ""))
        if worker is None:
            if identity not in self._asked and len(self._asked) < 1024:
                self._asked.add(identity)
                books.out.append(ToWorker(identity, [wire.encode(wire.WhoAreYou())]))
            return
        worker.seen_at = books.now
        match route:
            case wire.ToSessions():
                if len(frames) > 1:
                    books.pass_on(route.sessions or books.own_sessions(), frames[1:])
            case wire.Answered():
                self._on_answered(route, worker, frames[1:])
            case wire.Held():
                call = books.calls.get(route.call)
                if call is not None and call.worker == worker.name:
                    books.hold_thread(route.record, worker, call)
            case wire.TurnStarted():
                if self._on_turn_started(route, worker) and route.by_itself:
                    self._on_own_turn(route, worker)
            case wire.TurnEnded():
                books.pass_on(route.sessions, frames[1:])
                self._on_turn_ended(route, worker)
            case wire.ThreadChanged():
                thread = books.threads.get(route.record.thread_id)
                if thread is not None:
                    books.change_thread(thread, route.record)
            case wire.ThreadGone():
                self._on_thread_gone(route, worker)
            case wire.Limited():
                self._on_limited(route)
            case wire.LoginEnded():
                self._changes.login_ended(worker, route, frames[1:])
                self._check_drained(worker)
            case wire.Tree():
                self._on_tree(route, worker)
            case wire.Children():
                books.spawned(route.thread_id, route.children)
            case wire.TokensWanted():
                self._tokens.wanted(worker, frames[1])

    # Coming.

    def _on_register(self, identity: bytes, register: wire.Register, frames: list[bytes]) -> None:
        books, name = self._books, register.worker
        try:
            _, initialize, body = frames
            holdings = wire.decode_holdings(body)
        except ValueError as error:
            books.note(f"worker {name} was not registered: {error}")
            return
        known = books.workers.get(name)
        # It may have more than one connection in its life: the name stands before the slash.
        foreign = identity.partition(b"/")[0] != name.encode()
        if foreign or name in books.lost or (known is not None and known.identity == identity):
            books.note(f"worker {name} was not registered: it is known, or dead, or not the one who says so")
            return
        if known is not None:
            books.worker_of.pop(known.identity, None)
            known.identity, known.seen_at = identity, books.now
            books.worker_of[identity] = name
            self._dispatcher.send_again(known)
            return
        worker = Worker(
            name, register.slot, register.pid, register.app_server_pid, identity, seen_at=books.now, turned_at=books.now
        )
        books.workers[name] = worker
        books.worker_of[identity] = name
        books.initialize = initialize
        self._asked.discard(identity)
        books.out.append(Registered(name))
        if books.holder is not None:
            books.to_worker(worker, wire.Holder(books.holder))
        self._take_over(worker, holdings)
        if holdings.tree is not None:
            worker.tree, worker.fresh = holdings.tree, holdings.tree.fresh
        self._changes.registered(worker, register, holdings)
        self._sessions.worker_settled(name)
        self._dispatcher.work_again()

    def _take_over(self, worker: Worker, holdings: wire.Holdings) -> None:
        """What the worker has from before this broker was there."""
        books = self._books
        for record in holdings.records:
            known = books.threads.get(record.thread_id)
            if known is not None and known.worker is not None:
                continue
            thread = known or books.add_thread(record, worker)
            books.change_thread(thread, record)
            thread.worker = worker.name
            worker.threads.add(record.thread_id)
        for thread_id, sessions in holdings.followers.items():
            for session in sessions:
                self._sessions.placeholder(session)
                if thread_id in books.threads and session in books.sessions:
                    books.threads[thread_id].followers[session] = None
        for turn in holdings.turns:
            for session in turn.sessions:
                self._sessions.placeholder(session)
            self._run(turn.turn_id, turn.thread_id, turn.sessions, worker)
        for call in holdings.calls:
            self._sessions.placeholder(call.session)
            books.saw((call.session, call.request_id), worker.name)
        for turn_id in holdings.ended:
            books.turn_ended(turn_id, worker.name)

    # Answers, turns and threads.

    def _on_answered(self, answered: wire.Answered, worker: Worker, frames: list[bytes]) -> None:
        books = self._books
        if answered.started is not None:
            self._on_turn_started(answered.started, worker)
        call = books.calls.get(answered.call)
        if call is None or call.worker != worker.name:
            return
        worker.fresh += answered.ok and answered.call in worker.loading
        books.close_call(answered.call)
        if call.method == RELEASE:
            self._dispatcher.released(call.thread_id or "", ok=answered.ok)
        elif call.method == ENTRY:
            self._lists.answered(call, frames[1] if answered.ok and len(frames) == 2 else None)
        elif call.method == PAGE:
            self._thread_lists.answered(call, frames[1] if len(frames) == 2 else None, ok=answered.ok)
        elif call.method == APPLY:
            self._changes.answered(call, worker, frames, ok=answered.ok)
        else:
            if answered.record is not None:
                new_of = call.who if call.method in _MAKES_THREAD else ""
                books.hold_thread(answered.record, worker, call, new_of)
            if answered.ok and call.method == FOLLOW:
                turn = books.turns.get(call.turn_id or "")
                if turn is not None and call.session is not None and call.session not in turn.sessions:
                    turn.sessions.append(call.session)
            if answered.ok and call.method == "account/login/start" and call.session in books.sessions:
                books.has_logged_in(call)
                login_id = rpc.login_id_of(frames[1]) if len(frames) == 2 else None
                if login_id is not None:
                    books.logins[login_id] = worker.name, call.session
            made = answered.record.thread_id if answered.record is not None else ""
            if answered.ok and len(frames) == 2:
                made = self._note_owned(call, frames[1]) or made
            if made and books.owned.durable and books.owned.is_pending(made):
                books.unkept.append(Unkept(call, worker, frames, made))
            else:
                self._dispatcher.answered(call, worker, frames, ok=answered.ok)
        self._changes.announcements.settle()
        self._dispatcher.room_again(worker)
        self._check_drained(worker)

    def _note_owned(self, call: Call, line: bytes) -> str:
        """Record what a successful call changes of a client's thread; return the thread that it has made, or ""."""
        owned, thread_id = self._books.owned, call.thread_id or ""
        if call.method == "review/start" and call.who:
            made = rpc.review_thread_of(line)
            if made and made != thread_id:
                self._books.own(made, call.who, stored=True)
                return made
        elif owned.get(thread_id) is None:
            return ""
        elif call.method in ("thread/archive", "thread/unarchive"):
            owned.change(thread_id, archived=call.method == "thread/archive")
        elif call.method == "thread/delete":
            owned.forget(thread_id)
        elif call.method == "thread/name/set":
            owned.change(thread_id, name=rpc.name_in(call.line))
        return ""

    def kept(self, number: int, problem: str | None) -> None:
        """The answers that have waited for this write."""
        books = self._books
        for call, worker, frames, thread_id in books.keeping.pop(number, ()):
            if problem is None and (not call.who or books.owned.owner_of(thread_id) == call.who):
                self._dispatcher.answered(call, worker, frames, ok=True)
                continue
            books.drop_thread(thread_id)
            message = f"thread {thread_id} is not used: its owner could not be written down: {problem or 'see the log'}"
            books.fail(call, INTERNAL_ERROR, message, {"kind": "ownership", "safeToRetry": True})

    def _run(self, turn_id: str, thread_id: str, sessions: list[wire.SessionId], worker: Worker) -> Thread | None:
        worker.turns.add(turn_id)
        self._books.turns[turn_id] = Turn(thread_id, worker.name, list(sessions))
        thread = self._books.threads.get(thread_id)
        if thread is not None:
            thread.turns.add(turn_id)
        self._books.touched(thread_id)
        return thread

    def _on_own_turn(self, started: wire.TurnStarted, worker: Worker) -> None:
        """A goal begins a turn with a former account: nobody could refuse it. Its thread goes on elsewhere."""
        calls = (self._books.calls[number] for number in worker.starting)
        if worker.stale and all(call.thread_id != started.thread_id for call in calls):
            self._books.note(f"turn {started.turn_id} is interrupted, because worker {worker.name} is being renewed")
            self._books.to_worker(worker, wire.Interrupt(started.thread_id, started.turn_id))

    def interrupt_revoked(self) -> None:
        """End the turns on threads of principals that have no key any more, however they have begun.

        Again at each beat until they are over: an interrupt may come before its turn can take it, and goals go on.
        """
        books = self._books
        if books.doors is None or not books.doors.is_in_use:
            return
        for turn_id, turn in books.turns.items():
            worker = books.workers.get(turn.worker)
            if worker is not None and not books.doors.is_known(books.owner_of(turn.thread_id)):
                books.to_worker(worker, wire.Interrupt(turn.thread_id, turn_id))

    def _on_turn_started(self, started: wire.TurnStarted | wire.TurnHeld, worker: Worker) -> bool:
        """A turn runs; whether that is new."""
        new = started.turn_id not in self._books.turns
        thread = self._run(started.turn_id, started.thread_id, started.sessions, worker)
        if thread is not None and new:
            self._books.change_thread(thread, msgspec.structs.replace(thread.record, turns=thread.record.turns + 1))
        return new

    def _on_turn_ended(self, ended: wire.TurnEnded, worker: Worker) -> None:
        books = self._books
        worker.turns.discard(ended.turn_id)
        turn = books.turns.pop(ended.turn_id, None)
        if turn is None:
            return
        books.turn_ended(ended.turn_id, worker.name)
        for session_id in turn.sessions:
            if session_id in books.sessions:
                books.sessions[session_id].turn_ended_at = books.now
        books.ended[ended.status] += 1
        if ended.status == "completed":
            self._pace.completed()
        thread = books.threads.get(ended.thread_id)
        if thread is not None:
            thread.turns.discard(ended.turn_id)
            thread.used_at = books.now
            books.let_go(thread)
        for parent in map(books.threads.get, books.above(ended.thread_id)):
            if parent is not None:
                parent.used_at = books.now
                books.let_go(parent)
        books.touched(ended.thread_id)
        self._dispatcher.room_again(worker)
        self._check_drained(worker)

    def _on_thread_gone(self, gone: wire.ThreadGone, worker: Worker) -> None:
        thread = self._books.threads.get(gone.thread_id)
        if thread is not None and thread.worker == worker.name and thread.moving is not None:
            # Where it is now the answer to its release tells.
            return
        worker.threads.discard(gone.thread_id)
        if thread is None or thread.worker not in (None, worker.name):
            return
        if gone.keep:
            self._books.orphan(thread)
        else:
            self._books.put_away(gone.thread_id, worker.name)

    def _on_tree(self, tree: wire.Tree, worker: Worker) -> None:
        worker.tree, worker.fresh = tree, tree.fresh
        why = self._dispatcher.room.reason_to_renew(worker)
        if why:
            self._books.out.append(Renew(worker.name, why))
        self._dispatcher.fill_room()

    def _on_limited(self, limited: wire.Limited) -> None:
        books = self._books
        reset_in_s = limited.resets_at - (books.now + self._unix_offset) if limited.resets_at is not None else None
        self._pace.limited(limited.kind, reset_in_s, books.running, books.now)

    # Going.

    def drain(self, name: str) -> None:
        """This worker is to finish what it has, and to get nothing new but for threads that cannot leave it.

        One that has not registered yet may run anything: the supervisor asks again when it has.
        """
        books = self._books
        worker = books.workers.get(name)
        if worker is None:
            books.note(f"worker {name} is to drain and has not registered yet")
        elif not worker.draining:
            worker.draining_since = books.now
            self._dispatcher.leave(worker)
            self._check_drained(worker)

    def _check_drained(self, worker: Worker) -> None:
        if worker.draining_since is None or not self._may_work(worker):
            return
        logs_in = any(name == worker.name for name, _ in self._books.logins.values())
        may_lease = not worker.stale and self._books.now - worker.draining_since <= LEASES_LIMIT_S
        leased = may_lease and any(map(self._leased, worker.threads))
        # For as long as its turns run, and whatever they wait for.
        if worker.turns or worker.calls or worker.waiting or logs_in or leased:
            return
        worker.drained, worker.drained_at = True, self._books.now
        if not worker.told_drained:
            worker.told_drained = True
            self._books.out.append(Drained(worker.name))

    def _may_work(self, worker: Worker) -> bool:
        """Whether it is not about to end.

        One that nobody ends - the supervisor is stopped, or the worker runs a turn that began meanwhile - goes on
        draining, so that what waits for its end does not wait without a limit.
        """
        if worker.drained and self._books.now - worker.drained_at > DRAINED_LIMIT_S:
            worker.drained = False
            parked, worker.parked = worker.parked, []
            for call in parked:
                self._dispatcher.route(call)
        return not worker.drained

    def _leased(self, thread_id: str) -> bool:
        """Whether somebody may still have turns for a thread that cannot leave its worker."""
        thread = self._books.threads.get(thread_id)
        if thread is None or thread.stored or not thread.followers:
            return False
        return self._books.now - thread.used_at <= LEASE_IDLE_S

    def lost(self, name: str, reason: str) -> None:
        """The worker and all that it ran are dead. May come for a worker that never registered."""
        books = self._books
        worker = books.bury(name)
        if worker is not None:
            self._scatter(worker, reason)
            self._changes.worker_lost(worker, reason)
            self._changes.announcements.settle()
            self._dispatcher.fill_room()
            self._dispatcher.fill_all_places()
        self._sessions.worker_settled(name)

    def _scatter(self, worker: Worker, reason: str) -> None:
        books = self._books
        for thread_id in worker.threads:
            thread = books.threads.get(thread_id)
            if thread is not None:
                books.orphan(thread)
        for turn_id in worker.turns:
            turn = books.turns.pop(turn_id, None)
            if turn is None:
                continue
            books.ended["lost"] += 1
            thread = books.threads.get(turn.thread_id)
            if thread is not None:
                thread.turns.discard(turn_id)
            message = f"worker {worker.name} died: {reason}"
            books.end_turn_for(turn.sessions, turn.thread_id, turn_id, message)
        # All are closed before any is routed anew: none is to wait for another that is gone as well.
        calls = [books.close_call(number) for number in sorted(worker.calls)]
        for call in calls:
            if call.method == ENTRY:
                self._lists.answered(call, None)
                continue
            if call.method == PAGE:
                self._thread_lists.answered(call, None, ok=False)
                continue
            self._dispatcher.lose(call, worker.slot, reason)
        for call in [*worker.waiting.remove_all(), *worker.parked]:
            self._dispatcher.route(call)

    # The clock.

    def _on_progress(self, progress: wire.Progress) -> None:
        worker = self._books.workers.get(progress.worker)
        if worker is not None:
            if worker.progress is None or worker.progress.loops != progress.loops:
                worker.turned_at = self._books.now
            worker.seen_at, worker.progress = self._books.now, progress

    def tick(self) -> None:
        """Workers that say nothing, or do nothing; limits and leases that have run out."""
        books = self._books
        self._asked.clear()
        self._dispatcher.fill_room()
        self._changes.tick()
        self._tokens.tick()
        self._thread_lists.tick()
        if self._pace.tick(books.now):
            self._dispatcher.start_all_waiting()
        self.interrupt_revoked()
        for who, lines in books.log_shares.tick(books.now):
            books.note(f"{lines} more lines because of {books.name_of(who)} were left out")
        for worker in list(books.workers.values()):
            self._check_drained(worker)
            if worker.suspected:
                continue
            reason = None
            if books.now - worker.seen_at > WORKER_SILENT_S:
                reason = f"no beat for {WORKER_SILENT_S:.0f} s"
            elif worker.progress is not None and books.now - worker.turned_at > WORKER_WEDGED_S:
                # The beat has a thread of its own.
                reason = f"its loop has not turned for {WORKER_WEDGED_S:.0f} s: wedged"
            if reason is not None:
                worker.suspected = True
                books.out.append(Suspect(worker.name, reason))


def state_of(worker: Worker, now: float) -> str:
    """One word for status."""
    if is_silent(worker, now):
        return "silent"
    if worker.progress is not None and now - worker.turned_at > WORKER_QUIET_S:
        return "wedged"
    if worker.draining:
        return "draining"
    return "stale" if worker.stale else "ready"
