"""Dispatcher: sends requests to workers, and holds those that cannot be sent yet. Pure.

A request may have to wait for a worker, for its thread (busy, or moving to another worker), for a permit of its
principal, for capacity to load a thread, or for one of the turns that a worker may run. Each is a queue; turns and
loads are fair across sessions, and announced by `queue_notices`. `placement` chooses the worker, `thread_moves` moves
threads away from workers that are to be replaced, `repetitions` sends again, `answers` has the way back.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Protocol

from codex_app_server import errors

from ..protocol import thread_records, wire
from ..protocol.bound_methods import KIND_OF_METHOD
from . import side_turns
from .answers import Answers
from .bound_objects import BoundObjects
from .entities import Session, Thread, Worker
from .fan_out import FanOut
from .placement import Placement, loads_thread, reads_stored
from .queue_notices import QueueNotices
from .quotas import CONTROL, Permits, reserved_turns
from .rate_limiter import RateLimiter
from .repetitions import Repetitions
from .request import FOLLOW, Request
from .shared_changes import Changes
from .state import BrokerState
from .thread_capacity import ThreadCapacity
from .thread_moves import ThreadMoves, is_stuck

MAX_OUTSTANDING = 1024
# Beyond it, for what must get through: interrupting and steering.
MAX_CONTROL = 256

# These do not bring a thread back to life: where it is going away, they go with it.
_STAYS = CONTROL | thread_records.READS_HISTORY | {"thread/archive", "thread/delete", FOLLOW}


class PoolLists(Protocol):
    """Lists of the threads of the whole pool."""

    def takes(self, request: Request) -> bool: ...

    def answer(self, request: Request) -> None: ...

    def first_page(self, request: Request, line: bytes) -> bytes: ...


class Dispatcher:
    """See the module's docstring. `lists` answers requests for lists of threads that several workers have to answer."""

    lists: PoolLists

    def __init__(
        self, state: BrokerState, rate_limiter: RateLimiter, *, changed_at: float = 0.0, recycle_descendants: int = 0
    ) -> None:
        self._state = state
        self._requests = state.requests
        self._rate_limiter = rate_limiter
        self.notices = QueueNotices(state)
        self.capacity = ThreadCapacity(state, recycle_descendants)
        self.placement = Placement(state, self.capacity)
        self.moves = ThreadMoves(state, self)
        self.bound = BoundObjects(state, self)
        self.repetitions = Repetitions(state, self)
        self.answers = Answers(state, self)
        self.changes = Changes(state, self, changed_at)
        self._permits = Permits()
        self._requests.queues.append(lambda: (self.capacity.waiting, self._permits, self.changes.queue))

    # Which way.

    def route(self, request: Request) -> None:
        """Send this on, or hold it until that is possible."""
        if request.state == "done":
            return
        if request.scope == "merged":
            self._to_all(request)
        elif request.changes_all:
            self.changes.take(request)
        elif request.method in KIND_OF_METHOD:
            self.bound.route(request)
        else:
            self.to_owner(request)

    def _to_all(self, request: Request) -> None:
        workers = [worker for worker in self._state.workers.values() if not worker.drained]
        if not workers:
            self.hold_unassigned(request)
            return
        if not self._permits.are_free(request, workers):
            self._requests.hold(request, self._permits)
            return
        if self.lists.takes(request):
            self._requests.execute(request)
            self.lists.answer(request)
            return
        self._requests.finish(request)
        fan_out = FanOut(len(workers))
        for worker in workers:
            self.dispatch(replace(request, state="received", fan_out=fan_out), worker)

    def to_owner(self, request: Request) -> None:
        """Send a request to the worker that has its thread, else to the one with the least to do."""
        thread = self._state.threads.get(request.thread_id or "")
        if thread is not None and thread.moving is not None:
            if self._requests.hold(request, thread.moving):
                self.notices.queued(request)
            return
        worker = self.placement.worker_for(request, thread)
        if worker is None:
            self.hold_unassigned(request)
        elif worker.drained:
            if self._requests.hold(request, worker.deferred):
                self.notices.queued(request)
        elif thread is not None and self.moves.is_refused(request, thread, worker):
            self.moves.refuse(request, thread, worker)
        elif request.starts_turn:
            if self._lacks_capacity(request, thread, worker):
                self._wait_for_capacity(request)
            else:
                self._enqueue(request, worker)
        elif thread is not None and request.method not in _STAYS and self.moves.must_move(thread, worker):
            self.moves.move(request, thread, worker)
        elif self._lacks_capacity(request, thread, worker):
            self._wait_for_capacity(request)
        else:
            self.send(request, worker)

    # Waiting for a worker, a permit, or capacity for threads.

    def hold_unassigned(self, request: Request) -> None:
        """Hold a request until there is a worker that takes it."""
        if self._requests.hold(request, self._requests.unassigned):
            self.notices.queued(request)

    def resume_work(self) -> None:
        """Send on what waits: there are workers that take work which did not before."""
        self.bound.place()
        for request in self._requests.unassigned.take_all():
            self.route(request)
        self.load_waiting()
        self.use_all_permits()
        self.start_all_queued()

    def _use_permits(self, worker: Worker) -> None:
        for request in self._permits.take(worker):
            self.route(request)

    def use_all_permits(self) -> None:
        """Send on what waits for permits that no answer has freed: a worker has come, or gone."""
        before = -1
        while (waiting := len(self._permits)) and waiting != before:
            before = waiting
            for worker in self._state.ready():
                self._use_permits(worker)

    def _lacks_capacity(self, request: Request, thread: Thread | None, worker: Worker) -> bool:
        """True for a request that loads a thread and has to wait until this worker, or another one, may load it."""
        if not loads_thread(request, thread) or self.capacity.has_capacity(worker):
            return False
        # One that forks a thread which cannot leave its worker can go nowhere else.
        return thread is None or thread.worker is None or (thread.stored and not thread.pinned)

    def _wait_for_capacity(self, request: Request) -> None:
        if self._requests.hold(request, self.capacity.waiting):
            self.capacity.note_denied()
            self.notices.queued(request, loads=True)

    def load_waiting(self) -> None:
        """Send on what has waited for capacity, as far as there is some."""
        if len(self.capacity.waiting):
            for request in self.capacity.take(self._may_load):
                self.route(request)
        for worker in self._state.workers.values():
            self.start_queued(worker)

    def _may_load(self, thread_id: str) -> bool:
        thread = self._state.threads.get(thread_id)
        worker = self._state.workers.get(thread.worker or "") if thread is not None else None
        if worker is not None:
            return worker.leaving or self.capacity.has_capacity(worker)
        return any(self.capacity.has_capacity(worker) for worker in self._state.ready())

    # Waiting for a turn.

    def _enqueue(self, request: Request, worker: Worker) -> None:
        thread = self._state.threads.get(request.thread_id or "")
        if request.queue is None:
            request.on_side = side_turns.is_on_side(self._state, request, thread)
        if not worker.queue and self._may_start(request.thread_id or "", request.on_side, worker):
            self._start(request, worker)
            return
        request.worker = worker.name
        if not self._requests.hold(request, worker.queue):
            return
        if thread is not None:
            thread.chosen = worker.name
        self.start_queued(worker)
        self.notices.queued(request)

    def start_queued(self, worker: Worker) -> None:
        """Start the turns that wait with this worker, as far as they may; a busy thread lets others pass."""
        # Principals of whom no further turn may run: that changes only when one ends.
        blocked: set[str] = set()
        may_start = partial(self._may_start, worker=worker, blocked=blocked)
        while worker.queue and (request := worker.queue.take(may_start)):
            self._state.busy.eased(worker)
            self._start(request, worker)

    def _may_start(self, thread_id: str, on_side: bool, worker: Worker, blocked: set[str] | None = None) -> bool:
        """True if the next turn of this thread need not wait with this worker any longer.

        `blocked`: the principals that are known to run as many as they may; they are added.
        """
        thread = self._state.threads.get(thread_id)
        if thread is not None:
            if thread.worker not in (None, worker.name):
                return True
            if thread.busy:
                return False
            if self.moves.must_move(thread, worker) or is_stuck(thread, worker):
                return True
            if worker.stale and thread.worker == worker.name:
                # It leaves once its open requests are answered: no turn begins with a former account.
                return False
            owner = thread.record.owner
            if owner and not (self._may_start_key_turn(worker) and self._may_run(owner, blocked)):
                return False
            if thread.worker is None and not self.capacity.has_capacity(worker):
                self.capacity.note_denied()
                return False
        return self._may_start_turn(worker, on_side=on_side) and not worker.behind

    def _start(self, request: Request, worker: Worker) -> None:
        thread = self._state.threads.get(request.thread_id or "")
        was_sent = request.tries or request.key in self._requests.sent_to
        refusal = None if was_sent else self._state.limits.request_refusal(request)
        if refusal is not None:
            self._state.refuse(request, refusal)
            return
        elsewhere = thread is not None and thread.worker not in (None, worker.name)
        if elsewhere or (not worker.takes_work and (thread is None or thread.worker is None)):
            # While it waited here, another worker loaded the thread, or this one takes no more work.
            self.route(request)
        elif thread is not None and self.moves.is_refused(request, thread, worker):
            self.moves.refuse(request, thread, worker)
        elif thread is not None and self.moves.must_move(thread, worker):
            self.moves.move(request, thread, worker)
        else:
            self.send(request, worker)
            side_turns.started(self._state, request, worker)

    def start_all_queued(self) -> None:
        """Start what waits on all workers: more turns may run than before."""
        for worker in sorted(self._state.workers.values(), key=lambda worker: worker.load):
            self.start_queued(worker)

    def worker_freed(self, worker: Worker) -> None:
        """Send on what waits for this worker: something has ended on it."""
        side_turns.settle(self._state, worker)
        if len(self.capacity.waiting):
            self.load_waiting()
        self._use_permits(worker)
        self.start_queued(worker)
        if self._rate_limiter.limit is not None or self._state.limits.bound_running:
            self.start_all_queued()

    def vacate(self, worker: Worker) -> None:
        """Send what waits for this worker elsewhere, as far as that is possible: it takes no more work."""
        requests = worker.queue.remove_all()
        self._state.busy.eased(worker)
        for request in requests:
            self.route(request)
        self.load_waiting()

    def _may_start_turn(self, worker: Worker, *, on_side: bool) -> bool:
        state = self._state
        if state.mode.holds_turns:
            return False
        has_permit = worker.load < state.turns_per_worker or (on_side and not worker.side_thread)
        limiter = self._rate_limiter
        return has_permit and (limiter.limit is None or limiter.allows(state.turns.load, state.now))

    def _may_run(self, owner: str, blocked: set[str] | None) -> bool:
        if blocked is not None and owner in blocked:
            return False
        may_run = self._state.limits.may_run(owner)
        if not may_run and blocked is not None:
            blocked.add(owner)
        return may_run

    def _may_start_key_turn(self, worker: Worker) -> bool:
        state = self._state
        return state.turns.of_keys(worker) < state.turns_per_worker - reserved_turns(state.turns_per_worker)

    # Sending.

    def send(self, request: Request, worker: Worker) -> None:
        """Dispatch a request; a thread that no worker has is adopted by this one first."""
        limit = MAX_OUTSTANDING + (MAX_CONTROL if request.method in CONTROL else 0)
        if not request.starts_turn and len(worker.requests) >= limit:
            message = f"worker {worker.name} has {len(worker.requests)} requests open, its limit"
            self._state.overloaded(request, message)
            return
        if not self._permits.are_free(request, [worker]):
            self._requests.hold(request, self._permits)
            return
        thread = self._state.threads.get(request.thread_id or "")
        adopt, archived = None, False
        if thread is not None and thread.worker is None and not reads_stored(request, thread):
            if not thread.stored:
                self._fail_lost_thread(request, thread.record)
                return
            adopt, archived = thread.record, thread.archived
            thread.worker, thread.archived = worker.name, False
            worker.threads.add(adopt.thread_id)
        if thread is not None:
            thread.used_at = self._state.now
            if request.method == "thread/resume" and request.session is not None:
                thread.followers[request.session] = None
        self.dispatch(request, worker, adopt=adopt, archived=archived)
        if adopt is not None and thread is not None:
            for session in thread.followers:
                self._state.to_worker(worker, wire.Follow(session, adopt.thread_id))

    def _fail_lost_thread(self, request: Request, record: wire.ThreadRecord) -> None:
        why = "it was ephemeral" if record.ephemeral else "it had no turn yet, so nothing of it was stored"
        message = (
            f"thread {record.thread_id} was lost with its worker, or let go because nobody followed it any more: "
            f"{why}; start a new one"
        )
        # What was sent to a worker before may have begun there.
        self._state.fail(request, errors.THREAD_LOST, message, {"safeToRetry": not request.again})

    def dispatch(
        self, request: Request, worker: Worker, *, adopt: wire.ThreadRecord | None = None, archived: bool = False
    ) -> None:
        """Send a request of a session to the worker now."""
        assert request.session is not None, "the pool's own requests have frames of their own"
        self.notices.dequeued(request)
        request.loads = adopt is not None or request.method in thread_records.LOADS_THREAD
        if request.loads:
            self.capacity.load_started(worker)
        number = self._requests.dispatch(request, worker)
        head = wire.Dispatch(
            number,
            request.session,
            request.interest,
            adopt,
            round((self._state.now - request.came_at) * 1000),
            again=request.again,
            archived=archived,
            timeout_s=request.timeout_s,
            accepts_parts=self._takes_parts(request),
        )
        self._state.to_worker(worker, head, request.line)

    def _takes_parts(self, request: Request) -> bool:
        """True if nothing here looks at the answer, nor takes out of it what its client does not want."""
        session = self._state.session(request)
        return session is not None and session.takes_parts and not session.opted_out and request.fan_out is None

    # Not at all.

    def cancel(self, request: Request) -> None:
        """Answer a held request that its client does not want any more."""
        self._state.fail(request, errors.CANCELLED, "cancelled before it was started")

    def end_session(self, session: Session) -> None:
        """Drop what is held for this session: it is no longer wanted."""
        for request in list(session.held.values()):
            self._requests.finish(request)
        self.changes.end_session(session.id)
