"""The requests that are not answered yet: permits, deadlines and retries. Pure. `request` has their states.

- At most MAX_IN_FLIGHT are sent at a time, CONTROL_PERMITS of them control methods: beyond its ingress queue the
  app-server drops requests without an answer.
- A request that is not answered in time gives up its permit; its late answer is ignored.
- A request that the app-server was too busy for is sent again, with exponential backoff, for OVERLOAD_LIMIT_S.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from codex_app_server._core.router import MessageRouter
from codex_app_server._runtime.backoff import backoff_s
from codex_app_server.generated.routing import REQUESTS

from ..protocol import jsonrpc, wire
from .effects import Outbox
from .event_log import EventLog, InvariantError
from .request import TRANSITIONS, Key, Request, State

MAX_IN_FLIGHT = 64
CONTROL_PERMITS = 8
PROBE = "thread/loaded/list"
CONTROL_METHODS = frozenset({"turn/interrupt", "turn/steer"})
NO_DEADLINE = frozenset({"command/exec", "mcpServer/tool/call", "account/login/start"})
# Answered when a command of any duration has ended, while the app-server has long taken the request.
RUNNING = frozenset({"command/exec"})

OVERLOAD_LIMIT_S = 30.0
OVERLOAD_FIRST_S = 0.1
OVERLOAD_MOST_S = 5.0
# The broker holds turns of a busy thread, but may not know yet that, for example, compaction has begun there.
BUSY_LIMIT_S = 30.0
BUSY_FIRST_S = 0.05
BUSY_MOST_S = 1.0


@dataclass(slots=True)
class RequestTable:
    """See the module's docstring."""

    router: MessageRouter
    outbox: Outbox
    events: EventLog = field(default_factory=EventLog)
    _last_id: int = 0
    _last_key: int = 0
    _requests: dict[Key, Request] = field(default_factory=dict)
    _counts: dict[State, int] = field(default_factory=lambda: dict.fromkeys(TRANSITIONS, 0))
    # Order of the queued ones. One that is answered meanwhile is skipped when its turn comes.
    _queue: deque[Request] = field(default_factory=deque)
    _control_queue: deque[Request] = field(default_factory=deque)

    @property
    def in_flight(self) -> int:
        """Number of requests that hold a permit: the app-server has not answered them."""
        return self._counts["sent"]

    @property
    def waits(self) -> bool:
        """Return True if any request is to be sent again soon."""
        return self._counts["retry"] > 0

    @property
    def held(self) -> dict[str, int]:
        waiting = self._counts["queued"] + self._counts["retry"]
        of_sessions = sum(request.session is not None for request in self._requests.values())
        return {"sent": self.in_flight, "waiting": waiting, "calls": of_sessions}

    # What is in it.

    def find(self, session: wire.SessionId, request_id: bytes) -> Request | None:
        """The open request of this session with this id (in JSON)."""
        return self._requests.get((session, request_id))

    def of_sessions(self, session: wire.SessionId | None = None) -> list[Request]:
        """Open requests of one session, or of all."""
        of_all = [request for request in self._requests.values() if request.session is not None]
        return of_all if session is None else [request for request in of_all if request.session == session]

    def loading(self, thread_id: str) -> list[Request]:
        """Requests that wait until this thread is loaded, in their order."""
        requests = self._requests.values()
        return [request for request in requests if request.state == "loading" and request.thread_id == thread_id]

    def under_way(self) -> list[Request]:
        """Requests that the app-server has been sent and has not answered, in their order."""
        return [request for request in self._requests.values() if request.state == "sent"]

    def concern(self, thread_id: str) -> bool:
        """Return True if any request for this thread has not been answered."""
        return self.count_of(thread_id) > 0

    def count_of(self, thread_id: str) -> int:
        """The number of requests for this thread that have not been answered."""
        return sum(request.thread_id == thread_id for request in self._requests.values())

    # States.

    def move(self, request: Request, state: State) -> None:
        """Change the state of a request. Raises InvariantError for a transition that is not in the table."""
        before = request.state
        if state not in TRANSITIONS[before]:
            raise InvariantError(f"request {request.method} {request.key!r} goes from {before} to {state}")
        self._counts[before] -= 1
        self._counts[state] += 1
        request.state = state
        self.events.add(self.outbox.now, state, request.method, request.call if request.then is None else "own")

    def add(self, request: Request) -> None:
        """Enter a new request."""
        if request.session is not None:
            request.key = request.session, bytes(request.line.id)
        else:
            self._last_key += 1
            request.key = self._last_key
        if request.key in self._requests:
            raise InvariantError(f"a second request {request.method} has the key {request.key!r}")
        self._requests[request.key] = request
        self._counts["new"] += 1

    def submit(self, request: Request) -> None:
        """Send it as soon as there is a permit."""
        self.move(request, "queued")
        request.control = request.control or request.method in CONTROL_METHODS
        (self._control_queue if request.control else self._queue).append(request)
        self.refill()

    def submit_own(
        self,
        method: str,
        params: dict[str, object],
        then: Callable[[bytes, bool], None],
        *,
        thread_id: str | None = None,
        control: bool = False,
    ) -> None:
        """Send a request of the worker's own."""
        line = jsonrpc.RequestLine(
            method, params={key: msgspec.Raw(jsonrpc.encode(value)) for key, value in params.items()}
        )
        request = Request(method, thread_id, line, then=then, control=control)
        self.add(request)
        self.submit(request)

    def refill(self) -> None:
        """Send queued requests while there are permits."""
        while self._control_queue and self._counts["sent"] < MAX_IN_FLIGHT:
            self._send(self._control_queue.popleft())
        while self._queue and self._counts["sent"] < MAX_IN_FLIGHT - CONTROL_PERMITS:
            self._send(self._queue.popleft())

    def finish(self, request: Request) -> None:
        """Remove a request: it is answered."""
        self.move(request, "answered")
        del self._requests[request.key]

    def retry(self, request: Request, jitter: float) -> int:
        """Send it again after an answer of overload; 0, or after how many ms that might succeed if it is too late.

        `jitter` is a random number in [0, 1).
        """
        now = self.outbox.now
        delay_s = backoff_s(request.tries, OVERLOAD_FIRST_S, OVERLOAD_MOST_S) * (0.5 + jitter)
        began_at = request.first_sent_at if request.first_sent_at is not None else now
        if now + delay_s - began_at > OVERLOAD_LIMIT_S:
            return round(delay_s * 1000)
        self._retry_at(request, now + delay_s)
        return 0

    def wait_for_turn(self, request: Request) -> bool:
        """Send it again when its thread is no longer busy; False if it has waited for too long."""
        now = self.outbox.now
        if request.first_sent_at is None:
            request.first_sent_at = now
        delay_s = backoff_s(request.tries, BUSY_FIRST_S, BUSY_MOST_S)
        if now + delay_s - request.first_sent_at > BUSY_LIMIT_S:
            return False
        request.waits_for_turn = True
        self._retry_at(request, now + delay_s)
        return True

    def _retry_at(self, request: Request, at: float) -> None:
        request.tries += 1
        request.retry_at = at
        self.move(request, "retry")

    def due(self, *, turn_ended: bool = False) -> list[Request]:
        """Requests that are to be sent again now; with `turn_ended` all that wait for the turn of their thread."""
        if not self._counts["retry"]:
            return []
        now = self.outbox.now
        waiting = [request for request in self._requests.values() if request.state == "retry"]
        return [each for each in waiting if each.retry_at <= now or (turn_ended and each.waits_for_turn)]

    def expired(self) -> list[Request]:
        """Requests past their deadline; the router ignores their late answers."""
        now = self.outbox.now
        sent = [request for request in self._requests.values() if request.state == "sent"]
        over = [request for request in sent if request.expires_at is not None and request.expires_at <= now]
        for request in over:
            self.router.forget(request.id)
        return over

    def withdrawable(self, session: wire.SessionId) -> list[Request]:
        """Requests of this session that were not sent, and are not searched for."""
        return [request for request in self.of_sessions(session) if request.state in ("loading", "queued", "retry")]

    def _send(self, request: Request) -> None:
        if request.state != "queued":
            return
        self.move(request, "running" if request.method in RUNNING else "sent")
        self._last_id += 1
        request.id = self._last_id
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
        line = jsonrpc.RequestLine(request.method, msgspec.Raw(b"%d" % request.id), request.line.params)
        self.outbox.app_server(line.encode(request.others))
