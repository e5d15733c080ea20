"""Notifications about the queue, for a turn or a thread that has to wait. Pure.

A client that knows the queue gets `pool/queued`: how many turns that wait with the same worker are to begin before its
own (`ahead`), how many wait there in all (`waiting`), and `paused` while no turn begins. It gets that again when the
place has changed, once a beat at most, and `pool/dequeued` once the request is sent. One that does not know the queue
(`Hello.knows_queue`) gets a `warning` of codex's own, which it displays, once a turn has waited for WARN_AFTER_S, and
again when its place has changed, once in WARN_AGAIN_S at most; that it waits no longer shows when it begins.

A limited key gets its place among its own turns: how many others wait tells what others do.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from ..protocol import jsonrpc
from .request import Request
from .request_queues import TurnQueue
from .state import BrokerState

# Shorter waits, such as for a thread that moves to another worker, are not worth a line on a screen.
WARN_AFTER_S = 1.0
WARN_AGAIN_S = 30.0
# In a longer queue places are not followed: those far behind change with every turn that begins.
MAX_FOLLOWED = 1000
# In a longer one a turn that comes counts as the last, until the next beat.
MAX_AT_ONCE = 100

_REASONS = {
    "turn": "the pool runs as many turns as it may",
    "worker": "no worker of the pool takes turns yet",
    "worker's end": "its thread moves to another worker",
    "thread move": "its thread moves to another worker",
    "thread capacity": "the pool has loaded as many threads as it may",
}


class Place(NamedTuple):
    """Turns that are to begin before one, and how many wait in all, it among them; both 0 if it waits for no turn."""

    ahead: int = 0
    waiting: int = 0


class QueueNotices:
    """See the module's docstring."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state
        # Requests of clients that do not know the queue, in the order in which they began to wait, and since when.
        self._unwarned: dict[Request, float] = {}
        # The places that were sent last, and when; of requests that wait.
        self._places: dict[Request, tuple[Place, float]] = {}

    def queued(self, request: Request, *, loads: bool = False) -> None:
        """Notify its session if the request waits, and starts a turn or `loads` a thread."""
        if (request.starts_turn or loads) and not request.queued_sent and request.state == "held":
            request.queued_sent = True
            if self._is_known_to(request):
                self._send_queued(request)
            elif request.starts_turn and not request.on_side:
                self._unwarned[request] = self._state.now

    def queued_again(self, request: Request) -> None:
        """Notify a session that has come back, and does not know whether it was notified."""
        if request.queued_sent and self._is_known_to(request):
            self._send_queued(request)

    def dequeued(self, request: Request) -> None:
        """Notify its session that the request waits no longer."""
        if request.queued_sent:
            request.queued_sent = False
            self._unwarned.pop(request, None)
            self._places.pop(request, None)
            if self._is_known_to(request):
                self._send(request, "pool/dequeued", _names_of(request))

    def tick(self) -> None:
        """Warn of the turns that have waited for long enough, and send places that have changed."""
        self._warn()
        self._follow()

    def _warn(self) -> None:
        while self._unwarned:
            request, since = next(iter(self._unwarned.items()))
            if request.state == "held" and self._state.now - since < WARN_AFTER_S:
                return
            del self._unwarned[request]
            if request.state == "held":
                self._send_warning(request, self._place_of(request))

    def _follow(self) -> None:
        """Send the places that have changed; the order of each queue is found once."""
        followed: dict[TurnQueue, list[Request]] = {}
        for request in list(self._places):
            if request.state != "held":
                del self._places[request]
            elif isinstance(queue := request.queue, TurnQueue) and len(queue) <= MAX_FOLLOWED:
                followed.setdefault(queue, []).append(request)
        for queue, requests in followed.items():
            places = self._places_in(queue)
            for request in requests:
                before, at = self._places[request]
                place = places[request]
                is_known = self._is_known_to(request)
                if place.ahead == before.ahead or (not is_known and self._state.now - at < WARN_AGAIN_S):
                    continue
                if is_known:
                    self._send_queued(request, place)
                else:
                    self._send_warning(request, place)

    def _is_known_to(self, request: Request) -> bool:
        session = self._state.session(request)
        return session is None or session.knows_queue

    def _send_queued(self, request: Request, place: Place | None = None) -> None:
        place = self._place_of(request) if place is None else place
        self._note(request, place)
        paused = {"paused": True} if self._state.mode.holds_turns else {}
        waiting = {"waiting": place.waiting} if place.waiting else {}
        self._send(request, "pool/queued", {**_names_of(request), "ahead": place.ahead, **waiting, **paused})

    def _send_warning(self, request: Request, place: Place) -> None:
        self._note(request, place)
        message = self._message_of(request, place)
        self._send(request, "warning", {"threadId": request.thread_id, "message": message})

    def _note(self, request: Request, place: Place) -> None:
        if place.waiting:
            self._places[request] = place, self._state.now

    def _message_of(self, request: Request, place: Place) -> str:
        thread = self._state.threads.get(request.thread_id or "")
        reason = request.queue.reason if request.queue is not None else ""
        if self._state.mode.holds_turns:
            return "This turn waits, because the pool is paused. It begins by itself once the pool is resumed."
        if reason == "turn" and thread is not None and thread.busy:
            why = "another turn of its thread runs"
        elif reason == "turn" and not self._state.limits.may_run(request.principal):
            why = "its key runs as many turns as it may"
        else:
            why = _REASONS.get(reason, f"it waits for a {reason}")
        ahead = place.ahead
        others = f", and {ahead} {'other waits' if ahead == 1 else 'others wait'} before it" if ahead else ""
        return f"This turn waits, because {why}{others}. It begins by itself."

    def _place_of(self, request: Request) -> Place:
        queue = request.queue
        if not isinstance(queue, TurnQueue):
            return Place()
        if len(queue) > MAX_AT_ONCE and not self._state.is_limited(request.principal):
            return Place(len(queue) - 1, len(queue))
        return self._places_in(queue)[request]

    def _places_in(self, queue: TurnQueue) -> dict[Request, Place]:
        """The places of all turns of a queue, in the order in which they are to begin; those of a limited key among
        its own."""
        group = {each: each.principal if self._state.is_limited(each.principal) else None for each in queue}
        order = list(queue.in_order())
        total, ahead = len(order), Counter(group.values())
        waiting = dict(ahead)
        ahead.clear()
        found = {}
        for number, request in enumerate(order):
            own = group[request]
            found[request] = Place(number, total) if own is None else Place(ahead[own], waiting[own])
            ahead[own] += 1
        return found

    def _send(self, request: Request, method: str, params: dict[str, object]) -> None:
        if request.session is not None:
            self._state.send_line(request.session, jsonrpc.encode({"method": method, "params": params}))


def _names_of(request: Request) -> dict[str, object]:
    return {"requestId": request.request_id, "threadId": request.thread_id}
