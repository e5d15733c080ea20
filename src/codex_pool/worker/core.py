"""The worker's state machine. Pure: events in, effects out; `now` (monotonic seconds) comes with each event.

    event                      from           what follows
    start                      the loop       `initialize` to the app-server, then Register to the broker
    dispatch, tell, follow,    the broker     lines for the app-server's stdin; what a session has not got
      acked, back, release,
      gone, holder, apply,
      current
    who_are_you, new_broker    the broker,    Register, with all that it holds
                               the supervisor
    lines                      app-server     answers and numbered events for the broker
    look                       the sampler    how much is below this worker, for the broker
    tick                       the clock      what waited for its time; deadlines, watchdogs, the probe

Who owns what: `requests` the ids and places of requests to the app-server; `calls` what sessions ask, and - in `seen` -
what was taken; `running` the turns, their numbers and - in `subscriptions` - who has got which of them; `threads` the
records and who follows them; `changes` what the broker changes in the app-server; `questions` what that one asks.
Rules that hold throughout:
 - A call of a session is done once, however often it is sent; its answer is sent under its latest number.
 - That a turn has begun (the answer to its start, or TurnStarted) precedes its TurnEnded; each is told once.
 - A thread that is being adopted takes no request until it is as it was.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from codex_app_server import envelope
from codex_app_server._deliveries import (
    Ask,
    Delivery,
    GlobalRun,
    LongAsk,
    Malformed,
    Reply,
    ThreadRun,
    TurnBroken,
    TurnRun,
)
from codex_app_server._message_router import MessageRouter
from codex_app_server.generated.routing import NOTIFICATIONS
from codex_app_server.lines import LongLine
from codex_pool import rpc, wire
from codex_pool.worker.calls import INVALID_REQUEST, Calls
from codex_pool.worker.census import Census, Look
from codex_pool.worker.changes import Changes
from codex_pool.worker.effects import LINES, Effect, Fail, Outbox, Ready
from codex_pool.worker.latest import Latest
from codex_pool.worker.questions import Questions
from codex_pool.worker.requests import PROBE, Requests
from codex_pool.worker.running import RunningTurns
from codex_pool.worker.subscriptions import LIMITS, Limits
from codex_pool.worker.threads import Threads
from codex_pool.worker.watchdog import IDLE_LIMIT_S, PROBE_LIMIT_S, Probe, TurnWatchdog

MAX_ASIDES = 256

_LOGGED_IN = "account/login/completed"
_LIMITS_UPDATED = "account/rateLimits/updated"
_RESOLVED = "serverRequest/resolved"
_TOKENS_WANTED = "account/chatgptAuthTokens/refresh"


class WorkerCore:
    """See the module's docstring. `worker` is this worker's name, `slot` the place it fills.

    `counts` says that the loop looks at the processes below this worker.
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
        limits: Limits = LIMITS,
        started_at: float = 0.0,
        counts: bool = False,
    ) -> None:
        self._worker = worker
        self._slot = slot
        self._pid = pid
        self._app_server_pid = app_server_pid
        self._initialize = initialize
        self._initialized: bytes | None = None
        self._outbox = Outbox()
        self._router = MessageRouter()
        self._requests = Requests(self._router, self._outbox)
        self._threads = Threads(router=self._router, requests=self._requests, outbox=self._outbox)
        self._running = RunningTurns(
            worker=worker,
            slot=slot,
            router=self._router,
            requests=self._requests,
            threads=self._threads,
            outbox=self._outbox,
            watchdog=TurnWatchdog(turn_idle_limit_s, turn_wall_limit_s),
            limits=limits,
        )
        self._calls = Calls(requests=self._requests, threads=self._threads, running=self._running, outbox=self._outbox)
        self._changes = Changes(requests=self._requests, outbox=self._outbox, started_at=started_at)
        self._questions = Questions(worker, self._outbox, self._candidates)
        self._probe = Probe()
        self._census = Census(pid, app_server_pid)
        # What the last look came to, None where there is none; how many threads had been loaded when it was taken.
        self._tree = wire.Tree() if counts else None
        self._tree_loads = 0
        # Who is asked what belongs to no thread.
        self._holder: wire.SessionId | None = None
        self._globals = Latest()
        # What is said of threads that nobody reads along, by who is to hear it; it waits for the next end of a turn, or
        # tick.
        self._asides: dict[tuple[wire.SessionId, ...], list[bytes]] = {}
        # Which broker this is, counted: call numbers of one mean nothing to the next.
        self._broker = 0
        # Turns that the app-server began by itself within the lines that are being handled.
        self._begun: set[str] = set()

    @property
    def lines_read(self) -> int:
        """How many lines have come from the app-server."""
        return self._router.received

    @property
    def in_flight(self) -> int:
        return self._requests.in_flight

    @property
    def running_turns(self) -> int:
        return len(self._running)

    @property
    def finished_turns(self) -> int:
        return self._running.finished

    @property
    def loaded_threads(self) -> int:
        return len(self._threads)

    @property
    def thread_counts(self) -> tuple[int, int]:
        """Threads that the app-server was made to load, and those that it has loaded: for a look at its processes."""
        return self._threads.loads, len(self._threads)

    def _fresh(self, loads: int) -> int:
        """Count the threads that are loaded now and came after the first `loads`."""
        return min(self._threads.loads - loads, len(self._threads))

    @property
    def memory_bytes(self) -> int:
        """Memory of this worker and all below it, without tool commands of turns that run; 0 where not known."""
        return self._tree.memory_bytes if self._tree is not None else 0

    @property
    def held(self) -> dict[str, int]:
        """What is kept, by kind; all of it returns to zero when nothing runs (leak checks)."""
        return {
            **self._router.held,
            **self._requests.held,
            **self._calls.held,
            **self._threads.held,
            **self._running.held,
            **self._questions.held,
        }

    @property
    def may_leave(self) -> bool:
        """Whether nothing runs, and nobody has yet to get anything of what did."""
        return not self._running.subscriptions.held["subscriptions"] and not self.in_flight

    # Events from the loop and the broker.

    def start(self, now: float) -> list[Effect]:
        """The handshake with the app-server."""
        self._outbox.now = now
        self._requests.ask("initialize", self._initialize, self._on_initialized)
        return self._outbox.take()

    def who_are_you(self) -> list[Effect]:
        self._register()
        return self._outbox.take()

    def new_broker(self) -> list[Effect]:
        """Another broker is there, that knows nothing: sessions come back and send their calls again by themselves."""
        self._broker += 1
        self._calls.new_broker()
        self._register()
        self._changes.new_broker()
        return self._outbox.take()

    def dispatch(self, head: wire.Dispatch, line: bytes, now: float) -> list[Effect]:
        """A request of a session."""
        self._outbox.now = now
        self._calls.take(head, line)
        return self._outbox.take()

    def tell(self, head: wire.Tell, line: bytes) -> list[Effect]:
        """An answer to a request of the app-server, under the id that clients see."""
        self._questions.answer(head.session, line)
        return self._outbox.take()

    def apply(self, head: wire.Apply, line: bytes, now: float) -> list[Effect]:
        """A change of what the app-server has in memory."""
        self._outbox.now = now
        self._changes.apply(head, line)
        return self._outbox.take()

    def current(self, head: wire.Current, kept: list[bytes]) -> list[Effect]:
        """State of the app-server, for the next broker."""
        self._changes.current(head, kept)
        return []

    def follow(self, head: wire.Follow) -> list[Effect]:
        self._threads.follow(head)
        return self._outbox.take()

    def holder(self, head: wire.Holder) -> list[Effect]:
        """Who is asked what belongs to no thread."""
        self._holder = head.session
        return []

    def acked(self, head: wire.Acked, now: float) -> list[Effect]:
        """A session has got so much of these turns."""
        self._outbox.messages(self._running.subscriptions.acked(head.session, head.positions, now))
        return self._outbox.take()

    def back(self, head: wire.Back, now: float) -> list[Effect]:
        """A session has come back on a new connection: it gets what it has not got, and is asked again."""
        self._outbox.messages(self._running.subscriptions.back(head.session, head.positions, now))
        self._questions.ask_again(head.session)
        return self._outbox.take()

    def release(self, head: wire.Release, now: float) -> list[Effect]:
        """Put an idle thread away, so that another worker can take it."""
        self._outbox.now = now
        broker = self._broker

        def answered(ok: bool, line: bytes) -> None:
            if broker == self._broker:
                self._outbox.broker(wire.encode(wire.Answered(head.call, ok)), LINES, line)
            elif ok:
                # The broker that wanted it is gone, and the next one was told that the thread is here.
                self._outbox.broker(wire.encode(wire.ThreadGone(head.thread_id, keep=True)))

        if any(self._running.runs_on(thread_id) for thread_id in self._threads.family(head.thread_id)):
            message = f"thread {head.thread_id} or a sub-agent of it runs a turn, so that it cannot be put away"
            answered(False, rpc.error_line(b"null", INVALID_REQUEST, message))
        else:
            self._threads.put_away(head.thread_id, head.children, answered)
        return self._outbox.take()

    def interrupt(self, head: wire.Interrupt, now: float) -> list[Effect]:
        """Interrupt a turn that the broker does not want."""
        self._outbox.now = now
        if self._running.get(head.turn_id) is not None:
            self._running.interrupt(head.turn_id, head.thread_id)
        return self._outbox.take()

    def gone(self, head: wire.Gone, now: float) -> list[Effect]:
        """A session is over: what it alone followed is interrupted unless it is kept, what it was asked is declined."""
        self._outbox.now = now
        session = head.session
        self._calls.forget_session(session, keep=head.keep)
        self._holder = None if self._holder == session else self._holder
        self._threads.forget_session(session, keep=head.keep)
        self._running.forget_session(session, keep=head.keep)
        self._questions.forget_session(session)
        return self._outbox.take()

    def tick(self, now: float) -> list[Effect]:
        """What waited for its time. Call it every second, and ten times as often while `wants_tick`."""
        self._outbox.now = now
        self._calls.due()
        for request in self._requests.expired():
            self._calls.on_expired(request)
        for turn_id in self._running.tick(self._questions.turns):
            self._questions.turn_ended(turn_id)
        for line in self._globals.due(now):
            self._outbox.sessions([], line)
        self._changes.tick()
        self._threads.tick(self._running.runs_on)
        self._say_asides()
        if self._probe.look(now):
            self._requests.ask(PROBE, {"limit": 1}, lambda *_: None, control=True)
        if self._probe.is_dead(now):
            self._outbox.put(Fail(f"the app-server has not answered a probe for {PROBE_LIMIT_S:.0f} s"))
        self._requests.refill()
        return self._outbox.take()

    def look(self, look: Look, now: float) -> list[Effect]:
        """Take a look at the processes below this worker. The first one comes before any thread is loaded."""
        self._outbox.now = now
        running = self._running
        tree = self._census.take(look, begun=running.begun, oldest=running.oldest, now=now)
        if tree is not None:
            # The broker counts on: threads that it hears of after this are not in the figures.
            self._tree_loads = look.loads
            self._tree = msgspec.structs.replace(tree, fresh=self._fresh(look.loads))
            self._outbox.broker(wire.encode(self._tree))
        return self._outbox.take()

    @property
    def wants_tick(self) -> bool:
        """Whether something waits for a fraction of a second."""
        return bool(self._asides) or self._running.waits or self._globals.waits or self._requests.waits

    @property
    def unhurried(self) -> bool:
        """Whether turns run and nobody reads any of them along: what comes of them may come together."""
        return self._running.unhurried

    # Events from the app-server.

    def lines(self, lines: list[bytes | LongLine], now: float, jitter: float = 0.5) -> list[Effect]:
        """What was read from the app-server in one go: lines, or blocks of lines with the newlines between them.

        `jitter` is a random number in [0, 1).
        """
        self._outbox.now = now
        self._probe.heard(now)
        self._begun.clear()
        finished = self._running.finished
        for delivery in self._router.receive_blocks(lines):
            self._on_delivery(delivery, jitter)
        if self._running.finished != finished:
            # Who hears of an end is awake.
            self._say_asides()
            self._calls.due(turn_ended=True)
        self._requests.refill()
        return self._outbox.take()

    def _on_delivery(self, delivery: Delivery, jitter: float) -> None:
        match delivery:
            case TurnRun():
                self._running.said(
                    delivery.turn_id,
                    delivery.lines,
                    delivery.methods,
                    ended=delivery.ended,
                    counts=delivery.counts,
                )
                if delivery.ended:
                    self._questions.turn_ended(delivery.turn_id)
            case Reply():
                self._calls.on_reply(delivery, jitter)
            case ThreadRun() | GlobalRun():
                self._on_other_run(delivery)
            case Ask():
                if delivery.method == _TOKENS_WANTED:
                    self._questions.ask_broker(delivery)
                else:
                    self._questions.ask(delivery)
            case LongAsk():
                self._outbox.note(f"declined a request of the app-server: {delivery.reason}")
                self._questions.decline(delivery.ask)
            case TurnBroken():
                self._running.broken(delivery.turn_id, delivery.reason)
                self._questions.turn_ended(delivery.turn_id)
            case Malformed():
                self._outbox.note(f"ignored a line of the app-server: {delivery.reason}: {delivery.line[:200]!r}")
                # Where it can be told which request it answers, that one fails.
                for failed in self._router.receive_unreadable(delivery.line, delivery.reason):
                    self._on_delivery(failed, jitter)

    # Everything else that the app-server says.

    def _on_initialized(self, line: bytes, is_error: bool) -> None:
        if is_error:
            self._outbox.put(Fail(f"initialize failed: {rpc.error_of(line)}"))
            return
        self._initialized = rpc.result_of(line)
        self._threads.user_agent = rpc.user_agent_of(self._initialized)
        self._outbox.app_server(b'{"method":"initialized"}')
        self._register()
        self._outbox.put(Ready())

    def _register(self) -> None:
        if self._initialized is None:
            return
        changes, tree = self._changes, self._tree
        if tree is not None:
            tree = msgspec.structs.replace(tree, fresh=self._fresh(self._tree_loads))
        head = wire.Register(
            self._slot, self._worker, self._pid, self._app_server_pid, changes.as_of, changes.changed_at
        )
        holdings = wire.Holdings(
            records=self._threads.records,
            followers=self._threads.followers,
            turns=self._running.holdings,
            calls=self._calls.seen,
            ended=self._running.subscriptions.ended_turns,
            logins=self._calls.logins,
            kept=changes.kept,
            kept_at=changes.kept_at,
            tree=tree,
        )
        self._outbox.broker(wire.encode(head), self._initialized, wire.encode_holdings(holdings))
        self._threads.tell_spawned()

    def _on_other_run(self, run: ThreadRun | GlobalRun) -> None:
        lines, methods = run.lines, run.methods
        if isinstance(run, GlobalRun) and "thread/started" in methods[:-1]:
            # A sub-agent's thread has followers from this line on.
            after = methods.index("thread/started") + 1
            self._on_other_run(GlobalRun(lines[:after], methods[:after]))
            self._on_other_run(GlobalRun(lines[after:], methods[after:]))
            return
        if self._begun or "turn/started" in methods:
            taken = self._running.take_own(lines, methods, self._begun)
            if taken:
                lines = [line for place, line in enumerate(lines) if place not in taken]
                methods = [method for place, method in enumerate(methods) if place not in taken]
        if isinstance(run, ThreadRun):
            self._on_thread_lines(run.thread_id, _sessions(run.tokens), lines, methods)
        else:
            self._on_global_lines(lines, methods)

    def _on_thread_lines(
        self, thread_id: str, sessions: list[wire.SessionId], lines: list[bytes], methods: list[str]
    ) -> None:
        self._running.heed(thread_id, lines, methods)
        told = [
            self._questions.resolved(line) if method == _RESOLVED else line
            for line, method in zip(lines, methods, strict=True)
            if not self._threads.is_moving(thread_id, method) and not self._changes.heard(method, line, sessions)
        ]
        if not told:
            return
        aside = self._asides.setdefault(tuple(sessions), [])
        aside += told
        reads_along = any(self._threads.interest_of(thread_id, session) == "full" for session in sessions)
        # Whoever follows a thread that starts has the answer to its start.
        is_news = any(method != "thread/started" for method in methods)
        if (reads_along and is_news) or _RESOLVED in methods or len(aside) >= MAX_ASIDES:
            self._outbox.sessions(sessions, b"\n".join(self._asides.pop(tuple(sessions))))

    def _say_asides(self) -> None:
        asides, self._asides = self._asides, {}
        for sessions, lines in asides.items():
            self._outbox.sessions([*sessions], b"\n".join(lines))

    def _on_global_lines(self, lines: list[bytes], methods: list[str]) -> None:
        for line, method in zip(lines, methods, strict=True):
            entry = NOTIFICATIONS.get(method)
            is_of_thread = entry is None or entry.thread is not None
            thread_id = envelope.scan(line).thread_id if is_of_thread else None
            sessions = self._threads.followers_of(thread_id) if thread_id is not None else []
            if thread_id is not None and sessions:
                # Followed since an earlier line of the same read.
                self._on_thread_lines(thread_id, sessions, [line], [method])
            elif method == "thread/started":
                followers = self._threads.begun(line)
                if followers:
                    self._outbox.sessions(followers, line)
            elif entry is None and thread_id is None:
                # Of nobody in particular, and nobody knows what it means.
                self._outbox.sessions([], line)
            elif self._changes.heard(method, line, self._who_began(method, line)):
                continue
            elif is_of_thread:
                # Of a thread that no session follows: nobody to tell.
                self._running.heed(thread_id, [line], [method])
            else:
                if method == _LIMITS_UPDATED:
                    self._running.heed_limit(method, line)
                ready = self._globals.offer(method, line, self._outbox.now)
                if ready is not None:
                    self._outbox.sessions([], ready)

    def _who_began(self, method: str, line: bytes) -> list[wire.SessionId]:
        starter = self._calls.who_began(rpc.login_id_of(line)) if method == _LOGGED_IN else None
        return [starter] if starter is not None else []

    def _candidates(self, ask: Ask) -> list[wire.SessionId]:
        """Who may be asked: those who follow the turn, else the thread; without a thread, the account's holder."""
        turn = self._running.get(ask.turn_id)
        if turn is not None:
            return [*turn.subscribers]
        if ask.thread_id is not None:
            return self._threads.followers_of(ask.thread_id)
        return [self._holder] if self._holder is not None else []


def _sessions(tokens: Iterable[object]) -> list[wire.SessionId]:
    return [token for token in tokens if isinstance(token, wire.SessionId)]
