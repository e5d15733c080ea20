"""Mode: how a pool takes new turns. Set by the supervisor, which outlives brokers. Pure."""

from __future__ import annotations

import msgspec


class Grace(msgspec.Struct, frozen=True):
    """A limit for turns that wait for a person: `seconds` each, and none before `not_before` (CLOCK_MONOTONIC)."""

    not_before: float
    seconds: float

    def is_over(self, waits_since: float, now: float) -> bool:
        """True if a turn that has waited since `waits_since` is to be interrupted."""
        return now >= max(self.not_before, waits_since + self.seconds)


class Mode(msgspec.Struct, frozen=True, kw_only=True):
    """Mode in which a pool takes new turns.

    `paused`: new turns wait. `draining`: new turns and threads are refused, but for those of sessions with priority
    batch, which wait. `stopping`: the pool ends once it has drained. `graces`: limits for turns that wait for a person,
    by worker, "" for all.
    """

    paused: bool = False
    draining: bool = False
    stopping: bool = False
    graces: dict[str, Grace] = {}

    @property
    def holds_turns(self) -> bool:
        """True while no turn begins."""
        return self.paused or self.draining

    @property
    def name(self) -> str:
        """One word for status."""
        if self.stopping:
            return "stopping"
        if self.draining:
            return "draining"
        return "paused" if self.paused else "running"
