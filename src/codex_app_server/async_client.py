"""AsyncAppServerClient: the same client for asyncio.

Nothing blocks the event loop and nothing sits in an executor: the transport's own I/O thread wakes the loop once per
read, however many turns that read belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from . import _asks, operations
from ._connection import GLOBAL_NOTIFICATIONS, Call, Connection, log
from ._mailbox import Mailbox
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
AsyncApprovalHandler = Callable[[str, dict[str, Any]], "dict[str, Any] | Awaitable[dict[str, Any]]"]

_QUEUE_POLL_S = 5.0


class AsyncMailbox(Mailbox):
    """For one event loop; `put` and `close` are called on it."""

    __slots__ = ("_waiters",)

    def __init__(self, *, max_lines: int | None = None) -> None:
        super().__init__(max_lines=max_lines)
        self._waiters: list[asyncio.Future[None]] = []

    async def get(self) -> Notification | None:
        """The next notification, None at the end. Raises the error the mailbox was closed with."""
        while True:
            try:
                return self._pop()
            except IndexError:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                try:
                    await waiter
                except asyncio.CancelledError:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)
                    raise

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class AsyncAppServerClient:
    """Requests, and the notifications of many turns at once, over one transport, on one event loop.

    `approval_handler(method, params)` may be a function or a coroutine function; it runs as a task. Without one, and
    when it raises, requests are declined.
    """

    def __init__(
        self,
        config: AppServerConfig | None = None,
        *,
        transport: Transport | None = None,
        approval_handler: AsyncApprovalHandler | None = None,
    ) -> None:
        self.config = config or AppServerConfig()
        self._transport = transport or StdioTransport(self.config)
        self._approval_handler = approval_handler
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._logged_declines: set[str] = set()
        self._connection = Connection(
            self._transport,
            post=self._post,
            on_ask=self._on_ask,
            global_mailbox=AsyncMailbox(max_lines=GLOBAL_NOTIFICATIONS),
        )

    async def __aenter__(self) -> AsyncAppServerClient:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the transport, bound to the running event loop. Raises AppServerError."""
        self._loop = asyncio.get_running_loop()
        # Starting a process and loading types takes a while, which belongs to nobody's event loop.
        try:
            await asyncio.to_thread(self._start)
        except BaseException:
            # A cancelled caller gets no client to close, but the thread goes on starting it.
            await self.close()
            raise

    def _start(self) -> None:
        self._connection.start()
        # The app-server needs as long to come up.
        operations.load_types()

    async def close(self) -> None:
        """End the connection; whoever still waits gets TransportClosedError. May be called twice."""
        if self._loop is None:
            return
        await asyncio.to_thread(self._connection.close)
        for task in self._tasks:
            task.cancel()

    async def initialize(self) -> models.InitializeResponse:
        """The handshake; the first request of a connection."""
        response = await self.perform(operations.initialize(self.config))
        self._connection.notify("initialized", None)
        return response

    @overload
    async def request(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float | None = ...
    ) -> Any: ...
    @overload
    async def request(self, method: Asks[T], /, *, timeout_s: float | None = ...) -> T: ...
    async def request(
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
            return await self.perform(operation, timeout_s=timeout_s)
        result, mailbox = await self.start_turn(operation, timeout_s=timeout_s)
        if mailbox.turn_id is not None:
            self._connection.keep_unclaimed(mailbox.turn_id, mailbox)
        return result

    def notify(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Send a notification; nothing answers it."""
        self._connection.notify(method, operations.encode_plain(method, params) if params else None)

    async def perform(self, operation: Operation[T], *, timeout_s: float | None = ...) -> T:  # type: ignore[assignment]
        """Send an operation and wait for its result."""
        return operation.finish(await self._wait(self._begin(operation, None, timeout_s)))

    async def start_turn(
        self,
        operation: Operation[T],
        *,
        timeout_s: float | None = ...,  # type: ignore[assignment]
    ) -> tuple[T, AsyncMailbox]:
        """Send an operation that starts a turn; the mailbox gets everything that the turn sends."""
        mailbox = AsyncMailbox()
        call = self._begin(operation, mailbox, timeout_s)
        return operation.finish(await self._wait(call)), mailbox

    def turn_notifications(self, turn_id: str) -> AsyncIterator[Notification]:
        """What a turn sends, to its end: all of it if this client started it, else from now on.

        Raises TurnEndedError at once for a turn that has ended and been read or dropped.
        """
        mailbox = self._connection.claim(turn_id)
        if not isinstance(mailbox, AsyncMailbox):
            mailbox = AsyncMailbox()
            self._connection.follow(turn_id, mailbox)
        return read(mailbox)

    async def wait_for_turn_completed(self, turn_id: str) -> models.TurnCompletedNotification:
        """Read a turn to its end. Raises as `turn_notifications`."""
        last: models.TurnCompletedNotification | None = None
        async for notification in self.turn_notifications(turn_id):
            if notification.method == "turn/completed":
                last = notification.payload
        return operations.ended(turn_id, last)

    async def stream_text(
        self, thread_id: str, input: Input, **options: Any
    ) -> AsyncIterator[models.AgentMessageDeltaNotification]:
        """Start a turn and yield the pieces of its text as they come."""
        operation = operations.turn_start(thread_id, input, options, "full")
        _, mailbox = await self.start_turn(operation)
        async for notification in read(mailbox):
            if notification.method == "item/agentMessage/delta":
                yield notification.payload

    async def next_notification(self) -> Notification | None:
        """The next notification that belongs to no turn of this client. Raises TransportClosedError.

        The newest 10,000 are kept.
        """
        mailbox = self._connection.notifications
        assert isinstance(mailbox, AsyncMailbox)
        return await mailbox.get()

    @property
    def held(self) -> dict[str, int]:
        """What is kept for answers and turns under way, by kind: all zero when nothing runs."""
        return self._connection.held

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    def _begin(self, operation: Operation[Any], mailbox: AsyncMailbox | None, timeout_s: Any) -> Call:
        return self._connection.begin(
            operation.method,
            operation.params,
            asyncio.get_running_loop().create_future(),
            thread_id=operation.thread_id,
            turn=mailbox,
            interest=operation.interest,
            timeout_s=operation.timeout_s if timeout_s is ... else timeout_s,
        )

    async def _wait(self, call: Call) -> bytes:
        future: asyncio.Future[bytes] = call.future  # type: ignore[assignment]
        try:
            while not future.done():
                deadline = call.deadline
                wait_s = None if call.timeout_s is None else _QUEUE_POLL_S
                if deadline is not None:
                    wait_s = max(0.0, deadline - time.monotonic())
                done, _ = await asyncio.wait([future], timeout=wait_s)
                if not done and deadline is not None and deadline == call.deadline:
                    raise RequestTimeoutError(f"no answer to {call.method} within {call.timeout_s} s")
        except BaseException:
            self._connection.give_up(call)
            future.cancel()
            raise
        return future.result()

    def _on_ask(self, ask: Ask) -> None:
        assert self._loop is not None
        task = self._loop.create_task(self._answer(ask))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, ask: Ask) -> None:
        line = _asks.refusal(ask)
        try:
            if self._approval_handler is not None:
                result = self._approval_handler(ask.method, _asks.params_of(ask.line))
                line = _asks.answer(ask, await result if inspect.isawaitable(result) else result)
            elif ask.method not in self._logged_declines:
                self._logged_declines.add(ask.method)
                log.warning("no approval_handler: %s is declined", ask.method)
        except Exception:
            log.exception("the approval handler failed: %s is declined", ask.method)
        finally:
            self._connection.answer(line)


async def read(mailbox: AsyncMailbox) -> AsyncIterator[Notification]:
    """The notifications of a mailbox, to its end."""
    while (notification := await mailbox.get()) is not None:
        yield notification
