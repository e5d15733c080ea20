"""Running turns: begun, numbered, watched, interrupted, ended - each once. Pure.

The beginning of a turn is reported to the broker by the answer to its start, or else by TurnStarted, and its end by
TurnEnded, which has its last notifications. Turns that the app-server begins unasked - of goals, compaction,
sub-agents - are followed from their turn/started on. `interrupts` interrupts turns, `turn_followers` has the sessions
that follow them; notifications are sent by `idle_batching` and `subscriptions`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from typing import Any

from codex_app_server._core.router import IDLE, MessageRouter
from codex_app_server._core.sub_agents import SubAgents, children_of, may_spawn
from codex_app_server._protocol import envelope, runtime_version
from codex_app_server._runtime.bounded import BoundedDict
from codex_app_server.errors import AppServerError

from ..protocol import jsonrpc, turn_ends, wire
from ..protocol.tally import Tally
from . import message_marks, peek
from .activity import USAGE, ActivityReport, note_usage
from .effects import Outbox
from .idle_batching import IdleBatching
from .interrupts import Interrupts
from .request import Request
from .request_table import RequestTable
from .session_options import SessionOptions
from .subscription import Limits
from .subscriptions import Subscriptions
from .threads import Threads
from .turn_counts import DELTA, TurnCounter
from .turn_followers import TurnFollowers
from .turn_spans import TurnSpans
from .turn_stream import Turn
from .watchdog import TurnWatchdog

MAX_STALLED = 4096

_TELLS_LIMIT = frozenset({"error", "turn/completed"})
_OF_THREADS = frozenset(
    {
        "thread/settings/updated",
        "thread/name/updated",
        "thread/status/changed",
        "thread/closed",
        "thread/goal/updated",
        "thread/goal/cleared",
    }
)
_OBSERVED = _TELLS_LIMIT | _OF_THREADS | {"turn/started", "item/completed"}
# Methods of `turn_ends.ended_lines`.
_ENDED = ["pool/turn/ended", "turn/completed"]


class RunningTurns:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        worker: str,
        slot: int,
        router: MessageRouter,
        requests: RequestTable,
        threads: Threads,
        options: SessionOptions,
        outbox: Outbox,
        watchdog: TurnWatchdog,
        limits: Limits,
        spans: TurnSpans,
    ) -> None:
        self._worker = worker
        self._slot = slot
        self._router = router
        self._requests = requests
        self._threads = threads
        self._options = options
        self._outbox = outbox
        self._watchdog = watchdog
        self._spans = spans
        self.subscriptions = Subscriptions(worker, limits)
        self._batching = IdleBatching(outbox, self.subscriptions)
        self.activity = ActivityReport()
        self._turns: dict[str, Turn] = {}
        # Turns of sub-agents by the turn that they work for; the turn inside of a review, which is to be interrupted.
        self._agents = SubAgents()
        self.interrupts = Interrupts(self._turns, self._agents, requests, outbox)
        self.followers = TurnFollowers(
            self._turns,
            self._agents,
            threads=threads,
            options=options,
            outbox=outbox,
            subscriptions=self.subscriptions,
            batching=self._batching,
        )
        # Turns that were ended here while the app-server still runs them.
        self._stalled: BoundedDict[str, None] = BoundedDict(MAX_STALLED)
        self.finished = 0
        self._counter = TurnCounter()
        # Turns, and commands and processes of clients (`bound_objects`), for the census.
        self.begun = 0

    def __len__(self) -> int:
        return len(self._turns)

    def get(self, turn_id: str | None) -> Turn | None:
        return self._turns.get(turn_id or "")

    @property
    def waits(self) -> bool:
        return self.interrupts.waits or self._batching.waits

    @property
    def has_no_readers(self) -> bool:
        """Return True if turns run, and no session reads any of them in full."""
        return bool(self._turns) and not any([turn.has_readers for turn in self._turns.values()])

    @property
    def held(self) -> dict[str, int]:
        return {
            "turns": len(self._turns),
            "agents": len(self._agents),
            **self.interrupts.held,
            "holding": len(self._batching),
            **self.subscriptions.held,
        }

    def records(self, waiting: Mapping[str, tuple[float, str]]) -> list[wire.RunningTurn]:
        """The turns that run; `waiting`: those that wait for a person, since when, and the method of the request."""
        self.activity.renew()
        records = []
        for turn in self._turns.values():
            since, method = waiting.get(turn.id, (None, ""))
            records.append(wire.RunningTurn(turn.thread_id, turn.id, [*turn.subscribers], since, method, turn.began_at))
        return records

    @property
    def tally(self) -> Tally:
        """Counts of the turns that have ended here."""
        self._counter.tally.dropped = self.subscriptions.dropped
        return self._counter.tally

    @property
    def oldest(self) -> int:
        """Number of the oldest turn that runs; of the next one if none does."""
        return next((turn.number for turn in self._turns.values()), self.begun + 1)

    def on(self, thread_id: str | None) -> Turn | None:
        """The turn that runs on this thread; None if none does."""
        return next((turn for turn in self._turns.values() if turn.thread_id == thread_id), None)

    def runs_on(self, thread_id: str) -> bool:
        return self.on(thread_id) is not None

    def runs_own_on(self, thread_id: str | None) -> bool:
        """True if the thread runs a turn that the app-server has begun unasked."""
        return any(turn.is_own and turn.thread_id == thread_id for turn in self._turns.values())

    def is_stalled(self, turn_id: str) -> bool:
        return turn_id in self._stalled

    # From the beginning to the end.

    def started(self, turn_id: str, thread_id: str, request: Request) -> wire.RunningTurn | None:
        """The answer to this request named the turn; the report to the broker, if the turn has begun with it.

        A start that joined a running turn adds its session to it.
        """
        thread = self._threads.get(thread_id)
        if thread is not None and request.method == "turn/start":
            thread.restore_sandbox = False
        turn, held = self._turns.get(turn_id), None
        session = request.session if not request.gone else None
        begins = turn is None
        if turn is None:
            turn = self._begin(turn_id, thread_id)
            turn.queued_ms = request.queued_ms
            self._spans.began(turn, request)
            self._threads.turn_started(thread_id, request.session, request.interest)
        if session is not None:
            self.followers.join(turn, session, request.interest)
        turn.kept = turn.kept or request.kept
        turn.marks += request.is_marked
        if begins:
            self.followers.join_subscribers(turn)
            held = wire.RunningTurn(thread_id, turn_id, [*turn.subscribers])
        if not turn.subscribers and not turn.kept:
            self.interrupts.interrupt(turn_id, thread_id)
        return held

    def announce(self, turn_id: str, queued_ms: int = 0) -> None:
        """Publish the turn's first notification, which names the worker that runs it."""
        turn = self._turns.get(turn_id)
        if turn is None or turn.last > 0 or turn.held_bytes:
            return
        params: dict[str, Any] = {"threadId": turn.thread_id, "turnId": turn_id}
        params |= {"worker": self._worker, "slot": self._slot, "queuedMs": queued_ms}
        line = jsonrpc.encode({"method": "pool/turn/assigned", "params": params})
        self._batching.publish(turn, [line], ["pool/turn/assigned"])

    def on_notifications(self, turn_id: str, lines: list[bytes], methods: list[str], *, ended: bool) -> None:
        """Notifications of one turn."""
        turn = self._turns.get(turn_id)
        if turn is None:
            return
        self._watchdog.observe(turn_id, lines, methods, self._outbox.now)
        turn.heard_at = self._outbox.now
        if turn.first_delta_at is None and DELTA in methods:
            turn.first_delta_at = turn.heard_at
        if USAGE in methods:
            note_usage(turn, lines, methods)
        if turn.marks and not message_marks.METHODS.isdisjoint(methods):
            lines = message_marks.taken_out(turn, lines, methods)
        self.observe(turn.thread_id, lines, methods)
        status = turn_ends.status_of(lines[-1]) if ended else None
        if status == "interrupted" and (reason := self._watchdog.reason_of(turn_id)) is not None:
            # Interrupted here: it ends for its followers as one that could not be interrupted.
            status = "stalled"
            last = turn_ends.stalled_lines(
                turn.thread_id, turn_id, reason, error=self._watchdog.error_of(turn_id), completed=lines[-1]
            )
            lines, methods = [*lines[:-1], *last], [*methods[:-1], *_ENDED]
        if status is not None:
            self._note_end(turn, status, lines[-1])
        self._batching.publish(turn, lines, methods, ended=status)
        if ended:
            self._end(turn)

    def broken(self, turn_id: str, reason: str) -> None:
        """End a turn that cannot be followed any further."""
        turn = self._turns.get(turn_id)
        if turn is not None:
            self._end_here(turn, "failed", reason)
            self.interrupts.interrupt(turn_id, turn.thread_id)

    def observe(self, thread_id: str | None, lines: list[bytes], methods: list[str]) -> None:
        """Update the state after notifications: threads, turns inside of reviews, the account's limit."""
        if _OBSERVED.isdisjoint(methods):
            return
        for line, method in zip(lines, methods, strict=True):
            if method in _OF_THREADS:
                self._threads.observe(thread_id, line, method)
                if method == "thread/status/changed" and IDLE in line:
                    self._on_idle(thread_id)
            elif method == "turn/started":
                inner, root = turn_ends.turns_of(line)
                if thread_id is not None and inner not in self._agents and root in self._turns and root != inner:
                    self._agents.began(thread_id, inner, root)
            elif method == "item/completed":
                if thread_id is not None and may_spawn(line):
                    self._on_spawned(thread_id, children_of(line))
            elif method in _TELLS_LIMIT:
                self.observe_limit(method, line)

    def _on_idle(self, thread_id: str | None) -> None:
        """Expect the end of the turn on a thread that runs nothing."""
        if (turn := self.on(thread_id)) is not None:
            self._watchdog.thread_is_idle(turn.id, self._outbox.now)

    def _on_spawned(self, thread_id: str, children: list[str]) -> None:
        """Have the followers of the turn on this thread follow its sub-agents.

        They may be reported after the child's turn has begun.
        """
        for late in self._agents.spawned(thread_id, children):
            self.interrupts.one(late.turn_id, late.thread_id)
        turns = [turn for turn in self._turns.values() if turn.thread_id == thread_id]
        self._threads.sub_agents.spawned(
            thread_id, children, [session for turn in turns for session in turn.subscribers]
        )
        for turn in [turn for turn in self._turns.values() if turn.thread_id in children]:
            followers = self._threads.followers_of(turn.thread_id)
            if not turn.subscribers.keys() >= {*followers}:
                self._outbox.broker(wire.encode(wire.TurnStarted(turn.thread_id, turn.id, followers)))
            self.followers.join_all(turn, followers, turns)

    def observe_limit(self, method: str, line: bytes) -> None:
        limited = peek.limit_of(method, line)
        if limited is not None:
            self._outbox.broker(wire.encode(limited))

    def _begin(self, turn_id: str, thread_id: str) -> Turn:
        self.begun += 1
        now = self._outbox.now
        turn = self._turns[turn_id] = Turn(turn_id, thread_id, self.begun, began_at=now, heard_at=now)
        self._watchdog.started(turn_id, self._outbox.now)
        return turn

    def _end_here(self, turn: Turn, kind: str, reason: str) -> None:
        """End a turn in the worker, whatever the app-server does."""
        if kind == "stalled":
            lines = turn_ends.stalled_lines(turn.thread_id, turn.id, reason, error=self._watchdog.error_of(turn.id))
        else:
            lines = turn_ends.ended_lines(turn.thread_id, turn.id, kind, reason, safe_to_retry=False)
        self._note_end(turn, kind)
        self._batching.publish(turn, lines, _ENDED, ended=kind)
        self._stalled[turn.id] = None
        self._end(turn)

    def _note_end(self, turn: Turn, status: str, line: bytes = b"") -> None:
        """Count the end of a turn, and report it to the tracer; `line` is its turn/completed, if there is one."""
        principal = self._threads.owner_of(turn.thread_id) or ""
        self._counter.ended(turn, status, principal, self._outbox.now, line)
        self._spans.ended(turn, status)

    def _end(self, turn: Turn) -> None:
        del self._turns[turn.id]
        self.interrupts.ended(turn.id)
        self._agents.ended(turn.thread_id, turn.id)
        self._watchdog.ended(turn.id)
        self._threads.idle(turn.thread_id)
        self.finished += 1

    # Turns that the app-server begins unasked.

    def begin_own(self, header: envelope.Envelope, line: bytes) -> bool:
        """Follow the turn in a turn/started line if the app-server has begun it unasked; return True if it has.

        Only from the next read on does the router know that it is followed.
        """
        turn_id, thread_id = header.turn_id, header.thread_id
        if turn_id is None or thread_id is None:
            return False
        _, root = turn_ends.turns_of(line)
        is_new = self._is_new(thread_id, turn_id, root)
        if is_new:
            self._begin_own(turn_id, thread_id, root)
        return is_new

    def _is_new(self, thread_id: str, turn_id: str, root: str) -> bool:
        """True for a turn that nothing is known of, unless it is inside of a review, and so on the thread of that."""
        if turn_id in self._turns or turn_id in self._stalled:
            return False
        above = self._turns.get(root)
        return above is None or above.thread_id != thread_id

    def _begin_own(self, turn_id: str, thread_id: str, root: str) -> None:
        above = self._turns.get(root)
        if above is not None:
            self._threads.sub_agents.adopt(thread_id, above.thread_id, [*above.subscribers])
        followers = self._threads.followers_of(thread_id)
        turn = self._begin(turn_id, thread_id)
        turn.is_own = True
        self._spans.began(turn, parent_turn=root if above is not None else "")
        self._outbox.broker(wire.encode(wire.TurnStarted(thread_id, turn_id, followers, by_itself=root == turn_id)))
        self._threads.turn_started(thread_id, None, "full")
        self.followers.join_all(turn, followers, [above] if above is not None else [])
        # It may be over already, with all of it in this read.
        with contextlib.suppress(AppServerError):
            self._router.follow(turn_id, None, thread_id=thread_id)
        self.announce(turn_id)
        if root != turn_id and self._agents.began(thread_id, turn_id, root):
            self.interrupts.one(turn_id, thread_id)

    def forget_session(self, session: wire.SessionId, *, keep: bool) -> None:
        """Interrupt the turns that only this session followed, unless it or one that has left before it keeps them."""
        for turn in self.subscriptions.forget(session):
            turn.kept = turn.kept or keep
            if not turn.subscribers and not turn.kept:
                self.interrupts.interrupt(turn.id, turn.thread_id)

    # The clock.

    def tick(self, waiting: Collection[str]) -> list[str]:
        """Do what is due: held notifications, interrupts, limits. The turns that were ended here."""
        self._batching.tick()
        self.interrupts.tick()
        ended: list[str] = []
        for turn_id, reason, stalled, unreadable in self._watchdog.due(self._outbox.now, waiting):
            turn = self._turns[turn_id]
            if unreadable:
                version = runtime_version.version_of(self._threads.user_agent)
                self._end_here(turn, "stalled", f"{reason}; {runtime_version.both(version)}")
                ended.append(turn_id)
            elif stalled:
                self._end_here(turn, "stalled", f"{reason}, and it could not be interrupted")
                ended.append(turn_id)
            else:
                self._outbox.note(f"turn {turn_id} is interrupted: {reason}")
                self.interrupts.interrupt(turn_id, turn.thread_id)
        self._outbox.messages(self.subscriptions.expire(self._outbox.now))
        if self._turns and (activity := self.activity.take(self._turns.values(), self._outbox.now)) is not None:
            self._outbox.broker(wire.encode(activity))
        return ended
