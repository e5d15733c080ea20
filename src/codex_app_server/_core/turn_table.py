"""TurnTable: the turns that are known, by state. Pure.

    unknown ----follow----> followed ---turn/completed---> ended
       |                    ^      |                         ^
       `--a line of it--> unfollowed (unfollow)              |
                            `-----turn/completed-------------'

A followed turn has followers; of an unfollowed one only the id and the thread are known, in a bounded memory, and so is
the id of an ended one. A caller that asks for a turn that is in none of them can be refused at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from ..errors import UnknownTurnError
from .deliveries import Token

MAX_ENDED_TURNS = 4096
MAX_UNFOLLOWED_TURNS = 4096

_TURN_STARTED = b'{"method":"turn/started"'


@dataclass(slots=True)
class FollowedTurn:
    thread_id: str | None
    followers: list[Token] = field(default_factory=list)


class _StartedTurn(msgspec.Struct):
    rootTurnId: str | None = None


class _StartedParams(msgspec.Struct):
    turn: _StartedTurn


class _StartedLine(msgspec.Struct):
    params: _StartedParams


_decode_started = msgspec.json.Decoder(_StartedLine).decode


class TurnTable:
    """See the module's docstring. `followed` is read by the router for each line; it is changed here alone."""

    def __init__(self) -> None:
        self.followed: dict[str, FollowedTurn] = {}
        # The turn that a thread runs, as far as it is followed here, or its turn/started came.
        self._running: dict[str, str] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        # With their threads.
        self._unfollowed: OrderedDict[str, str | None] = OrderedDict()

    def has_ended(self, turn_id: str) -> bool:
        return turn_id in self._ended

    def running(self, thread_id: str) -> str | None:
        """The turn that the thread is known to run."""
        return self._running.get(thread_id)

    def followers(self, turn_id: str) -> list[Token]:
        turn = self.followed.get(turn_id)
        return list(turn.followers) if turn is not None else []

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of turns remembered, by state."""
        return {"followed": len(self.followed), "unfollowed": len(self._unfollowed), "ended": len(self._ended)}

    def follow(self, turn_id: str, token: Token, thread_id: str | None, *, even_unknown: bool) -> None:
        """Add a follower. Raises UnknownTurnError for an unknown turn, unless `even_unknown`."""
        turn = self.followed.get(turn_id)
        if turn is None:
            if turn_id not in self._unfollowed and not even_unknown:
                raise UnknownTurnError(turn_id)
            turn = self.followed[turn_id] = FollowedTurn(self._unfollowed.pop(turn_id, None) or thread_id)
        if token not in turn.followers:
            turn.followers.append(token)

    def unfollow(self, turn_id: str, token: Token, *, is_running: bool) -> None:
        """Remove a follower; without the last one the turn is unfollowed, or, unless `is_running`, unknown."""
        turn = self.followed.get(turn_id)
        if turn is None or token not in turn.followers:
            return
        turn.followers.remove(token)
        if turn.followers:
            return
        del self.followed[turn_id]
        if is_running:
            self.add_unfollowed(turn_id, turn.thread_id)
        elif self._running.get(turn.thread_id or "") == turn_id:
            del self._running[turn.thread_id or ""]

    def start(self, turn_id: str, thread_id: str | None, followers: Sequence[Token]) -> None:
        """A start was answered with this turn: it is followed, and what its thread runs."""
        self._unfollowed.pop(turn_id, None)
        turn = self.followed.setdefault(turn_id, FollowedTurn(thread_id))
        turn.thread_id = turn.thread_id or thread_id
        turn.followers += [each for each in followers if each not in turn.followers]
        if thread_id is not None:
            self._running[thread_id] = turn_id

    def add_followed(self, turn_id: str, thread_id: str | None, followers: list[Token]) -> None:
        self.followed[turn_id] = FollowedTurn(thread_id, followers)

    def add_unfollowed(self, turn_id: str, thread_id: str | None) -> None:
        self._unfollowed[turn_id] = thread_id
        if len(self._unfollowed) > MAX_UNFOLLOWED_TURNS:
            turn_id, thread_id = self._unfollowed.popitem(last=False)
            if self._running.get(thread_id or "") == turn_id:
                del self._running[thread_id or ""]

    def end(self, turn_id: str, thread_id: str | None = None) -> None:
        """Note that the turn has ended. `thread_id` is that of a turn that is not followed."""
        turn = self.followed.pop(turn_id, None)
        thread_id = self._unfollowed.pop(turn_id, None) or (turn.thread_id if turn is not None else thread_id)
        running = self._running.get(thread_id or "")
        # A review reports that a turn within it has begun, but only its own end.
        if running is not None and (running == turn_id or running not in self.followed):
            del self._running[thread_id or ""]
        self._ended[turn_id] = None
        if len(self._ended) > MAX_ENDED_TURNS:
            self._ended.popitem(last=False)

    def note_running(self, turn_id: str, thread_id: str | None, lines: Sequence[bytes]) -> None:
        """Note a turn that was not started here as begun, if one of its lines reports that.

        Of a review it is the turn within it that begins, and the review that ends.
        """
        start = next((line for line in lines if line.startswith(_TURN_STARTED)), None)
        if start is None or thread_id is None or self._running.get(thread_id) in self.followed:
            return
        root = _root_of(start)
        if self._unfollowed.get(root) == thread_id:
            turn_id = root
        if turn_id not in self._ended:
            self._running[thread_id] = turn_id

    def note_idle(self, thread_id: str | None) -> None:
        """Note that the thread reports that it runs nothing. A turn that is followed has an end of its own for that."""
        if self._running.get(thread_id or "") not in self.followed:
            self._running.pop(thread_id or "", None)

    def remove_all(self) -> list[Token]:
        """Forget which turns run and are followed; returns the followers."""
        tokens = [token for turn in self.followed.values() for token in turn.followers]
        self.followed.clear()
        self._running.clear()
        return tokens


def _root_of(line: bytes) -> str:
    """The turn that the one in a turn/started is part of; "" if it is of no other."""
    try:
        return _decode_started(line).params.turn.rootTurnId or ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
