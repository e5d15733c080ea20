"""AsyncAppServerClient: the requests and notifications of one app-server, for asyncio."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .. import operations
from .._core.calls import Call
from .._core.deadlines import INTERRUPT_ANSWER_S, INTERRUPT_LIMIT_S, INTERRUPT_RETRY_S
from ..errors import AppServerError, InternalRpcError, JsonRpcError, RequestTimeoutError, TurnEndedError
from ..generated.routing import REQUESTS
from ..inputs import Input
from ..notifications import Notification
from ..operations import Operation
from ..results import delta_of
from .driver import AsyncApprovalHandler, AsyncDriver
from .mailbox import AsyncMailbox
from .waiting import pause

if TYPE_CHECKING:
    from ..generated import models
    from ..generated.models._base import RequestParams

T = TypeVar("T")

__all__ = ["AsyncAppServerClient", "AsyncApprovalHandler", "read"]


class AsyncAppServerClient(AsyncDriver):
    """Requests, and the notifications of many turns at once, over one transport, on one event loop.

    `approval_handler(method, params)` may be a function or a coroutine function; it runs as a task, which is cancelled
    when the request is resolved otherwise. `params` is of the request's generated type, what it returns is the
    response's type or a dict in the wire's own names. Without a handler, and when it raises, requests are declined.
    """

    async def initialize(self) -> models.InitializeResponse:
        """The handshake; the first request of a connection."""
        response = await self.perform(operations.initialize(self.config))
        self._runtime.note(response.user_agent)
        self._connection.notify("initialized", None)
        return response

    @property
    def runtime_version(self) -> str | None:
        """The version of codex that the app-server runs, as its user agent has it; None where that has none."""
        return self._runtime.version

    @overload
    async def request(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float | None = ...
    ) -> Any: ...
    @overload
    async def request(self, method: RequestParams[T], /, *, timeout_s: float | None = ...) -> T: ...
    async def request(
        self,
        method: str | RequestParams[Any],
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
            return await self.perform(operation, timeout_s=timeout_s)
        result, mailbox = await self.start_turn(operation, timeout_s=timeout_s)
        if mailbox.turn_id is not None:
            self._connection.keep_unclaimed(mailbox.turn_id, mailbox)
        return result

    def notify(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Send a notification; nothing answers it. Raises WrongEventLoopError."""
        self._loop_owner.check()  # asyncio only
        self._connection.notify(method, operations.encode_plain(method, params) if params else None)

    async def perform(
        self,
        operation: Operation[T],
        *,
        timeout_s: float | None = ...,  # type: ignore[assignment]
        deadline: float | None = None,
    ) -> T:
        """Send an operation and wait for its result.

        `deadline`, on the monotonic clock, also counts while the request waits in a queue of the pool, where
        `timeout_s` does not.
        """
        if operation.method in self._runtime.lacks:
            await self._check_runtime(operation)
        if operation.paths:
            await self._check_paths(operation, deadline)
        return await self._outcome(operation, self._begin(operation, None, timeout_s, deadline))

    async def start_turn(
        self,
        operation: Operation[T],
        *,
        timeout_s: float | None = ...,  # type: ignore[assignment]
        detach: bool = False,
        deadline: float | None = None,
        if_idle: bool = False,
    ) -> tuple[T, AsyncMailbox]:
        """Send an operation that starts a turn; the mailbox gets everything that the turn sends.

        Should the caller give up before the answer comes, the turn is interrupted, unless `detach`. `deadline` as in
        `perform`. With `if_idle` raises ThreadBusyError, and sends nothing, when a turn that this client started runs
        on the thread.
        """
        self._loop_owner.enter()  # asyncio only
        if operation.method in self._runtime.lacks:
            await self._check_runtime(operation)
        if operation.paths:
            await self._check_paths(operation, deadline)
        mailbox = self._new_mailbox()
        call = self._begin(operation, mailbox, timeout_s, deadline, detach, if_idle)
        return await self._outcome(operation, call), mailbox

    async def _outcome(self, operation: Operation[T], call: Call) -> T:
        try:
            return operation.finish(await self._wait(call))
        except AppServerError as error:
            explained = self._runtime.explained(operation.method, error)
            if explained is None:
                raise
            raise explained from None

    async def _check_runtime(self, operation: Operation[Any]) -> None:
        """Raises MethodNotFoundError or InvalidInputError for what this version of codex does not have."""
        if self._runtime.refusal(operation.method, operation.params) is None:
            return
        if self._connection.shared:
            # The pool may run another one by now.
            self._runtime.note((await self.perform(operations.initialize(self.config))).user_agent)
        error = self._runtime.refusal(operation.method, operation.params)
        if error is not None:
            raise error

    async def _check_paths(self, operation: Operation[Any], deadline: float | None) -> None:
        """Raises InvalidInputError for a path that is not there."""
        for given in operation.paths:
            look = given.look(self._base)
            if look is None:
                continue
            try:
                found = await self.perform(look, deadline=deadline)
            except InternalRpcError as error:
                raise given.refused(error.message) from None
            except JsonRpcError:
                # It cannot be checked here: the app-server reports what is wrong with the path.
                continue
            given.check(found)

    def turn_notifications(self, turn_id: str) -> AsyncIterator[Notification]:
        """The notifications of a turn, to its end: all of it if this client started it, else from now on.

        Raises at once TurnEndedError for a turn that has ended and been read or dropped, UnknownTurnError for one that
        was never seen.
        """
        self._loop_owner.check()  # asyncio only
        mailbox = self._connection.claim(turn_id)
        if not isinstance(mailbox, AsyncMailbox):
            mailbox = self._new_mailbox()
            self._connection.follow(turn_id, mailbox)
        return read(mailbox)

    async def wait_for_turn_completed(self, turn_id: str) -> models.TurnCompletedNotification:
        """Read a turn to its end. Raises as `turn_notifications`."""
        last: Any = None
        async for notification in self.turn_notifications(turn_id):
            if notification.method == "turn/completed":
                last = notification.payload
        return operations.ended(turn_id, last)

    async def stream_text(
        self, thread_id: str, input: Input, **options: Any
    ) -> AsyncIterator[models.AgentMessageDeltaNotification]:
        """Start a turn, at the first read, and yield the pieces of its text. Breaking it off leaves the turn alone."""
        operation = operations.turn_start(thread_id, input, options, "full")
        _, mailbox = await self.start_turn(operation)
        async for notification in read(mailbox):
            if notification.method == "item/agentMessage/delta":
                yield delta_of(notification)

    async def next_notification(self, timeout_s: float | None = None) -> Notification | None:
        """The next notification that belongs to no turn of this client, None after `close`. The newest 10,000 are kept.

        Raises TimeoutError; TransportClosedError when the app-server dies.
        """
        mailbox = self._connection.notifications
        assert isinstance(mailbox, AsyncMailbox)
        return await mailbox.get(timeout_s)

    def running_turn(self, thread_id: str) -> tuple[bool, str | None]:
        """True if a turn runs on the thread, and its id once it is known.

        Of this client, or one whose beginning was reported: of compaction, a goal, or another client of a pool.
        """
        return self._connection.running_turn(thread_id)

    def follow_turn(self, turn_id: str, thread_id: str | None = None) -> AsyncMailbox:
        """A mailbox that gets what the turn sends from now on.

        On a pool, a turn of `thread_id` that another client runs is joined; if it does not run, reading the mailbox
        raises UnknownTurnError. Raises TurnEndedError, UnknownTurnError, TransportClosedError.
        """
        self._loop_owner.check()  # asyncio only
        mailbox = self._new_mailbox()
        self._connection.follow(turn_id, mailbox, thread_id)
        return mailbox

    async def wait_for_login_completed(
        self, login_id: str, timeout_s: float | None = None
    ) -> models.AccountLoginCompletedNotification:
        """Wait for the end of a log-in, however it ends. Raises TimeoutError, TransportClosedError."""
        self._loop_owner.enter()  # asyncio only
        mailbox = self._connection.login_mailbox(login_id)
        assert isinstance(mailbox, AsyncMailbox)
        notification = await mailbox.get(timeout_s)
        if notification is None:
            raise TurnEndedError(f"the end of log-in {login_id} was read before")
        payload: Any = notification.payload
        ended: models.AccountLoginCompletedNotification = payload
        return ended

    @property
    def held(self) -> dict[str, int]:
        """The numbers of things kept for answers and turns under way, by kind: all zero when nothing runs."""
        return self._connection.held

    def _begin(
        self,
        operation: Operation[Any],
        mailbox: AsyncMailbox | None,
        timeout_s: Any,
        deadline: float | None,
        detach: bool = False,
        if_idle: bool = False,
    ) -> Call:
        return self._connection.begin(
            operation.method,
            operation.params,
            self._new_future(),
            thread_id=operation.thread_id,
            turn=mailbox,
            interest=operation.interest,
            timeout_s=operation.timeout_s if timeout_s is ... else timeout_s,
            deadline=deadline,
            detach=detach,
            if_idle=if_idle,
        )

    async def _interrupt_abandoned(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        with contextlib.suppress(AppServerError):
            await self.interrupt_turn(thread_id, turn_id, is_over)

    async def interrupt_turn(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        """Stop a turn, then the sub-agents that work for it, also those that outlive it.

        The interrupt is repeated until the app-server knows the turn, or `is_over` reports that it has ended. From a
        signal handler or finalizer that has interrupted a call of this client it is left to a task.
        Raises InvalidRequestError, TransportClosedError, RequestTimeoutError, WrongEventLoopError.
        """
        self._loop_owner.enter()  # asyncio only
        connection = self._connection
        if connection.is_inside:
            self._interrupt_later(thread_id, turn_id, is_over)
            return
        # First, so that none begins or is forgotten unseen in between.
        agents = connection.stop_agents(thread_id, turn_id)
        try:
            await self._interrupt_one(thread_id, turn_id, is_over)
        finally:
            await self._interrupt_agents(agents)

    async def _interrupt_one(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        deadline = time.monotonic() + INTERRUPT_LIMIT_S
        while not is_over():
            active = self._connection.active_turn(thread_id, turn_id)
            if self._connection.is_stopping(active):
                return
            try:
                await self.perform(operations.turn_interrupt(thread_id, active), timeout_s=INTERRUPT_ANSWER_S)
                self._connection.note_stopping(active)
                return
            except (JsonRpcError, RequestTimeoutError) as error:
                if is_over():
                    return
                if not operations.is_not_active_yet(error) or time.monotonic() > deadline:
                    raise
            await pause(INTERRUPT_RETRY_S)


async def read(mailbox: AsyncMailbox) -> AsyncIterator[Notification]:
    """The notifications of a mailbox, to its end."""
    while (notification := await mailbox.get()) is not None:
        yield notification
        for there in mailbox.current:
            yield there
