"""Counts: what has become of turns since the pool began, over all workers and brokers. Pure.

Each worker has a tally of its own, which this broker keeps up with by the ends of turns. `kept` has those of workers
that are gone; the supervisor has a copy for the next broker. So the total is never less than it was, but for a reset to
zero: where the tally of a worker is lost - it was killed while there was no broker - all counts begin at zero, because
a reader of counters (Prometheus) takes a decrease for a reset and would count the rest twice.

    expected    the workers that the broker before this one knew: until all have registered or are lost, there is no
                total
    reset       what workers bring from before is taken off `kept`, which is negative then
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ..protocol import wire
from ..protocol.tally import OTHER, Tally

# Principals with a name of their own in the metrics.
MAX_NAMES = 50
OWNER = "owner"


class Kept(msgspec.Struct):
    """Counts that a broker leaves to the next one. `names`: of principals in the metrics, by their ids."""

    tally: Tally = msgspec.field(default_factory=Tally)
    names: dict[str, str] = {}


class Counts:
    """See the module's docstring. `kept` is None if that of the last broker is not complete."""

    def __init__(self, kept: Kept | None, expect: Iterable[str] = ()) -> None:
        self._kept = kept if kept is not None else Kept()
        self._resets = kept is None
        self._expected = set(expect)
        self._workers: dict[str, Tally] = {}
        # Workers whose loss the supervisor does not know to be counted here.
        self._lost: list[str] = []
        self._has_news = self._resets

    @property
    def is_complete(self) -> bool:
        """True once all workers have registered that the broker before this one knew."""
        return not self._expected

    def registered(self, worker: str, tally: Tally) -> None:
        """Take over the tally of a worker, which it sends on each new connection."""
        before = self._workers.get(worker)
        if before is not None:
            # A beat has a connection of its own.
            tally.dropped = max(tally.dropped, before.dropped)
        elif self._resets and worker in self._expected:
            self._kept.tally.add(tally, -1)
        self._workers[worker] = tally
        self._expected.discard(worker)

    def ended(self, worker: str, end: wire.TurnEnded, now: float) -> None:
        """Count a turn as its worker has."""
        tally = self._workers.get(worker)
        if tally is not None and end.counts is not None:
            tally.count(end.status, end.counts, end.tokens, now)

    def dropped(self, worker: str, notifications: int) -> None:
        """Note how many notifications a worker has left out so far."""
        tally = self._workers.get(worker)
        if tally is not None:
            tally.dropped = max(tally.dropped, notifications)

    def turns_lost(self, turns: int) -> None:
        """Count turns of a worker that is dead."""
        if turns:
            self._kept.tally.ended["lost"] = self._kept.tally.ended.get("lost", 0) + turns

    def lost(self, worker: str) -> None:
        """Keep what a worker has counted that is gone."""
        tally = self._workers.pop(worker, None)
        if tally is not None:
            self._kept.tally.add(tally)
        elif worker in self._expected:
            self._expected.discard(worker)
            self._reset()
        self._lost.append(worker)
        self._has_news = True

    def tokens_of(self, worker: str) -> dict[str, wire.TurnTokens] | None:
        """The turns and tokens that a worker has counted, by principal; None for one that has not registered."""
        tally = self._workers.get(worker)
        return None if tally is None else tally.tokens

    def total(self) -> Tally:
        """All counts; `tokens` are by name."""
        total = Tally()
        total.add(self._kept.tally)
        for tally in self._workers.values():
            total.add(tally)
        by_name: dict[str, wire.TurnTokens] = {}
        for principal, tokens in total.tokens.items():
            if _has_used(tokens):
                name = self._kept.names.get(principal, OTHER)
                by_name[name] = by_name.get(name, wire.TurnTokens()) + tokens
        total.tokens = by_name
        return total

    def principals(self) -> set[str]:
        """The principals that have used tokens and have no name yet."""
        tallies = (self._kept.tally, *self._workers.values())
        found = {each for tally in tallies for each, tokens in tally.tokens.items() if _has_used(tokens)}
        return found - self._kept.names.keys() - {OTHER}

    def name(self, principal: str, name: str) -> None:
        """Give a principal the name that it has from now on, if there is room for one more."""
        if len(self._kept.names) < MAX_NAMES:
            self._kept.names[principal] = name or OWNER
            self._has_news = True

    def take_news(self) -> dict[str, Any] | None:
        """Take what the supervisor is to keep: `kept`, and the workers whose loss it covers; None if it has that."""
        if not self._has_news or not self.is_complete:
            return None
        lost, self._lost, self._has_news = self._lost, [], False
        return {"kept": msgspec.to_builtins(self._kept), "lost": lost}

    def _reset(self) -> None:
        self._resets = True
        self._kept.tally = Tally()
        for tally in self._workers.values():
            self._kept.tally.add(tally, -1)


def _has_used(tokens: wire.Tokens) -> bool:
    return bool(tokens.input or tokens.output)


def kept_of(value: dict[str, Any] | None) -> Kept | None:
    """`Counts.take_news` has made this value of its `kept`."""
    return None if value is None else msgspec.convert(value, Kept)
