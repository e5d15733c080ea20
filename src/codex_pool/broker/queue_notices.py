"""Notifications about the queue, for a turn or a thread that has to wait. Pure.

A client that knows the queue gets `pool/queued`, with the number of turns that wait before it with the same worker
(`ahead`), and `paused` while no turn begins, and `pool/dequeued` once the request is sent. One that does not
(`Hello.knows_queue`) gets a `warning` of codex's own, which it displays, once a turn has waited for WARN_AFTER_S; that
it waits no longer shows when it begins.
"""

from __future__ import annotations

from ..protocol import jsonrpc
from .request import Request
from .request_queues import TurnQueue
from .state import BrokerState

# Shorter waits, such as for a thread that moves to another worker, are not worth a line on a screen.
WARN_AFTER_S = 1.0

_REASONS = {
    "turn": "the pool runs as many turns as it may",
    "worker": "no worker of the pool takes turns yet",
    "worker's end": "its thread moves to another worker",
    "thread move": "its thread moves to another worker",
    "thread capacity": "the pool has loaded as many threads as it may",
}


class QueueNotices:
    """See the module's docstring. Each request is announced once."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state
        # Requests of clients that do not know the queue, in the order in which they began to wait, and since when.
        self._unwarned: dict[Request, float] = {}

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
            if self._is_known_to(request):
                self._send(request, "pool/dequeued", _names_of(request))

    def tick(self) -> None:
        """Warn of the turns that have waited for long enough."""
        while self._unwarned:
            request, since = next(iter(self._unwarned.items()))
            if request.state == "held" and self._state.now - since < WARN_AFTER_S:
                return
            del self._unwarned[request]
            if request.state == "held":
                self._send(request, "warning", {"threadId": request.thread_id, "message": self._message_of(request)})

    def _is_known_to(self, request: Request) -> bool:
        session = self._state.session(request)
        return session is None or session.knows_queue

    def _send_queued(self, request: Request) -> None:
        paused = {"paused": True} if self._state.mode.holds_turns else {}
        self._send(request, "pool/queued", {**_names_of(request), "ahead": self._ahead_of(request), **paused})

    def _message_of(self, request: Request) -> str:
        thread = self._state.threads.get(request.thread_id or "")
        reason = request.queue.reason if request.queue is not None else ""
        if self._state.mode.holds_turns:
            return "This turn waits, because the pool is paused. It begins by itself once the pool is resumed."
        if reason == "turn" and thread is not None and thread.busy:
            why = "another turn of its thread runs"
        else:
            why = _REASONS.get(reason, f"it waits for a {reason}")
        ahead = self._ahead_of(request)
        others = f", and {ahead} {'other waits' if ahead == 1 else 'others wait'} before it" if ahead else ""
        return f"This turn waits, because {why}{others}. It begins by itself."

    def _ahead_of(self, request: Request) -> int:
        """Count the other turns that wait with the same worker; 0 if this one waits for something else.

        They are served before it, unless their clients have had more of late. A limited key learns of its own only.
        """
        queue = request.queue
        if not isinstance(queue, TurnQueue):
            return 0
        if self._state.is_limited(request.principal):
            return sum(each.principal == request.principal for each in queue) - 1
        return len(queue) - 1

    def _send(self, request: Request, method: str, params: dict[str, object]) -> None:
        if request.session is not None:
            self._state.send_line(request.session, jsonrpc.encode({"method": method, "params": params}))


def _names_of(request: Request) -> dict[str, object]:
    return {"requestId": request.request_id, "threadId": request.thread_id}
