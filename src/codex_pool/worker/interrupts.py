"""Interrupts: turns that are interrupted here, with the sub-agents that work for them. Pure.

Each sub-agent is interrupted by its own ids; those that begin to work for the turn later are, too. An interrupt that
the app-server refuses, because it does not know the turn yet, is sent again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from codex_app_server._core.sub_agents import SubAgents

from .effects import Outbox
from .request_table import RequestTable
from .turn_stream import Turn

INTERRUPT_ANSWER_S = 1.0


class Interrupts:
    """See the module's docstring. `turns` are those that run."""

    def __init__(self, turns: Mapping[str, Turn], agents: SubAgents, requests: RequestTable, outbox: Outbox) -> None:
        self._turns = turns
        self._agents = agents
        self._requests = requests
        self._outbox = outbox
        # Turns to interrupt that were not known to the app-server yet.
        self._too_early: set[str] = set()
        # Turns with an interrupt that is not answered yet, and when it was sent.
        self._interrupting: dict[str, float] = {}

    @property
    def waits(self) -> bool:
        """Return True if an interrupt is to be sent again soon."""
        return bool(self._too_early)

    @property
    def held(self) -> dict[str, int]:
        return {"too_early": len(self._too_early), "interrupting": len(self._interrupting)}

    def interrupt(self, turn_id: str, thread_id: str) -> None:
        """Interrupt a turn, and the sub-agents that work for it."""
        agents = self._agents.stop(thread_id, turn_id)
        self.one(turn_id, thread_id)
        for agent in agents:
            self.one(agent.turn_id, agent.thread_id)

    def one(self, turn_id: str, thread_id: str) -> None:
        """Interrupt a turn, and no other one."""
        now = self._outbox.now
        # A turn may be interrupted by its own id and with the turn that it works for at once.
        if now - self._interrupting.get(turn_id, -math.inf) < INTERRUPT_ANSWER_S:
            return
        self._interrupting[turn_id] = now
        params: dict[str, object] = {"threadId": thread_id, "turnId": self._agents.active(thread_id, turn_id)}

        def then(_: bytes, is_error: bool) -> None:
            self._interrupting.pop(turn_id, None)
            if is_error and turn_id in self._turns:
                self._too_early.add(turn_id)

        self._requests.submit_own("turn/interrupt", params, then, thread_id=thread_id)

    def ended(self, turn_id: str) -> None:
        """Note that a turn is over."""
        self._too_early.discard(turn_id)
        self._interrupting.pop(turn_id, None)

    def tick(self) -> None:
        """Send again the interrupts that came too early."""
        too_early, self._too_early = self._too_early, set()
        for turn_id in too_early:
            self.one(turn_id, self._turns[turn_id].thread_id)
