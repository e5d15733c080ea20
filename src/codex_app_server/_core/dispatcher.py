"""Dispatcher: hands the router's deliveries to those that wait for them. Runs where they wait."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..errors import AppServerError, InternalRpcError, LineTooLongError, TransportClosedError, TurnEndedError
from . import approvals
from .calls import Call
from .deliveries import (
    Delivery,
    GlobalRun,
    Malformed,
    OversizedServerRequest,
    Reply,
    ServerRequest,
    ThreadRun,
    TurnBroken,
    TurnRun,
)
from .mailbox import Mailbox
from .observer import NotificationObserver

log = logging.getLogger("codex_app_server")


class Dispatcher:
    """`calls` are the requests under way, by id, `notifications` the mailbox of what belongs to no turn.

    `answer(line)` sends the answer to a request of the app-server; `reroute(malformed)` returns what comes of a line
    that could not be read. The other callbacks are those of `Connection`.
    """

    def __init__(
        self,
        calls: dict[int, Call],
        notifications: Mailbox,
        observer: NotificationObserver,
        *,
        on_server_request: Callable[[ServerRequest], None],
        on_abandoned: Callable[[str, str], None],
        answer: Callable[[bytes], None],
        reroute: Callable[[Malformed], list[Delivery]],
    ) -> None:
        self._calls = calls
        self._notifications = notifications
        self._observer = observer
        self._on_server_request = on_server_request
        self._on_abandoned = on_abandoned
        self._answer = answer
        self._reroute = reroute

    def fail(self, tokens: list[Any], error: TransportClosedError, closing: bool) -> None:
        for token in tokens:
            if isinstance(token, Call):
                token.fail(error)
            else:
                _close(token, error)
        # They have no end of their own: a client that closes has them end.
        self._notifications.close(None if closing else error)
        self._observer.fail(error)

    def deliver(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            try:
                self._hand_out(delivery)
            except Exception as error:
                # One that fails is the affair of those it is for; what comes after it goes where it belongs.
                log.exception("a message from the app-server could not be handed out (%s)", type(delivery).__name__)
                self._fail_one(delivery, error)

    def _hand_out(self, delivery: Delivery) -> None:
        match delivery:
            case TurnRun():
                for token in delivery.tokens:
                    mailbox = token()  # type: ignore[operator]
                    if mailbox is not None:
                        mailbox.put(delivery.lines, delivery.methods)
                        if delivery.ended:
                            mailbox.close()
                self._observer.observe_turn(delivery)
            case Reply():
                self._resolve(delivery)
            case ThreadRun() | GlobalRun():
                self._observer.observe(delivery.lines)
                self._notifications.put(delivery.lines, delivery.methods)
            case ServerRequest():
                self._on_server_request(delivery)
            case OversizedServerRequest():
                log.warning("%s is declined: %s", delivery.request.method, delivery.reason)
                self._answer(approvals.refusal(delivery.request))
            case TurnBroken():
                kind = TurnEndedError if delivery.ended else LineTooLongError
                for token in delivery.tokens:
                    _close(token, kind(f"turn {delivery.turn_id}: {delivery.reason}"))
            case Malformed():
                log.warning("ignored a line from the app-server: %s: %r", delivery.reason, delivery.line[:200])
                self.deliver(self._reroute(delivery))

    def _fail_one(self, delivery: Delivery, error: Exception) -> None:
        """Fail the callers that wait for a delivery that could not be handed out."""
        match delivery:
            case TurnRun():
                for token in delivery.tokens:
                    _close(token, AppServerError(f"turn {delivery.turn_id}: what it sent could not be kept: {error!r}"))
            case Reply():
                assert isinstance(delivery.token, Call)
                why = f"the answer to {delivery.token.method} cannot be used: {error!r}"
                delivery.token.fail(InternalRpcError(-32603, why))
            case ServerRequest():
                self._answer(approvals.refusal(delivery))

    def _resolve(self, reply: Reply) -> None:
        call = reply.token
        assert isinstance(call, Call)
        self._calls.pop(call.id, None)
        if call.mailbox is not None:
            call.mailbox.turn_id = reply.turn_id
        call.thread_id = reply.thread_id or call.thread_id
        if (reply.forgotten or call.given_up) and reply.turn_id is not None:
            self.abandon(call, reply.turn_id)
        call.resolve(reply.line, reply.is_error)

    def abandon(self, call: Call, turn_id: str) -> None:
        """Have a turn interrupted whose starter has given up, unless it is detached."""
        if call.thread_id is not None and not call.detach:
            self._on_abandoned(call.thread_id, turn_id)


def _close(token: Any, error: Exception) -> None:
    mailbox = token()
    if mailbox is not None:
        mailbox.close(error)
