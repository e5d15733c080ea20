"""Tally: what has become of turns, counted by a worker from its start on, and by the broker for those that are gone.

A worker sends the counts of a turn with its end, and its whole tally when it registers: so a broker that has just
started knows what was counted before it, and nothing is counted twice. The last report of a worker to the supervisor
has its tally too, for a broker that it has not registered with. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import msgspec

from .wire_types import TURN_ENDS, Tokens, TurnCounts, TurnTokens, WireError

# Upper bounds of the buckets, in seconds.
QUEUE_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
FIRST_DELTA_S = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0)
DURATION_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0)
# Principals that a worker tells apart; further ones are counted as OTHER, which is the id of none.
MAX_PRINCIPALS = 256
OTHER = "other"


_encode = msgspec.msgpack.Encoder().encode


class Histogram(msgspec.Struct, array_like=True):
    """Counts by bucket, the last one for what is beyond all bounds, and the sum of what was observed."""

    counts: list[int] = []
    sum_ms: int = 0

    def observe(self, value_ms: int, bounds_s: tuple[float, ...]) -> None:
        """Count a value."""
        if not self.counts:
            self.counts = [0] * (len(bounds_s) + 1)
        self.counts[bisect_left(bounds_s, value_ms / 1000)] += 1
        self.sum_ms += value_ms

    def add(self, other: Histogram, sign: int) -> None:
        """Add another one of the same bounds, or take it away."""
        longest = max(len(self.counts), len(other.counts))
        mine, theirs = ([*each, *[0] * (longest - len(each))] for each in (self.counts, other.counts))
        self.counts = [one + sign * another for one, another in zip(mine, theirs, strict=True)]
        self.sum_ms += sign * other.sum_ms


class Tally(msgspec.Struct, array_like=True):
    """Counts of turns that have ended: by outcome, by principal with their tokens ("" is the pool's owner), and times.

    `dropped`: notifications that were left out for clients that read too slowly. `answered_at` is when the provider has
    last answered a turn (CLOCK_MONOTONIC, 0.0 if never), `login_refused` whether it refused the log-in then.
    """

    ended: dict[str, int] = {}
    tokens: dict[str, TurnTokens] = {}
    queued: Histogram = msgspec.field(default_factory=Histogram)
    first_delta: Histogram = msgspec.field(default_factory=Histogram)
    took: Histogram = msgspec.field(default_factory=Histogram)
    dropped: int = 0
    answered_at: float = 0.0
    login_refused: bool = False

    def count(self, status: str, counts: TurnCounts, tokens: Tokens | None, now: float) -> None:
        """Count the end of a turn."""
        status = status if status in TURN_ENDS else OTHER
        self.ended[status] = self.ended.get(status, 0) + 1
        known = counts.principal in self.tokens or len(self.tokens) < MAX_PRINCIPALS
        principal = counts.principal if known else OTHER
        self.tokens[principal] = self.tokens.get(principal, TurnTokens()) + TurnTokens(turns=1) + (tokens or Tokens())
        self.took.observe(counts.took_ms, DURATION_S)
        if counts.queued_ms is not None:
            self.queued.observe(counts.queued_ms, QUEUE_S)
        if counts.first_delta_ms is not None:
            self.first_delta.observe(counts.first_delta_ms, FIRST_DELTA_S)
        if counts.login_refused is not None:
            self.answered_at, self.login_refused = now, counts.login_refused

    def add(self, other: Tally, sign: int = 1) -> None:
        """Add another tally, or take it away with a sign of -1; the provider's last answer is the later one of both."""
        for status, count in other.ended.items():
            self.ended[status] = self.ended.get(status, 0) + sign * count
        for principal, tokens in other.tokens.items():
            mine = self.tokens.get(principal, TurnTokens())
            self.tokens[principal] = mine + tokens if sign > 0 else mine - tokens
        self.queued.add(other.queued, sign)
        self.first_delta.add(other.first_delta, sign)
        self.took.add(other.took, sign)
        self.dropped += sign * other.dropped
        if other.answered_at > self.answered_at:
            self.answered_at, self.login_refused = other.answered_at, other.login_refused


_decode = msgspec.msgpack.Decoder(Tally).decode


def encode(tally: Tally) -> bytes:
    """Encode a tally, for `WorkerState.tally`; b"" for one in which nothing is counted."""
    return _encode(tally) if tally != Tally() else b""


def decode(body: bytes) -> Tally:
    """Decode what `encode` has encoded. Raises WireError."""
    try:
        return _decode(body) if body else Tally()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"a worker's tally that does not fit: {error}") from None


def converted(value: Any) -> Tally | None:
    """The tally in the last report of a worker; None if there is none that fits."""
    try:
        return None if value is None else msgspec.convert(value, Tally)
    except msgspec.ValidationError:
        return None
