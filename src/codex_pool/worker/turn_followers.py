"""TurnFollowers: the sessions that get the notifications of running turns, from joining one to leaving it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from codex_app_server._core.sub_agents import SubAgents

from ..protocol import wire
from .effects import Outbox
from .idle_batching import IdleBatching
from .session_options import SessionOptions
from .subscriptions import Subscriptions
from .threads import Threads
from .turn_stream import Turn


class TurnFollowers:
    """See the module's docstring. `turns` are those that run, `agents` those of sub-agents by what they work for."""

    def __init__(
        self,
        turns: Mapping[str, Turn],
        agents: SubAgents,
        *,
        threads: Threads,
        options: SessionOptions,
        outbox: Outbox,
        subscriptions: Subscriptions,
        batching: IdleBatching,
    ) -> None:
        self._turns = turns
        self._agents = agents
        self._threads = threads
        self._options = options
        self._outbox = outbox
        self._subscriptions = subscriptions
        self._batching = batching

    def join(self, turn: Turn, session: wire.SessionId, interest: wire.Interest) -> None:
        """Subscribe this session to a turn."""
        self._batching.flush(turn)
        self._subscriptions.join(turn, session, interest)

    def follow(self, turn: Turn, session: wire.SessionId, interest: wire.Interest) -> None:
        """Subscribe this session to a turn and the sub-agents that work for it."""
        self.join(turn, session, interest)
        for agent in self._agents.running(turn.thread_id, turn.id):
            running = self._turns.get(agent.turn_id)
            if running is not None and session not in running.subscribers:
                self.join(running, session, interest)
                head = wire.TurnStarted(running.thread_id, running.id, [*running.subscribers])
                self._outbox.broker(wire.encode(head))

    def subscribe(self, thread_id: str, session: wire.SessionId) -> None:
        """Have a session that has resumed this thread get the turns that run on it and on those of its sub-agents, if
        it gets all turns."""
        if session not in self._options.all_turns:
            return
        family = self._threads.family(thread_id)
        for turn in [turn for turn in self._turns.values() if turn.thread_id in family]:
            if session not in turn.subscribers:
                self.join(turn, session, self._threads.interest_of(turn.thread_id, session))
                head = wire.TurnStarted(turn.thread_id, turn.id, [*turn.subscribers])
                self._outbox.broker(wire.encode(head))

    def leave(self, thread_id: str, session: wire.SessionId) -> None:
        """End the subscriptions of this session to the turns of a thread, which go on."""
        for turn in self._turns.values():
            if turn.thread_id == thread_id and session in turn.subscribers:
                self._subscriptions.leave(turn, session)
                turn.kept = True

    def join_all(self, turn: Turn, followers: list[wire.SessionId], above: list[Turn]) -> None:
        """Have these sessions follow a turn that none of them has started, with the interest that they have in those
        that it works for."""
        for session in followers:
            along = [each.subscribers[session].interest for each in above if session in each.subscribers]
            self.join(turn, session, along[0] if along else self._threads.interest_of(turn.thread_id, session))

    def join_subscribers(self, turn: Turn) -> None:
        """Have the followers of the thread that get all turns follow this one, which one of them may have started."""
        if not self._options.all_turns:
            return
        for session in self._threads.followers_of(turn.thread_id):
            if session in self._options.all_turns and session not in turn.subscribers:
                self.join(turn, session, self._threads.interest_of(turn.thread_id, session))

    def insert(
        self, thread_id: str, sessions: list[wire.SessionId], lines: list[bytes], methods: list[str]
    ) -> list[wire.SessionId]:
        """Publish notifications of a thread within its running turn, to those of these sessions that get all turns.

        They keep their place there, however slowly a session reads. Return the sessions that have yet to get them.
        """
        everyone = self._options.all_turns
        turn = next((turn for turn in self._turns.values() if turn.thread_id == thread_id), None) if everyone else None
        if turn is None:
            return sessions
        subscribers = turn.subscribers
        within = [
            each
            for each in sessions
            if each in self._options.all_turns and each in subscribers and subscribers[each].interest == "full"
        ]
        if not within:
            return sessions
        self._batching.insert(turn, lines, methods, within)
        return [session for session in sessions if session not in within]
