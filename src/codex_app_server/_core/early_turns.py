"""EarlyTurns: what turns send before the answer to the start that names them. Pure.

While a start is in flight, a line of an unknown turn may belong to it. Such a turn is *early*: its lines are kept until
an answer names it, or until no start in flight can name it any more. Followers that do not wait for that answer get the
lines as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from .deliveries import Token


class _StartedTurn(msgspec.Struct):
    id: str


class _StartResult(msgspec.Struct):
    turn: _StartedTurn
    # Of a review: the thread it runs on.
    reviewThreadId: str | None = None


class _StartResponse(msgspec.Struct):
    result: _StartResult


_decode_start = msgspec.json.Decoder(_StartResponse).decode


def started_turn(line: bytes) -> tuple[str | None, str | None]:
    """The turn that the answer to a start names, and, of a detached review, its thread; None for what is not named."""
    try:
        result = _decode_start(line).result
    except msgspec.DecodeError:
        return None, None
    return result.turn.id, result.reviewThreadId


@dataclass(slots=True)
class EarlyTurn:
    """The lines of a turn so far; `broken` is the reason why they are not kept any more."""

    thread_id: str | None
    lines: list[bytes] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    size_bytes: int = 0
    ended: bool = False
    broken: str | None = None
    followers: list[Token] = field(default_factory=list)
    # Parallel to `lines`: True for one that followers have got.
    delivered: list[bool] = field(default_factory=list)

    def keep(self, lines: Sequence[bytes], methods: Sequence[str], ended: bool, max_bytes: int) -> None:
        self.ended = self.ended or ended
        self.size_bytes += sum(map(len, lines))
        if self.size_bytes > max_bytes:
            self.break_off(f"more than {max_bytes} bytes came before the answer that names it")
        if self.broken is None:
            self.lines += lines
            self.methods += methods
            self.delivered += [bool(self.followers)] * len(lines)

    def break_off(self, reason: str) -> None:
        """Keep nothing of it; the first reason counts."""
        self.broken = self.broken or reason
        self.lines, self.methods, self.delivered = [], [], []

    @property
    def undelivered(self) -> tuple[list[bytes], list[str]]:
        """The lines, and their methods, that no follower has got."""
        left = [number for number, delivered in enumerate(self.delivered) if not delivered]
        return [self.lines[number] for number in left], [self.methods[number] for number in left]


class EarlyTurns:
    """The starts in flight, by thread, and the turns that they may name."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # None is a start that may name a turn of any thread.
        self._starts: dict[str | None, int] = {}
        self._turns: dict[str, EarlyTurn] = {}

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def starts(self) -> int:
        """The number of starts in flight."""
        return sum(self._starts.values())

    def is_starting(self, thread_id: str) -> bool:
        return thread_id in self._starts

    def may_be_claimed(self, thread_id: str | None) -> bool:
        """True if a start in flight may name an unknown turn of this thread; None is a thread that is not known."""
        return bool(self._starts) and (None in self._starts or thread_id is None or thread_id in self._starts)

    def get(self, turn_id: str) -> EarlyTurn | None:
        return self._turns.get(turn_id)

    def add(self, turn_id: str, thread_id: str | None) -> EarlyTurn:
        early = self._turns[turn_id] = EarlyTurn(thread_id)
        return early

    def take(self, turn_id: str) -> EarlyTurn | None:
        """Remove a turn that an answer has named."""
        return self._turns.pop(turn_id, None)

    def keep(self, early: EarlyTurn, lines: Sequence[bytes], methods: Sequence[str], ended: bool) -> None:
        early.keep(lines, methods, ended, self._max_bytes)

    def begin_start(self, thread_id: str | None) -> None:
        self._starts[thread_id] = self._starts.get(thread_id, 0) + 1

    def end_start(self, thread_id: str | None) -> list[tuple[str, EarlyTurn]]:
        """Note one start less in flight; removes and returns the turns that no other start can name any more."""
        left = self._starts.get(thread_id, 0) - 1
        if left > 0:
            self._starts[thread_id] = left
        else:
            self._starts.pop(thread_id, None)
        released = [(id, early) for id, early in self._turns.items() if not self.may_be_claimed(early.thread_id)]
        for turn_id, _ in released:
            del self._turns[turn_id]
        return released

    def remove_all(self) -> list[Token]:
        """Remove all turns and starts; returns the followers."""
        tokens = [token for early in self._turns.values() for token in early.followers]
        self._turns.clear()
        self._starts.clear()
        return tokens
