"""Running turns: begun, numbered, watched, interrupted, ended - each once. Pure.

The broker hears that a turn has begun by the answer to its start, or else by TurnStarted, and that it has ended by
TurnEnded, which takes its last events along. Turns that the app-server starts by itself - goals, compaction,
sub-agents - are owned from their turn/started on. With a turn that is interrupted here the sub-agents that work for it
are, each by its own ids, and those that begin later.

While nobody reads a turn along - all its subscribers want its items or its end, no deltas - what comes of it is held
until the next tick, HELD_BYTES or its end, and how every turn begins until OPENING_S: an app-server writes each line by
itself, and a message for each would cost more than all the rest.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

from codex_app_server import envelope
from codex_app_server._message_router import MessageRouter
from codex_app_server._sub_agents import SubAgents, children_of, may_spawn
from codex_app_server.errors import AppServerError
from codex_pool import rpc, wire
from codex_pool.worker import reading
from codex_pool.worker.effects import Outbox
from codex_pool.worker.requests import Request, Requests
from codex_pool.worker.subscriptions import Limits, Subscriptions
from codex_pool.worker.threads import Threads
from codex_pool.worker.turns import NO_COUNTS, Turn
from codex_pool.worker.watchdog import TurnWatchdog

MAX_STALLED = 4096
HELD_BYTES = 64 * 1024
OPENING_S = 1.0
INTERRUPT_ANSWER_S = 1.0

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
_HEEDED = _TELLS_LIMIT | _OF_THREADS | {"turn/started", "item/completed"}
# Methods of `rpc.ended_lines`.
_ENDED = ["pool/turn/ended", "turn/completed"]


class RunningTurns:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        worker: str,
        slot: int,
        router: MessageRouter,
        requests: Requests,
        threads: Threads,
        outbox: Outbox,
        watchdog: TurnWatchdog,
        limits: Limits,
    ) -> None:
        self._worker = worker
        self._slot = slot
        self._router = router
        self._requests = requests
        self._threads = threads
        self._outbox = outbox
        self._watchdog = watchdog
        self.subscriptions = Subscriptions(worker, limits)
        self._turns: dict[str, Turn] = {}
        # Turns of which something is held, and those of them of which it is news.
        self._holding: dict[str, Turn] = {}
        self._news: set[str] = set()
        # Turns to interrupt that the app-server did not know yet.
        self._too_early: set[str] = set()
        # Turns with an interrupt that is not answered yet, and when it was sent.
        self._interrupting: dict[str, float] = {}
        # Which turns work for which, and the turn inside of a review, which is the one to interrupt.
        self._agents = SubAgents()
        # Turns that were ended here while the app-server still runs them.
        self._stalled: OrderedDict[str, None] = OrderedDict()
        self.finished = 0
        self.begun = 0

    def __len__(self) -> int:
        return len(self._turns)

    def get(self, turn_id: str | None) -> Turn | None:
        return self._turns.get(turn_id or "")

    @property
    def waits(self) -> bool:
        return bool(self._too_early or self._news)

    @property
    def unhurried(self) -> bool:
        """Whether turns run, and nobody reads any of them along."""
        return bool(self._turns) and not any([turn.has_readers for turn in self._turns.values()])

    @property
    def held(self) -> dict[str, int]:
        turns = {"turns": len(self._turns), "too_early": len(self._too_early), "agents": len(self._agents)}
        return {
            **turns,
            "interrupting": len(self._interrupting),
            "holding": len(self._holding),
            **self.subscriptions.held,
        }

    @property
    def holdings(self) -> list[wire.TurnHeld]:
        return [wire.TurnHeld(turn.thread_id, turn.id, [*turn.subscribers]) for turn in self._turns.values()]

    @property
    def oldest(self) -> int:
        """Number of the oldest turn that runs; of the next one if none does."""
        return next((turn.number for turn in self._turns.values()), self.begun + 1)

    def runs_on(self, thread_id: str) -> bool:
        return any(turn.thread_id == thread_id for turn in self._turns.values())

    def runs_own_on(self, thread_id: str | None) -> bool:
        """True if the thread runs a turn that the app-server has begun by itself."""
        return any(turn.is_own and turn.thread_id == thread_id for turn in self._turns.values())

    def is_stalled(self, turn_id: str) -> bool:
        return turn_id in self._stalled

    # From the beginning to the end.

    def started(self, turn_id: str, thread_id: str, request: Request) -> wire.TurnHeld | None:
        """The answer to this request named the turn; what the broker is to hear, if it runs since now.

        A start that joined a running turn adds its session to it.
        """
        thread = self._threads.get(thread_id)
        if thread is not None and request.method == "turn/start":
            thread.restore_sandbox = False
        turn, held = self._turns.get(turn_id), None
        session = request.session if not request.gone else None
        if turn is None:
            turn = self._begin(turn_id, thread_id)
            held = wire.TurnHeld(thread_id, turn_id, [session] if session is not None else [])
            self._threads.turn_started(thread_id, request.session, request.interest)
        if session is not None:
            self.join(turn, session, request.interest)
        elif not turn.subscribers and not request.kept:
            self.interrupt(turn_id, thread_id)
        return held

    def join(self, turn: Turn, session: wire.SessionId, interest: wire.Interest) -> None:
        """From now on this session gets the turn's notifications."""
        self._let_go(turn)
        self.subscriptions.join(turn, session, interest)

    def follow(self, turn: Turn, session: wire.SessionId, interest: wire.Interest) -> None:
        """From now on this session gets what the turn sends, and the sub-agents that work for it."""
        self.join(turn, session, interest)
        for agent in self._agents.running(turn.thread_id, turn.id):
            running = self._turns.get(agent.turn_id)
            if running is not None and session not in running.subscribers:
                self.join(running, session, interest)
                head = wire.TurnStarted(running.thread_id, running.id, [*running.subscribers])
                self._outbox.broker(wire.encode(head))

    def announce(self, turn_id: str, queued_ms: int = 0) -> None:
        """The turn's first notification says who runs it."""
        turn = self._turns.get(turn_id)
        if turn is None or turn.last > 0 or turn.held_bytes:
            return
        params: dict[str, Any] = {"threadId": turn.thread_id, "turnId": turn_id}
        params |= {"worker": self._worker, "slot": self._slot, "queuedMs": queued_ms}
        line = rpc.encode({"method": "pool/turn/assigned", "params": params})
        self._publish(turn, [line], ["pool/turn/assigned"])

    def said(
        self,
        turn_id: str,
        lines: list[bytes],
        methods: list[str],
        *,
        ended: bool,
        counts: Mapping[int, int] = NO_COUNTS,
    ) -> None:
        """Notifications of one turn; in some places of `lines` there may be many deltas, `counts` says how many."""
        turn = self._turns.get(turn_id)
        if turn is None:
            return
        self._watchdog.heard(turn_id, lines, methods, self._outbox.now)
        self.heed(turn.thread_id, lines, methods)
        status = rpc.status_of(lines[-1]) if ended else None
        if status == "interrupted" and (reason := self._watchdog.reason_of(turn_id)) is not None:
            # Interrupted by us: to everyone else it has the same end as one that could not be interrupted.
            status = "stalled"
            last = rpc.stalled_lines(
                turn.thread_id, turn_id, reason, error=self._watchdog.error_of(turn_id), completed=lines[-1]
            )
            lines, methods = [*lines[:-1], *last], [*methods[:-1], *_ENDED]
        self._publish(turn, lines, methods, ended=status, counts=counts)
        if ended:
            self._end(turn)

    def broken(self, turn_id: str, reason: str) -> None:
        """The turn cannot be followed any further."""
        turn = self._turns.get(turn_id)
        if turn is not None:
            self._end_here(turn, "failed", reason)
            self.interrupt(turn_id, turn.thread_id)

    def heed(self, thread_id: str | None, lines: list[bytes], methods: list[str]) -> None:
        """What notifications say about the books: threads, turns inside of reviews, the account's limit."""
        if _HEEDED.isdisjoint(methods):
            return
        for line, method in zip(lines, methods, strict=True):
            if method in _OF_THREADS:
                self._threads.heed(thread_id, line, method)
            elif method == "turn/started":
                inner, root = rpc.turns_of(line)
                if thread_id is not None and inner not in self._agents and root in self._turns and root != inner:
                    self._agents.began(thread_id, inner, root)
            elif method == "item/completed":
                if thread_id is not None and may_spawn(line):
                    self._on_spawned(thread_id, children_of(line))
            elif method in _TELLS_LIMIT:
                self.heed_limit(method, line)

    def _on_spawned(self, thread_id: str, children: list[str]) -> None:
        """The turn on this thread has sub-agents, whom those follow that follow it, until its threads are closed.

        What says so may come after the child's turn has begun.
        """
        for late in self._agents.spawned(thread_id, children):
            self._interrupt_one(late.turn_id, late.thread_id)
        turns = [turn for turn in self._turns.values() if turn.thread_id == thread_id]
        self._threads.spawned(thread_id, children, [session for turn in turns for session in turn.subscribers])
        for turn in [turn for turn in self._turns.values() if turn.thread_id in children]:
            followers = self._threads.followers_of(turn.thread_id)
            if not turn.subscribers.keys() >= {*followers}:
                self._outbox.broker(wire.encode(wire.TurnStarted(turn.thread_id, turn.id, followers)))
            self._join_all(turn, followers, turns)

    def heed_limit(self, method: str, line: bytes) -> None:
        limited = reading.limit_of(method, line)
        if limited is not None:
            self._outbox.broker(wire.encode(limited))

    def _begin(self, turn_id: str, thread_id: str) -> Turn:
        self.begun += 1
        turn = self._turns[turn_id] = Turn(turn_id, thread_id, self.begun)
        self._watchdog.started(turn_id, self._outbox.now)
        return turn

    def _publish(
        self,
        turn: Turn,
        lines: list[bytes],
        methods: list[str],
        *,
        ended: str | None = None,
        counts: Mapping[int, int] = NO_COUNTS,
    ) -> None:
        """Number what has come of a turn and send it, or hold it while it can wait; `ended` is its last status."""
        if not turn.has_readers:
            turn.hold(lines, methods, counts, self._outbox.now)
            if ended is None and turn.held_bytes < HELD_BYTES:
                self._holding[turn.id] = turn
                if turn.has_news:
                    self._news.add(turn.id)
                return
            lines, methods, counts = self._take_held(turn)
        now = self._outbox.now
        self._outbox.messages(self.subscriptions.publish(turn, lines, methods, ended=ended, now=now, counts=counts))

    def _let_go(self, turn: Turn) -> None:
        """Send what is held of a turn."""
        if turn.id in self._holding:
            lines, methods, counts = self._take_held(turn)
            now = self._outbox.now
            self._outbox.messages(self.subscriptions.publish(turn, lines, methods, now=now, counts=counts))

    def _take_held(self, turn: Turn) -> tuple[list[bytes], list[str], dict[int, int]]:
        self._holding.pop(turn.id, None)
        self._news.discard(turn.id)
        return turn.take_held()

    def _end_here(self, turn: Turn, kind: str, reason: str) -> None:
        """The worker ends it, whatever the app-server does."""
        if kind == "stalled":
            lines = rpc.stalled_lines(turn.thread_id, turn.id, reason, error=self._watchdog.error_of(turn.id))
        else:
            lines = rpc.ended_lines(turn.thread_id, turn.id, kind, reason, safe_to_retry=False)
        self._publish(turn, lines, _ENDED, ended=kind)
        self._stalled[turn.id] = None
        if len(self._stalled) > MAX_STALLED:
            self._stalled.popitem(last=False)
        self._end(turn)

    def _end(self, turn: Turn) -> None:
        del self._turns[turn.id]
        self._too_early.discard(turn.id)
        self._interrupting.pop(turn.id, None)
        self._agents.ended(turn.thread_id, turn.id)
        self._watchdog.ended(turn.id)
        self._threads.idle(turn.thread_id)
        self.finished += 1

    # Turns of its own accord.

    def take_own(self, lines: list[bytes], methods: list[str], begun: set[str]) -> set[int]:
        """Own what the app-server starts by itself; the places of the lines that belong to it.

        `begun` are such turns of the same read: only from the next one on does the router know that they are followed.
        """
        taken: set[int] = set()
        runs: dict[str, tuple[list[bytes], list[str]]] = {}
        for place, (line, method) in enumerate(zip(lines, methods, strict=True)):
            header = envelope.scan(line)
            turn_id = header.turn_id
            if turn_id is None:
                continue
            if method == "turn/started" and header.thread_id is not None:
                _, root = rpc.turns_of(line)
                if self._is_new(header.thread_id, turn_id, root):
                    self._begin_own(turn_id, header.thread_id, root)
                    begun.add(turn_id)
            if turn_id in begun:
                taken.add(place)
                run = runs.setdefault(turn_id, ([], []))
                run[0].append(line)
                run[1].append(method)
        for turn_id, (own_lines, own_methods) in runs.items():
            self.said(turn_id, own_lines, own_methods, ended="turn/completed" in own_methods)
        return taken

    def _is_new(self, thread_id: str, turn_id: str, root: str) -> bool:
        """True for a turn that nothing is known of, unless it is inside of a review, and so on the thread of that."""
        if turn_id in self._turns or turn_id in self._stalled:
            return False
        above = self._turns.get(root)
        return above is None or above.thread_id != thread_id

    def _begin_own(self, turn_id: str, thread_id: str, root: str) -> None:
        above = self._turns.get(root)
        if above is not None:
            self._threads.adopt_agent(thread_id, above.thread_id, [*above.subscribers])
        followers = self._threads.followers_of(thread_id)
        turn = self._begin(turn_id, thread_id)
        turn.is_own = True
        self._outbox.broker(wire.encode(wire.TurnStarted(thread_id, turn_id, followers, by_itself=root == turn_id)))
        self._threads.turn_started(thread_id, None, "full")
        self._join_all(turn, followers, [above] if above is not None else [])
        # It may be over already, with all of it in this read.
        with contextlib.suppress(AppServerError):
            self._router.follow(turn_id, None, thread_id=thread_id)
        self.announce(turn_id)
        if root != turn_id and self._agents.began(thread_id, turn_id, root):
            self._interrupt_one(turn_id, thread_id)

    # Who follows them.

    def _join_all(self, turn: Turn, followers: list[wire.SessionId], above: list[Turn]) -> None:
        """Have these sessions follow a turn that none of them has started, with the interest that they have in those
        that it works for."""
        for session in followers:
            along = [each.subscribers[session].interest for each in above if session in each.subscribers]
            self.join(turn, session, along[0] if along else self._threads.interest_of(turn.thread_id, session))

    def forget_session(self, session: wire.SessionId, *, keep: bool) -> None:
        """What it alone followed is interrupted, unless its turns are kept."""
        for turn in self.subscriptions.forget(session):
            if not turn.subscribers and not keep:
                self.interrupt(turn.id, turn.thread_id)

    def interrupt(self, turn_id: str, thread_id: str) -> None:
        """Interrupt a turn, and the sub-agents that work for it."""
        agents = self._agents.stop(thread_id, turn_id)
        self._interrupt_one(turn_id, thread_id)
        for agent in agents:
            self._interrupt_one(agent.turn_id, agent.thread_id)

    def _interrupt_one(self, turn_id: str, thread_id: str) -> None:
        now = self._outbox.now
        # One may be reached in more than one way at once: by itself, and by the turn that it works for.
        if now - self._interrupting.get(turn_id, -math.inf) < INTERRUPT_ANSWER_S:
            return
        self._interrupting[turn_id] = now
        params: dict[str, object] = {"threadId": thread_id, "turnId": self._agents.active(thread_id, turn_id)}

        def then(_: bytes, is_error: bool) -> None:
            self._interrupting.pop(turn_id, None)
            if is_error and turn_id in self._turns:
                self._too_early.add(turn_id)

        self._requests.ask("turn/interrupt", params, then, thread_id=thread_id)

    # The clock.

    def tick(self, asking: Collection[str]) -> list[str]:
        """What is held, interrupts that came too early, turns whose time is over; the turns that were ended here."""
        for turn in list(self._holding.values()):
            if turn.has_news or self._outbox.now - turn.held_at >= OPENING_S:
                self._let_go(turn)
        too_early, self._too_early = self._too_early, set()
        for turn_id in too_early:
            self._interrupt_one(turn_id, self._turns[turn_id].thread_id)
        ended: list[str] = []
        for turn_id, reason, stalled in self._watchdog.due(self._outbox.now, asking):
            turn = self._turns[turn_id]
            if stalled:
                self._end_here(turn, "stalled", f"{reason}, and it could not be interrupted")
                ended.append(turn_id)
            else:
                self._outbox.note(f"turn {turn_id} is interrupted: {reason}")
                self.interrupt(turn_id, turn.thread_id)
        self._outbox.messages(self.subscriptions.expire(self._outbox.now))
        return ended
