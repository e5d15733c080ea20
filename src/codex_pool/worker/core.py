"""The worker's state machine. Pure: events in, effects out; `now` (monotonic seconds) comes with each event.

    event                      from           what follows
    start                      the loop       `initialize` to the app-server, then Register to the broker
    dispatch, tell, follow,    the broker     lines for the app-server's stdin
      gone, who_are_you
    lines                      app-server     answers and numbered events for the broker
    tick                       the clock      threadless notifications that waited for their second

Who owns what: the worker owns the ids of requests to its app-server, the numbers of each turn's notifications, and
which session follows which turn and thread. Rules that hold throughout:
 - At most MAX_IN_FLIGHT requests are open towards the app-server, CONTROL_PLACES of them only for control methods:
   beyond its ingress queue it drops requests without an answer.
 - A turn's TurnStarted precedes its TurnEnded, and TurnEnded comes after its last events; each is sent once.
 - A thread that is being adopted (resumed after the death of its worker) takes no request until it is as it was.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec

from codex_app_server import _asks, errors
from codex_app_server._message_router import (
    Ask,
    Delivery,
    GlobalRun,
    Malformed,
    MessageRouter,
    Reply,
    ThreadRun,
    TurnBroken,
    TurnRun,
)
from codex_app_server.envelope import RequestId
from codex_app_server.generated.routing import NOTIFICATIONS, REQUESTS
from codex_app_server.lines import LongLine
from codex_pool import rpc, wire
from codex_pool.worker.latest import Latest
from codex_pool.worker.subscriptions import LIMITS, Limits, Subscriptions
from codex_pool.worker.turns import Turn

MAX_IN_FLIGHT = 64
CONTROL_PLACES = 8
CONTROL_METHODS = frozenset({"turn/interrupt", "turn/steer"})

_LOGGED_IN = "account/login/completed"
_RESOLVED = "serverRequest/resolved"
_RELEASES_THREAD = frozenset({"thread/archive", "thread/delete"})


@dataclass(frozen=True, slots=True)
class ToAppServer:
    """Write this line to the app-server's stdin."""

    line: bytes


@dataclass(frozen=True, slots=True)
class ToBroker:
    """Send these frames."""

    frames: list[bytes]


@dataclass(frozen=True, slots=True)
class Ready:
    """The app-server has answered `initialize`: the worker may register."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the log."""

    message: str


Effect = ToAppServer | ToBroker | Ready | Note


@dataclass(slots=True)
class _Request:
    """A request of a session on its way through the app-server. `call` is None for the worker's own."""

    method: str
    thread_id: str | None
    line: rpc.RequestLine
    call: int | None = None
    session: str = ""
    interest: wire.Interest = "full"
    queued_ms: int = 0
    # Its session went while it was under way; of the worker's own: the turn that it interrupts.
    gone: bool = False
    interrupts: str | None = None

    __hash__ = object.__hash__
    __eq__ = object.__eq__


@dataclass(slots=True)
class _Adoption:
    """A thread on its way back: the record to restore, and the requests that wait for it."""

    record: wire.ThreadRecord
    waiting: list[_Request] = field(default_factory=list)


@dataclass(slots=True)
class _Thread:
    record: wire.ThreadRecord
    restore_sandbox: bool = False


class WorkerCore:
    """See the module's docstring. `worker` is this worker's name, `slot` the place it fills."""

    def __init__(
        self,
        *,
        worker: str,
        slot: int,
        pid: int,
        app_server_pid: int,
        initialize: dict[str, object],
        limits: Limits = LIMITS,
    ) -> None:
        self._worker = worker
        self._slot = slot
        self._pid = pid
        self._app_server_pid = app_server_pid
        self._initialize = initialize
        self._initialized: bytes | None = None
        self._router = MessageRouter()
        self._next_id = 0
        self._waiting: deque[_Request] = deque()
        self._waiting_control: deque[_Request] = deque()
        self._sent: set[_Request] = set()
        self._adopting: dict[str, _Adoption] = {}
        self._turns: dict[str, Turn] = {}
        self._subscriptions = Subscriptions(worker, limits)
        # Turns to interrupt that the app-server did not know yet.
        self._too_early: set[str] = set()
        self._threads: dict[str, _Thread] = {}
        # Open questions by the id that clients know: who was asked, what, and the line.
        self._asks: dict[str, tuple[str, Ask, bytes]] = {}
        # The turn inside of a review, which is the one to interrupt.
        self._inner: dict[str, str] = {}
        # Log-ins under way, and who began them.
        self._logins: dict[str, str] = {}
        self._globals = Latest()
        self._now = 0.0
        self.lines_read = 0

    @property
    def in_flight(self) -> int:
        return self._router.in_flight

    @property
    def running_turns(self) -> int:
        return len(self._turns)

    @property
    def held(self) -> dict[str, int]:
        """What is kept, by kind; all of it returns to zero when nothing runs (leak checks)."""
        return {
            **self._router.held,
            **self._subscriptions.held,
            "sent": len(self._sent),
            "waiting": len(self._waiting) + len(self._waiting_control),
            "adopting": len(self._adopting),
            "turns": len(self._turns),
            "too_early": len(self._too_early),
            "asks": len(self._asks),
        }

    # Events from the loop and the broker.

    def start(self) -> list[Effect]:
        """The handshake with the app-server."""
        out: list[Effect] = []
        self._send(_Request("initialize", None, rpc.RequestLine("initialize", params=_raw(self._initialize))), out)
        return out

    def who_are_you(self) -> list[Effect]:
        return [self._register()] if self._initialized is not None else []

    def dispatch(self, head: wire.Dispatch, line: bytes) -> list[Effect]:
        """A request of a session."""
        out: list[Effect] = []
        parsed = rpc.decode_request(line)
        thread_id = _thread_of(parsed)
        request = _Request(parsed.method, thread_id, parsed, head.call, head.session, head.interest, head.queued_ms)
        if thread_id is not None:
            adoption = self._adopting.get(thread_id)
            if adoption is None and head.adopt is not None and thread_id not in self._threads:
                adoption = self._begin_adoption(head.adopt, out)
            if adoption is not None:
                adoption.waiting.append(request)
                return out
        self._submit(request, out)
        return out

    def tell(self, head: wire.Tell, line: bytes) -> list[Effect]:
        """An answer to a request of the app-server, under the id that clients see; only who was asked may give it."""
        public_id = rpc.decode_request_id(line)
        asked = self._asks.get(public_id or "")
        if asked is None or asked[0] != head.session:
            return []
        del self._asks[public_id or ""]
        ask = asked[1]
        return [ToAppServer(rpc.with_id(line, rpc.encode(ask.id)))]

    def follow(self, head: wire.Follow) -> list[Effect]:
        if not head.on:
            self._router.unfollow_thread(head.thread_id, head.session)
        elif head.thread_id in self._threads or head.thread_id in self._adopting:
            self._router.follow_thread(head.thread_id, head.session)
        return []

    def acked(self, head: wire.Acked, now: float) -> list[Effect]:
        """A session has got so much of these turns."""
        return [ToBroker(frames) for frames in self._subscriptions.acked(head.session, head.positions, now)]

    def back(self, head: wire.Back, now: float) -> list[Effect]:
        """A session has come back on a new connection: it gets what it has not got, and is asked again."""
        out: list[Effect] = []
        out += [ToBroker(frames) for frames in self._subscriptions.back(head.session, head.positions, now)]
        questions = [line for session, _, line in self._asks.values() if session == head.session]
        if questions:
            out.append(ToBroker([wire.encode(wire.ToSessions([head.session])), _LINES, b"\n".join(questions)]))
        return out

    def release(self, head: wire.Release) -> list[Effect]:
        """Put a thread away, so that another worker can take it."""
        return []

    def gone(self, head: wire.Gone) -> list[Effect]:
        """A session is over: what it alone followed is interrupted unless it is kept, what it was asked is declined."""
        out: list[Effect] = []
        session = head.session
        for queue in (self._waiting, self._waiting_control, *(each.waiting for each in self._adopting.values())):
            for request in [request for request in queue if request.session == session]:
                queue.remove(request)
                # Nobody reads it, but the broker counts by answers.
                self._refuse(request, errors.TURN_LOST, "its session is over", out)
        for request in self._sent:
            request.gone = request.gone or request.session == session
        self._logins = {login: owner for login, owner in self._logins.items() if owner != session}
        for thread_id in (*self._threads, *self._adopting):
            self._router.unfollow_thread(thread_id, session)
        for turn in self._subscriptions.forget(session):
            if not turn.subscribers and not head.keep:
                self._interrupt(turn.id, turn.thread_id, out)
        for public_id, (owner, ask, _) in list(self._asks.items()):
            if owner == session:
                del self._asks[public_id]
                out.append(_decline(ask))
        return out

    def tick(self, now: float) -> list[Effect]:
        """Send the threadless notifications whose second has passed, and interrupts that came too early."""
        out: list[Effect] = []
        too_early, self._too_early = self._too_early, set()
        for turn_id in too_early:
            self._interrupt(turn_id, self._turns[turn_id].thread_id, out)
        out += [ToBroker(frames) for frames in self._subscriptions.expire(now)]
        return out + [_to_everybody(line) for line in self._globals.due(now)]

    @property
    def wants_tick(self) -> bool:
        """Whether something waits for the time to pass."""
        return bool(self._too_early) or self._globals.waits or self._subscriptions.waits

    # Events from the app-server.

    def lines(self, lines: list[bytes | LongLine], now: float) -> list[Effect]:
        """What was read from the app-server in one go."""
        out: list[Effect] = []
        self._now = now
        self.lines_read += len(lines)
        for delivery in self._router.receive(lines):
            self._on_delivery(delivery, now, out)
        while self._waiting_control and self._router.in_flight < MAX_IN_FLIGHT:
            self._send(self._waiting_control.popleft(), out)
        while self._waiting and self._router.in_flight < MAX_IN_FLIGHT - CONTROL_PLACES:
            self._send(self._waiting.popleft(), out)
        return out

    def _on_delivery(self, delivery: Delivery, now: float, out: list[Effect]) -> None:
        match delivery:
            case TurnRun():
                self._on_turn_run(delivery, out)
            case Reply():
                self._on_reply(delivery, out)
            case ThreadRun() | GlobalRun():
                self._on_other_run(delivery, now, out)
            case Ask():
                self._on_ask(delivery, out)
            case TurnBroken():
                self._on_turn_broken(delivery, out)
            case Malformed():
                out.append(Note(f"ignored a line of the app-server: {delivery.reason}: {delivery.line[:200]!r}"))

    # Requests.

    def _submit(self, request: _Request, out: list[Effect]) -> None:
        control = request.method in CONTROL_METHODS
        limit = MAX_IN_FLIGHT if control else MAX_IN_FLIGHT - CONTROL_PLACES
        queue = self._waiting_control if control else self._waiting
        if queue or self._router.in_flight >= limit:
            queue.append(request)
        else:
            self._send(request, out)

    def _send(self, request: _Request, out: list[Effect]) -> None:
        self._next_id += 1
        entry = REQUESTS.get(request.method)
        starts_turn = entry is not None and entry.result_turn
        params = request.line.params
        if request.method == "turn/start" and params is not None:
            self._complete_turn_start(request, params)
        self._router.expect(
            self._next_id,
            request,
            thread_id=request.thread_id,
            starts_turn=starts_turn,
            turn=request.session if starts_turn and request.session else None,
        )
        self._sent.add(request)
        line = rpc.RequestLine(request.method, msgspec.Raw(b"%d" % self._next_id), params)
        out.append(ToAppServer(rpc.encode(line)))

    def _complete_turn_start(self, request: _Request, params: dict[str, msgspec.Raw]) -> None:
        """An idempotency key for every turn, and for the first one after a resume the sandbox in full."""
        if "clientUserMessageId" not in params:
            params["clientUserMessageId"] = msgspec.Raw(rpc.encode(f"{request.session}/{request.call}"))
        thread = self._threads.get(request.thread_id or "")
        given = bytes(params.get("sandboxPolicy", b"null")) != b"null"
        if thread is not None and thread.restore_sandbox and thread.record.sandbox and not given:
            params["sandboxPolicy"] = msgspec.Raw(thread.record.sandbox.encode())

    def _on_reply(self, reply: Reply, out: list[Effect]) -> None:
        request = reply.token
        assert isinstance(request, _Request)
        self._sent.discard(request)
        if request.call is None:
            self._on_own_reply(request, reply, out)
            return
        record = None
        if not reply.is_error:
            if request.method in rpc.LOADS_THREAD:
                record = self._hold_thread(rpc.result_of(reply.line), request)
            if request.method in _RELEASES_THREAD and request.thread_id is not None:
                self._release_thread(request.thread_id, out, keep=False)
            if request.method == "account/login/start":
                login_id = rpc.login_id_of(reply.line)
                if login_id is not None and not request.gone:
                    self._logins[login_id] = request.session
        if reply.turn_id is not None and request.thread_id is not None:
            self._turn_started(reply.turn_id, request.thread_id, request, out)
        answered = wire.Answered(request.call, not reply.is_error, record, reply.turn_id)
        line = rpc.with_id(reply.line, bytes(request.line.id))
        out.append(ToBroker([wire.encode(answered), _LINES, line]))
        if reply.turn_id is not None and reply.turn_id in self._turns and self._turns[reply.turn_id].last == 0:
            self._announce_turn(reply.turn_id, request, out)

    def _on_own_reply(self, request: _Request, reply: Reply, out: list[Effect]) -> None:
        if request.method == "initialize":
            if reply.is_error:
                out.append(Note(f"the app-server refused initialize: {rpc.error_of(reply.line)}"))
                return
            self._initialized = rpc.result_of(reply.line)
            out += [ToAppServer(b'{"method":"initialized"}'), self._register(), Ready()]
        elif request.method == "thread/resume":
            self._on_resumed(request, reply, out)
        elif request.interrupts in self._turns and reply.is_error:
            self._too_early.add(request.interrupts)

    def _register(self) -> ToBroker:
        assert self._initialized is not None
        head = wire.Register(self._slot, self._worker, self._pid, self._app_server_pid)
        holdings = wire.Holdings(
            records=[thread.record for thread in self._threads.values()],
            followers={
                thread_id: [str(session) for session in self._router.thread_followers(thread_id)]
                for thread_id in self._threads
            },
            turns=[wire.TurnHeld(turn.thread_id, turn.id, [*turn.subscribers]) for turn in self._turns.values()],
            ended=self._subscriptions.ended_turns,
        )
        return ToBroker([wire.encode(head), self._initialized, wire.encode_holdings(holdings)])

    # Threads.

    def _hold_thread(self, result: bytes, request: _Request) -> wire.ThreadRecord | None:
        known = self._threads.get(request.thread_id or "")
        # A thread that was resumed or forked has a history; a new one is not on disk before its first turn.
        record = rpc.record_of(result, turns=0 if request.method == "thread/start" else 1)
        if record is None:
            return None
        if known is not None and known.record.thread_id == record.thread_id:
            record = msgspec.structs.replace(record, name=record.name or known.record.name, turns=known.record.turns)
            if known.restore_sandbox:
                record = msgspec.structs.replace(record, sandbox=known.record.sandbox)
            known.record = record
        else:
            self._threads[record.thread_id] = _Thread(record)
        if not request.gone:
            self._router.follow_thread(record.thread_id, request.session)
        return record

    def _release_thread(self, thread_id: str, out: list[Effect], *, keep: bool) -> None:
        self._threads.pop(thread_id, None)
        for session in self._router.thread_followers(thread_id):
            self._router.unfollow_thread(thread_id, session)
        out.append(ToBroker([wire.encode(wire.ThreadGone(thread_id, keep))]))

    def _begin_adoption(self, record: wire.ThreadRecord, out: list[Effect]) -> _Adoption:
        adoption = self._adopting[record.thread_id] = _Adoption(record)
        params = _raw(rpc.resume_params(record))
        self._submit(_Request("thread/resume", record.thread_id, rpc.RequestLine("thread/resume", params=params)), out)
        return adoption

    def _on_resumed(self, request: _Request, reply: Reply, out: list[Effect]) -> None:
        assert request.thread_id is not None
        adoption = self._adopting.pop(request.thread_id)
        wanted = adoption.record
        problem = None
        if reply.is_error:
            problem = rpc.error_of(reply.line)
        else:
            resumed = rpc.record_of(rpc.result_of(reply.line), wanted.turns)
            if resumed is None or rpc.sandbox_type(resumed.sandbox) != rpc.sandbox_type(wanted.sandbox):
                problem = f"its sandbox {wanted.sandbox} could not be restored, and it is never widened"
        if problem is not None:
            # Kept in the broker's books, so that the next request cannot have it with another sandbox either.
            self._release_thread(wanted.thread_id, out, keep=True)
            message = f"thread {wanted.thread_id} was lost with its worker and could not be resumed: {problem}"
            for waiting in adoption.waiting:
                self._refuse(waiting, errors.THREAD_LOST, message, out)
            return
        self._threads[wanted.thread_id] = _Thread(wanted, restore_sandbox=True)
        if wanted.name is not None:
            params = _raw({"threadId": wanted.thread_id, "name": wanted.name})
            self._submit(
                _Request("thread/name/set", wanted.thread_id, rpc.RequestLine("thread/name/set", params=params)), out
            )
        for waiting in adoption.waiting:
            self._submit(waiting, out)

    def _refuse(self, request: _Request, code: int, message: str, out: list[Effect]) -> None:
        assert request.call is not None
        line = rpc.error_line(bytes(request.line.id), code, message, {"safeToRetry": True})
        out.append(ToBroker([wire.encode(wire.Answered(request.call, False)), _LINES, line]))

    # Turns.

    def _turn_started(self, turn_id: str, thread_id: str, request: _Request, out: list[Effect]) -> None:
        """From now on the turn counts. A start that joined a running turn adds its session to it."""
        turn = self._turns.get(turn_id)
        thread = self._threads.get(thread_id)
        if thread is not None and request.method == "turn/start":
            thread.restore_sandbox = False
        if turn is None:
            turn = self._turns[turn_id] = Turn(turn_id, thread_id)
            out.append(ToBroker([wire.encode(wire.TurnStarted(thread_id, turn_id, [request.session]))]))
            if thread is not None:
                thread.record = msgspec.structs.replace(thread.record, turns=thread.record.turns + 1)
        if request.gone:
            if not turn.subscribers:
                self._interrupt(turn_id, thread_id, out)
            return
        self._subscriptions.join(turn, request.session, request.interest)

    def _announce_turn(self, turn_id: str, request: _Request, out: list[Effect]) -> None:
        """The turn's first notification says who runs it."""
        params = {
            "threadId": request.thread_id,
            "turnId": turn_id,
            "worker": self._worker,
            "slot": self._slot,
            "queuedMs": request.queued_ms,
        }
        line = rpc.encode({"method": "pool/turn/assigned", "params": params})
        self._send_events(turn_id, [line], ["pool/turn/assigned"], ended=False, out=out)

    def _on_turn_run(self, run: TurnRun, out: list[Effect]) -> None:
        turn = self._turns.get(run.turn_id)
        if turn is None:
            return
        self._heed(run.thread_id, run.lines, run.methods, out)
        self._send_events(run.turn_id, run.lines, run.methods, ended=run.ended, out=out)
        if run.ended:
            self._turn_ended(run.turn_id, rpc.status_of(run.lines[-1]), out)

    def _turn_ended(self, turn_id: str, status: str, out: list[Effect]) -> None:
        turn = self._turns.pop(turn_id)
        self._too_early.discard(turn_id)
        self._inner.pop(turn_id, None)
        for public_id in [public_id for public_id, (_, ask, _) in self._asks.items() if ask.turn_id == turn_id]:
            del self._asks[public_id]
        out.append(ToBroker([wire.encode(wire.TurnEnded(turn.thread_id, turn_id, status))]))

    def _on_turn_broken(self, broken: TurnBroken, out: list[Effect]) -> None:
        turn = self._turns.get(broken.turn_id)
        if turn is None:
            return
        thread_id = turn.thread_id
        lines = rpc.ended_lines(thread_id, broken.turn_id, "failed", broken.reason, safe_to_retry=False)
        self._send_events(broken.turn_id, lines, ["pool/turn/ended", "turn/completed"], ended=True, out=out)
        self._turn_ended(broken.turn_id, "failed", out)
        self._interrupt(broken.turn_id, thread_id, out)

    def _interrupt(self, turn_id: str, thread_id: str, out: list[Effect]) -> None:
        params = _raw({"threadId": thread_id, "turnId": self._inner.get(turn_id, turn_id)})
        line = rpc.RequestLine("turn/interrupt", params=params)
        self._submit(_Request("turn/interrupt", thread_id, line, interrupts=turn_id), out)

    def _send_events(
        self, turn_id: str, lines: list[bytes], methods: list[str], *, ended: bool, out: list[Effect]
    ) -> None:
        turn = self._turns[turn_id]
        messages = self._subscriptions.publish(turn, lines, methods, ended=ended, now=self._now)
        out += [ToBroker(frames) for frames in messages]

    # Everything else that the app-server says.

    def _on_other_run(self, run: ThreadRun | GlobalRun, now: float, out: list[Effect]) -> None:
        if isinstance(run, ThreadRun):
            self._heed(run.thread_id, run.lines, run.methods, out)
            if _RESOLVED in run.methods:
                pairs = zip(run.lines, run.methods, strict=True)
                run.lines = [self._resolved(line) if method == _RESOLVED else line for line, method in pairs]
            route = wire.ToSessions([str(session) for session in run.tokens])
            out.append(ToBroker([wire.encode(route), _LINES, b"\n".join(run.lines)]))
            return
        for line, method in zip(run.lines, run.methods, strict=True):
            entry = NOTIFICATIONS.get(method)
            if entry is None or entry.thread is not None:
                # Of a thread that no session follows: nobody to tell.
                continue
            if method == _LOGGED_IN:
                # Each says something of its own, so none gives way to a later one.
                starter = self._logins.pop(rpc.login_id_of(line) or "", None)
                route = wire.ToSessions([starter] if starter is not None else [])
                out.append(ToBroker([wire.encode(route), _LINES, line]))
                continue
            ready = self._globals.offer(method, line, now)
            if ready is not None:
                out.append(_to_everybody(ready))

    def _heed(self, thread_id: str | None, lines: list[bytes], methods: list[str], out: list[Effect]) -> None:
        """What notifications say about the worker's own books: settings, names, threads that were unloaded."""
        thread = self._threads.get(thread_id or "")
        if thread is None:
            return
        for line, method in zip(lines, methods, strict=True):
            if method in ("thread/settings/updated", "thread/name/updated"):
                record = rpc.updated_record(thread.record, method, line)
                if record != thread.record:
                    thread.record = record
                    out.append(ToBroker([wire.encode(wire.ThreadChanged(record))]))
            elif method == "turn/started":
                inner, root = rpc.turns_of(line)
                if root in self._turns and root != inner:
                    self._inner[root] = inner
            elif method == "thread/closed":
                self._release_thread(thread.record.thread_id, out, keep=True)

    def _on_ask(self, ask: Ask, out: list[Effect]) -> None:
        """A question goes to one who follows its turn, else its thread; with nobody there it is declined."""
        turn = self._turns.get(ask.turn_id or "")
        candidates = [*turn.subscribers] if turn is not None else self._router.thread_followers(ask.thread_id or "")
        if not candidates:
            out.append(_decline(ask))
            return
        session = str(candidates[0])
        public_id = self._public_id(ask.id)
        request = rpc.decode_request(ask.line)
        request.id = msgspec.Raw(rpc.encode(public_id))
        line = rpc.encode(request)
        self._asks[public_id] = (session, ask, line)
        out.append(ToBroker([wire.encode(wire.ToSessions([session])), _LINES, line]))

    def _public_id(self, request_id: RequestId) -> str:
        """The id under which clients know a request of this app-server."""
        return f"{self._worker}/{request_id}"

    def _resolved(self, line: bytes) -> bytes:
        """A question needs no answer any more: told under the id that it was asked under."""
        message = rpc.decode_request(line)
        if message.params is None or "requestId" not in message.params:
            return line
        public_id = self._public_id(msgspec.json.decode(message.params["requestId"]))
        self._asks.pop(public_id, None)
        message.params["requestId"] = msgspec.Raw(rpc.encode(public_id))
        return rpc.encode(message)


_LINES = wire.encode(wire.Lines())


def _to_everybody(line: bytes) -> ToBroker:
    return ToBroker([wire.encode(wire.ToSessions([])), _LINES, line])


def _decline(ask: Ask) -> ToAppServer:
    return ToAppServer(rpc.encode({"id": ask.id, **_asks.declined(ask.method)}))


def _raw(params: dict[str, object]) -> dict[str, msgspec.Raw]:
    return {key: msgspec.Raw(rpc.encode(value)) for key, value in params.items()}


def _thread_of(line: rpc.RequestLine) -> str | None:
    raw = (line.params or {}).get("threadId")
    value = msgspec.json.decode(raw) if raw is not None else None
    return value if isinstance(value, str) else None
