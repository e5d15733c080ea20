"""Listeners: the requests in flight, the followers of turns and threads, and the turns that are known. Pure.

The part of `MessageRouter` that its callers change; `router` decides by it which line goes where.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from .._protocol.envelope import RequestId
from ..errors import TurnEndedError
from .deliveries import Delivery, GlobalRun, ThreadRun, Token
from .early_turns import EarlyTurns
from .turn_table import TurnTable

MAX_EARLY_BYTES = 16 * 1024 * 1024
MAX_FORGOTTEN_REQUESTS = 4096


@dataclass(slots=True)
class Request:
    """A request in flight. With `starts_turn` its answer names a turn, which `turn` is to follow."""

    token: Token
    thread_id: str | None
    turn: Token | None
    starts_turn: bool
    # Known once it is answered.
    thread_of_turn: str | None = None


class Listeners:
    """The tables of all that waits for lines, and how they are changed."""

    def __init__(self, max_early_bytes: int) -> None:
        self._requests: dict[RequestId, Request] = {}
        self._forgotten: OrderedDict[RequestId, Request] = OrderedDict()
        self._turns = TurnTable()
        self._early = EarlyTurns(max_early_bytes)
        self._threads: dict[str, list[Token]] = {}
        # Deliveries that did not come out of a read; the next one has them, be it of no lines.
        self._pending: list[Delivery] = []
        self._error: Exception | None = None

    def expect(
        self,
        request_id: RequestId,
        token: Token,
        *,
        thread_id: str | None = None,
        starts_turn: bool = False,
        turn: Token | None = None,
    ) -> None:
        """The response to `request_id` goes to `token`; what comes after it is delivered after it.

        With `starts_turn` the response names a turn (of `thread_id`, if known), which `turn` then follows.
        Raises the sticky error after a failure, and ValueError for an id that is already in flight.
        """
        self._check()
        if request_id in self._requests:
            raise ValueError(f"request id {request_id!r} is already in flight")
        self._requests[request_id] = Request(token, thread_id, turn, starts_turn)
        if starts_turn:
            self._early.begin_start(thread_id)

    def forget(self, request_id: RequestId) -> None:
        """Stop waiting for this response. It is still recognised when it comes."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        self._forgotten[request_id] = request
        if len(self._forgotten) > MAX_FORGOTTEN_REQUESTS:
            self._forgotten.popitem(last=False)
        if request.starts_turn:
            # The answer may never come: what was kept for it must not wait any longer.
            self._end_start(request.thread_id, self._pending)

    def follow(self, turn_id: str, token: Token, *, thread_id: str | None = None, even_unseen: bool = False) -> None:
        """`token` gets what the turn sends from now on.

        Raises TurnEndedError for a turn known to have ended, and, unless `even_unseen`, UnknownTurnError for one that
        was never seen running.
        """
        self._check()
        early = self._early.get(turn_id)
        if self._turns.has_ended(turn_id) or (early is not None and early.ended):
            raise TurnEndedError(f"turn {turn_id} has already ended")
        if early is None:
            self._turns.follow(turn_id, token, thread_id, even_unknown=even_unseen)
        elif token not in early.followers:
            # It stays early: the start that it may belong to must not lose what comes from now on.
            early.followers.append(token)

    def unfollow(self, turn_id: str, token: Token, *, unseen: bool = False) -> None:
        """Reverse `follow`; unknown turns and tokens are fine. `unseen`: the turn does not run."""
        early = self._early.get(turn_id)
        if early is not None and token in early.followers:
            early.followers.remove(token)
        self._turns.unfollow(turn_id, token, is_running=not unseen)

    def follow_thread(self, thread_id: str, token: Token) -> None:
        """`token` gets what the thread sends outside of followed turns."""
        self._check()
        followers = self._threads.setdefault(thread_id, [])
        if token not in followers:
            followers.append(token)

    def unfollow_thread(self, thread_id: str, token: Token) -> None:
        """The opposite of `follow_thread`; unknown threads and tokens are fine."""
        followers = self._threads.get(thread_id, [])
        if token in followers:
            followers.remove(token)
        if not followers:
            self._threads.pop(thread_id, None)

    def running_turn(self, thread_id: str) -> tuple[bool, str | None]:
        """True if the thread runs a turn, and its id, once its start is answered.

        Known are turns that were started here, and those of which a turn/started came: compaction, goals and
        other clients begin them too.
        """
        turn_id = self._turns.running(thread_id)
        return turn_id is not None or self._early.is_starting(thread_id), turn_id

    def has_ended(self, turn_id: str) -> bool:
        """True for a turn that is known to have ended."""
        return self._turns.has_ended(turn_id)

    def thread_of(self, turn_id: str) -> str | None:
        """The thread of a turn that is followed; None for any other."""
        turn = self._turns.followed.get(turn_id)
        return turn.thread_id if turn is not None else None

    def turn_followers(self, turn_id: str) -> list[Token]:
        return self._turns.followers(turn_id)

    def thread_followers(self, thread_id: str) -> list[Token]:
        return list(self._threads.get(thread_id, ()))

    @property
    def in_flight(self) -> int:
        """Requests sent and not answered, given-up ones included."""
        return len(self._requests) + len(self._forgotten)

    @property
    def held(self) -> dict[str, int]:
        """The numbers of things kept, by kind; all return to zero when nothing runs (leak checks)."""
        return {
            "requests": len(self._requests),
            "turns": len(self._turns.followed),
            "early": len(self._early),
            "starting": self._early.starts,
        }

    def fail(self, error: Exception) -> list[Token]:
        """Return all waiting tokens, each once, to be failed with `error`; every later call raises it."""
        if self._error is not None:
            return []
        self._error = error
        tokens: dict[Token, None] = {}
        for request in self._requests.values():
            tokens[request.token] = None
            if request.turn is not None:
                tokens[request.turn] = None
        tokens.update(dict.fromkeys([*self._turns.remove_all(), *self._early.remove_all()]))
        for followers in self._threads.values():
            tokens.update(dict.fromkeys(followers))
        for table in (self._requests, self._forgotten, self._threads):
            table.clear()
        self._pending.clear()
        return list(tokens)

    def _check(self) -> None:
        if self._error is not None:
            # Raised again and again, one exception would gather the traces of all its raises.
            raise self._error.with_traceback(None)

    def _end_start(self, thread_id: str | None, out: list[Delivery]) -> None:
        """Note one start less in flight; what no other start can claim any more goes where it would have gone."""
        for turn_id, early in self._early.end_start(thread_id):
            if early.ended:
                self._turns.end(turn_id, early.thread_id)
            elif early.followers:
                self._turns.add_followed(turn_id, early.thread_id, early.followers)
            else:
                self._turns.add_unfollowed(turn_id, early.thread_id)
            self._turns.note_running(turn_id, early.thread_id, early.lines)
            lines, methods = early.undelivered
            if lines:
                out.append(self._unclaimed(early.thread_id, lines, methods))

    def _unclaimed(self, thread_id: str | None, lines: list[bytes], methods: list[str]) -> ThreadRun | GlobalRun:
        followers = self._threads.get(thread_id) if thread_id is not None else None
        if thread_id is None or not followers:
            return GlobalRun(lines, methods)
        return ThreadRun(list(followers), thread_id, lines, methods)

    def _take_pending(self) -> list[Delivery]:
        out, self._pending = self._pending, []
        return out
