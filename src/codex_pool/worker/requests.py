"""Requests on their way through the app-server: their ids, places, deadlines and second tries. Pure.

- At most MAX_IN_FLIGHT are open, CONTROL_PLACES of them for control methods only: beyond its ingress queue the
  app-server drops requests without an answer.
- A request that is not answered in time gives up its place; its late answer is nobody's.
- One that the app-server was too busy for is sent again, later and later, for OVERLOAD_LIMIT_S.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from codex_app_server._message_router import MessageRouter
from codex_app_server.generated.routing import REQUESTS
from codex_pool import rpc, wire
from codex_pool.worker.effects import Outbox

MAX_IN_FLIGHT = 64
CONTROL_PLACES = 8
PROBE = "thread/loaded/list"
CONTROL_METHODS = frozenset({"turn/interrupt", "turn/steer"})

# The deadlines of clients, and a little more: who asked has given up by then.
REQUEST_LIMIT_S = 60.0 + 5.0
NO_DEADLINE = frozenset({"command/exec", "mcpServer/tool/call", "account/login/start"})

OVERLOAD_LIMIT_S = 30.0
OVERLOAD_FIRST_S = 0.1
OVERLOAD_MOST_S = 5.0
# The broker holds turns of a busy thread, but may not have heard yet that compaction, say, has begun there.
BUSY_LIMIT_S = 30.0
BUSY_FIRST_S = 0.05
BUSY_MOST_S = 1.0


@dataclass(slots=True, eq=False)
class Request:
    """A request on its way: a session's, or, with `then`, one of the worker's own.

    `call` is the number under which the broker waits for it, None if it has forgotten that.
    """

    method: str
    thread_id: str | None
    line: rpc.RequestLine
    call: int | None = None
    # What else its line had, such as `trace`.
    others: dict[str, msgspec.Raw] = field(default_factory=dict)
    # None for the worker's own.
    session: wire.SessionId | None = None
    interest: wire.Interest = "full"
    queued_ms: int = 0
    # It was sent before, on a connection that is gone or to a worker that is.
    again: bool = False
    # How long its client waits for the answer; 0 is for ever.
    timeout_s: int = 60
    # Its answer may be sent in pieces.
    pieces: bool = False
    # Its session is over; `kept` says that its turns go on all the same.
    gone: bool = False
    kept: bool = False
    # Of the worker's own: what to do with the answer (a response line, and whether it is an error).
    then: Callable[[bytes, bool], None] | None = None
    control: bool = False
    # What a session asks for: its method and parameters.
    digest: bytes = b""
    id: int = 0
    first_sent_at: float | None = None
    expires_at: float | None = None
    tries: int = 0
    waits_for_thread: bool = False

    @property
    def owner(self) -> str:
        """Principal of its session, to whom a thread that comes into being belongs."""
        return self.session.principal if self.session is not None else ""

    @property
    def limit_s(self) -> float:
        return max(REQUEST_LIMIT_S, self.timeout_s + 5.0)


@dataclass(slots=True)
class Requests:
    """See the module's docstring."""

    router: MessageRouter
    outbox: Outbox
    _next_id: int = 0
    _waiting: deque[Request] = field(default_factory=deque)
    _waiting_control: deque[Request] = field(default_factory=deque)
    _sent: dict[int, Request] = field(default_factory=dict)
    # Those that are tried again, and when.
    _later: list[tuple[float, Request]] = field(default_factory=list)

    @property
    def in_flight(self) -> int:
        return len(self._sent)

    @property
    def waits(self) -> bool:
        """Whether any is to be tried again soon."""
        return bool(self._later)

    @property
    def held(self) -> dict[str, int]:
        waiting = len(self._waiting) + len(self._waiting_control) + len(self._later)
        return {"sent": len(self._sent), "waiting": waiting}

    def concern(self, thread_id: str) -> bool:
        """Return True if any request for this thread has not been answered."""
        later = (request for _, request in self._later)
        requests = (*self._sent.values(), *self._waiting, *self._waiting_control, *later)
        return any(request.thread_id == thread_id for request in requests)

    def submit(self, request: Request) -> None:
        """Send it as soon as there is a place."""
        request.control = request.control or request.method in CONTROL_METHODS
        (self._waiting_control if request.control else self._waiting).append(request)
        self.refill()

    def ask(
        self,
        method: str,
        params: dict[str, object],
        then: Callable[[bytes, bool], None],
        *,
        thread_id: str | None = None,
        control: bool = False,
    ) -> None:
        """A request of the worker's own."""
        line = rpc.RequestLine(method, params={key: msgspec.Raw(rpc.encode(value)) for key, value in params.items()})
        self.submit(Request(method, thread_id, line, then=then, control=control))

    def refill(self) -> None:
        """Fill the places that are free."""
        while self._waiting_control and len(self._sent) < MAX_IN_FLIGHT:
            self._send(self._waiting_control.popleft())
        while self._waiting and len(self._sent) < MAX_IN_FLIGHT - CONTROL_PLACES:
            self._send(self._waiting.popleft())

    def answered(self, request: Request) -> None:
        """Its place is free again."""
        self._sent.pop(request.id, None)

    def try_again(self, request: Request, jitter: float) -> int:
        """After an answer of overload; 0 if it will be sent again, else after how many ms that might succeed.

        `jitter` is a random number in [0, 1).
        """
        now = self.outbox.now
        delay_s: float = min(OVERLOAD_FIRST_S * 2**request.tries, OVERLOAD_MOST_S) * (0.5 + jitter)
        began_at = request.first_sent_at if request.first_sent_at is not None else now
        if now + delay_s - began_at > OVERLOAD_LIMIT_S:
            return round(delay_s * 1000)
        request.tries += 1
        self._later.append((now + delay_s, request))
        return 0

    def wait_for_thread(self, request: Request) -> bool:
        """Its thread is busy; True if `due` will have it again, False if it has waited for too long."""
        now = self.outbox.now
        if request.first_sent_at is None:
            request.first_sent_at = now
        delay_s = min(BUSY_FIRST_S * 2**request.tries, BUSY_MOST_S)
        if now + delay_s - request.first_sent_at > BUSY_LIMIT_S:
            return False
        request.tries += 1
        request.waits_for_thread = True
        self._later.append((now + delay_s, request))
        return True

    def due(self, *, turn_ended: bool = False) -> list[Request]:
        """Take out what has waited long enough; with `turn_ended` all that waits for its thread."""
        now = self.outbox.now
        ripe = [request for at, request in self._later if at <= now or (turn_ended and request.waits_for_thread)]
        if ripe:
            self._later = [each for each in self._later if each[1] not in ripe]
        return ripe

    def expired(self) -> list[Request]:
        """Those whose time is over; their late answers come as forgotten ones."""
        now = self.outbox.now
        over = [each for each in self._sent.values() if each.expires_at is not None and each.expires_at <= now]
        for request in over:
            del self._sent[request.id]
            self.router.forget(request.id)
        return over

    def withdraw(self, session: wire.SessionId) -> list[Request]:
        """Take out what was not sent yet of this session."""
        taken: list[Request] = []
        for queue in (self._waiting, self._waiting_control):
            found = [request for request in queue if request.session == session]
            for request in found:
                queue.remove(request)
            taken += found
        taken += [request for _, request in self._later if request.session == session]
        self._later = [(at, request) for at, request in self._later if request.session != session]
        return taken

    def _send(self, request: Request) -> None:
        self._next_id += 1
        request.id = self._next_id
        entry = REQUESTS.get(request.method)
        starts_turn = entry is not None and entry.result_turn
        now = self.outbox.now
        request.first_sent_at = now if request.first_sent_at is None else request.first_sent_at
        endless = request.method in NO_DEADLINE or not request.timeout_s
        request.expires_at = None if endless else now + request.limit_s
        self.router.expect(
            request.id,
            request,
            thread_id=request.thread_id,
            starts_turn=starts_turn,
            turn=request.session if starts_turn else None,
        )
        self._sent[request.id] = request
        line = rpc.RequestLine(request.method, msgspec.Raw(b"%d" % request.id), request.line.params)
        self.outbox.app_server(line.encode(request.others))
