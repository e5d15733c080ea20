"""AppServerClient: the synchronous client of one app-server. Any number of threads may call it at once."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from . import _asks, operations
from ._connection import GLOBAL_NOTIFICATIONS, Call, Connection, log
from ._mailbox import SyncMailbox
from ._message_router import Ask
from .config import AppServerConfig
from .errors import RequestTimeoutError
from .generated.routing import REQUESTS
from .inputs import Input
from .notifications import Notification
from .operations import Operation
from .transport import StdioTransport, Transport

if TYPE_CHECKING:
    from .generated import models
    from .generated.models._base import Asks

T = TypeVar("T")
ApprovalHandler = Callable[[str, dict[str, Any]], dict[str, Any]]

_QUEUE_POLL_S = 5.0


class AppServerClient:
    """Requests, and the notifications of many turns at once, over one transport.

    `approval_handler(method, params)` answers the app-server's own requests with the `result` to send; it runs on a
    thread of its own for each. Without one, and when it raises, requests are declined.
    """

    def __init__(
        self,
        config: AppServerConfig | None = None,
        *,
        transport: Transport | None = None,
        approval_handler: ApprovalHandler | None = None,
    ) -> None:
        self.config = config or AppServerConfig()
        self._approval_handler = approval_handler
        self._connection = Connection(
            transport or StdioTransport(self.config),
            post=lambda function, *args: function(*args),
            on_ask=self._on_ask,
            global_mailbox=SyncMailbox(max_lines=GLOBAL_NOTIFICATIONS),
        )
        self._logged_declines: set[str] = set()

    def __enter__(self) -> AppServerClient:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the transport. Raises AppServerError."""
        self._connection.start()
        # The app-server needs as long to come up.
        operations.load_types()

    def close(self) -> None:
        """End the connection; whoever still waits gets TransportClosedError. May be called twice."""
        self._connection.close()

    def initialize(self) -> models.InitializeResponse:
        """The handshake; the first request of a connection."""
        response = self.perform(operations.initialize(self.config))
        self._connection.notify("initialized", None)
        return response

    @overload
    def request(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float | None = ...
    ) -> Any: ...
    @overload
    def request(self, method: Asks[T], /, *, timeout_s: float | None = ...) -> T: ...
    def request(
        self,
        method: str | Asks[Any],
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = ...,  # type: ignore[assignment]
    ) -> Any:
        """Any request, by its method and `params` in snake_case; returns its generated result type.

        Or by an object of `generated.models` that is its params: `request(models.ThreadListParams(limit=5))`.
        Raises JsonRpcError for an error answer, RequestTimeoutError, TransportClosedError, InvalidInputError.
        A turn that it starts is read with `turn_notifications(turn_id)`.
        """
        operation = operations.request(method, params)
        entry = REQUESTS.get(operation.method)
        if entry is None or not entry.result_turn:
            return self.perform(operation, timeout_s=timeout_s)
        result, mailbox = self.start_turn(operation, timeout_s=timeout_s)
        if mailbox.turn_id is not None:
            self._connection.keep_unclaimed(mailbox.turn_id, mailbox)
        return result

    def notify(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Send a notification; nothing answers it."""
        self._connection.notify(method, operations.encode_plain(method, params) if params else None)

    def perform(self, operation: Operation[T], *, timeout_s: float | None = ...) -> T:  # type: ignore[assignment]
        """Send an operation and wait for its result."""
        return operation.finish(self._wait(self._begin(operation, None, timeout_s)))

    def start_turn(
        self,
        operation: Operation[T],
        *,
        timeout_s: float | None = ...,  # type: ignore[assignment]
    ) -> tuple[T, SyncMailbox]:
        """Send an operation that starts a turn; the mailbox gets everything that the turn sends."""
        mailbox = SyncMailbox()
        call = self._begin(operation, mailbox, timeout_s)
        return operation.finish(self._wait(call)), mailbox

    def turn_notifications(self, turn_id: str) -> Iterator[Notification]:
        """What a turn sends, to its end: all of it if this client started it, else from now on.

        Raises TurnEndedError at once for a turn that has ended and been read or dropped.
        """
        mailbox = self._connection.claim(turn_id)
        if not isinstance(mailbox, SyncMailbox):
            mailbox = SyncMailbox()
            self._connection.follow(turn_id, mailbox)
        return read(mailbox)

    def wait_for_turn_completed(self, turn_id: str) -> models.TurnCompletedNotification:
        """Read a turn to its end. Raises as `turn_notifications`."""
        last: models.TurnCompletedNotification | None = None
        for notification in self.turn_notifications(turn_id):
            if notification.method == "turn/completed":
                last = notification.payload
        return operations.ended(turn_id, last)

    def stream_text(
        self, thread_id: str, input: Input, **options: Any
    ) -> Iterator[models.AgentMessageDeltaNotification]:
        """Start a turn and yield the pieces of its text as they come."""
        operation = operations.turn_start(thread_id, input, options, "full")
        _, mailbox = self.start_turn(operation)
        for notification in read(mailbox):
            if notification.method == "item/agentMessage/delta":
                yield notification.payload

    def next_notification(self, timeout_s: float | None = None) -> Notification | None:
        """The next notification that belongs to no turn of this client. Raises TimeoutError, TransportClosedError.

        The newest 10,000 are kept.
        """
        mailbox = self._connection.notifications
        assert isinstance(mailbox, SyncMailbox)
        return mailbox.get(timeout_s)

    @property
    def held(self) -> dict[str, int]:
        """What is kept for answers and turns under way, by kind: all zero when nothing runs."""
        return self._connection.held

    def _begin(self, operation: Operation[Any], mailbox: SyncMailbox | None, timeout_s: Any) -> Call:
        return self._connection.begin(
            operation.method,
            operation.params,
            concurrent.futures.Future(),
            thread_id=operation.thread_id,
            turn=mailbox,
            interest=operation.interest,
            timeout_s=operation.timeout_s if timeout_s is ... else timeout_s,
        )

    def _wait(self, call: Call) -> bytes:
        future: concurrent.futures.Future[bytes] = call.future  # type: ignore[assignment]
        while True:
            deadline = call.deadline
            wait_s = _QUEUE_POLL_S if deadline is None else deadline - time.monotonic()
            try:
                return future.result(None if call.timeout_s is None else max(0.0, wait_s))
            except concurrent.futures.TimeoutError:
                if future.done():
                    return future.result()
                if deadline is None or deadline != call.deadline:
                    continue
            except BaseException:
                self._connection.give_up(call)
                raise
            self._connection.give_up(call)
            raise RequestTimeoutError(f"no answer to {call.method} within {call.timeout_s} s")

    def _on_ask(self, ask: Ask) -> None:
        threading.Thread(target=self._answer, args=(ask,), name="codex-approval", daemon=True).start()

    def _answer(self, ask: Ask) -> None:
        line = _asks.refusal(ask)
        try:
            if self._approval_handler is not None:
                line = _asks.answer(ask, self._approval_handler(ask.method, _asks.params_of(ask.line)))
            elif ask.method not in self._logged_declines:
                self._logged_declines.add(ask.method)
                log.warning("no approval_handler: %s is declined", ask.method)
        except Exception:
            log.exception("the approval handler failed: %s is declined", ask.method)
        finally:
            self._connection.answer(line)


def read(mailbox: SyncMailbox) -> Iterator[Notification]:
    """The notifications of a mailbox, to its end."""
    while (notification := mailbox.get()) is not None:
        yield notification
