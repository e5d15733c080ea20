"""AppServerClient: the synchronous client of one app-server. Any number of threads may call it at once."""

from __future__ import annotations

import _thread
import contextlib
import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from . import _asks, operations
from ._connection import GLOBAL_NOTIFICATIONS, Call, Connection, log
from ._deliveries import Ask
from ._mailbox import SyncMailbox
from ._start_failures import working_directory
from ._sub_agents import AgentTurn
from ._waking import Answer
from .config import AppServerConfig, config_of
from .envelope import RequestId
from .errors import (
    AppServerError,
    InternalRpcError,
    InvalidInputError,
    JsonRpcError,
    RequestTimeoutError,
    TurnEndedError,
)
from .generated.routing import REQUESTS
from .inputs import Input
from .notifications import Notification
from .operations import Operation
from .results import delta_of
from .transport import StdioTransport, Transport

if TYPE_CHECKING:
    from .generated import models
    from .generated.models._base import Asks

T = TypeVar("T")
ApprovalHandler = Callable[[str, Any], Any]

INTERRUPT_RETRY_S = 0.05
INTERRUPT_LIMIT_S = 10.0
# The app-server never answers an interrupt that comes while the turn is ending of another.
INTERRUPT_ANSWER_S = 1.0
_QUEUE_POLL_S = 5.0


def check_handler(handler: Any, *, for_asyncio: bool) -> None:
    """Raises InvalidInputError for an approval handler that cannot be called, or not without awaiting it."""
    if handler is None:
        return
    if not callable(handler):
        raise InvalidInputError(
            f"approval_handler is {handler!r}; expected a function of the method and the params of a request"
        )
    if inspect.iscoroutinefunction(handler) and not for_asyncio:
        raise InvalidInputError(
            "approval_handler is a coroutine function, which a synchronous client cannot await; give a function, or "
            "use AsyncCodex"
        )


class AppServerClient:
    """Requests, and the notifications of many turns at once, over one transport.

    `approval_handler(method, params)` answers the app-server's own requests: `params` is of the request's generated
    type, what it returns is the response's type or a dict in the wire's own names. It runs on a thread of its own for
    each and may take its time; an answer that comes after the request was resolved otherwise is dropped. Without a
    handler, and when it raises, requests are declined.
    """

    def __init__(
        self,
        config: AppServerConfig | None = None,
        *,
        transport: Transport | None = None,
        approval_handler: ApprovalHandler | None = None,
    ) -> None:
        self.config = config_of(config)
        check_handler(approval_handler, for_asyncio=False)
        # Whose directory relative paths are in is known of a process of our own.
        self._base = working_directory(self.config.cwd) if transport is None else None
        self._approval_handler = approval_handler
        self._connection = Connection(
            transport or StdioTransport(self.config),
            post=lambda function, *args: function(*args),
            on_ask=self._on_ask,
            on_resolved=self._on_resolved,
            on_orphan=self._on_orphan,
            global_mailbox=SyncMailbox(max_lines=GLOBAL_NOTIFICATIONS),
        )
        self._logged_declines: set[str] = set()
        self._open_asks: set[RequestId] = set()

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
        """End the connection; whoever still waits gets TransportClosedError. May be called twice.

        In a process forked from the one that made the client it does nothing.
        """
        if self._connection.is_inherited:
            return
        self._connection.close()
        # One that was never started has nobody else to do it.
        self._connection.notifications.close()

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
        if operation.paths:
            self._check_paths(operation)
        return operation.finish(self._wait(self._begin(operation, None, timeout_s)))

    def start_turn(
        self,
        operation: Operation[T],
        *,
        timeout_s: float | None = ...,  # type: ignore[assignment]
        detach: bool = False,
        deadline: float | None = None,
        if_idle: bool = False,
    ) -> tuple[T, SyncMailbox]:
        """Send an operation that starts a turn; the mailbox gets everything that the turn sends.

        Should the caller give up before the answer comes, the turn is interrupted, unless `detach`. `deadline`, on the
        monotonic clock, also counts while the request waits in a queue of the pool, where `timeout_s` does not. With
        `if_idle` raises ThreadBusyError, and sends nothing, when a turn that this client started runs on the thread.
        """
        if operation.paths:
            self._check_paths(operation, deadline)
        mailbox = SyncMailbox()
        call = self._begin(operation, mailbox, timeout_s, detach, if_idle)
        return operation.finish(self._wait(call, deadline)), mailbox

    def _check_paths(self, operation: Operation[Any], limit: float | None = None) -> None:
        """Raises InvalidInputError for a path that is not there."""
        for given in operation.paths:
            look = given.look(self._base)
            if look is None:
                continue
            try:
                found = look.finish(self._wait(self._begin(look, None, ...), limit))
            except InternalRpcError as error:
                raise given.refused(error.message) from None
            except JsonRpcError:
                # It cannot be asked: what comes of the path is the app-server's to say.
                continue
            given.check(found)

    def turn_notifications(self, turn_id: str) -> Iterator[Notification]:
        """What a turn sends, to its end: all of it if this client started it, else from now on.

        Raises at once TurnEndedError for a turn that has ended and been read or dropped, UnknownTurnError for one that
        was never seen.
        """
        mailbox = self._connection.claim(turn_id)
        if not isinstance(mailbox, SyncMailbox):
            mailbox = SyncMailbox()
            self._connection.follow(turn_id, mailbox)
        return read(mailbox)

    def wait_for_turn_completed(self, turn_id: str) -> models.TurnCompletedNotification:
        """Read a turn to its end. Raises as `turn_notifications`."""
        last: Any = None
        for notification in self.turn_notifications(turn_id):
            if notification.method == "turn/completed":
                last = notification.payload
        return operations.ended(turn_id, last)

    def stream_text(
        self, thread_id: str, input: Input, **options: Any
    ) -> Iterator[models.AgentMessageDeltaNotification]:
        """Start a turn, at the first read, and yield the pieces of its text. Breaking it off leaves the turn alone."""
        operation = operations.turn_start(thread_id, input, options, "full")
        _, mailbox = self.start_turn(operation)
        for notification in read(mailbox):
            if notification.method == "item/agentMessage/delta":
                yield delta_of(notification)

    def next_notification(self, timeout_s: float | None = None) -> Notification | None:
        """The next notification that belongs to no turn of this client, None after `close`. The newest 10,000 are kept.

        Raises TimeoutError; TransportClosedError when the app-server dies.
        """
        mailbox = self._connection.notifications
        assert isinstance(mailbox, SyncMailbox)
        return mailbox.get(timeout_s)

    def running_turn(self, thread_id: str) -> tuple[bool, str | None]:
        """Whether a turn runs on the thread, and its id once it is known.

        Of this client, or one of which it has heard that it began: of compaction, a goal, or another client of a pool.
        """
        return self._connection.running_turn(thread_id)

    def _wait_started(self, thread_id: str, timeout_s: float | None) -> None:
        """Wait until the turn starts under way on a thread are answered. Raises TimeoutError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for start in self._connection.turn_starts(thread_id):
            if not start.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"a turn start on thread {thread_id} was not answered within {timeout_s} s")

    def follow_turn(self, turn_id: str, thread_id: str | None = None) -> SyncMailbox:
        """A mailbox that gets what the turn sends from now on.

        On a pool, a turn of `thread_id` that another client runs is joined; if it does not run, reading the mailbox
        raises UnknownTurnError. Raises TurnEndedError, UnknownTurnError, TransportClosedError.
        """
        mailbox = SyncMailbox()
        self._connection.follow(turn_id, mailbox, thread_id)
        return mailbox

    def wait_for_login_completed(
        self, login_id: str, timeout_s: float | None = None
    ) -> models.AccountLoginCompletedNotification:
        """Wait for the end of a log-in, however it ends. Raises TimeoutError, TransportClosedError."""
        mailbox = self._connection.login_mailbox(login_id, SyncMailbox)
        assert isinstance(mailbox, SyncMailbox)
        notification = mailbox.get(timeout_s)
        if notification is None:
            raise TurnEndedError(f"the end of log-in {login_id} was read before")
        payload: Any = notification.payload
        ended: models.AccountLoginCompletedNotification = payload
        return ended

    @property
    def held(self) -> dict[str, int]:
        """What is kept for answers and turns under way, by kind: all zero when nothing runs."""
        return self._connection.held

    def _begin(
        self,
        operation: Operation[Any],
        mailbox: SyncMailbox | None,
        timeout_s: Any,
        detach: bool = False,
        if_idle: bool = False,
    ) -> Call:
        return self._connection.begin(
            operation.method,
            operation.params,
            Answer(),
            thread_id=operation.thread_id,
            turn=mailbox,
            interest=operation.interest,
            timeout_s=operation.timeout_s if timeout_s is ... else timeout_s,
            detach=detach,
            if_idle=if_idle,
        )

    def _wait(self, call: Call, limit: float | None = None) -> bytes:
        answer: Answer = call.future  # type: ignore[assignment]
        while True:
            deadline = call.deadline
            now = time.monotonic()
            # A call in a queue gets a new deadline when it leaves it.
            wait_s = _QUEUE_POLL_S if deadline is None and call.timeout_s is not None else None
            for end in (deadline, limit):
                if end is not None:
                    wait_s = max(0.0, end - now) if wait_s is None else min(wait_s, max(0.0, end - now))
            try:
                is_there = answer.wait(wait_s)
            except BaseException:
                self._connection.give_up(call)
                raise
            if is_there:
                result: bytes = answer.result()
                return result
            if (limit is None or time.monotonic() < limit) and (deadline is None or deadline != call.deadline):
                continue
            self._connection.give_up(call)
            raise RequestTimeoutError(f"no answer to {call.method} within {call.timeout_s} s")

    def _on_ask(self, ask: Ask) -> None:
        self._open_asks.add(ask.id)
        try:
            threading.Thread(target=self._answer, args=(ask,), name="codex-approval", daemon=True).start()
        except RuntimeError as error:
            self._open_asks.discard(ask.id)
            log.error("no thread could be started for the approval handler (%s): %s is declined", error, ask.method)
            self._connection.answer(_asks.refusal(ask))

    def _on_resolved(self, request_id: RequestId) -> None:
        self._open_asks.discard(request_id)

    def _answer(self, ask: Ask) -> None:
        line = _asks.refusal(ask)
        try:
            if self._approval_handler is not None:
                line = _asks.answer(ask, self._approval_handler(ask.method, _asks.params_of(ask)))
            elif ask.method not in self._logged_declines:
                self._logged_declines.add(ask.method)
                log.warning("no approval_handler: %s is declined", ask.method)
        except BaseException:
            # Also SystemExit: it ends this thread only, and would do so in silence.
            log.exception("the approval handler failed: %s is declined", ask.method)
        finally:
            if ask.id in self._open_asks:
                self._open_asks.discard(ask.id)
                self._connection.answer(line)

    def _on_orphan(self, thread_id: str, turn_id: str) -> None:
        self._interrupt_later(thread_id, turn_id, lambda: self._connection.has_ended(turn_id))

    def _interrupt_later(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        """Have a turn interrupted by another thread; waits for nothing."""
        try:
            # Not Thread.start: that waits for the thread to come up, which a finalizer must not.
            _thread.start_new_thread(self._interrupt_orphan, (thread_id, turn_id, is_over))
        except RuntimeError as error:
            log.error("no thread could be started to interrupt turn %s (%s): it is told once", turn_id, error)
            connection = self._connection
            active = AgentTurn(thread_id, connection.active_turn(thread_id, turn_id))
            with contextlib.suppress(AppServerError):
                for turn in (active, *connection.stop_agents(thread_id, turn_id)):
                    self._begin(operations.turn_interrupt(*turn), None, INTERRUPT_ANSWER_S)

    def _interrupt_orphan(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        with contextlib.suppress(AppServerError):
            self.interrupt_turn(thread_id, turn_id, is_over)

    def interrupt_turn(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        """Stop a turn, then the sub-agents that work for it, also those that outlive it.

        It is told again until the app-server knows it, or `is_over` says that it has ended.
        From a signal handler or finalizer that has interrupted a call of this client it is left to another thread.
        Raises InvalidRequestError, TransportClosedError, RequestTimeoutError.
        """
        connection = self._connection
        if connection.is_inside:
            self._interrupt_later(thread_id, turn_id, is_over)
            return
        # First, so that none begins or is forgotten unseen in between.
        agents = connection.stop_agents(thread_id, turn_id)
        try:
            self._interrupt_one(thread_id, turn_id, is_over)
        finally:
            for agent in agents:
                self._interrupt_orphan(*agent, functools.partial(connection.has_ended, agent.turn_id))

    def _interrupt_one(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        deadline = time.monotonic() + INTERRUPT_LIMIT_S
        while not is_over():
            active = self._connection.active_turn(thread_id, turn_id)
            if self._connection.is_stopping(active):
                return
            try:
                self.perform(operations.turn_interrupt(thread_id, active), timeout_s=INTERRUPT_ANSWER_S)
                self._connection.note_stopping(active)
                return
            except (JsonRpcError, RequestTimeoutError) as error:
                if is_over():
                    return
                if not operations.is_not_active_yet(error) or time.monotonic() > deadline:
                    raise
            time.sleep(INTERRUPT_RETRY_S)


def read(mailbox: SyncMailbox) -> Iterator[Notification]:
    """The notifications of a mailbox, to its end."""
    while (notification := mailbox.get()) is not None:
        yield notification
        yield from mailbox.current
