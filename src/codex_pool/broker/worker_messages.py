"""WorkerMessages: what workers send is applied to the state, and passed on to clients. Pure."""

from __future__ import annotations

import msgspec

from codex_app_server import errors
from codex_app_server._runtime.bounded import BoundedDict

from ..protocol import jsonrpc, packs, thread_records, wire
from ..protocol.bound_methods import KIND_OF_METHOD
from .dispatch import Dispatcher
from .effects import Renew, ToWorker
from .entities import Worker
from .external_tokens import Tokens
from .owned_list_requests import OwnedListRequests
from .rate_limiter import RateLimiter
from .request import APPLY, ENTRY, FOLLOW, PAGE, RELEASE, Request
from .state import LINES, BrokerState, PendingAnswer
from .thread_lists import ThreadLists
from .workers import Workers

MAX_ROUTES = 1024

_MAKES_THREAD = frozenset({"thread/start", "thread/fork"})


class WorkerMessages:
    """See the module's docstring. `unix_offset` is what makes the time of events Unix time, in seconds."""

    def __init__(
        self,
        state: BrokerState,
        dispatcher: Dispatcher,
        workers: Workers,
        tokens: Tokens,
        lists: OwnedListRequests,
        thread_lists: ThreadLists,
        rate_limiter: RateLimiter,
        *,
        unix_offset: float,
    ) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._workers = workers
        self._tokens = tokens
        self._lists = lists
        self._thread_lists = thread_lists
        self._changes = dispatcher.changes
        self._rate_limiter = rate_limiter
        self._unix_offset = unix_offset
        # Connections without a worker that were asked to register, until the next beat.
        self._asked: set[bytes] = set()
        self._routes: BoundedDict[bytes, wire.ToSessions] = BoundedDict(MAX_ROUTES)

    def tick(self) -> None:
        """Ask connections without a worker again."""
        self._asked.clear()

    def _decode(self, frame: bytes) -> wire.Head:
        """Decode a route, and remember it if more messages will come by it. Raises WireError."""
        route = wire.decode_from_worker(frame)
        if isinstance(route, wire.ToSessions):
            self._routes[frame] = route
        return route

    def message(self, identity: bytes, frames: list[bytes]) -> None:
        """Handle a message on the workers' socket."""
        state = self._state
        try:
            # By far the most are notifications, which all come by one of a few routes.
            route = self._routes.get(frames[0]) or self._decode(frames[0])
        except wire.WireError as error:
            state.log(f"a worker's message was ignored: {error}")
            return
        if isinstance(route, wire.Progress):
            self._workers.progressed(route)
            return
        if isinstance(route, wire.Stack):
            self._on_stack(identity, route, frames[1:])
            return
        if isinstance(route, wire.Register):
            self._asked.discard(identity)
            self._workers.register(identity, route, frames)
            return
        worker = state.workers.get(state.worker_of.get(identity, ""))
        if worker is None:
            if identity not in self._asked and len(self._asked) < 1024:
                self._asked.add(identity)
                state.out.append(ToWorker(identity, [wire.encode(wire.RegisterRequest())]))
            return
        worker.seen_at = state.now
        match route:
            case wire.ToSessions():
                if len(frames) > 1:
                    state.forward(route.sessions or state.unlimited_sessions(), frames[1:])
            case wire.Answered():
                self._on_answered(route, worker, frames[1:])
            case wire.ThreadLoaded():
                request = state.requests.by_number.get(route.call)
                if request is not None and request.worker == worker.name:
                    state.threads.assign(route.record, worker, request)
            case wire.TurnStarted():
                if self._on_turn_started(route, worker) and route.by_itself:
                    self._on_own_turn(route, worker)
            case wire.TurnWaits():
                state.turns.note_waiting(worker, route.turn_id, route.since, route.method)
                self._dispatcher.worker_freed(worker)
            case wire.TurnEnded():
                state.forward(route.sessions, frames[1:])
                self._on_turn_ended(route, worker)
            case wire.Activity():
                state.turns.note_activity(route)
            case wire.ThreadChanged():
                thread = state.threads.get(route.record.thread_id)
                if thread is not None:
                    state.threads.change(thread, route.record)
            case wire.ThreadGone():
                self._on_thread_gone(route, worker)
            case wire.Limited():
                self._on_limited(route)
            case wire.LoginEnded():
                self._changes.login_ended(worker, route, frames[1:])
                self._workers.check_drained(worker)
            case wire.ProcessTree():
                self._on_tree(route, worker)
            case wire.Children():
                state.threads.add_sub_agents(route.thread_id, route.children)
            case wire.Unbound():
                self._dispatcher.bound.over(route, worker)
                self._workers.check_drained(worker)
            case wire.StartNotices():
                self._on_start_notices(frames[1])
            case wire.TokensWanted():
                self._tokens.wanted(worker, frames[1])

    def _on_stack(self, identity: bytes, stack: wire.Stack, bodies: list[bytes]) -> None:
        try:
            messages = packs.unstacked(stack, bodies)
        except wire.WireError as error:
            self._state.log(f"a worker's message was ignored: {error}")
            return
        state = self._state
        worker = state.workers.get(state.worker_of.get(identity, ""))
        for frames in messages:
            route = self._routes.get(frames[0])
            if worker is None or route is None:
                self.message(identity, frames)
            else:
                worker.seen_at = state.now
                state.forward(route.sessions or state.unlimited_sessions(), frames[1:])

    # Answers, turns and threads.

    def _on_answered(self, answered: wire.Answered, worker: Worker, frames: list[bytes]) -> None:
        state = self._state
        if answered.started is not None:
            self._on_turn_started(answered.started, worker)
        request = state.requests.by_number.get(answered.call)
        if request is None or request.worker != worker.name:
            return
        worker.fresh += answered.ok and request.loads
        state.requests.take_back(answered.call)
        if request.method == RELEASE:
            state.requests.finish(request)
            self._dispatcher.moves.released(request.thread_id or "", ok=answered.ok)
        elif request.method == ENTRY:
            state.requests.finish(request)
            self._lists.answered(request, frames[1] if answered.ok and len(frames) == 2 else None)
        elif request.method == PAGE:
            state.requests.finish(request)
            self._thread_lists.answered(request, frames[1] if len(frames) == 2 else None, ok=answered.ok)
        elif request.method == APPLY:
            state.requests.finish(request)
            self._changes.answered(request, worker, frames, ok=answered.ok)
        else:
            self._on_client_answered(request, answered, worker, frames)
        self._changes.announcements.settle()
        self._dispatcher.worker_freed(worker)
        self._workers.check_drained(worker)

    def _on_client_answered(
        self, request: Request, answered: wire.Answered, worker: Worker, frames: list[bytes]
    ) -> None:
        """Note what has become of a request of a client, and pass the answer on, or have it wait for a write."""
        state = self._state
        if answered.record is not None:
            new_of = request.principal if request.method in _MAKES_THREAD else ""
            state.threads.assign(answered.record, worker, request, new_of)
        if answered.ok and request.method == FOLLOW:
            turn = state.turns.get(request.turn_id or "")
            if turn is not None and request.session is not None and request.session not in turn.sessions:
                turn.sessions.append(request.session)
        if answered.ok and request.method == "account/login/start" and request.session in state.sessions:
            state.account.logged_in(request)
            login_id = jsonrpc.login_id_of(frames[1]) if len(frames) == 2 else None
            if login_id is not None:
                state.account.logins[login_id] = worker.name, request.session
        if answered.ok and request.method in KIND_OF_METHOD:
            self._dispatcher.bound.answered(request)
        made = answered.record.thread_id if answered.record is not None else ""
        if answered.ok and len(frames) == 2:
            made = self._update_owners(request, frames[1]) or made
        if made and state.owners.durable and state.owners.is_pending(made):
            state.pending_answers.append(PendingAnswer(request, worker.slot, frames, made))
        else:
            self._dispatcher.answers.answered(request, worker.slot, frames, ok=answered.ok)

    def _update_owners(self, request: Request, line: bytes) -> str:
        """Record what a successful request changes of a client's thread; return the thread that it has made, or ""."""
        owners, thread_id = self._state.owners, request.thread_id or ""
        if request.method == "review/start" and request.principal:
            made = thread_records.review_thread_of(line)
            if made and made != thread_id:
                self._state.threads.add_owner(made, request.principal, stored=True)
                return made
        elif owners.get(thread_id) is None:
            return ""
        elif request.method in ("thread/archive", "thread/unarchive"):
            owners.change(thread_id, archived=request.method == "thread/archive")
        elif request.method == "thread/delete":
            owners.forget(thread_id)
        elif request.method == "thread/name/set":
            owners.change(thread_id, name=request.param("name", str) or "")
        return ""

    def ownership_written(self, number: int, problem: str | None) -> None:
        """Send the answers that have waited for this write; `problem` is the reason why it failed."""
        state = self._state
        for request, slot, frames, thread_id in state.answers_by_write.pop(number, ()):
            if problem is None and (not request.principal or state.owners.owner_of(thread_id) == request.principal):
                self._dispatcher.answers.answered(request, slot, frames, ok=True)
                continue
            state.threads.remove(thread_id)
            message = f"thread {thread_id} is not used: its owner could not be written down: {problem or 'see the log'}"
            state.fail(request, errors.INTERNAL_ERROR, message, {"kind": "ownership", "safeToRetry": True})

    def _on_own_turn(self, started: wire.TurnStarted, worker: Worker) -> None:
        """Interrupt a turn that a goal begins with a former account, or beyond a limit of its key: no client could
        refuse it."""
        state = self._state
        starting = (worker.requests[number] for number in worker.starting)
        if any(request.thread_id == started.thread_id for request in starting):
            return
        owner = state.threads.owner_of(started.thread_id)
        top = started.thread_id not in state.threads.parents
        refusal = state.limits.usage_refusal(owner, "a turn by itself", started.thread_id) if top else None
        if refusal is not None:
            state.count_refusal(owner, refusal)
            state.log_for(owner, f"turn {started.turn_id} is interrupted: {refusal.message}")
        elif worker.stale:
            state.log(f"turn {started.turn_id} is interrupted, because worker {worker.name} is being renewed")
        else:
            return
        state.to_worker(worker, wire.Interrupt(started.thread_id, started.turn_id))

    def _on_turn_started(self, started: wire.TurnStarted | wire.RunningTurn, worker: Worker) -> bool:
        """Note that a turn runs; True if that is new."""
        new = started.turn_id not in self._state.turns
        thread = self._state.turns.begin(started.turn_id, started.thread_id, started.sessions, worker)
        if thread is not None and new:
            self._state.threads.change(thread, msgspec.structs.replace(thread.record, turns=thread.record.turns + 1))
        return new

    def _on_turn_ended(self, ended: wire.TurnEnded, worker: Worker) -> None:
        state = self._state
        self._count_end(ended, worker)
        state.turns.leave(worker, ended.turn_id)
        turn = state.turns.pop(ended.turn_id, None)
        if turn is None:
            return
        state.turns.note_tokens(turn, ended.tokens)
        state.turns.note_end(ended.turn_id, worker.name)
        for session_id in turn.sessions:
            if session_id in state.sessions:
                state.sessions[session_id].turn_ended_at = state.now
        state.turns.ended[ended.status] += 1
        if ended.status == "completed":
            self._rate_limiter.completed()
        thread = state.threads.get(ended.thread_id)
        if thread is not None:
            thread.turns.discard(ended.turn_id)
            thread.used_at = state.now
            state.threads.drop_if_unused(thread)
        for parent in map(state.threads.get, state.threads.ancestors(ended.thread_id)):
            if parent is not None:
                parent.used_at = state.now
                state.threads.drop_if_unused(parent)
        state.threads.note_activity(ended.thread_id)
        self._dispatcher.worker_freed(worker)
        self._workers.check_drained(worker)

    def _count_end(self, ended: wire.TurnEnded, worker: Worker) -> None:
        """Count the end of a turn, in the tally of its worker and for its principal."""
        state = self._state
        state.counts.ended(worker.name, ended, state.now)
        tally = state.counts.tokens_of(worker.name)
        if ended.counts is not None and tally is not None:
            model, tokens = state.threads.model_of(ended.thread_id), ended.tokens or wire.Tokens()
            state.usage.ended(worker.name, ended.counts.principal, model, tokens, tally, state.now)

    def _on_thread_gone(self, gone: wire.ThreadGone, worker: Worker) -> None:
        thread = self._state.threads.get(gone.thread_id)
        if thread is not None and thread.worker == worker.name and thread.moving is not None:
            # The answer to its release tells where it is now.
            return
        worker.threads.discard(gone.thread_id)
        self._state.busy.eased(worker)
        if thread is None or thread.worker not in (None, worker.name):
            return
        if gone.keep:
            self._state.threads.detach(thread)
        else:
            self._state.threads.archive(gone.thread_id, worker.name)

    def _on_start_notices(self, body: bytes) -> None:
        """Keep the notifications for sessions that begin; those that begun before get what is new in them."""
        state = self._state
        before = {_content_of(line) for line in state.start_notices}
        state.start_notices = body.split(b"\n")
        new = [line for line in state.start_notices if _content_of(line) not in before]
        sessions = [session for session in state.unlimited_sessions() if state.sessions[session].greeted]
        if new and sessions:
            state.forward(sessions, [LINES, b"\n".join(new)])

    def _on_tree(self, tree: wire.ProcessTree, worker: Worker) -> None:
        worker.tree, worker.fresh = tree, tree.fresh
        why = self._dispatcher.capacity.reason_to_renew(worker)
        if why:
            self._state.out.append(Renew(worker.name, why))
        self._dispatcher.load_waiting()

    def _on_limited(self, limited: wire.Limited) -> None:
        state = self._state
        reset_in_s = limited.resets_at - (state.now + self._unix_offset) if limited.resets_at is not None else None
        self._rate_limiter.limited(limited.kind, reset_in_s, state.turns.load, state.now)


def _content_of(line: bytes) -> bytes:
    """The content of a notification, without its time."""
    return jsonrpc.decode_request(line).encode()
