"""The worker's state machine. Pure: events in, effects out; `now` (monotonic seconds) comes with each.

    event              from           what follows
    start              the loop       `initialize` to the app-server, then Register to the broker
    broker_message     the broker     one of `wire.ToWorker` with its bodies: lines for the app-server's stdin, and
                                      what a session has not received
    new_broker         supervisor     Register, with all that the worker holds
    set_limits         supervisor     other limits of turns
    lines              app-server     answers and numbered notifications for the broker
    process_snapshot   the sampler    counts and memory of the processes below this worker, for the broker
    tick               the clock      retries, deadlines, watchdogs, the probe, delayed notifications

The state is in parts: `request_table` has the requests to the app-server, their permits and deadlines; `calls` what
sessions request, and the answers that are kept for a resend; `running_turns` the turns, their sequence numbers and - in
`subscriptions` - what each session has received; `threads` the loaded threads and their followers; `applied_changes`
what the broker changes in the app-server; `server_requests` what the app-server requests; `session_notifications`
notifications outside of turns; `bound_objects` commands, processes, watches and searches of sessions; `registration`
what a new broker has to know. Rules that hold throughout:
 - A request of a session is executed once, however often it is sent; it is answered under its latest number.
 - The beginning of a turn (the answer to its start, or TurnStarted) precedes its TurnEnded; each is reported once.
 - A thread that is being loaded takes no request until its settings are restored.

`recent_events` are the last events and transitions, for the report of an error in the core.
"""

from __future__ import annotations

from codex_app_server._core.deliveries import (
    Delivery,
    GlobalRun,
    Malformed,
    OversizedServerRequest,
    Reply,
    ServerRequest,
    ThreadRun,
    TurnBroken,
    TurnRun,
)
from codex_app_server._core.router import MessageRouter
from codex_app_server._protocol.framing import LongLine

from ..protocol import wire
from ..protocol.tally import Tally
from .applied_changes import AppliedChanges
from .arguments import TurnLimits
from .bound_objects import BoundObjects
from .calls import Calls
from .census import Census, ProcessSnapshot
from .effects import Effect, Fail, Outbox
from .event_log import EventLog
from .process_counts import ProcessCounts
from .registration import Identity, Registration
from .request_table import PROBE, RequestTable
from .running_turns import RunningTurns
from .server_requests import APPROVAL_TIMEOUT_S, ServerRequests
from .session_notifications import SessionNotifications
from .session_options import SessionOptions
from .start_notices import StartNotices
from .subscription import LIMITS, Limits
from .threads import Threads
from .turn_spans import TurnSpans
from .unloading import ThreadReleases
from .watchdog import IDLE_LIMIT_S, PROBE_LIMIT_S, Probe, TurnWatchdog

_TOKENS_WANTED = "account/chatgptAuthTokens/refresh"


class WorkerCore:
    """See the module's docstring. `worker` is the name of this worker, `slot` the number of its slot.

    `counts`: the loop takes snapshots of the processes below this worker; `traces`: the pool has a tracer.
    """

    def __init__(
        self,
        *,
        worker: str,
        slot: int,
        pid: int,
        app_server_pid: int,
        initialize: dict[str, object],
        turn_idle_limit_s: float | None = IDLE_LIMIT_S,
        turn_wall_limit_s: float | None = None,
        approval_timeout_s: float | None = APPROVAL_TIMEOUT_S,
        limits: Limits = LIMITS,
        started_at: float = 0.0,
        counts: bool = False,
        traces: bool = False,
    ) -> None:
        self._outbox = Outbox()
        self._events = EventLog()
        self._options = SessionOptions()
        self._router = MessageRouter(ordered=self._options.all_turns)
        self._requests = RequestTable(self._router, self._outbox, self._events)
        self._threads = Threads(router=self._router, requests=self._requests, outbox=self._outbox)
        self._watchdog = TurnWatchdog(turn_idle_limit_s, turn_wall_limit_s)
        self._running = RunningTurns(
            worker=worker,
            slot=slot,
            router=self._router,
            requests=self._requests,
            threads=self._threads,
            options=self._options,
            outbox=self._outbox,
            watchdog=self._watchdog,
            limits=limits,
            spans=TurnSpans(worker, slot, threads=self._threads, outbox=self._outbox, enabled=traces),
        )
        self._bound = BoundObjects(
            worker=worker, requests=self._requests, running=self._running, outbox=self._outbox, limits=limits
        )
        self._changes = AppliedChanges(requests=self._requests, outbox=self._outbox, started_at=started_at)
        self._server_requests = ServerRequests(
            worker=worker,
            outbox=self._outbox,
            threads=self._threads,
            running=self._running,
            options=self._options,
            approval_timeout_s=approval_timeout_s,
        )
        self._calls = Calls(
            requests=self._requests,
            threads=self._threads,
            running=self._running,
            options=self._options,
            server_requests=self._server_requests,
            bound=self._bound,
            outbox=self._outbox,
        )
        self._probe = Probe()
        self.processes = ProcessCounts(Census(pid, app_server_pid), self._threads, enabled=counts)
        self._start_notices = StartNotices(self._outbox)
        self._notifications = SessionNotifications(
            outbox=self._outbox,
            threads=self._threads,
            running=self._running,
            options=self._options,
            calls=self._calls,
            changes=self._changes,
            server_requests=self._server_requests,
            bound=self._bound,
            start_notices=self._start_notices,
        )
        self._registration = Registration(
            Identity(worker, slot, pid, app_server_pid, started_at),
            initialize,
            outbox=self._outbox,
            requests=self._requests,
            threads=self._threads,
            running=self._running,
            server_requests=self._server_requests,
            calls=self._calls,
            changes=self._changes,
            options=self._options,
            bound=self._bound,
            processes=self.processes,
            start_notices=self._start_notices,
        )
        self._releases = ThreadReleases(self._threads, self._requests, self._running, self._outbox)

    @property
    def lines_read(self) -> int:
        """Number of lines read from the app-server."""
        return self._router.received

    @property
    def dropped(self) -> int:
        """Number of notifications that were left out for clients that read too slowly."""
        return self._running.subscriptions.dropped

    @property
    def in_flight(self) -> int:
        return self._requests.in_flight

    @property
    def running_turns(self) -> int:
        return len(self._running)

    @property
    def tally(self) -> Tally:
        """All that has been counted here."""
        return self._running.tally

    @property
    def finished_turns(self) -> int:
        return self._running.finished

    @property
    def loaded_threads(self) -> int:
        return len(self._threads)

    @property
    def rests(self) -> bool:
        """Return True if nothing can change below this worker: no turn runs, nor anything else but the app-server."""
        return self.processes.is_empty and not (self._running or self._bound.held["bound"])

    @property
    def held(self) -> dict[str, int]:
        """Numbers of objects held, by kind; all return to zero when nothing runs (leak checks)."""
        return {
            **self._router.held,
            **self._requests.held,
            **self._threads.held,
            **self._running.held,
            **self._server_requests.held,
            "options": len(self._options),
            **self._bound.held,
        }

    @property
    def recent_events(self) -> list[str]:
        """The last events and transitions of requests, for the report of an error in this core."""
        return self._events.lines()

    @property
    def may_leave(self) -> bool:
        """Return True if no turn runs, and every session has acknowledged what has ended."""
        unacknowledged = self._running.subscriptions.held["subscriptions"] or self._bound.streams.unacknowledged
        return not unacknowledged and not self.in_flight

    # Events from the loop and the broker.

    def start(self, now: float) -> list[Effect]:
        """The handshake with the app-server."""
        self._begin("start", now)
        self._registration.begin()
        return self._outbox.take()

    def new_broker(self, now: float) -> list[Effect]:
        """Register with another broker, which has no state: sessions reconnect and send their requests again."""
        self._begin("new_broker", now)
        self._releases.new_broker()
        self._calls.new_broker()
        self._bound.new_broker()
        self._registration.send()
        self._changes.new_broker()
        return self._outbox.take()

    def broker_message(self, head: wire.Head, bodies: list[bytes], now: float) -> list[Effect]:
        """A message of the broker. Raises WireError and MsgspecError for one that cannot be used, and ignores it."""
        self._begin(type(head).__name__, now)
        match head:
            case wire.Dispatch():
                self._calls.take(head, _line(head, bodies))
            case wire.Acked():
                self._outbox.messages(self._running.subscriptions.acked(head.session, head.positions, now))
                self._bound.acked(head)
            case wire.ServerRequestAnswer():
                self._server_requests.answer(head.session, _line(head, bodies))
            case wire.Follow():
                self._threads.follow(head)
            case wire.SessionResumed():
                self._outbox.messages(self._running.subscriptions.back(head.session, head.positions, now))
                self._bound.back(head)
                self._server_requests.send_again(head.session)
            case wire.SessionOptions():
                self._options.take(head)
            case wire.SessionGone():
                self._session_gone(head.session, keep=head.keep)
            case wire.Rebind():
                self._bound.rebind(head, bodies)
            case wire.Unbind():
                self._bound.unbind(head)
            case wire.EndProcesses():
                self._bound.end_processes(head.reason)
            case wire.Interrupt():
                if self._running.get(head.turn_id) is not None:
                    self._running.interrupts.interrupt(head.turn_id, head.thread_id)
            case wire.Release():
                self._releases.release(head)
            case wire.DefaultSession():
                self._server_requests.default_session = head.session
            case wire.Apply():
                self._changes.apply(head, _line(head, bodies))
            case wire.SharedState():
                self._changes.current(head, bodies)
            case wire.RegisterRequest():
                self._registration.send()
            case _:
                raise wire.WireError(f"a head {type(head).__name__} to a worker")
        self._server_requests.report_waiting()
        return self._outbox.take()

    def _begin(self, event: str, now: float) -> None:
        """Set the time of an event, and record it."""
        self._outbox.now = now
        self._events.add(now, event)

    def _session_gone(self, session: wire.SessionId, *, keep: bool) -> None:
        """Interrupt the turns that only this session followed, and decline what it has open, unless they are kept."""
        self._calls.forget_session(session, keep=keep)
        self._threads.forget_session(session, keep=keep)
        self._running.forget_session(session, keep=keep)
        self._bound.forget_session(session)
        self._server_requests.forget_session(session)
        self._options.forget(session)

    def tick(self, now: float) -> list[Effect]:
        """Do what is due. Called every second, and ten times as often while `wants_tick`."""
        self._begin("tick", now)
        self._calls.due()
        for request in self._requests.expired():
            self._calls.on_expired(request)
        for turn_id in self._running.tick(self._server_requests.turns):
            self._server_requests.turn_ended(turn_id)
        self._server_requests.tick()
        self._changes.tick()
        self._threads.tick(self._running.runs_on)
        self._notifications.tick()
        self._bound.tick()
        if self._probe.look(now):
            self._requests.submit_own(PROBE, {"limit": 1}, lambda *_: None, control=True)
        if self._probe.is_dead(now):
            self._outbox.put(Fail(f"the app-server has not answered a probe for {PROBE_LIMIT_S:.0f} s"))
        self._requests.refill()
        self._server_requests.report_waiting()
        return self._outbox.take()

    def set_limits(self, limits: TurnLimits) -> None:
        """Have other limits of turns from now on: the pool's configuration was read again."""
        self._watchdog.set_limits(limits.turn_idle_limit_s, limits.turn_wall_limit_s)
        self._server_requests.set_timeout(limits.approval_timeout_s)

    def process_snapshot(self, snapshot: ProcessSnapshot, now: float) -> list[Effect]:
        """Count the processes below this worker. The first snapshot is taken before any thread is loaded."""
        self._begin("process_snapshot", now)
        oldest = min(self._running.oldest, self._bound.oldest)
        tree = self.processes.take(snapshot, begun=self._running.begun, oldest=oldest, now=now)
        if tree is not None:
            self._outbox.broker(wire.encode(tree))
        return self._outbox.take()

    @property
    def wants_tick(self) -> bool:
        """Return True if something is due within a fraction of a second."""
        return self._notifications.waits or self._running.waits or self._requests.waits or self._bound.waits

    @property
    def has_no_readers(self) -> bool:
        """Return True if turns run and no session follows any of them in full, so that reads may be batched."""
        return self._running.has_no_readers

    # Events from the app-server.

    def lines(self, lines: list[bytes | LongLine], now: float, jitter: float = 0.5) -> list[Effect]:
        """Handle the lines of one read of the app-server. `jitter` is a random number in [0, 1)."""
        self._outbox.now = now
        self._events.add(now, "lines", len(lines))
        self._probe.heard(now)
        self._notifications.begin_read()
        finished = self._running.finished
        for delivery in self._router.receive(lines):
            self._on_delivery(delivery, jitter)
        if self._running.finished != finished:
            # The process that gets an end of a turn is awake.
            self._notifications.flush()
            self._calls.due(turn_ended=True)
        self._requests.refill()
        self._server_requests.report_waiting()
        return self._outbox.take()

    def _on_delivery(self, delivery: Delivery, jitter: float) -> None:
        match delivery:
            case TurnRun():
                self._running.on_notifications(delivery.turn_id, delivery.lines, delivery.methods, ended=delivery.ended)
                if delivery.ended:
                    self._server_requests.turn_ended(delivery.turn_id)
            case Reply():
                if self._registration.is_initialized:
                    self._start_notices.end()
                self._calls.on_reply(delivery, jitter)
            case ThreadRun() | GlobalRun():
                self._notifications.on_run(delivery)
            case ServerRequest():
                if delivery.method == _TOKENS_WANTED:
                    self._server_requests.send_to_broker(delivery)
                else:
                    self._server_requests.send(delivery)
            case OversizedServerRequest():
                self._outbox.note(f"declined a request of the app-server: {delivery.reason}")
                self._server_requests.decline(delivery.request)
            case TurnBroken():
                self._running.broken(delivery.turn_id, delivery.reason)
                self._server_requests.turn_ended(delivery.turn_id)
            case Malformed():
                self._outbox.note(f"ignored a line of the app-server: {delivery.reason}: {delivery.line[:200]!r}")
                # Where the request that it answers can be read, that one fails.
                for failed in self._router.receive_unreadable(delivery.line, delivery.reason):
                    self._on_delivery(failed, jitter)


def _line(head: wire.Head, bodies: list[bytes]) -> bytes:
    """The line that a message has as its body. Raises WireError for one without."""
    if not bodies:
        raise wire.WireError(f"a {type(head).__name__} without a body; expected one line")
    return bodies[0]
