"""AsyncAppServerClient: the same client for asyncio.

Nothing blocks the event loop and nothing sits in an executor: the transport works on the loop itself where it can (a
pool's), else its own I/O thread wakes the loop once per read, however many turns that read belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from . import _asks, _loops, _threads, operations
from ._alarm import Alarm
from ._connection import GLOBAL_NOTIFICATIONS, Call, Connection, log
from ._deliveries import Ask
from ._mailbox import Mailbox
from ._start_failures import working_directory
from .client import INTERRUPT_ANSWER_S, INTERRUPT_LIMIT_S, INTERRUPT_RETRY_S, check_handler
from .config import AppServerConfig, config_of
from .envelope import RequestId
from .errors import (
    AppServerError,
    InternalRpcError,
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
AsyncApprovalHandler = Callable[[str, Any], Any | Awaitable[Any]]

_QUEUE_POLL_S = 5.0


class AsyncMailbox(Mailbox):
    """For one event loop, that of its first reader unless told; `put` and `close` are called on it."""

    __slots__ = ("_home", "_waiters")

    def __init__(self, *, max_lines: int | None = None, home: _loops.Home | None = None) -> None:
        super().__init__(max_lines=max_lines)
        self._home = home or _loops.Home()
        self._waiters: list[asyncio.Future[None]] = []

    def check(self) -> None:
        """Raises WrongEventLoopError, WrongProcessError."""
        self._home.enter()

    async def get(self) -> Notification | None:
        """The next notification, None at the end.

        Raises the error the mailbox was closed with, WrongEventLoopError, WrongProcessError.
        """
        self._home.enter()
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
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                if not waiter.done():
                    waiter.set_result(None)


class AsyncAppServerClient:
    """Requests, and the notifications of many turns at once, over one transport, on one event loop.

    `approval_handler(method, params)` may be a function or a coroutine function; it runs as a task, which is cancelled
    when the request is resolved otherwise. `params` is of the request's generated type, what it returns is the
    response's type or a dict in the wire's own names. Without a handler, and when it raises, requests are declined.
    """

    def __init__(
        self,
        config: AppServerConfig | None = None,
        *,
        transport: Transport | None = None,
        approval_handler: AsyncApprovalHandler | None = None,
    ) -> None:
        self.config = config_of(config)
        check_handler(approval_handler, for_asyncio=True)
        # Whose directory relative paths are in is known of a process of our own.
        self._base = working_directory(self.config.cwd) if transport is None else None
        self._transport = transport or StdioTransport(self.config)
        self._approval_handler = approval_handler
        self._home = _loops.Home()
        self._alarm = Alarm(self._look)
        self._tasks: set[asyncio.Task[None]] = set()
        self._logged_declines: set[str] = set()
        self._open_asks: dict[RequestId, asyncio.Task[None]] = {}
        self._connection = Connection(
            self._transport,
            post=self._post,
            on_ask=self._on_ask,
            on_resolved=self._on_resolved,
            on_orphan=self._on_orphan,
            global_mailbox=AsyncMailbox(max_lines=GLOBAL_NOTIFICATIONS, home=self._home),
        )

    async def __aenter__(self) -> AsyncAppServerClient:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the transport, bound to the running event loop. Raises AppServerError."""
        loop = self._home.enter()
        # Starting a process and loading types takes a while, which belongs to nobody's event loop.
        try:
            await _threads.in_thread(self._start)
            self._connection.move_to(loop)
        except BaseException:
            # A cancelled caller gets no client to close, but the thread goes on starting it.
            await self.close()
            raise

    def _start(self) -> None:
        self._connection.start()
        # The app-server needs as long to come up.
        operations.load_types()

    async def close(self) -> None:
        """End the connection; whoever still waits gets TransportClosedError. May be called twice.

        From another event loop only if the client's own does not run any more: else raises WrongEventLoopError. In a
        process forked from the one that made the client it does nothing.
        """
        if self._connection.is_inherited:
            return
        self._home.check_may_close()
        if self._home.is_known:
            self._connection.move_to(None)
            await _threads.in_thread(self._connection.close)
        # One that was never started has nobody else to do it.
        self._connection.notifications.close()
        self._alarm.stop()
        for task in list(self._tasks):
            # Of a loop that is closed.
            with contextlib.suppress(RuntimeError):
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
        """Send a notification; nothing answers it. Raises WrongEventLoopError."""
        self._home.check()
        self._connection.notify(method, operations.encode_plain(method, params) if params else None)

    async def perform(self, operation: Operation[T], *, timeout_s: float | None = ...) -> T:  # type: ignore[assignment]
        """Send an operation and wait for its result."""
        if operation.paths:
            await self._check_paths(operation)
        return operation.finish(await self._wait(self._begin(operation, None, timeout_s)))

    async def start_turn(
        self,
        operation: Operation[T],
        *,
        timeout_s: float | None = ...,  # type: ignore[assignment]
        detach: bool = False,
        if_idle: bool = False,
    ) -> tuple[T, AsyncMailbox]:
        """Send an operation that starts a turn; the mailbox gets everything that the turn sends.

        Should the caller give up before the answer comes, the turn is interrupted, unless `detach`. With `if_idle`
        raises ThreadBusyError, and sends nothing, when a turn that this client started runs on the thread.
        """
        self._home.enter()
        if operation.paths:
            await self._check_paths(operation)
        mailbox = AsyncMailbox(home=self._home)
        call = self._begin(operation, mailbox, timeout_s, detach, if_idle)
        return operation.finish(await self._wait(call)), mailbox

    async def _check_paths(self, operation: Operation[Any]) -> None:
        """Raises InvalidInputError for a path that is not there."""
        for given in operation.paths:
            look = given.look(self._base)
            if look is None:
                continue
            try:
                found = await self.perform(look)
            except InternalRpcError as error:
                raise given.refused(error.message) from None
            except JsonRpcError:
                # It cannot be asked: what comes of the path is the app-server's to say.
                continue
            given.check(found)

    def turn_notifications(self, turn_id: str) -> AsyncIterator[Notification]:
        """What a turn sends, to its end: all of it if this client started it, else from now on.

        Raises at once TurnEndedError for a turn that has ended and been read or dropped, UnknownTurnError for one that
        was never seen.
        """
        self._home.check()
        mailbox = self._connection.claim(turn_id)
        if not isinstance(mailbox, AsyncMailbox):
            mailbox = AsyncMailbox(home=self._home)
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

    async def next_notification(self) -> Notification | None:
        """The next notification that belongs to no turn of this client, None after `close`. The newest 10,000 are kept.

        Raises TransportClosedError when the app-server dies.
        """
        mailbox = self._connection.notifications
        assert isinstance(mailbox, AsyncMailbox)
        return await mailbox.get()

    def running_turn(self, thread_id: str) -> tuple[bool, str | None]:
        """Whether a turn runs on the thread, and its id once it is known.

        Of this client, or one of which it has heard that it began: of compaction, a goal, or another client of a pool.
        """
        return self._connection.running_turn(thread_id)

    async def _wait_started(self, thread_id: str) -> None:
        """Wait until the turn starts under way on a thread are answered."""
        self._home.enter()
        starts = self._connection.turn_starts(thread_id)
        if starts:
            await asyncio.wait(starts)

    def follow_turn(self, turn_id: str, thread_id: str | None = None) -> AsyncMailbox:
        """A mailbox that gets what the turn sends from now on.

        On a pool, a turn of `thread_id` that another client runs is joined; if it does not run, reading the mailbox
        raises UnknownTurnError. Raises TurnEndedError, UnknownTurnError, TransportClosedError.
        """
        self._home.check()
        mailbox = AsyncMailbox(home=self._home)
        self._connection.follow(turn_id, mailbox, thread_id)
        return mailbox

    async def wait_for_login_completed(self, login_id: str) -> models.AccountLoginCompletedNotification:
        """Wait for the end of a log-in, however it ends. Raises TransportClosedError."""
        self._home.enter()
        mailbox = self._connection.login_mailbox(login_id, AsyncMailbox)
        assert isinstance(mailbox, AsyncMailbox)
        notification = await mailbox.get()
        if notification is None:
            raise TurnEndedError(f"the end of log-in {login_id} was read before")
        payload: Any = notification.payload
        ended: models.AccountLoginCompletedNotification = payload
        return ended

    @property
    def held(self) -> dict[str, int]:
        """What is kept for answers and turns under way, by kind: all zero when nothing runs."""
        return self._connection.held

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        if self._home.is_here:
            # A transport that works on the loop.
            function(*args)
        else:
            # A loop that is closed has nobody left who waits.
            self._home.call_soon(function, *args)

    def _begin(
        self,
        operation: Operation[Any],
        mailbox: AsyncMailbox | None,
        timeout_s: Any,
        detach: bool = False,
        if_idle: bool = False,
    ) -> Call:
        return self._connection.begin(
            operation.method,
            operation.params,
            self._home.enter().create_future(),
            thread_id=operation.thread_id,
            turn=mailbox,
            interest=operation.interest,
            timeout_s=operation.timeout_s if timeout_s is ... else timeout_s,
            detach=detach,
            if_idle=if_idle,
        )

    async def _wait(self, call: Call) -> bytes:
        future: asyncio.Future[bytes] = call.future  # type: ignore[assignment]
        if call.timeout_s is not None:
            # While it waits in a queue its deadline is put off.
            when = call.deadline or time.monotonic() + _QUEUE_POLL_S
            self._alarm.set(asyncio.get_running_loop(), when)
        try:
            return await future
        except BaseException:
            self._connection.give_up(call)
            raise

    def _look(self) -> None:
        """Tell the calls whose time is over; one timer looks after all of them."""
        now = time.monotonic()
        over, next_one = self._connection.overdue(now)
        for call in over:
            if not call.future.done():
                call.future.set_exception(RequestTimeoutError(f"no answer to {call.method} within {call.timeout_s} s"))
        if self._connection.held["calls"] > len(over):
            self._alarm.set(asyncio.get_running_loop(), min(next_one, now + _QUEUE_POLL_S))

    def _on_ask(self, ask: Ask) -> None:
        self._open_asks[ask.id] = self.spawn(self._answer(ask))

    def _on_resolved(self, request_id: RequestId) -> None:
        task = self._open_asks.pop(request_id, None)
        if task is not None:
            task.cancel()

    async def _answer(self, ask: Ask) -> None:
        line = _asks.refusal(ask)
        try:
            if self._approval_handler is not None:
                result = self._approval_handler(ask.method, _asks.params_of(ask))
                line = _asks.answer(ask, await result if inspect.isawaitable(result) else result)
            elif ask.method not in self._logged_declines:
                self._logged_declines.add(ask.method)
                log.warning("no approval_handler: %s is declined", ask.method)
        except Exception:
            log.exception("the approval handler failed: %s is declined", ask.method)
        finally:
            if self._open_asks.pop(ask.id, None) is not None:
                self._connection.answer(line)

    def _on_orphan(self, thread_id: str, turn_id: str) -> None:
        self._interrupt_soon(thread_id, turn_id, lambda: self._connection.has_ended(turn_id))

    async def _interrupt_orphan(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        with contextlib.suppress(AppServerError):
            await self.interrupt_turn(thread_id, turn_id, is_over)

    async def interrupt_turn(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        """Stop a turn, then the sub-agents that work for it, also those that outlive it.

        It is told again until the app-server knows it, or `is_over` says that it has ended.
        Raises InvalidRequestError, TransportClosedError, RequestTimeoutError, WrongEventLoopError.
        """
        self._home.enter()
        connection = self._connection
        # First, so that none begins or is forgotten unseen in between.
        agents = connection.stop_agents(thread_id, turn_id)
        try:
            await self._interrupt_one(thread_id, turn_id, is_over)
        finally:
            ends = [functools.partial(connection.has_ended, agent.turn_id) for agent in agents]
            # As tasks of the client: one who waits for this and is cancelled must not leave them running.
            orphans = [self.spawn(self._interrupt_orphan(*agent, end)) for agent, end in zip(agents, ends, strict=True)]
            if orphans:
                await asyncio.wait(orphans)

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
            await asyncio.sleep(INTERRUPT_RETRY_S)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside the callers, until it is done or the client is closed. Raises WrongEventLoopError."""
        try:
            task = self._home.enter().create_task(work)
        except BaseException:
            work.close()
            raise
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the client failed", exc_info=task.exception())

    def _interrupt_soon(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        """Have a turn interrupted on the loop of the client, from wherever; waits for nothing and raises nothing."""
        if self._connection.is_inherited:
            return
        if self._home.is_current:
            self.spawn(self._interrupt_orphan(thread_id, turn_id, is_over))
        else:
            self._home.call_soon(lambda: self.spawn(self._interrupt_orphan(thread_id, turn_id, is_over)))


async def read(mailbox: AsyncMailbox) -> AsyncIterator[Notification]:
    """The notifications of a mailbox, to its end."""
    while (notification := await mailbox.get()) is not None:
        yield notification
