"""Subscriptions: what each session has not acknowledged yet of each turn, and what waits for its credit. Pure.

A subscription is (turn, session). What is published to it becomes *pieces*, one for each read of the app-server, each
of which covers the numbers (after, last]. A piece waits, is sent once there is credit, and is kept until the session
has acknowledged its last number. A session that comes back gets again what it has not got. Rules:
 - Pieces go out in order, and cover each number once: by a line or by a run of class `dropped`.
 - Credit: `window` bytes of a subscription and `session_window` of a session are on the way unacknowledged; one piece
   always is let through.
 - Beyond `waiting` bytes that wait, droppable runs give way to runs of class `dropped`; kept lines do not. Beyond
   `overflow` the subscription ends, with an end of its own; its turn and its other subscribers know nothing of it.
 - All subscriptions together keep no more than `total`: beyond it the one that keeps most ends the same way.
Bytes are shared between the sessions of one interest, and counted for each.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from codex_pool import rpc, wire
from codex_pool.worker.turns import NO_COUNTS, Turn, split_runs

MIB = 1024 * 1024

# What a piece costs beside its frames.
PIECE_BYTES = 512

KEEP_ENDED_S = 60.0
MAX_ENDED = 4096


class Limits(NamedTuple):
    """Bounds in bytes; see the module's docstring."""

    window: int = 4 * MIB
    session_window: int = 16 * MIB
    waiting: int = 8 * MIB
    overflow: int = 64 * MIB
    total: int = 256 * MIB


LIMITS = Limits()


@dataclass(slots=True, frozen=True, eq=False)
class _Piece:
    """An Events message. `frames` are its head and bodies."""

    after: int
    last: int
    runs: list[wire.Run]
    frames: list[bytes]
    ended: bool
    size_bytes: int


@dataclass(slots=True, eq=False)
class Subscription:
    """One session's part in one turn. `covered` is the highest number that was published to it, `start` the one that
    it joined after."""

    turn: Turn
    session: _Session
    interest: wire.Interest
    start: int
    covered: int
    sent: deque[_Piece] = field(default_factory=deque)
    waiting: deque[_Piece] = field(default_factory=deque)
    sent_bytes: int = 0
    waiting_bytes: int = 0
    # Nothing is published to it any more: the turn is over, or it is for this session.
    ended: bool = False
    overflowed: bool = False
    # Its end was sent and is not kept any more, for want of room.
    given_up: bool = False

    @property
    def kept_bytes(self) -> int:
        return self.sent_bytes + self.waiting_bytes


@dataclass(slots=True, eq=False)
class _Session:
    """`full` says that a piece could not be sent for want of the session's credit, and not of its subscription's."""

    id: wire.SessionId
    route: bytes
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    sent_bytes: int = 0
    full: bool = False


def _route(sessions: list[wire.SessionId]) -> bytes:
    return wire.encode(wire.ToSessions(sessions))


class Subscriptions:
    """See the module's docstring. `worker` is the name that clients acknowledge to."""

    def __init__(self, worker: str, limits: Limits = LIMITS) -> None:
        self._worker = worker
        self._limits = limits
        self._sessions: dict[wire.SessionId, _Session] = {}
        # Subscriptions that have ended and are not acknowledged, and when they last moved; the oldest come first.
        self._ended: OrderedDict[Subscription, float] = OrderedDict()
        self._kept_bytes = 0

    @property
    def ended_turns(self) -> list[str]:
        """The turns that are over, but kept for sessions that may come back."""
        return [*dict.fromkeys(subscription.turn.id for subscription in self._ended)]

    @property
    def waits(self) -> bool:
        """Whether anything is kept that the time may end."""
        return bool(self._ended)

    @property
    def held(self) -> dict[str, int]:
        """What is kept (leak checks)."""
        return {
            "subscriptions": sum(len(session.subscriptions) for session in self._sessions.values()),
            "kept_bytes": self._kept_bytes,
        }

    def join(self, turn: Turn, session_id: wire.SessionId, interest: wire.Interest) -> None:
        """From now on this session gets the turn's notifications; it may have joined before."""
        if session_id in turn.subscribers:
            return
        session = self._sessions.setdefault(session_id, _Session(session_id, _route([session_id])))
        before = session.subscriptions.get(turn.id)
        if before is not None:
            # It overflowed, and begins anew.
            self._clear(before)
            del self._ended[before]
        subscription = Subscription(turn, session, interest, turn.last, turn.last)
        session.subscriptions[turn.id] = turn.subscribers[session_id] = subscription

    def publish(
        self,
        turn: Turn,
        lines: list[bytes],
        methods: list[str],
        *,
        now: float,
        ended: str | None = None,
        counts: Mapping[int, int] = NO_COUNTS,
    ) -> list[list[bytes]]:
        """Number a run of the turn's notifications; the messages that may go out at once.

        `ended` is the turn's status if these are its last ones: then one message tells the broker so. `counts` says
        where more than one line stands in a place of `lines`, and how many.
        """
        turn.last += len(lines) + sum(counts.values()) - len(counts)
        alike: dict[tuple[wire.Interest, int], list[Subscription]] = {}
        for subscription in turn.subscribers.values():
            alike.setdefault((subscription.interest, subscription.covered), []).append(subscription)
        messages: list[list[bytes]] = []
        is_over = ended is not None
        last: list[wire.SessionId] = []
        for (interest, after), subscriptions in alike.items():
            runs, bodies = split_runs(lines, methods, interest, counts)
            if not runs and not is_over:
                continue
            piece = self._piece(turn, after, turn.last, runs, bodies, is_over)
            at_once: list[wire.SessionId] = []
            for subscription in subscriptions:
                subscription.covered = turn.last
                if is_over:
                    self._end(subscription, now)
                if not subscription.waiting and self._has_credit(subscription, piece):
                    self._sent(subscription, piece)
                    at_once.append(subscription.session.id)
                else:
                    self._wait(subscription, piece, now)
            if at_once:
                route = subscriptions[0].session.route if len(subscriptions) == 1 else _route(at_once)
                messages.append([route, *piece.frames])
                last = at_once
        if ended is not None:
            frames = messages.pop()[1:] if messages else []
            messages.append([wire.encode(wire.TurnEnded(turn.thread_id, turn.id, ended, last)), *frames])
        while self._kept_bytes > self._limits.total and self._overflow_largest(now, messages):
            pass
        return messages

    def acked(self, session_id: wire.SessionId, positions: Iterable[wire.Position], now: float) -> list[list[bytes]]:
        """The session has got so much of these turns; what may go out now."""
        session = self._sessions.get(session_id)
        if session is None:
            return []
        moved: dict[Subscription, None] = {}
        for position in positions:
            subscription = session.subscriptions.get(position.turn_id)
            if subscription is None:
                continue
            while subscription.sent and subscription.sent[0].last <= position.last:
                self._forget_sent(subscription, subscription.sent.popleft())
            moved[subscription] = None
            if subscription.ended and not (subscription.given_up and position.last < subscription.covered):
                self._touch(subscription, now)
        return self._send_waiting(session, session.subscriptions.values() if session.full else moved, now)

    def back(self, session_id: wire.SessionId, positions: Iterable[wire.Position], now: float) -> list[list[bytes]]:
        """The session has come back: nothing is on the way to it any more, and it is sent what it has not got."""
        session = self._sessions.get(session_id)
        if session is None:
            return []
        got = {position.turn_id: position.last for position in positions}
        for turn_id, subscription in list(session.subscriptions.items()):
            while subscription.sent:
                piece = subscription.sent.pop()
                self._forget_sent(subscription, piece)
                self._put(subscription, piece, first=True)
            last = max(got.get(turn_id, 0), subscription.start)
            waiting = subscription.waiting
            while waiting and waiting[0].last <= last:
                self._forget_waiting(subscription, waiting.popleft())
            kept_after = waiting[0].after if waiting else subscription.covered
            if subscription.given_up and last < subscription.covered:
                subscription.given_up = False
                self._overflow(subscription, "and what it has not got is not kept any more", now, after=last)
            elif last < kept_after and not (subscription.ended and not waiting):
                runs = [wire.Run(kept_after - last, "dropped")]
                self._put(
                    subscription, self._piece(subscription.turn, last, kept_after, runs, [b""], False), first=True
                )
            if subscription.ended:
                self._touch(subscription, now)
        return self._send_waiting(session, session.subscriptions.values(), now)

    def forget(self, session_id: wire.SessionId) -> list[Turn]:
        """The session is over; the turns that it was a subscriber of until now."""
        session = self._sessions.pop(session_id, None)
        turns: list[Turn] = []
        for subscription in session.subscriptions.values() if session is not None else ():
            self._kept_bytes -= subscription.kept_bytes
            self._ended.pop(subscription, None)
            if subscription.turn.subscribers.pop(session_id, None) is not None:
                turns.append(subscription.turn)
        return turns

    def expire(self, now: float) -> list[list[bytes]]:
        """Forget what ended and nobody came for; what may go out instead."""
        messages: list[list[bytes]] = []
        while self._ended:
            subscription, moved_at = next(iter(self._ended.items()))
            if now - moved_at < KEEP_ENDED_S and len(self._ended) <= MAX_ENDED:
                break
            self._clear(subscription)
            self._touch(subscription, now)
            session = subscription.session
            messages += self._send_waiting(session, session.subscriptions.values(), now)
        return messages

    # Inside.

    def _piece(
        self, turn: Turn, after: int, last: int, runs: list[wire.Run], bodies: list[bytes], ended: bool
    ) -> _Piece:
        head = wire.encode(wire.Events(turn.thread_id, turn.id, after, last, runs, ended, self._worker))
        frames = [head, *bodies]
        return _Piece(after, last, runs, frames, ended, PIECE_BYTES + sum(map(len, frames)))

    def _has_credit(self, subscription: Subscription, piece: _Piece) -> bool:
        session, limits = subscription.session, self._limits
        if session.sent_bytes and session.sent_bytes + piece.size_bytes > limits.session_window:
            session.full = True
            return False
        return not subscription.sent_bytes or subscription.sent_bytes + piece.size_bytes <= limits.window

    def _send_waiting(self, session: _Session, candidates: Iterable[Subscription], now: float) -> list[list[bytes]]:
        """As far as there is credit, a piece of each in turn."""
        messages: list[list[bytes]] = []
        session.full = False
        rest = deque(subscription for subscription in candidates if subscription.waiting)
        while rest:
            subscription = rest.popleft()
            piece = subscription.waiting[0]
            if not self._has_credit(subscription, piece):
                if session.full:
                    break
                continue
            self._forget_waiting(subscription, subscription.waiting.popleft())
            self._sent(subscription, piece)
            # Next time the others come first.
            session.subscriptions[subscription.turn.id] = session.subscriptions.pop(subscription.turn.id)
            if subscription.ended:
                self._touch(subscription, now)
            messages.append([session.route, *piece.frames])
            if subscription.waiting:
                rest.append(subscription)
        return messages

    def _wait(self, subscription: Subscription, piece: _Piece, now: float) -> None:
        if subscription.waiting_bytes > self._limits.waiting:
            piece = self._without_droppable(subscription.turn, piece)
            before = subscription.waiting[-1]
            if [run.cls for run in piece.runs] == ["dropped"] and before.runs[-1].cls == "dropped" and not piece.ended:
                self._forget_waiting(subscription, subscription.waiting.pop())
                runs = [*before.runs[:-1], wire.Run(before.runs[-1].count + piece.runs[0].count, "dropped")]
                piece = self._piece(subscription.turn, before.after, piece.last, runs, before.frames[1:], False)
        self._put(subscription, piece)
        if subscription.waiting_bytes > self._limits.overflow:
            self._overflow(subscription, f"{subscription.waiting_bytes} bytes of it wait for this client", now)

    def _without_droppable(self, turn: Turn, piece: _Piece) -> _Piece:
        if all(run.cls == "kept" for run in piece.runs):
            return piece
        runs = [wire.Run(run.count, "dropped" if run.cls == "droppable" else run.cls) for run in piece.runs]
        bodies = [b"" if run.cls == "dropped" else body for run, body in zip(runs, piece.frames[1:], strict=True)]
        return self._piece(turn, piece.after, piece.last, runs, bodies, piece.ended)

    def _overflow_largest(self, now: float, messages: list[list[bytes]]) -> bool:
        """What is on the way is given up too: only so does it make room. Whether there was anything to give up."""
        everything = (each for session in self._sessions.values() for each in session.subscriptions.values())
        largest = max(
            (each for each in everything if not each.overflowed), key=lambda each: each.kept_bytes, default=None
        )
        if largest is None or not largest.kept_bytes:
            return False
        end_is_sent = largest.ended and not largest.waiting
        while largest.sent:
            self._forget_sent(largest, largest.sent.popleft())
        if end_is_sent:
            largest.overflowed = largest.given_up = True
        else:
            self._overflow(largest, f"all that is kept for clients is beyond {self._limits.total} bytes", now)
        messages += self._send_waiting(largest.session, largest.session.subscriptions.values(), now)
        return True

    def _overflow(self, subscription: Subscription, why: str, now: float, *, after: int | None = None) -> None:
        """End this subscription: instead of all that waits it gets an end of its own."""
        turn, waiting = subscription.turn, subscription.waiting
        if after is None:
            after = waiting[0].after if waiting else subscription.covered
        count = sum(run.count for piece in waiting for run in piece.runs) or subscription.covered - after
        while waiting:
            self._forget_waiting(subscription, waiting.popleft())
        message = f"this client no longer follows turn {turn.id}: it reads too slowly: {why}"
        lines = rpc.ended_lines(turn.thread_id, turn.id, "overflow", message, safe_to_retry=False)
        dropped = [(wire.Run(count, "dropped"), b"")] if count else []
        runs, bodies = zip(*dropped, (wire.Run(len(lines), "kept"), b"\n".join(lines)), strict=True)
        subscription.covered += len(lines)
        subscription.overflowed = True
        self._end(subscription, now)
        self._put(subscription, self._piece(turn, after, subscription.covered, [*runs], [*bodies], True))

    def _end(self, subscription: Subscription, now: float) -> None:
        subscription.ended = True
        self._ended[subscription] = now
        subscription.turn.subscribers.pop(subscription.session.id, None)

    def _touch(self, subscription: Subscription, now: float) -> None:
        """A subscription that has ended has moved; with all of it acknowledged it costs nothing any more."""
        if subscription.sent or subscription.waiting:
            self._ended[subscription] = now
            self._ended.move_to_end(subscription)
            return
        self._ended.pop(subscription, None)
        session = subscription.session
        session.subscriptions.pop(subscription.turn.id, None)
        if not session.subscriptions:
            self._sessions.pop(session.id, None)

    def _sent(self, subscription: Subscription, piece: _Piece) -> None:
        subscription.sent.append(piece)
        for each in (subscription, subscription.session):
            each.sent_bytes += piece.size_bytes
        self._kept_bytes += piece.size_bytes

    def _put(self, subscription: Subscription, piece: _Piece, *, first: bool = False) -> None:
        if first:
            subscription.waiting.appendleft(piece)
        else:
            subscription.waiting.append(piece)
        subscription.waiting_bytes += piece.size_bytes
        self._kept_bytes += piece.size_bytes

    def _forget_sent(self, subscription: Subscription, piece: _Piece) -> None:
        for each in (subscription, subscription.session):
            each.sent_bytes -= piece.size_bytes
        self._kept_bytes -= piece.size_bytes

    def _forget_waiting(self, subscription: Subscription, piece: _Piece) -> None:
        subscription.waiting_bytes -= piece.size_bytes
        self._kept_bytes -= piece.size_bytes

    def _clear(self, subscription: Subscription) -> None:
        while subscription.sent:
            self._forget_sent(subscription, subscription.sent.popleft())
        while subscription.waiting:
            self._forget_waiting(subscription, subscription.waiting.popleft())
