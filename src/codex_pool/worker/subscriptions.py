"""Subscriptions: the unacknowledged messages of each session and turn, and those that wait for credit. Pure.

A subscription is (turn, session). What is published to it becomes *messages*, one for each read of the app-server, each
of which covers the numbers (after, last]. A message waits, is sent once there is credit, and is kept until the session
has acknowledged its last number. A session that comes back gets again what it has not got. Rules:
 - Pieces go out in order, and cover each number once: by a line or by a run of class `dropped`.
 - Credit: `window` bytes of a subscription and `session_window` of a session are on the way unacknowledged; one message
   always is let through.
 - Beyond `waiting` bytes that wait, droppable runs give way to runs of class `dropped`; kept lines do not. Beyond
   `overflow` the subscription ends, with an end of its own; its turn and its other subscribers know nothing of it.
 - All subscriptions together keep no more than `total`: beyond it the one that keeps most ends the same way.
Bytes are shared between the sessions of one interest, and counted for each.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable

from ..protocol import turn_ends, wire
from .subscription import LIMITS, MESSAGE_OVERHEAD_BYTES, Limits, Message, Session, Subscription
from .turn_stream import Turn, split_runs

KEEP_ENDED_S = 60.0
MAX_ENDED = 4096


def _alike(subscriptions: list[Subscription], only: Collection[wire.SessionId] | None) -> Iterable[list[Subscription]]:
    """The subscriptions, of these sessions only, by the messages that they get; alike ones share theirs."""
    if len(subscriptions) == 1 and only is None:
        return (subscriptions,)
    alike: dict[tuple[wire.Interest, int, int], list[Subscription]] = {}
    for each in subscriptions:
        if only is None or each.session.id in only:
            alike.setdefault((each.interest, each.covered, each.start), []).append(each)
    return alike.values()


def _route(sessions: list[wire.SessionId]) -> bytes:
    return wire.encode(wire.ToSessions(sessions))


class Subscriptions:
    """See the module's docstring. `worker` is the name that clients acknowledge to."""

    def __init__(self, worker: str, limits: Limits = LIMITS) -> None:
        self._worker = worker
        self._limits = limits
        self._sessions: dict[wire.SessionId, Session] = {}
        # Subscriptions that have ended and are not acknowledged, and when they last moved; the oldest come first.
        self._ended: OrderedDict[Subscription, float] = OrderedDict()
        self._kept_bytes = 0
        # Notifications that were left out, of each session for itself.
        self.dropped = 0

    @property
    def ended_turns(self) -> list[str]:
        """The turns that are over, but kept for sessions that may come back."""
        return [*dict.fromkeys(subscription.turn.id for subscription in self._ended)]

    @property
    def waits(self) -> bool:
        """Return True if subscriptions have ended that may expire."""
        return bool(self._ended)

    @property
    def held(self) -> dict[str, int]:
        """Numbers of subscriptions and bytes held (leak checks)."""
        return {
            "subscriptions": sum(len(session.subscriptions) for session in self._sessions.values()),
            "kept_bytes": self._kept_bytes,
        }

    def join(self, turn: Turn, session_id: wire.SessionId, interest: wire.Interest) -> None:
        """Subscribe a session to a turn; it may be subscribed already."""
        if session_id in turn.subscribers:
            return
        session = self._sessions.setdefault(session_id, Session(session_id, _route([session_id])))
        before = session.subscriptions.get(turn.id)
        if before is not None:
            # It overflowed, and begins again.
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
        only: Collection[wire.SessionId] | None = None,
    ) -> list[list[bytes]]:
        """Number a run of the turn's notifications; the messages that may go out at once.

        `ended` is the turn's status if these are its last ones: then one message tells the broker so. `only`: the
        sessions that get them; the next message of the others covers their numbers.
        """
        turn.last += len(lines)
        messages: list[list[bytes]] = []
        is_over = ended is not None
        last: list[wire.SessionId] = []
        for subscriptions in _alike([*turn.subscribers.values()], only):
            first = subscriptions[0]
            runs, bodies = split_runs(lines, methods, first.interest)
            if not runs and not is_over:
                continue
            message = self._message(turn, first.covered, turn.last, runs, bodies, is_over, first.start)
            at_once: list[wire.SessionId] = []
            for subscription in subscriptions:
                subscription.covered = turn.last
                if is_over:
                    self._end(subscription, now)
                if not subscription.waiting and self._has_credit(subscription, message):
                    self._sent(subscription, message)
                    at_once.append(subscription.session.id)
                else:
                    self._wait(subscription, message, now)
            if at_once:
                route = subscriptions[0].session.route if len(subscriptions) == 1 else _route(at_once)
                messages.append([route, *message.frames])
                last = at_once
        if ended is not None:
            frames = messages.pop()[1:] if messages else []
            messages += self._end_messages(turn, ended, last, frames)
        while self._kept_bytes > self._limits.total and self._overflow_largest(now, messages):
            pass
        return messages

    def acked(self, session_id: wire.SessionId, positions: Iterable[wire.Position], now: float) -> list[list[bytes]]:
        """Handle an acknowledgement; the messages that may be sent now."""
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
        """Handle a reconnect: messages on the way are lost, and what was not received is sent again."""
        session = self._sessions.get(session_id)
        if session is None:
            return []
        got = {position.turn_id: position.last for position in positions}
        for turn_id, subscription in list(session.subscriptions.items()):
            while subscription.sent:
                message = subscription.sent.pop()
                self._forget_sent(subscription, message)
                self._put(subscription, message, first=True)
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
                self.dropped += kept_after - last
                gap = self._message(subscription.turn, last, kept_after, runs, [b""], False, subscription.start)
                self._put(subscription, gap, first=True)
            if subscription.ended:
                self._touch(subscription, now)
        return self._send_waiting(session, session.subscriptions.values(), now)

    def leave(self, turn: Turn, session_id: wire.SessionId) -> None:
        """Remove a session from the subscribers of a running turn, with what is kept for it."""
        subscription = turn.subscribers.pop(session_id)
        self._clear(subscription)
        session = subscription.session
        del session.subscriptions[turn.id]
        if not session.subscriptions:
            del self._sessions[session_id]

    def forget(self, session_id: wire.SessionId) -> list[Turn]:
        """Remove a session that is over; the turns that it was subscribed to."""
        session = self._sessions.pop(session_id, None)
        turns: list[Turn] = []
        for subscription in session.subscriptions.values() if session is not None else ():
            self._kept_bytes -= subscription.kept_bytes
            self._ended.pop(subscription, None)
            if subscription.turn.subscribers.pop(session_id, None) is not None:
                turns.append(subscription.turn)
        return turns

    def expire(self, now: float) -> list[list[bytes]]:
        """Remove ended subscriptions whose session has not reconnected; the messages that may be sent instead."""
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

    # Ends.

    def _end_messages(
        self, turn: Turn, status: str, sessions: list[wire.SessionId], frames: list[bytes]
    ) -> list[list[bytes]]:
        """The message that reports the end of a turn; `frames` are its last ones, for these sessions."""
        head = wire.TurnEnded(turn.thread_id, turn.id, status, sessions, turn.tokens, turn.counts)
        return [[wire.encode(head), *frames]]

    def _overflow_lines(self, turn: Turn, why: str) -> list[bytes]:
        """The end of a turn for a subscriber that does not read it."""
        message = f"this client no longer follows turn {turn.id}: it reads too slowly: {why}"
        return turn_ends.ended_lines(turn.thread_id, turn.id, "overflow", message, safe_to_retry=False)

    # Inside.

    def _message(
        self, turn: Turn, after: int, last: int, runs: list[wire.Run], bodies: list[bytes], ended: bool, start: int
    ) -> Message:
        head = wire.encode(wire.Events(turn.thread_id, turn.id, after, last, runs, ended, self._worker, start))
        frames = [head, *bodies]
        return Message(after, last, runs, frames, ended, MESSAGE_OVERHEAD_BYTES + sum(map(len, frames)))

    def _has_credit(self, subscription: Subscription, message: Message) -> bool:
        session, limits = subscription.session, self._limits
        if session.sent_bytes and session.sent_bytes + message.size_bytes > limits.session_window:
            session.full = True
            return False
        return not subscription.sent_bytes or subscription.sent_bytes + message.size_bytes <= limits.window

    def _send_waiting(self, session: Session, candidates: Iterable[Subscription], now: float) -> list[list[bytes]]:
        """The messages that there is credit for, one of each subscription in turn."""
        messages: list[list[bytes]] = []
        session.full = False
        rest = deque(subscription for subscription in candidates if subscription.waiting)
        while rest:
            subscription = rest.popleft()
            message = subscription.waiting[0]
            if not self._has_credit(subscription, message):
                if session.full:
                    break
                continue
            self._forget_waiting(subscription, subscription.waiting.popleft())
            self._sent(subscription, message)
            # Next time the others come first.
            session.subscriptions[subscription.turn.id] = session.subscriptions.pop(subscription.turn.id)
            if subscription.ended:
                self._touch(subscription, now)
            messages.append([session.route, *message.frames])
            if subscription.waiting:
                rest.append(subscription)
        return messages

    def _wait(self, subscription: Subscription, message: Message, now: float) -> None:
        if subscription.waiting_bytes > self._limits.waiting:
            message = self._without_droppable(subscription, message)
            before = subscription.waiting[-1]
            if (
                [run.cls for run in message.runs] == ["dropped"]
                and before.runs[-1].cls == "dropped"
                and not message.ended
            ):
                self._forget_waiting(subscription, subscription.waiting.pop())
                runs = [*before.runs[:-1], wire.Run(before.runs[-1].count + message.runs[0].count, "dropped")]
                message = self._message(
                    subscription.turn, before.after, message.last, runs, before.frames[1:], False, subscription.start
                )
        self._put(subscription, message)
        if subscription.waiting_bytes > self._limits.overflow:
            self._overflow(subscription, f"{subscription.waiting_bytes} bytes of it wait for this client", now)

    def _without_droppable(self, subscription: Subscription, message: Message) -> Message:
        if all(run.cls == "kept" for run in message.runs):
            return message
        self.dropped += sum(run.count for run in message.runs if run.cls == "droppable")
        runs = [wire.Run(run.count, "dropped" if run.cls == "droppable" else run.cls) for run in message.runs]
        bodies = [b"" if run.cls == "dropped" else body for run, body in zip(runs, message.frames[1:], strict=True)]
        return self._message(
            subscription.turn, message.after, message.last, runs, bodies, message.ended, subscription.start
        )

    def _overflow_largest(self, now: float, messages: list[list[bytes]]) -> bool:
        """End the largest subscription, with what is on the way, to make room. Return True if there was one."""
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
        """End this subscription: an end of its own replaces all that waits."""
        turn, waiting = subscription.turn, subscription.waiting
        if after is None:
            after = waiting[0].after if waiting else subscription.covered
        count = sum(run.count for message in waiting for run in message.runs) or subscription.covered - after
        already = sum(run.count for message in waiting for run in message.runs if run.cls == "dropped")
        while waiting:
            self._forget_waiting(subscription, waiting.popleft())
        lines = self._overflow_lines(turn, why)
        self.dropped += count - already
        dropped = [(wire.Run(count, "dropped"), b"")] if count else []
        runs, bodies = zip(*dropped, (wire.Run(len(lines), "kept"), b"\n".join(lines)), strict=True)
        subscription.covered += len(lines)
        subscription.overflowed = True
        self._end(subscription, now)
        end = self._message(turn, after, subscription.covered, [*runs], [*bodies], True, subscription.start)
        self._put(subscription, end)

    def _end(self, subscription: Subscription, now: float) -> None:
        subscription.ended = True
        self._ended[subscription] = now
        subscription.turn.subscribers.pop(subscription.session.id, None)

    def _touch(self, subscription: Subscription, now: float) -> None:
        """Note that an ended subscription has moved, and remove it once all of it is acknowledged."""
        if subscription.sent or subscription.waiting:
            self._ended[subscription] = now
            self._ended.move_to_end(subscription)
            return
        self._ended.pop(subscription, None)
        session = subscription.session
        session.subscriptions.pop(subscription.turn.id, None)
        if not session.subscriptions:
            self._sessions.pop(session.id, None)

    def _sent(self, subscription: Subscription, message: Message) -> None:
        size = message.size_bytes
        subscription.sent.append(message)
        subscription.sent_bytes += size
        subscription.session.sent_bytes += size
        self._kept_bytes += size

    def _put(self, subscription: Subscription, message: Message, *, first: bool = False) -> None:
        if first:
            subscription.waiting.appendleft(message)
        else:
            subscription.waiting.append(message)
        subscription.waiting_bytes += message.size_bytes
        self._kept_bytes += message.size_bytes

    def _forget_sent(self, subscription: Subscription, message: Message) -> None:
        size = message.size_bytes
        subscription.sent_bytes -= size
        subscription.session.sent_bytes -= size
        self._kept_bytes -= size

    def _forget_waiting(self, subscription: Subscription, message: Message) -> None:
        subscription.waiting_bytes -= message.size_bytes
        self._kept_bytes -= message.size_bytes

    def _clear(self, subscription: Subscription) -> None:
        while subscription.sent:
            self._forget_sent(subscription, subscription.sent.popleft())
        while subscription.waiting:
            self._forget_waiting(subscription, subscription.waiting.popleft())
