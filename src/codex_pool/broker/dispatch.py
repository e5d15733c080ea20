"""Which worker gets a request, and when. Pure.

A request waits here for room, for its thread (busy, or on its way to another worker), or for a worker at all. What
starts a turn waits in its worker's fair queue, what loads a thread in that of `room`, and is told so at once
(`pool/queued`, then `pool/dequeued`).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Protocol

from codex_app_server import errors
from codex_pool import rpc, wire
from codex_pool.broker.books import Books
from codex_pool.broker.changes import APPLY, Changes
from codex_pool.broker.gather import Gather, merge
from codex_pool.broker.judge import STARTS_TURN
from codex_pool.broker.pace import Pace
from codex_pool.broker.records import WEIGHTS, Call, Session, Thread, Worker
from codex_pool.broker.room import Room
from codex_pool.broker.shares import CONTROL, reserved_turns

FOLLOW = "pool/turn/follow"
RELEASE = "pool/release"
CANCELLED = -32800
INVALID_REQUEST = -32600

MAX_OUTSTANDING = 1024
# Beyond it, for what must get through: interrupting and steering.
MAX_CONTROL = 256
# How many workers a start may lose before it is given up: it may be what they die of.
MAX_TRIES = 3

# What every app-server has in memory.
_CHANGES = frozenset({"account", "all", "renewing", "reloading"})
# These do not bring a thread back to life: where it is going away, they go with it.
_STAYS = CONTROL | {"thread/archive", "thread/delete", FOLLOW}


class PoolLists(Protocol):
    """Lists of the threads of the whole pool."""

    def takes(self, call: Call) -> bool: ...

    def answer(self, call: Call) -> None: ...

    def first_page(self, call: Call, line: bytes) -> bytes: ...


class Dispatcher:
    """See the module's docstring. `lists` answers requests for lists of threads that several workers have to answer."""

    lists: PoolLists

    def __init__(self, books: Books, pace: Pace, *, changed_at: float = 0.0, recycle_descendants: int = 0) -> None:
        self._books = books
        self._pace = pace
        self.room = Room(books, recycle_descendants)
        self.changes = Changes(books, self, changed_at)

    # Which worker.

    def route(self, call: Call) -> None:
        """Send this on, or keep it until that is possible."""
        if call.dropped:
            return
        if call.scope == "merged":
            self._to_all(call)
        elif call.scope in _CHANGES:
            self.changes.take(call)
        else:
            self.to_owner(call)

    def _to_all(self, call: Call) -> None:
        workers = [worker for worker in self._books.workers.values() if not worker.drained]
        if not workers:
            self._keep_homeless(call)
            return
        if not self._books.places.are_free(call, workers):
            self._wait_for_place(call)
            return
        self._books.release(call)
        if self.lists.takes(call):
            self.lists.answer(call)
            return
        call.gather = Gather(len(workers))
        for worker in workers:
            self.dispatch(replace(call), worker)

    def to_owner(self, call: Call) -> None:
        """To the worker that has the thread, else to the one with the least to do."""
        thread = self._books.threads.get(call.thread_id or "")
        if thread is not None and thread.moving is not None:
            if self._books.hold(call):
                thread.moving.append(call)
                self._tell_queued(call)
            return
        worker = self._owner(call, thread)
        if worker is None:
            self._keep_homeless(call)
        elif worker.drained:
            if self._books.hold(call):
                worker.parked.append(call)
                self._tell_queued(call)
        elif thread is not None and self._is_refused(call, thread, worker):
            self._refuse(call, thread, worker)
        elif call.starts_turn:
            if self._lacks_room(call, thread, worker):
                self._wait_for_room(call)
            else:
                self._enqueue(call, worker)
        elif thread is not None and call.method not in _STAYS and self._leaves(thread, worker):
            self._hand_over(call, thread, worker)
        elif self._lacks_room(call, thread, worker):
            self._wait_for_room(call)
        else:
            self.send(call, worker)

    def _owner(self, call: Call, thread: Thread | None) -> Worker | None:
        workers, turn = self._books.workers, self._books.turns.get(call.turn_id or "")
        if thread is not None and thread.worker is None:
            # All that wait for a thread to be adopted wait with the same worker.
            owner = workers.get(thread.chosen)
        elif thread is not None:
            owner = workers.get(thread.worker or "")
        elif turn is not None:
            owner = workers.get(turn.worker)
        else:
            owner = self._owner_by_family(call.thread_id or "")
        if owner is not None and not owner.takes_work and (turn is None and (thread is None or thread.worker is None)):
            owner = None
        return owner or self.least_busy(loads=_loads(call, thread))

    def _owner_by_family(self, thread_id: str) -> Worker | None:
        """The worker that has archived the thread, or that has the one whose sub-agent's it is."""
        books = self._books
        for each in (thread_id, *books.above(thread_id)):
            thread = books.threads.get(each)
            name = thread.worker if thread is not None else books.archived.get(each)
            if name is not None:
                return books.workers.get(name)
        return None

    def least_busy(self, *, loads: bool = False) -> Worker | None:
        """The worker that new work goes to; with `loads` one that has room for a thread, if there is any."""
        ready = self._books.ready()
        if loads:
            ready = [worker for worker in ready if self.room.is_in(worker)] or ready
        # A log-in that succeeds fails the turns beside it.
        with_login = {name for name, _ in self._books.logins.values()}
        # Calls count beside threads, so that new threads are spread before any of them is answered.
        return min(
            ready,
            key=lambda w: (
                w.load + len(w.waiting) + (self._books.turns_per_worker if w.name in with_login else 0),
                len(w.threads) + len(w.calls),
                w.slot,
            ),
            default=None,
        )

    def _wait_for_place(self, call: Call) -> None:
        if self._books.hold(call):
            self._books.places.wait(call)

    def _fill_places(self, worker: Worker) -> None:
        for call in self._books.places.take(worker):
            self.route(call)

    def fill_all_places(self) -> None:
        """Places may be free that no answer has freed: a worker has come, or gone."""
        before = -1
        while (waiting := len(self._books.places)) and waiting != before:
            before = waiting
            for worker in self._books.ready():
                self._fill_places(worker)

    def _lacks_room(self, call: Call, thread: Thread | None, worker: Worker) -> bool:
        """True for a request that loads a thread and has to wait until this worker, or another one, may load it."""
        if not _loads(call, thread) or self.room.is_in(worker):
            return False
        # One that forks a thread which cannot leave its worker can go nowhere else.
        return thread is None or thread.worker is None or (thread.stored and not thread.pinned)

    def _wait_for_room(self, call: Call) -> None:
        session = self._books.session(call)
        if session is not None and self._books.hold(call):
            self.room.wait(call, session)
            self._tell_queued(call, loads=True)

    def fill_room(self) -> None:
        """Send on what has waited for room, as far as there is some."""
        if len(self.room):
            for call in self.room.take(self._may_load):
                self.route(call)
        for worker in self._books.workers.values():
            self.start_waiting(worker)

    def _may_load(self, thread_id: str) -> bool:
        thread = self._books.threads.get(thread_id)
        worker = self._books.workers.get(thread.worker or "") if thread is not None else None
        if worker is not None:
            return worker.leaving or self.room.is_in(worker)
        return any(self.room.is_in(worker) for worker in self._books.ready())

    def _keep_homeless(self, call: Call) -> None:
        if self._books.hold(call):
            self._books.homeless.append(call)
            self._tell_queued(call)

    def work_again(self) -> None:
        """There are workers that take work which did not before."""
        self.route_homeless()
        self.fill_room()
        self.fill_all_places()
        self.start_all_waiting()

    def route_homeless(self) -> None:
        """Send on what has waited for a worker."""
        homeless, self._books.homeless = self._books.homeless, []
        for call in homeless:
            self.route(call)

    # When.

    def _enqueue(self, call: Call, worker: Worker) -> None:
        if not self._books.hold(call):
            return
        call.worker = worker.name
        thread = self._books.threads.get(call.thread_id or "")
        if thread is not None:
            thread.chosen = worker.name
        assert call.session is not None, "only sessions start turns"
        weight = WEIGHTS[self._books.sessions[call.session].priority]
        worker.waiting.put(call.session, weight, call.thread_id or "", call)
        self.start_waiting(worker)
        self._tell_queued(call)

    def start_waiting(self, worker: Worker) -> None:
        """Start what waits with this worker, as far as there is room; a busy thread lets others pass."""
        if not worker.waiting:
            return

        def is_free(thread_id: str) -> bool:
            thread = self._books.threads.get(thread_id)
            if thread is not None and thread.worker not in (None, worker.name):
                return True
            if thread is not None and thread.busy:
                return False
            if thread is not None and (self._leaves(thread, worker) or _is_stuck(thread, worker)):
                return True
            if worker.stale and thread is not None and thread.worker == worker.name:
                # It leaves once its open requests are answered: no turn begins with a former account.
                return False
            if thread is not None and thread.record.owner and not self._has_room_for_keys(worker):
                return False
            if thread is not None and thread.worker is None and not self.room.is_in(worker):
                self.room.denied()
                return False
            return self._has_room(worker) and not worker.behind

        while worker.waiting and (call := worker.waiting.take(is_free)) is not None:
            thread = self._books.threads.get(call.thread_id or "")
            elsewhere = thread is not None and thread.worker not in (None, worker.name)
            if elsewhere or (not worker.takes_work and (thread is None or thread.worker is None)):
                # While it waited here, another worker took the thread, or this one takes no more work.
                self.route(call)
            elif thread is not None and self._is_refused(call, thread, worker):
                self._refuse(call, thread, worker)
            elif thread is not None and self._leaves(thread, worker):
                self._hand_over(call, thread, worker)
            else:
                self.send(call, worker)

    def start_all_waiting(self) -> None:
        """More turns may run than before."""
        for worker in sorted(self._books.workers.values(), key=lambda worker: worker.load):
            self.start_waiting(worker)

    def room_again(self, worker: Worker) -> None:
        """Something has ended on this worker."""
        if len(self.room):
            self.fill_room()
        self._fill_places(worker)
        self.start_waiting(worker)
        if self._pace.limit is not None:
            self.start_all_waiting()

    def _has_room(self, worker: Worker) -> bool:
        books = self._books
        return worker.load < books.turns_per_worker and self._pace.allows(books.running, books.now)

    def _has_room_for_keys(self, worker: Worker) -> bool:
        books = self._books
        return books.key_turns(worker) < books.turns_per_worker - reserved_turns(books.turns_per_worker)

    # Moving a thread while it lives.

    def _leaves(self, thread: Thread, worker: Worker) -> bool:
        """True when this thread is to move now: its worker is to be replaced, and it is stored and idle."""
        if not worker.leaving or thread.worker != worker.name or thread.pinned or not thread.stored or thread.busy:
            return False
        if self._books.runs_agents(thread.record.thread_id):
            return False
        return all(call.thread_id != thread.record.thread_id for call in self._books.open_calls_of(worker))

    def leave(self, worker: Worker) -> None:
        """This worker takes no more work: what waits for it goes elsewhere, as far as that is possible."""
        for call in worker.waiting.remove_all():
            self.route(call)
        self.fill_room()

    def _is_refused(self, call: Call, thread: Thread, worker: Worker) -> bool:
        """True when this would use a former account, on a thread that cannot leave its worker."""
        return call.method in STARTS_TURN and _is_stuck(thread, worker)

    def _refuse(self, call: Call, thread: Thread, worker: Worker) -> None:
        why = "is ephemeral" if thread.record.ephemeral else "has no turn yet" if not thread.stored else "is in use"
        message = (
            f"thread {thread.record.thread_id} {why} and cannot leave worker {worker.name}, which is being renewed: "
            f"{worker.stale}; start a new thread"
        )
        self._books.fail(call, errors.THREAD_LOST, message, {"safeToRetry": not call.again})

    def _hand_over(self, call: Call, thread: Thread, worker: Worker) -> None:
        if not self._books.hold(call):
            return
        thread.moving = [call]
        self._tell_queued(call)
        self._release(thread.record.thread_id, worker)

    def _release(self, thread_id: str, worker: Worker) -> None:
        release = Call(None, 0, RELEASE, thread_id, b"", "full", self._books.now, worker=worker.name)
        number = self._books.open_call(release, worker)
        self._books.to_worker(worker, wire.Release(number, thread_id, self._books.below(thread_id)))

    def released(self, thread_id: str, *, ok: bool) -> None:
        """The worker has put the thread away, or will not."""
        thread = self._books.threads.get(thread_id)
        if thread is None or thread.moving is None:
            return
        calls, thread.moving = thread.moving, None
        if ok:
            worker = self._books.workers.get(thread.worker or "")
            if worker is not None:
                worker.threads.discard(thread_id)
            self._books.orphan(thread)
            thread.archived = True
        else:
            thread.pinned = True
        for call in calls:
            self.route(call)

    # Sending.

    def send(self, call: Call, worker: Worker) -> None:
        """Dispatch; a thread that is with no worker is adopted by this one first."""
        limit = MAX_OUTSTANDING + (MAX_CONTROL if call.method in CONTROL else 0)
        if not call.starts_turn and len(worker.calls) >= limit:
            self._books.overloaded(call, f"worker {worker.name} has {len(worker.calls)} requests open, its limit")
            return
        if not self._books.places.are_free(call, [worker]):
            self._wait_for_place(call)
            return
        thread = self._books.threads.get(call.thread_id or "")
        adopt, archived = None, False
        if thread is not None and thread.worker is None:
            if not thread.stored:
                self._fail_lost_thread(call, thread.record)
                return
            adopt, archived = thread.record, thread.archived
            thread.worker, thread.archived = worker.name, False
            worker.threads.add(adopt.thread_id)
        if thread is not None:
            thread.used_at = self._books.now
            if call.method in rpc.LOADS_THREAD and call.session is not None:
                thread.followers[call.session] = None
        self.dispatch(call, worker, adopt=adopt, archived=archived)
        if adopt is not None and thread is not None:
            for session in thread.followers:
                self._books.to_worker(worker, wire.Follow(session, adopt.thread_id))

    def _fail_lost_thread(self, call: Call, record: wire.ThreadRecord) -> None:
        why = "it was ephemeral" if record.ephemeral else "it had no turn yet, so nothing of it was stored"
        message = (
            f"thread {record.thread_id} was lost with its worker, or let go because nobody followed it any more: "
            f"{why}; start a new one"
        )
        # What was sent to a worker before may have begun there.
        self._books.fail(call, errors.THREAD_LOST, message, {"safeToRetry": not call.again})

    def dispatch(
        self, call: Call, worker: Worker, *, adopt: wire.ThreadRecord | None = None, archived: bool = False
    ) -> None:
        """Send this to the worker now."""
        assert call.session is not None, "the pool's own requests have frames of their own"
        self._books.release(call)
        if call.told:
            call.told = False
            self._tell_queue(call, "pool/dequeued")
        call.worker = worker.name
        loads = adopt is not None or call.method in rpc.LOADS_THREAD
        if loads:
            self.room.taken(worker)
        number = self._books.open_call(call, worker)
        if loads:
            worker.loading.add(number)
        queued_ms = round((self._books.now - call.came_at) * 1000)
        head = wire.Dispatch(
            number,
            call.session,
            call.interest,
            adopt,
            queued_ms,
            again=call.again,
            archived=archived,
            timeout_s=call.timeout_s,
            pieces=self._takes_pieces(call),
        )
        self._books.to_worker(worker, head, call.line)

    def _takes_pieces(self, call: Call) -> bool:
        """True if nothing here looks at the answer, nor takes out of it what its client does not want."""
        session = self._books.session(call)
        return session is not None and session.pieces and not session.opted_out and call.gather is None

    def repeat(self, call: Call) -> bool:
        """A request that was sent before: to the worker that has it, if one has, which does nothing twice.

        One that has the id of another which is under way is refused.
        """
        books = self._books
        numbers = books.under_way.get(call.key)
        if numbers:
            if not call.repeats(books.calls[numbers[-1]]):
                self.refuse_id(call)
                return True
            before = [books.close_call(number) for number in list(numbers)]
            worker = books.workers.get(before[-1].worker)
            if before[-1].gather is not None or worker is None:
                return False
        else:
            worker = books.workers.get(books.seen.get(call.key, "")) if call.again else None
            if worker is None:
                return False
        self.dispatch(call, worker)
        return True

    def refuse_id(self, call: Call) -> None:
        """Another request of this session has this id and is not answered yet."""
        message = f"{call.method}: request id {call.id_json} is that of another request; give it an id of its own"
        self._books.answer(call, rpc.error_line(call.id_json.encode(), INVALID_REQUEST, message))

    def send_again(self, worker: Worker) -> None:
        """The worker has a new connection: what was on its way on the old one may be lost."""
        for number in sorted(worker.calls):
            call = self._books.close_call(number)
            if call.method == RELEASE:
                self._release(call.thread_id or "", worker)
            elif call.method == APPLY:
                self.changes.send_again(call, worker)
            else:
                call.again = True
                self.dispatch(call, worker)

    def cancel(self, call: Call) -> None:
        """Take a call out that is held here."""
        self._books.release(call)
        call.dropped = True
        worker = self._books.workers.get(call.worker)
        assert call.session is not None, "only calls of sessions are held"
        if worker is None or not worker.waiting.remove(call.session, call.thread_id or "", call):
            self.room.remove(call)
            self._books.homeless = [each for each in self._books.homeless if each is not call]
            self._books.places.remove(call)
        message = "cancelled before it was started"
        self._books.answer(call, rpc.error_line(rpc.encode(call.request_id), CANCELLED, message))

    def forget_session(self, session: Session) -> None:
        """Nobody wants what waits here for this session."""
        for worker in self._books.workers.values():
            worker.waiting.remove_session(session.id)
        for call in list(session.waiting.values()):
            self._books.release(call)
            self._books.places.remove(call)
            self.room.remove(call)
            call.dropped = True
        self._books.homeless = [call for call in self._books.homeless if not call.dropped]
        self.changes.forget_session(session.id)

    # Answers, and workers that die before they give one.

    def answered(self, call: Call, worker: Worker, frames: list[bytes], *, ok: bool) -> None:
        """Tell the client."""
        if call.gather is None:
            if call.session is not None:
                self._books.pass_on([call.session], frames)
        elif call.gather.add(worker.slot, frames[1] if len(frames) == 2 else None, ok=ok):
            self._tell_outcome(call, call.gather)

    def lose(self, call: Call, slot: int, reason: str) -> None:
        """The worker of this call is dead."""
        message = f"worker {call.worker} died before it answered {call.method}: {reason}"
        if call.method == RELEASE:
            self.released(call.thread_id or "", ok=True)
        elif call.method == APPLY:
            self.changes.lost(call)
        elif call.gather is not None:
            if call.gather.add(slot, None, ok=False):
                self._tell_outcome(call, call.gather, message)
        elif self._books.session(call) is None:
            return
        elif call.method == "turn/start" and call.thread_id in self._books.threads and call.tries < MAX_TRIES:
            # The next worker finds in the thread's history whether it has begun.
            call.again = True
            call.tries += 1
            self.route(call)
        else:
            # A thread that nobody has heard of may be started again.
            data = {"kind": "lost", "safeToRetry": call.method == "thread/start"}
            self._books.fail(call, errors.TURN_LOST, message, data)

    def _tell_outcome(self, call: Call, gather: Gather, message: str = "") -> None:
        outcome = gather.outcome
        if outcome is None:
            self._books.fail(call, errors.TURN_LOST, message, {"kind": "lost", "safeToRetry": False})
            return
        if gather.results:
            visible = functools.partial(self._books.may_touch, call.who)
            outcome = merge(call.method, gather.results, self._name_of, visible, call.line)
            outcome = self.lists.first_page(call, outcome)
        self._books.answer(call, outcome)

    def _name_of(self, thread_id: str) -> str | None:
        record = self._books.record(thread_id)
        return record.name if record is not None else None

    # The queue, as clients see it.

    def _tell_queued(self, call: Call, *, loads: bool = False) -> None:
        if (call.starts_turn or loads) and not call.told and self._books.is_held(call):
            call.told = True
            self._tell_queue(call, "pool/queued")

    def tell_again(self, call: Call) -> None:
        """Its session has come back and does not know whether it was told."""
        if call.told:
            self._tell_queue(call, "pool/queued")

    def _tell_queue(self, call: Call, method: str) -> None:
        params = {"requestId": call.request_id, "threadId": call.thread_id}
        self._books.answer(call, rpc.encode({"method": method, "params": params}))


def _loads(call: Call, thread: Thread | None) -> bool:
    """True for a request that makes its app-server load a thread."""
    if thread is not None and thread.worker is None:
        return thread.stored
    return call.method in rpc.LOADS_THREAD and (thread is None or call.method == "thread/fork")


def _is_stuck(thread: Thread, worker: Worker) -> bool:
    """True when this idle thread can have no more turns: its worker is stale, and it cannot leave it."""
    return (
        bool(worker.stale) and thread.worker == worker.name and not thread.busy and (thread.pinned or not thread.stored)
    )
