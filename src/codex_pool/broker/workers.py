"""Workers: they register, drain, fall silent, and die. Pure.

    state       event                                               next
    (none)      it registers                                        ready
    ready       the supervisor has its replacement ready            draining
    ready       its app-server has a former account                 stale: it drains once the supervisor asks for it
    draining    nothing is left on it that cannot leave it          drained: the supervisor ends it
    drained     it is not ended within DRAINED_LIMIT_S              draining
    any         it sends nothing, or its loop stands still           suspected: the supervisor decides
    any         the supervisor reports its death                    (none): its turns end lost, its requests fail

A worker that registers again has a new connection, and is sent again what was under way on the old one.
"""

from __future__ import annotations

from codex_app_server._protocol import runtime_version

from ..protocol import jsonrpc, tally, wire
from .dispatch import Dispatcher
from .effects import Drained, Registered, Suspect
from .entities import WORKER_QUIET_S, Worker
from .external_tokens import Tokens
from .owned_list_requests import OwnedListRequests
from .rate_limiter import RateLimiter
from .request import ENTRY, PAGE
from .sessions import Sessions
from .state import BrokerState
from .thread_lists import ThreadLists

WORKER_SILENT_S = 10.0
WORKER_WEDGED_S = 10.0
LEASE_IDLE_S = 60.0
# Of a worker that drains: from then on its threads that cannot leave it have no more turns.
LEASES_LIMIT_S = 600.0
# A worker that has drained has ended by then (it may wait 25 s for its clients), unless it is not ended.
DRAINED_LIMIT_S = 40.0


class Workers:
    """See the module's docstring."""

    def __init__(
        self,
        state: BrokerState,
        dispatcher: Dispatcher,
        sessions: Sessions,
        tokens: Tokens,
        lists: OwnedListRequests,
        thread_lists: ThreadLists,
        rate_limiter: RateLimiter,
    ) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._sessions = sessions
        self._tokens = tokens
        self._lists = lists
        self._thread_lists = thread_lists
        self._changes = dispatcher.changes
        self._rate_limiter = rate_limiter
        # Versions of codex that workers have had.
        self._versions: set[str | None] = set()

    # Coming.

    def register(self, identity: bytes, register: wire.Register, frames: list[bytes]) -> None:
        """Add a worker, with what it has from before this broker, or note its new connection."""
        state, name = self._state, register.worker
        try:
            _, initialize, body = frames
            holdings = wire.decode_worker_state(body)
            counted = tally.decode(holdings.tally)
        except ValueError as error:
            state.log(f"worker {name} was not registered: {error}")
            return
        known = state.workers.get(name)
        # It may have more than one connection in its life: the name stands before the slash.
        foreign = identity.partition(b"/")[0] != name.encode()
        if foreign or name in state.lost or (known is not None and known.identity == identity):
            state.log(f"worker {name} was not registered: it is known, or dead, or has a connection of another name")
            return
        state.counts.registered(name, counted)
        state.usage.registered(name, counted.tokens, state.now)
        if known is not None:
            state.worker_of.pop(known.identity, None)
            known.identity, known.seen_at = identity, state.now
            state.worker_of[identity] = name
            for turn in holdings.turns:
                # What it reported on the old connection may be lost.
                state.turns.note_waiting(known, turn.turn_id, turn.waits_since, turn.waits_for)
            self._dispatcher.repetitions.send_again(known)
            self._dispatcher.bound.reconnected(known, holdings.bound)
            return
        worker = Worker(
            name, register.slot, register.pid, register.app_server_pid, identity, seen_at=state.now, turned_at=state.now
        )
        worker.started_at = register.started_at or state.now
        worker.codex_version = runtime_version.version_of(jsonrpc.user_agent_of(initialize))
        self._warn_of(worker.codex_version)
        state.workers[name] = worker
        state.busy.eased(worker)
        state.worker_of[identity] = name
        state.initialize = initialize
        state.out.append(Registered(name))
        state.events.record(state.now, "worker registered", worker=name)
        if state.account.session is not None:
            state.to_worker(worker, wire.DefaultSession(state.account.session))
        for session in state.sessions.values():
            if session.options != wire.SessionOptions(session.id):
                state.to_worker(worker, session.options)
        self._take_over(worker, holdings)
        if holdings.tree is not None:
            worker.tree, worker.fresh = holdings.tree, holdings.tree.fresh
        self._changes.registered(worker, register, holdings)
        self._sessions.worker_settled(name)
        self._dispatcher.resume_work()

    def _warn_of(self, version: str | None) -> None:
        """Log once that the app-servers are of another version than this package was made for."""
        if version in self._versions:
            return
        self._versions.add(version)
        text = runtime_version.warning(version)
        if text is not None:
            self._state.log(text)

    def _take_over(self, worker: Worker, holdings: wire.WorkerState) -> None:
        """Take over what the worker has from before this broker was there."""
        state = self._state
        for record in holdings.records:
            known = state.threads.get(record.thread_id)
            if known is not None and known.worker is not None:
                continue
            thread = known or state.threads.add(record, worker)
            state.threads.change(thread, record)
            thread.worker = worker.name
            worker.threads.add(record.thread_id)
        for thread_id, sessions in holdings.followers.items():
            for session in sessions:
                self._sessions.placeholder(session)
                if thread_id in state.threads and session in state.sessions:
                    state.threads[thread_id].followers[session] = None
        for turn in holdings.turns:
            for session in turn.sessions:
                self._sessions.placeholder(session)
            state.turns.begin(
                turn.turn_id, turn.thread_id, turn.sessions, worker, turn.waits_since, turn.waits_for, turn.began_at
            )
        for call in holdings.calls:
            self._sessions.placeholder(call.session)
            state.requests.note_sent((call.session, call.request_id), worker.name)
        for options in holdings.options:
            if not self._sessions.take_options(options):
                # It ended while there was no broker.
                state.to_worker(worker, wire.SessionGone(options.session, options.keep))
        for session in self._dispatcher.bound.registered(worker, holdings.bound):
            self._sessions.placeholder(session)
        for turn_id in holdings.ended:
            state.turns.note_end(turn_id, worker.name)

    # Going.

    def drain(self, name: str) -> None:
        """Give this worker nothing new but for threads that cannot leave it, and have it finish what it has.

        One that has not registered yet may run anything: the supervisor asks again when it has.
        """
        state = self._state
        worker = state.workers.get(name)
        if worker is None:
            state.log(f"worker {name} is to drain and has not registered yet")
        elif not worker.draining:
            worker.draining_since = state.now
            state.events.record(state.now, "worker drains", worker=name)
            self._dispatcher.vacate(worker)
            self.check_drained(worker)

    def check_drained(self, worker: Worker) -> None:
        """Report to the supervisor that a worker which drains has nothing left, if so."""
        if worker.draining_since is None or not self._may_work(worker):
            return
        logs_in = any(name == worker.name for name, _ in self._state.account.logins.values())
        may_lease = not worker.stale and self._state.now - worker.draining_since <= LEASES_LIMIT_S
        leased = may_lease and any(map(self._leased, worker.threads))
        holds_processes = self._dispatcher.bound.hold(worker)
        # For as long as its turns run, and whatever they wait for.
        if worker.turns or worker.requests or worker.queue or logs_in or leased or holds_processes:
            return
        worker.drained, worker.drained_at = True, self._state.now
        if not worker.drained_reported:
            worker.drained_reported = True
            self._state.out.append(Drained(worker.name))
            self._state.events.record(self._state.now, "worker drained", worker=worker.name)

    def _may_work(self, worker: Worker) -> bool:
        """True if it is not about to end.

        One that is not ended - the supervisor is stopped, or the worker runs a turn that began meanwhile - goes on
        draining, so that what waits for its end does not wait without a limit.
        """
        if worker.drained and self._state.now - worker.drained_at > DRAINED_LIMIT_S:
            worker.drained = False
            for request in worker.deferred.take_all():
                self._dispatcher.route(request)
        return not worker.drained

    def _leased(self, thread_id: str) -> bool:
        """True if a client may still have turns for a thread that cannot leave its worker."""
        thread = self._state.threads.get(thread_id)
        if thread is None or thread.stored or not thread.followers:
            return False
        return self._state.now - thread.used_at <= LEASE_IDLE_S

    def lost(self, name: str, reason: str, counted: tally.Tally | None = None) -> None:
        """End what ran on a worker that is dead; it may never have registered. `counted`: its tally, if it has ended in
        order."""
        state = self._state
        worker = state.remove_worker(name)
        state.events.record(state.now, "worker lost", worker=name)
        if worker is not None:
            self._dispatcher.bound.worker_lost(name, reason)
            self._fail_work(worker, reason)
            self._changes.worker_lost(worker, reason)
            self._changes.announcements.settle()
            self._dispatcher.load_waiting()
            self._dispatcher.use_all_permits()
        if counted is not None and state.counts.tokens_of(name) is None:
            state.counts.registered(name, counted)
            state.usage.registered(name, counted.tokens, state.now)
        state.counts.lost(name)
        state.usage.lost(name)
        self._sessions.worker_settled(name)

    def _fail_work(self, worker: Worker, reason: str) -> None:
        state = self._state
        for thread_id in worker.threads:
            thread = state.threads.get(thread_id)
            if thread is not None:
                state.threads.detach(thread)
        for turn_id in worker.turns:
            turn = state.turns.pop(turn_id, None)
            if turn is None:
                continue
            state.turns.ended["lost"] += 1
            state.counts.turns_lost(1)
            owner, model = state.threads.owner_of(turn.thread_id), state.threads.model_of(turn.thread_id)
            state.usage.turn_lost(owner, model, turn.tokens or wire.Tokens(), state.now)
            thread = state.threads.get(turn.thread_id)
            if thread is not None:
                thread.turns.discard(turn_id)
            message = f"worker {worker.name} died: {reason}"
            state.end_turn_for(turn.sessions, turn.thread_id, turn_id, message)
        # All are taken back before any is routed again: none is to wait for another that is gone as well.
        for request in [state.requests.take_back(number) for number in sorted(worker.requests)]:
            if request.method == ENTRY:
                state.requests.finish(request)
                self._lists.answered(request, None)
            elif request.method == PAGE:
                state.requests.finish(request)
                self._thread_lists.answered(request, None, ok=False)
            else:
                self._dispatcher.answers.lost(request, worker.slot, reason)
        for request in [*worker.queue.remove_all(), *worker.deferred.take_all()]:
            self._dispatcher.route(request)

    # The clock.

    def progressed(self, progress: wire.Progress) -> None:
        """Note a beat of a worker, and that its loop has turned."""
        worker = self._state.workers.get(progress.worker)
        if worker is not None:
            if worker.progress is None or worker.progress.loops != progress.loops:
                worker.turned_at = self._state.now
            worker.seen_at, worker.progress = self._state.now, progress
            self._state.counts.dropped(worker.name, progress.dropped)

    def tick(self) -> None:
        """Find workers that report nothing, or do nothing, and limits and leases that have run out."""
        state = self._state
        self._dispatcher.load_waiting()
        self._dispatcher.notices.tick()
        self._changes.tick()
        self._tokens.tick()
        self._thread_lists.tick()
        if self._rate_limiter.tick(state.now):
            self._dispatcher.start_all_queued()
        self.interrupt_revoked()
        for principal, lines in state.log_quotas.tick(state.now):
            state.log(f"{lines} more lines because of {state.name_of(principal)} were left out")
        for worker in list(state.workers.values()):
            self.check_drained(worker)
            if worker.suspected:
                continue
            reason = None
            if state.now - worker.seen_at > WORKER_SILENT_S:
                reason = f"no beat for {WORKER_SILENT_S:.0f} s"
            elif worker.progress is not None and state.now - worker.turned_at > WORKER_WEDGED_S:
                # The beat has a thread of its own.
                reason = f"its loop has not turned for {WORKER_WEDGED_S:.0f} s: wedged"
            if reason is not None:
                worker.suspected = True
                state.out.append(Suspect(worker.name, reason))

    def interrupt_revoked(self) -> None:
        """End the turns on threads of principals that have no key any more, however they have begun.

        Again at each beat until they are over: an interrupt may come before its turn can take it, and goals go on.
        """
        state = self._state
        if state.policy is None or not state.policy.is_in_use:
            return
        for turn_id, turn in state.turns.items():
            worker = state.workers.get(turn.worker)
            if worker is not None and not state.policy.is_known(state.threads.owner_of(turn.thread_id)):
                state.to_worker(worker, wire.Interrupt(turn.thread_id, turn_id))


def state_of(worker: Worker, now: float) -> str:
    """Return the state of a worker as one word for status."""
    if worker.is_silent(now):
        return "silent"
    if worker.progress is not None and now - worker.turned_at > WORKER_QUIET_S:
        return "wedged"
    if worker.draining:
        return "draining"
    return "stale" if worker.stale else "ready"
