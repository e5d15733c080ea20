"""InFlight: the requests on their way through the broker, their transitions and all indexes over them. Pure.

`request` has the table of states. Nothing else changes a request's state, or one of these:

    by state      held, dispatched, returned and executing requests
    by number     dispatched requests, as workers name them in their answers; the same of each worker, and which of
                  them start a turn (of a worker, and of a thread) or load a thread
    by key        the numbers that a request of a client has with workers; the worker that was sent it last
    by session    held requests, by their ids
    by principal  how many are held, and their bytes; with each worker, how many hold a permit, and their bytes

The bounds of what is held are here as well. A request beyond them fails, unless it was held before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .entities import Session, Worker, bound
from .quotas import MAX_WAITING, MAX_WAITING_BYTES, needs_permit
from .request import NEXT, Request, RequestKey, RequestQueue, State
from .request_queues import OrderedQueue

if TYPE_CHECKING:
    from .state import BrokerState

# As many as a worker remembers of the requests that it has taken.
MAX_SEEN_PER_WORKER = 4096
MAX_HELD_PER_SESSION = 10_000
MAX_HELD = 100_000
# Of their bytes; one is always held, however large.
MAX_HELD_BYTES_PER_SESSION = 64 * 1024 * 1024
MAX_HELD_BYTES = 512 * 1024 * 1024


class InFlight:
    """See the module's docstring. `queues` returns the queues that there are, for `faults`."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state
        self.queues: list[Callable[[], Iterable[RequestQueue]]] = []
        self.by_state: dict[State, dict[Request, None]] = {
            "held": {},
            "dispatched": {},
            "returned": {},
            "executing": {},
        }
        self._append_event = state.events.append
        self.by_number: dict[int, Request] = {}
        self.by_key: dict[RequestKey, list[int]] = {}
        self.sent_to: dict[RequestKey, str] = {}
        # Requests for which there is no worker.
        self.unassigned = OrderedQueue("worker")
        self.held = 0
        self.held_bytes = 0
        self._held_of: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        self._last_number = 0
        # Transitions that are not in the table, which `faults` reports once.
        self._refused: list[str] = []

    # Transitions.

    def _move(self, request: Request, state: State) -> None:
        before = request.state
        if state not in NEXT[before]:
            self._refused.append(f"request {request.id_json} ({request.method}) went from {before} to {state}")
        if (listed := self.by_state.get(before)) is not None:
            listed.pop(request, None)
        request.state = state
        if (listed := self.by_state.get(state)) is not None:
            listed[request] = None
        thread = request.thread_id or ""
        # As `EventLog.record`, without a call.
        self._append_event(
            (self._state.now, state, request.method, request.session, request.id_json, thread[:64], request.worker)
        )

    def hold(self, request: Request, queue: RequestQueue) -> bool:
        """Keep a request in this queue; False if it fails because that would be too many, or its session is over."""
        session = self._state.session(request)
        if session is None:
            self.finish(request)
            return False
        if request.state == "held":
            self._leave_queue(request)
        else:
            # One that was sent to a worker which died was counted before.
            refusal = None if request.tries else self._state.limits.waiting_refusal(request)
            if refusal is not None:
                self._state.refuse(request, refusal)
                return False
            problem = None if request.tries else self._why_full(request, session)
            if problem is not None:
                self._state.overloaded(request, problem)
                return False
            session.held[request.id_json] = request
            self._count(session, request, 1)
        request.queue = queue
        request.priority = self._state.limits.priority(request.principal)
        queue.add(request, session.weight)
        self._move(request, "held")
        return True

    def _why_full(self, request: Request, session: Session) -> str | None:
        size = len(request.line)
        if request.principal:
            count, held_bytes = self._held_of[request.principal]
            if count >= MAX_WAITING or (count and held_bytes + size > MAX_WAITING_BYTES):
                limit = f"{MAX_WAITING} requests or {MAX_WAITING_BYTES} bytes"
                return f"so many requests of this key wait already that it is at its limit: {limit}"
        mine = session.held_bytes + size
        if len(session.held) >= MAX_HELD_PER_SESSION or (session.held and mine > MAX_HELD_BYTES_PER_SESSION):
            limit = f"{MAX_HELD_PER_SESSION} requests or {MAX_HELD_BYTES_PER_SESSION} bytes"
            return f"so many requests of this client wait already that it is at its limit: {limit}"
        if self.held >= MAX_HELD or (self.held and self.held_bytes + size > MAX_HELD_BYTES):
            limit = f"{MAX_HELD} requests or {MAX_HELD_BYTES} bytes"
            return f"so many requests wait already that the pool is at its limit: {limit}"
        return None

    def _release(self, request: Request) -> None:
        """Take a held request out of its queue and of the counts."""
        self._leave_queue(request)
        session = self._state.session(request)
        if session is not None and session.held.get(request.id_json) is request:
            del session.held[request.id_json]
            self._count(session, request, -1)

    def _leave_queue(self, request: Request) -> None:
        if request.queue is not None:
            request.queue.discard(request)
            request.queue = None
            worker = self._state.workers.get(request.worker)
            if worker is not None:
                self._state.busy.eased(worker)

    def _count(self, session: Session, request: Request, sign: int) -> None:
        size = sign * len(request.line)
        session.held_bytes += size
        self.held += sign
        self.held_bytes += size
        principal = request.principal
        if principal:
            count, held_bytes = self._held_of[principal]
            self._held_of[principal] = count + sign, held_bytes + size
            if self._held_of[principal] == (0, 0):
                del self._held_of[principal]

    def dispatch(self, request: Request, worker: Worker) -> int:
        """Count a request as sent to this worker; the number under which it is to answer."""
        if request.state == "held":
            self._release(request)
        self._last_number += 1
        number = request.number = self._last_number
        request.worker = worker.name
        self.by_number[number] = request
        worker.requests[number] = request
        if needs_permit(request):
            worker.permits[request.principal] += 1
            worker.permit_bytes[request.principal] += len(request.line)
        if request.session is not None:
            self.by_key.setdefault(request.key, []).append(number)
        if request.starts_turn:
            worker.starting.add(number)
            thread = self._state.threads.get(request.thread_id or "")
            if thread is not None:
                thread.starting.add(number)
        if request.loads:
            worker.loading.add(number)
        if request.session is not None and request.fan_out is None:
            self.note_sent(request.key, worker.name)
        self._move(request, "dispatched")
        return number

    def note_sent(self, key: RequestKey, worker: str) -> None:
        """Remember which worker was sent this request last."""
        self.sent_to.pop(key, None)
        self.sent_to[key] = worker
        bound(self.sent_to, MAX_SEEN_PER_WORKER * max(self._state.slots, len(self._state.workers)))

    def take_back(self, number: int) -> Request:
        """Count a request as not with its worker any more: it has answered, or it is sent again."""
        request = self.by_number.pop(number)
        numbers = self.by_key.get(request.key)
        if numbers is not None:
            numbers.remove(number)
            if not numbers:
                del self.by_key[request.key]
        worker = self._state.workers.get(request.worker)
        if worker is not None:
            self._leave(worker, request, number)
        thread = self._state.threads.get(request.thread_id or "")
        if thread is not None:
            thread.starting.discard(number)
        self._move(request, "returned")
        return request

    def _leave(self, worker: Worker, request: Request, number: int) -> None:
        worker.requests.pop(number, None)
        worker.starting.discard(number)
        worker.loading.discard(number)
        self._state.busy.eased(worker)
        if needs_permit(request):
            worker.permits[request.principal] -= 1
            worker.permit_bytes[request.principal] -= len(request.line)

    def execute(self, request: Request) -> None:
        """Carry a request out as requests of the pool's own."""
        if request.state == "held":
            self._release(request)
        self._move(request, "executing")

    def finish(self, request: Request) -> None:
        """Be done with a request: it was answered, or an answer is no longer wanted."""
        if request.state == "done":
            return
        if request.state == "held":
            self._release(request)
        self._move(request, "done")

    # What there is.

    def counts(self) -> dict[str, int]:
        """Return the number of requests in each state."""
        return {state: len(requests) for state, requests in self.by_state.items()}

    def held_of(self, principal: str) -> Iterator[Request]:
        """The held requests of this principal."""
        sessions = self._state.sessions.values()
        return (each for session in sessions if session.principal == principal for each in session.held.values())

    # Faults.

    def totals_differ(self) -> list[str]:
        """Faults that the totals show; costs little however many requests there are."""
        state = self._state
        sessions, workers = state.sessions.values(), state.workers.values()
        found, self._refused = self._refused, []
        _expect(found, "held requests", self.held, sum(len(each.held) for each in sessions))
        _expect(found, "held requests by state", self.held, len(self.by_state["held"]))
        _expect(found, "bytes held", self.held_bytes, sum(each.held_bytes for each in sessions))
        _expect(found, "dispatched requests", len(self.by_number), sum(len(each.requests) for each in workers))
        _expect(found, "dispatched requests by state", len(self.by_number), len(self.by_state["dispatched"]))
        return found

    def faults(self) -> list[str]:
        """Return all ways in which the indexes disagree; looks at every request."""
        found = self.totals_differ()
        self._check_held(found)
        self._check_dispatched(found)
        for state, requests in self.by_state.items():
            found += [f"{_name(each)} is {each.state}, listed as {state}" for each in requests if each.state != state]
        waiting = {id(pending.request) for pending in self._state.answers_waiting()}
        returned = self.by_state["returned"]
        found += [f"{_name(each)} has returned, and nothing follows" for each in returned if id(each) not in waiting]
        return found

    def _check_held(self, found: list[str]) -> None:
        of_sessions = {id(each) for session in self._state.sessions.values() for each in session.held.values()}
        in_queues: set[int] = set()
        for queue in [self.unassigned, *(queue for queues in self.queues for queue in queues())]:
            for request in queue:
                in_queues.add(id(request))
                if request.queue is not queue or request.state != "held":
                    found.append(f"{_name(request)} is in the queue for a {queue.reason}, and does not know it")
        for request in self.by_state["held"]:
            if id(request) not in in_queues:
                found.append(f"{_name(request)} is held in no queue")
            if id(request) not in of_sessions:
                found.append(f"{_name(request)} is held, and its session does not know it")
        _expect(found, "requests in queues", len(in_queues), self.held)
        held = Counter(each.principal for each in self.by_state["held"] if each.principal)
        _expect(
            found, "held requests by principal", {name: count for name, (count, _) in self._held_of.items()}, {**held}
        )

    def _check_dispatched(self, found: list[str]) -> None:
        for worker in self._state.workers.values():
            requests = worker.requests
            _expect(
                found,
                f"requests of {worker.name} by number",
                self.by_number.items() & requests.items(),
                {*requests.items()},
            )
            starting = {number for number, each in requests.items() if each.starts_turn}
            _expect(found, f"turns that start on {worker.name}", worker.starting, starting)
            loading = {number for number, each in requests.items() if each.loads}
            _expect(found, f"threads that {worker.name} loads", worker.loading, loading)
            permits = Counter(each.principal for each in requests.values() if needs_permit(each))
            _expect(found, f"permits with {worker.name}", +worker.permits, permits)
        numbers = [number for each in self.by_key.values() for number in each]
        of_clients = [number for number, each in self.by_number.items() if each.session is not None]
        _expect(found, "dispatched requests by key", sorted(numbers), sorted(of_clients))


def _expect(found: list[str], what: str, value: Any, expected: Any) -> None:
    if value != expected:
        found.append(f"{what}: {value!r}, expected {expected!r}"[:500])


def _name(request: Request) -> str:
    return f"request {request.id_json[:64]} ({request.method[:64]})"
