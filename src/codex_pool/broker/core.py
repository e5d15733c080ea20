"""The broker's state machine. Pure: events in, effects out; `now` (monotonic seconds) comes with each event.

    event             from            what follows
    client_message    a client        sessions; requests routed by the scope of their method
    worker_message    a worker        answers and events passed on; turns and threads kept in the books
    slots             supervisor      what status shows of slots that have no worker
    worker_lost       supervisor      its turns end lost, its requests fail, its threads wait to be adopted
    tick              the clock       beats; sessions that are gone, workers that are silent

Rules that hold throughout:
 - Only a ready worker gets a request. A worker has at most `turns_per_worker` turns, running or about to; further
   turns wait with it, first come first served, and are told so at once (`pool/queued`, then `pool/dequeued`).
 - Turns of one thread do not overlap: a start waits until the thread's running turn is over.
 - A turn ends once: by its worker's TurnEnded, or here when the worker is lost.
 - What a client says of itself in a header is not trusted: the envelope of its request is decoded here. Bodies from
   workers are passed on and never decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec

from codex_app_server import envelope, errors
from codex_app_server.generated.routing import REQUESTS
from codex_pool import rpc, wire
from codex_pool.broker.records import (
    Call,
    Effect,
    Gather,
    Note,
    Registered,
    Session,
    Suspect,
    Thread,
    ToClient,
    ToWorker,
    Turn,
    Worker,
)
from codex_pool.broker.status import slot_rows

SESSION_GRACE_S = 30.0
WORKER_SILENT_S = 10.0
MAX_CLIENTS = 1024
MAX_THREADS = 100_000
MAX_HOMELESS = 10_000
MAX_LOST = 10_000
MAX_ARCHIVED = 10_000
MAX_SESSION_CHARS = 256

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601


class BrokerCore:
    """See the module's docstring. `slots` is how many workers there are to be."""

    def __init__(self, *, slots: int, turns_per_worker: int, now: float, max_clients: int = MAX_CLIENTS) -> None:
        self._slots = slots
        self._turns_per_worker = turns_per_worker
        self._max_clients = max_clients
        self._started_at = now
        self._next_beat = now + wire.BEAT_S
        self._initialize: bytes | None = None
        self._sessions: dict[str, Session] = {}
        self._session_of: dict[bytes, str] = {}
        self._workers: dict[str, Worker] = {}
        # Names of workers that are dead: what they sent last may come after the news of it.
        self._lost: dict[str, None] = {}
        self._threads: dict[str, Thread] = {}
        # Threads that were put away, and by which worker.
        self._archived: dict[str, str] = {}
        self._turns: dict[str, Turn] = {}
        self._calls: dict[int, Call] = {}
        self._next_call = 0
        # Requests that came while no worker was ready.
        self._homeless: deque[Call] = deque()
        self._slot_states: list[dict[str, Any]] = []
        self._ended = {"completed": 0, "failed": 0, "interrupted": 0, "lost": 0}

    @property
    def held(self) -> dict[str, int]:
        """What is kept, by kind (leak checks)."""
        return {
            "sessions": len(self._sessions),
            "workers": len(self._workers),
            "threads": len(self._threads),
            "turns": len(self._turns),
            "calls": len(self._calls) + sum(len(worker.calls) for worker in self._workers.values()),
            "starting": sum(len(worker.starting) for worker in self._workers.values())
            + sum(len(thread.starting) for thread in self._threads.values()),
            "waiting": sum(len(worker.waiting) for worker in self._workers.values()),
            "homeless": len(self._homeless),
        }

    # Clients.

    def client_message(self, identity: bytes, frames: list[bytes], now: float) -> list[Effect]:
        """A message on the clients' socket."""
        out: list[Effect] = []
        try:
            head = wire.decode_from_client(frames[0])
            if isinstance(head, wire.Call) and len(frames) != 2:
                raise wire.WireError(f"a call with {len(frames) - 1} bodies; it has one")
        except wire.WireError as error:
            out.append(Note(f"a client's message was refused: {error}"))
            return [*out, ToClient(identity, [wire.encode(wire.Refused(str(error)))])]
        if isinstance(head, wire.Hello):
            self._on_hello(identity, head, now, out)
            return out
        session = self._sessions.get(self._session_of.get(identity, ""))
        if session is None:
            return [
                ToClient(identity, [wire.encode(wire.Closed("the pool does not know this session", again=True))])
            ]
        session.seen_at = now
        if isinstance(head, wire.Call):
            self._on_call(session, head, frames[1], now, out)
        elif isinstance(head, wire.Ack):
            worker = self._workers.get(head.worker)
            if worker is not None:
                acked = wire.Acked(session.id, head.positions)
                out.append(ToWorker(worker.identity, [wire.encode(acked)]))
        elif isinstance(head, wire.Bye):
            self._end_session(session, out)
        return out

    def client_unreachable(self, identity: bytes) -> list[Effect]:
        """The connection is gone: so is its session, at once when nothing can reach it any more."""
        out: list[Effect] = []
        session = self._sessions.get(self._session_of.get(identity, ""))
        if session is not None:
            self._end_session(session, out)
        return out

    def client_overflow(self, identity: bytes) -> list[Effect]:
        """More waits for this client than it may have waiting."""
        out: list[Effect] = [ToClient(identity, [wire.encode(wire.Closed("overflow: this client reads too slowly"))])]
        return [*self.client_unreachable(identity), *out]

    def _on_hello(self, identity: bytes, hello: wire.Hello, now: float, out: list[Effect]) -> None:
        if not 0 < len(hello.session) <= MAX_SESSION_CHARS:
            refusal = f"the session's id has {len(hello.session)} characters, expected 1 to {MAX_SESSION_CHARS}"
        elif hello.session in self._sessions or identity in self._session_of:
            refusal = f"session {hello.session} exists already, or this connection has one"
        elif len(self._sessions) >= self._max_clients:
            refusal = f"the pool has {self._max_clients} clients, which is its limit; try again later"
        elif self._initialize is None:
            refusal = "no worker is ready yet; try again in a moment"
        else:
            self._sessions[hello.session] = Session(hello.session, hello.client, identity, now)
            self._session_of[identity] = hello.session
            welcome = wire.encode(wire.Welcome(len(self._workers)))
            out.append(ToClient(identity, [welcome, self._initialize]))
            return
        out.append(ToClient(identity, [wire.encode(wire.Refused(refusal))]))

    def _end_session(self, session: Session, out: list[Effect]) -> None:
        del self._sessions[session.id]
        self._session_of.pop(session.identity, None)
        for thread in self._threads.values():
            thread.followers.pop(session.id, None)
        self._homeless = deque(call for call in self._homeless if call.session != session.id)
        for worker in self._workers.values():
            worker.waiting = deque(call for call in worker.waiting if call.session != session.id)
            out.append(ToWorker(worker.identity, [wire.encode(wire.Gone(session.id))]))

    # Requests.

    def _on_call(self, session: Session, head: wire.Call, line: bytes, now: float, out: list[Effect]) -> None:
        try:
            header = envelope.scan(line)
        except ValueError as error:
            message = f"not a message of this protocol: {error}"
            self._say(session.id, rpc.error_line(b"null", PARSE_ERROR, message), out)
            return
        try:
            rpc.check_line(line)
            if header.method is not None:
                rpc.decode_request(line)
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            message = f"not a request of this protocol: {error}"
            self._say(session.id, rpc.error_line(rpc.encode(header.id), INVALID_REQUEST, message), out)
            return
        if header.method is None:
            self._on_client_answer(session, header.id, line, out)
            return
        if header.id is None:
            return  # The only notification that clients send is `initialized`, which the pool has sent already.
        entry = REQUESTS.get(header.method)
        call = Call(session.id, header.id, header.method, header.thread_id, line, head.interest, now)
        if header.method == "initialize":
            assert self._initialize is not None
            self._say(session.id, b'{"id":%s,"result":%s}' % (rpc.encode(header.id), self._initialize), out)
        elif header.method == "pool/status":
            self._say(session.id, rpc.encode({"id": header.id, "result": self.status(now)}), out)
        elif header.method == "thread/unsubscribe":
            self._unsubscribe(call, out)
        elif entry is None or entry.scope in ("refused", "session", "unassigned"):
            message = f"{header.method} is not available through a pool; use a Codex client of its own for it"
            self._fail(call, METHOD_NOT_FOUND, message, None, out)
        else:
            self._route(call, entry.scope, out, now)

    def _on_client_answer(
        self, session: Session, request_id: envelope.RequestId | None, line: bytes, out: list[Effect]
    ) -> None:
        worker = self._workers.get(str(request_id).rpartition("/")[0])
        if worker is not None:
            out.append(ToWorker(worker.identity, [wire.encode(wire.Tell(session.id)), line]))

    def _route(self, call: Call, scope: str, out: list[Effect], now: float) -> None:
        if not self._workers:
            if len(self._homeless) >= MAX_HOMELESS:
                self._fail(call, errors.SERVER_OVERLOADED, "no worker is ready; retry later", None, out)
            else:
                self._homeless.append(call)
            return
        if scope == "all":
            call.gather = Gather(len(self._workers))
            for worker in list(self._workers.values()):
                self._dispatch(call, worker, None, now, out)
            return
        if scope == "account":
            self._dispatch(call, min(self._workers.values(), key=lambda worker: worker.slot), None, now, out)
            return
        thread = self._threads.get(call.thread_id) if call.thread_id is not None else None
        # An archived thread is known best to the worker that archived it.
        name = thread.worker if thread is not None else self._archived.get(call.thread_id or "")
        worker = self._workers.get(name or "") or self._least_busy()
        if REQUESTS[call.method].result_turn:
            call.worker = worker.name
            worker.waiting.append(call)
            self._start_waiting(worker, now, out)
            if call in worker.waiting and not call.told:
                call.told = True
                self._tell_queue(call, "pool/queued", out)
        else:
            self._send_to_owner(call, worker, now, out)

    def _least_busy(self) -> Worker:
        # Calls count beside threads, so that new threads are spread before any of them is answered.
        workers = self._workers.values()
        return min(workers, key=lambda w: (w.load + len(w.waiting), len(w.threads) + len(w.calls), w.slot))

    def _start_waiting(self, worker: Worker, now: float, out: list[Effect]) -> None:
        """Start what waits with this worker, as far as there is room; a busy thread lets others pass."""
        kept: deque[Call] = deque()
        while worker.waiting and worker.load < self._turns_per_worker:
            call = worker.waiting.popleft()
            thread = self._threads.get(call.thread_id or "")
            if thread is not None and thread.worker not in (None, worker.name):
                # While it waited here, another worker took the thread.
                self._route(call, REQUESTS[call.method].scope, out, now)
                continue
            if thread is not None and (thread.turns or thread.starting):
                kept.append(call)
                continue
            if call.told:
                self._tell_queue(call, "pool/dequeued", out)
            self._send_to_owner(call, worker, now, out)
        worker.waiting.extendleft(reversed(kept))

    def _send_to_owner(self, call: Call, worker: Worker, now: float, out: list[Effect]) -> None:
        """Dispatch; a thread that lost its worker is adopted by this one first."""
        thread = self._threads.get(call.thread_id) if call.thread_id is not None else None
        adopt = None
        if thread is not None and thread.worker is None:
            record = thread.record
            if record.ephemeral or record.turns == 0:
                why = "it was ephemeral" if record.ephemeral else "it had no turn yet, so nothing of it was stored"
                message = f"thread {record.thread_id} was lost with its worker: {why}; start a new one"
                self._fail(call, errors.THREAD_LOST, message, {"safeToRetry": True}, out)
                return
            adopt = record
            thread.worker = worker.name
            worker.threads.add(record.thread_id)
        if thread is not None and call.method in rpc.LOADS_THREAD:
            thread.followers[call.session] = None
        self._dispatch(call, worker, adopt, now, out)
        if adopt is not None and thread is not None:
            for session in thread.followers:
                follow = wire.Follow(session, adopt.thread_id)
                out.append(ToWorker(worker.identity, [wire.encode(follow)]))

    def _dispatch(
        self, call: Call, worker: Worker, adopt: wire.ThreadRecord | None, now: float, out: list[Effect]
    ) -> None:
        self._next_call += 1
        # Each worker of a gathered request has a call of its own.
        self._calls[self._next_call] = replace(call, worker=worker.name)
        worker.calls.add(self._next_call)
        if REQUESTS[call.method].result_turn:
            worker.starting.add(self._next_call)
            thread = self._threads.get(call.thread_id or "")
            if thread is not None:
                thread.starting.add(self._next_call)
        queued_ms = round((now - call.came_at) * 1000)
        head = wire.Dispatch(self._next_call, call.session, call.interest, adopt, queued_ms)
        out.append(ToWorker(worker.identity, [wire.encode(head), call.line]))

    def _unsubscribe(self, call: Call, out: list[Effect]) -> None:
        """Kept per session here: passed down, it would silence the thread for everybody on its app-server."""
        thread = self._threads.get(call.thread_id or "")
        status = "notLoaded" if thread is None else "notSubscribed"
        if thread is not None and thread.followers.pop(call.session, 0) is None:
            status = "unsubscribed"
            worker = self._workers.get(thread.worker or "")
            if worker is not None:
                follow = wire.Follow(call.session, thread.record.thread_id, on=False)
                out.append(ToWorker(worker.identity, [wire.encode(follow)]))
        self._say(call.session, rpc.encode({"id": call.request_id, "result": {"status": status}}), out)

    # Workers.

    def worker_message(self, identity: bytes, frames: list[bytes], now: float) -> list[Effect]:
        """A message on the workers' socket."""
        out: list[Effect] = []
        try:
            route = wire.decode_from_worker(frames[0])
        except wire.WireError as error:
            return [Note(f"a worker's message was ignored: {error}")]
        if isinstance(route, wire.ToSessions):
            if len(frames) > 1:
                self._pass_on(route.sessions or self._sessions, frames[1:], out)
            return out
        if isinstance(route, wire.Progress):
            beating = self._workers.get(route.worker)
            if beating is not None:
                beating.seen_at, beating.progress = now, route
            return out
        if isinstance(route, wire.Register):
            self._on_register(identity, route, frames, now, out)
            return out
        worker = self._workers.get(identity.decode("utf-8", "replace"))
        if worker is None:
            return [ToWorker(identity, [wire.encode(wire.WhoAreYou())])]
        worker.seen_at = now
        match route:
            case wire.Answered():
                self._on_answered(route, worker, frames[1:], now, out)
            case wire.TurnStarted():
                self._on_turn_started(route, worker)
            case wire.TurnEnded():
                self._on_turn_ended(route, worker, now, out)
            case wire.ThreadChanged():
                thread = self._threads.get(route.record.thread_id)
                if thread is not None:
                    thread.record = route.record
            case wire.ThreadGone():
                self._on_thread_gone(route, worker)
        return out

    def _pass_on(self, sessions: Iterable[str], frames: list[bytes], out: list[Effect]) -> None:
        for session_id in sessions:
            session = self._sessions.get(session_id)
            if session is not None:
                out.append(ToClient(session.identity, frames))

    def _on_register(
        self, identity: bytes, register: wire.Register, frames: list[bytes], now: float, out: list[Effect]
    ) -> None:
        name = register.worker
        try:
            _, initialize, body = frames
            records = wire.decode_holdings(body).records
        except ValueError as error:
            out.append(Note(f"worker {name} was not registered: {error}"))
            return
        if identity != name.encode() or name in self._workers or name in self._lost:
            out.append(Note(f"worker {name} was not registered: it is known, or dead, or not the one who says so"))
            return
        worker = Worker(name, register.slot, register.pid, register.app_server_pid, identity, seen_at=now)
        self._workers[name] = worker
        self._initialize = initialize
        out.append(Registered(name))
        for record in records:
            self._threads[record.thread_id] = Thread(record, name)
            worker.threads.add(record.thread_id)
        homeless, self._homeless = self._homeless, deque()
        for call in homeless:
            self._route(call, REQUESTS[call.method].scope, out, now)

    def _on_answered(
        self, answered: wire.Answered, worker: Worker, frames: list[bytes], now: float, out: list[Effect]
    ) -> None:
        call = self._calls.get(answered.call)
        if call is None or call.worker != worker.name:
            return
        self._close_call(answered.call, call, worker)
        if answered.record is not None:
            self._hold_thread(answered.record, worker, call.session)
        gather = call.gather
        if gather is None:
            self._pass_on([call.session], frames, out)
        else:
            gather.left -= 1
            if not gather.failed and (gather.left == 0 or not answered.ok):
                gather.failed = not answered.ok
                self._pass_on([call.session], frames, out)
        self._start_waiting(worker, now, out)

    def _close_call(self, number: int, call: Call, worker: Worker) -> None:
        del self._calls[number]
        worker.calls.discard(number)
        worker.starting.discard(number)
        thread = self._threads.get(call.thread_id or "")
        if thread is not None:
            thread.starting.discard(number)

    def _hold_thread(self, record: wire.ThreadRecord, worker: Worker, session: str) -> None:
        thread = self._threads.get(record.thread_id)
        self._archived.pop(record.thread_id, None)
        if thread is None:
            thread = self._threads[record.thread_id] = Thread(record, worker.name)
            if len(self._threads) > MAX_THREADS:
                self._forget_oldest_idle_thread()
        thread.record, thread.worker = record, worker.name
        worker.threads.add(record.thread_id)
        if session in self._sessions:
            thread.followers[session] = None

    def _forget_oldest_idle_thread(self) -> None:
        for thread_id, thread in self._threads.items():
            if not thread.turns and not thread.starting:
                self._drop_thread(thread_id)
                return

    def _drop_thread(self, thread_id: str) -> None:
        thread = self._threads.pop(thread_id, None)
        if thread is not None and thread.worker in self._workers:
            self._workers[thread.worker].threads.discard(thread_id)

    def _on_thread_gone(self, gone: wire.ThreadGone, worker: Worker) -> None:
        worker.threads.discard(gone.thread_id)
        thread = self._threads.get(gone.thread_id)
        if thread is None or thread.worker not in (None, worker.name):
            return
        if gone.keep:
            thread.worker = None
        else:
            self._drop_thread(gone.thread_id)
            self._archived[gone.thread_id] = worker.name
            if len(self._archived) > MAX_ARCHIVED:
                del self._archived[next(iter(self._archived))]

    def _on_turn_started(self, started: wire.TurnStarted, worker: Worker) -> None:
        worker.turns.add(started.turn_id)
        self._turns[started.turn_id] = Turn(started.thread_id, worker.name, list(started.sessions))
        thread = self._threads.get(started.thread_id)
        if thread is not None:
            thread.turns.add(started.turn_id)
            thread.record = msgspec.structs.replace(thread.record, turns=thread.record.turns + 1)

    def _on_turn_ended(self, ended: wire.TurnEnded, worker: Worker, now: float, out: list[Effect]) -> None:
        worker.turns.discard(ended.turn_id)
        if self._turns.pop(ended.turn_id, None) is None:
            return
        self._ended[ended.status] = self._ended.get(ended.status, 0) + 1
        thread = self._threads.get(ended.thread_id)
        if thread is not None:
            thread.turns.discard(ended.turn_id)
        self._start_waiting(worker, now, out)

    # The supervisor.

    def slots(self, states: list[dict[str, Any]]) -> list[Effect]:
        """What the supervisor knows of its slots, for status."""
        self._slot_states = states
        return []

    def worker_lost(self, name: str, reason: str, now: float) -> list[Effect]:
        """The worker and all that it ran are dead. May come for a worker that never registered."""
        out: list[Effect] = []
        worker = self._workers.pop(name, None)
        self._lost[name] = None
        if len(self._lost) > MAX_LOST:
            del self._lost[next(iter(self._lost))]
        if worker is None:
            return out
        for thread_id in worker.threads:
            thread = self._threads.get(thread_id)
            if thread is not None:
                thread.worker = None
        for number in sorted(worker.calls):
            call = self._calls[number]
            self._close_call(number, call, worker)
            self._lose_call(call, reason, out)
        for turn_id in worker.turns:
            turn = self._turns.pop(turn_id, None)
            if turn is not None:
                self._lose_turn(turn_id, turn, f"worker {name} died: {reason}", out)
        for call in worker.waiting:
            self._route(call, REQUESTS[call.method].scope, out, now)
        return out

    def _lose_call(self, call: Call, reason: str, out: list[Effect]) -> None:
        gather = call.gather
        if gather is not None:
            gather.left -= 1
            if gather.failed or gather.left > 0:
                return
        message = f"worker {call.worker} died before it answered {call.method}: {reason}"
        self._fail(call, errors.TURN_LOST, message, {"kind": "lost", "safeToRetry": False}, out)

    def _lose_turn(self, turn_id: str, turn: Turn, message: str, out: list[Effect]) -> None:
        self._ended["lost"] += 1
        thread = self._threads.get(turn.thread_id)
        if thread is not None:
            thread.turns.discard(turn_id)
        lines = rpc.ended_lines(turn.thread_id, turn_id, "lost", message, safe_to_retry=False)
        frames = [wire.encode(wire.Ended(turn.thread_id, turn_id)), b"\n".join(lines)]
        self._pass_on(turn.sessions, frames, out)

    def shut_down(self) -> list[Effect]:
        """The pool ends: everybody is told."""
        closed = [wire.encode(wire.Closed("the pool was stopped"))]
        return [ToClient(session.identity, closed) for session in self._sessions.values()]

    # The clock.

    def tick(self, now: float) -> list[Effect]:
        """Beats, and who has been silent for too long. Call it at `next_deadline`."""
        out: list[Effect] = []
        if now < self._next_beat:
            return out
        self._next_beat = now + wire.BEAT_S
        for session in list(self._sessions.values()):
            if now - session.seen_at > SESSION_GRACE_S:
                out.append(Note(f"client {session.client} was silent for {SESSION_GRACE_S:.0f} s: its session is over"))
                self._end_session(session, out)
            else:
                out.append(ToClient(session.identity, [wire.encode(wire.Beat())]))
        for worker in self._workers.values():
            if now - worker.seen_at > WORKER_SILENT_S and not worker.suspected:
                worker.suspected = True
                out.append(Suspect(worker.name, f"no beat for {WORKER_SILENT_S:.0f} s"))
        return out

    @property
    def next_deadline(self) -> float:
        return self._next_beat

    # Answers and status.

    def _say(self, session_id: str, line: bytes, out: list[Effect]) -> None:
        self._pass_on([session_id], [_LINES, line], out)

    def _fail(self, call: Call, code: int, message: str, data: Any, out: list[Effect]) -> None:
        self._say(call.session, rpc.error_line(rpc.encode(call.request_id), code, message, data), out)

    def _tell_queue(self, call: Call, method: str, out: list[Effect]) -> None:
        params = {"requestId": call.request_id, "threadId": call.thread_id}
        self._say(call.session, rpc.encode({"method": method, "params": params}), out)

    def status(self, now: float) -> dict[str, Any]:
        """The result of pool/status: plain JSON values, times in milliseconds."""
        return {
            "uptimeMs": round((now - self._started_at) * 1000),
            "turnsPerWorker": self._turns_per_worker,
            "workers": slot_rows(self._slots, self._slot_states, self._workers.values(), now),
            "clients": [session.client for session in self._sessions.values()],
            "threads": len(self._threads),
            "turns": {
                "running": len(self._turns),
                "queued": sum(len(worker.waiting) for worker in self._workers.values()),
                **self._ended,
            },
        }


_LINES = wire.encode(wire.Lines())
