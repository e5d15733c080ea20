"""AsyncCodex, AsyncThread and AsyncTurnHandle: the asyncio twins of `api`, over the same operations."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from . import _thread_pages, operations
from ._awaited import awaited
from ._described import described
from ._last_error import LastError
from ._thread_walk import PageRequest, ThreadWalk
from .api import BUSY_POLL_S, OnBusy, check_on_busy
from .async_client import AsyncApprovalHandler, AsyncAppServerClient, AsyncMailbox
from .config import AppServerConfig
from .errors import (
    CLOSED,
    InternalRpcError,
    JsonRpcError,
    RequestTimeoutError,
    ThreadBusyError,
    TransportClosedError,
    TurnEndedError,
    UnknownTurnError,
)
from .inputs import RunInput
from .notifications import Notification
from .results import TurnCollector, TurnResult, delta_of
from .transport import Interest, Transport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .generated import models as m
    from .generated.options import ThreadListOptions
    from .login import AsyncChatgptLoginHandle, AsyncDeviceCodeLoginHandle
    from .presets import ThreadForkKeywords, ThreadResumeKeywords, ThreadStartKeywords, TurnKeywords

T = TypeVar("T")


class AsyncCodex:
    """An app-server for asyncio. Starts at its first use, once however many tasks ask; use it with `async with`.

    `transport` replaces the child process, e.g. by a pool.
    """

    def __init__(
        self,
        config: AppServerConfig | None = None,
        *,
        transport: Transport | None = None,
        approval_handler: AsyncApprovalHandler | None = None,
    ) -> None:
        self._client = AsyncAppServerClient(config, transport=transport, approval_handler=approval_handler)
        self._starting: asyncio.Task[m.InitializeResponse] | None = None
        self._closed = False

    def __del__(self) -> None:
        if getattr(self, "_closed", True) or self._starting is None or sys.is_finalizing():
            return
        if self._client._connection.is_inherited:
            return
        # It may run in the middle of anything, so that it waits for nothing.
        with contextlib.suppress(Exception):
            self._client._connection.close_soon()
        warnings.warn(
            f"unclosed {self!r}: use it with `async with`, or close() it", ResourceWarning, stacklevel=2, source=self
        )

    async def __aenter__(self) -> AsyncCodex:
        try:
            await self._ready()
        except BaseException:
            # There will be no `__aexit__`.
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __enter__(self) -> NoReturn:
        raise TypeError("an AsyncCodex is for asyncio: write `async with`, or use Codex")

    def __exit__(self, *_: object) -> None:
        """Never called."""

    @property
    def client(self) -> AsyncAppServerClient:
        """The client underneath, for requests without a method of their own here."""
        return self._client

    @property
    def metadata(self) -> m.InitializeResponse:
        """What the app-server said of itself in the handshake. Raises TransportClosedError before the first use."""
        if self._starting is None or not self._starting.done():
            raise TransportClosedError("the app-server has not been started: await start(), or any other call, first")
        return self._starting.result()

    async def start(self) -> m.InitializeResponse:
        """Start the app-server now, unless it has been. Every other call does so by itself."""
        return await self._ready()

    async def close(self) -> None:
        """End the app-server and wait until it is gone. May be called twice.

        From another event loop only if its own does not run any more: else raises WrongEventLoopError. In a process
        forked from the one that made it, it does nothing, and so does the end of an `async with` block.
        """
        if self._client._connection.is_inherited:
            return
        self._client._home.check_may_close()
        self._closed = True
        if self._starting is not None and not self._starting.done() and self._client._home.is_current:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self._client.close()

    @described("ThreadStartOptions")
    @awaited
    async def thread_start(self, **options: Unpack[ThreadStartKeywords]) -> AsyncThread:
        """Begin a conversation."""
        response = await self._perform(operations.thread_start(options))
        return AsyncThread(self._client, response.thread.id)

    @described("ThreadResumeOptions")
    @awaited
    async def thread_resume(self, thread_id: str, **options: Unpack[ThreadResumeKeywords]) -> AsyncThread:
        """Take up a stored conversation."""
        response = await self._perform(operations.thread_resume(thread_id, options))
        return AsyncThread(self._client, response.thread.id)

    @described("ThreadForkOptions")
    @awaited
    async def thread_fork(self, thread_id: str, **options: Unpack[ThreadForkKeywords]) -> AsyncThread:
        """Begin a new conversation with the history of another."""
        response = await self._perform(operations.thread_fork(thread_id, options))
        return AsyncThread(self._client, response.thread.id)

    @described("ThreadListOptions")
    @awaited
    async def thread_list(self, **options: Unpack[ThreadListOptions]) -> m.ThreadListResponse:
        """Stored conversations, a page at a time."""
        response: m.ThreadListResponse = await self._perform(operations.thread_list(options))
        return response

    @described("ThreadListOptions", but="cursor")
    def threads(self, **options: Unpack[ThreadListOptions]) -> AsyncIterator[m.Thread]:
        """All stored conversations, each once, page by page: what `thread_list` may skip between two pages is not.

        Options are those of `thread_list`, but for `cursor`; `limit` is the size of a page, at most and by default 100.
        With `sort_key` or `sort_direction` they come in that order, once all pages are read; without, as they are
        found: by far most from the newest to the oldest. A thread that is begun meanwhile may be missing.
        Raises ThreadListError where the list cannot be read on without skipping some, InvalidInputError for options
        that are none.
        """
        walk, page = _thread_pages.walk_of(options, shared=self._client._connection.shared)
        order = _thread_pages.order_of(options)
        threads = self._walk(walk, page)
        return threads if order is None else self._sorted(threads, order)

    async def _walk(
        self, walk: ThreadWalk, page: Callable[[PageRequest], operations.Operation[Any]]
    ) -> AsyncIterator[m.Thread]:
        while (request := walk.request) is not None:
            with _thread_pages.reading():
                response = await self._perform(page(request))
            for thread in _thread_pages.walk_on(walk, response):
                yield thread

    async def _sorted(self, threads: AsyncIterator[m.Thread], order: tuple[str, str]) -> AsyncIterator[m.Thread]:
        for thread in _thread_pages.in_order([thread async for thread in threads], *order):
            yield thread

    async def thread_archive(self, thread_id: str) -> None:
        """Put a stored conversation away; also frees what the app-server holds of it in memory."""
        await self._perform(operations.request("thread/archive", {"thread_id": thread_id}))

    @awaited
    async def thread_unarchive(self, thread_id: str) -> AsyncThread:
        """Bring an archived conversation back; `thread_resume` it to go on."""
        response = await self._perform(operations.request("thread/unarchive", {"thread_id": thread_id}))
        return AsyncThread(self._client, response.thread.id)

    async def thread_delete(self, thread_id: str) -> None:
        """Delete a stored conversation for good."""
        await self._perform(operations.request("thread/delete", {"thread_id": thread_id}))

    @awaited
    async def models(self, *, include_hidden: bool = False) -> m.ModelListResponse:
        """The models on offer."""
        operation = operations.request("model/list", {"include_hidden": include_hidden})
        response: m.ModelListResponse = await self._perform(operation)
        return response

    @awaited
    async def account(self, *, refresh_token: bool = False) -> m.GetAccountResponse:
        """Who is logged in, and how."""
        response: m.GetAccountResponse = await self._perform(operations.account(refresh_token))
        return response

    async def login_api_key(self, api_key: str) -> None:
        """Log in with an API key."""
        await self._perform(operations.login("apiKey", api_key=api_key))

    @awaited
    async def login_chatgpt(self) -> AsyncChatgptLoginHandle:
        """Begin a log-in by browser."""
        from .login import AsyncChatgptLoginHandle

        response = await self._perform(operations.login("chatgpt"))
        return AsyncChatgptLoginHandle(self._client, response.login_id, response.auth_url)

    @awaited
    async def login_chatgpt_device_code(self) -> AsyncDeviceCodeLoginHandle:
        """Begin a log-in by a code that the user enters elsewhere."""
        from .login import AsyncDeviceCodeLoginHandle

        response = await self._perform(operations.login("chatgptDeviceCode"))
        return AsyncDeviceCodeLoginHandle(
            self._client, response.login_id, response.verification_url, response.user_code
        )

    async def logout(self) -> None:
        """Forget the account."""
        await self._perform(operations.request("account/logout"))

    async def notifications(self) -> AsyncIterator[Notification]:
        """What belongs to no turn of this client; it ends when the client is closed. The newest 10,000 are kept.

        Raises TransportClosedError when the app-server dies.
        """
        self._client._home.enter()
        if not self._closed:
            await self._ready()
        while (notification := await self._client.next_notification()) is not None:
            yield notification

    async def _perform(self, operation: operations.Operation[Any]) -> Any:
        await self._ready()
        return await self._client.perform(operation)

    async def _ready(self) -> m.InitializeResponse:
        self._client._home.enter()
        if self._closed:
            raise TransportClosedError(CLOSED)
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        # Shielded: one impatient caller must not break the start for the others.
        return await asyncio.shield(self._starting)

    async def _start(self) -> m.InitializeResponse:
        try:
            await self._client.start()
            return await self._client.initialize()
        except BaseException:
            await self._client.close()
            raise


class AsyncThread:
    """A conversation, by its id. Turns of one thread run one after the other; threads run side by side."""

    def __init__(self, client: AsyncAppServerClient, id: str) -> None:
        self._client = client
        self.id = id

    @overload
    async def run(
        self,
        input: RunInput,
        *,
        output_type: None = None,
        timeout: float | None = None,
        on_busy: OnBusy = "error",
        detach: bool = False,
        **options: Unpack[TurnKeywords],
    ) -> TurnResult: ...
    @overload
    async def run(
        self,
        input: RunInput,
        *,
        output_type: type[T],
        timeout: float | None = None,
        on_busy: OnBusy = "error",
        detach: bool = False,
        **options: Unpack[TurnKeywords],
    ) -> T: ...
    @described("TurnStartOptions")
    @awaited
    async def run(
        self,
        input: RunInput,
        *,
        output_type: Any = None,
        timeout: float | None = None,
        on_busy: OnBusy = "error",
        detach: bool = False,
        **options: Unpack[TurnKeywords],
    ) -> Any:
        """Run one turn to its end. With `output_type` its answer is asked for, and returned, as that type.

        `timeout` in seconds, all waiting included; `on_busy` and `detach` as in `turn`. Whatever ends the wait early -
        the timeout, cancellation - interrupts the turn, unless `detach`.
        Raises TurnFailedError, RequestTimeoutError, OutputTypeError, ThreadBusyError.
        """

        self._client._home.enter()
        operations.check_timeout(timeout)
        last_error = LastError()

        async def turn_and_wait() -> TurnResult:
            turn = await self._turn(input, "final", options, output_type, on_busy, detach, last_error)
            return await turn._run(last_error)

        try:
            result = await asyncio.wait_for(turn_and_wait(), timeout)
        except RequestTimeoutError:
            raise
        except (asyncio.TimeoutError, TimeoutError):
            raise last_error.timeout(f"the turn did not end within {timeout} s") from None
        return result if output_type is None else operations.parse_output(output_type, result)

    @described("TurnStartOptions")
    @awaited
    async def turn(
        self,
        input: RunInput,
        *,
        interest: Interest = "full",
        on_busy: OnBusy = "error",
        detach: bool = False,
        **options: Unpack[TurnKeywords],
    ) -> AsyncTurnHandle:
        """Start a turn, to be streamed, steered or interrupted.

        `interest` "items" leaves out the deltas where the transport can (a pool); "full" is everything.
        `on_busy` says what happens when the thread runs a turn already, of this client, of compaction or of a goal:
        "error" raises ThreadBusyError, "queue" waits for its end, "steer" adds the input to it (compaction and reviews
        take none: ThreadBusyError).
        `detach`: the turn goes on when nobody waits for it or reads it any more.
        """
        return await self._turn(input, interest, options, None, on_busy, detach)

    async def _turn(
        self,
        input: RunInput,
        interest: Interest,
        options: Any,
        output_type: Any,
        on_busy: OnBusy,
        detach: bool,
        last_error: LastError | None = None,
    ) -> AsyncTurnHandle:
        self._client._home.enter()
        check_on_busy(on_busy)
        operation = operations.turn_start(self.id, input, options, interest, output_type)
        while True:
            try:
                response, mailbox = await self._client.start_turn(operation, detach=detach, if_idle=True)
                return AsyncTurnHandle(self._client, self.id, response.turn.id, mailbox, detach)
            except ThreadBusyError as busy:
                if on_busy == "error":
                    raise
                running = busy.turn_id
            except InternalRpcError as error:
                if not operations.is_busy(error):
                    raise
                running = self._client.running_turn(self.id)[1]
                if on_busy != "queue":
                    raise ThreadBusyError(self.id, running) from error
                if running is None:
                    # That it has begun is still to be said.
                    await asyncio.sleep(BUSY_POLL_S)
                    continue
            if running is None:
                await self._client._wait_started(self.id)
                continue
            try:
                mailbox = self._client.follow_turn(running)
            except TurnEndedError:
                continue
            if on_busy == "steer":
                handle = AsyncTurnHandle(self._client, self.id, running, mailbox, detach)
                try:
                    await handle.steer(input)
                except JsonRpcError as error:
                    if operations.is_busy(error):
                        raise ThreadBusyError(self.id, running) from error
                    raise
                return handle
            while (notification := await mailbox.get()) is not None:
                if last_error is not None:
                    last_error.heed(notification)

    def follow(self, turn_id: str) -> AsyncTurnHandle:
        """A second handle on a running turn: what it sends from now on. It does not interrupt when it is closed.

        Raises at once TurnEndedError for a turn known to have ended, UnknownTurnError for one that was never seen. On
        a pool the turn may be another client's; then UnknownTurnError comes when the handle is read.
        """
        return AsyncTurnHandle(self._client, self.id, turn_id, self._client.follow_turn(turn_id, self.id), True)

    @awaited
    async def read(self, *, include_turns: bool = False) -> m.ThreadReadResponse:
        """What is stored of this conversation."""
        return await self._client.perform(operations.thread_read(self.id, include_turns))

    async def set_name(self, name: str) -> None:
        """Give the conversation a name."""
        await self._client.perform(operations.request("thread/name/set", {"thread_id": self.id, "name": name}))

    @awaited
    async def compact(self) -> m.ThreadCompactStartResponse:
        """Begin to shorten the history; the turn that does it shows among the client's notifications."""
        operation = operations.request("thread/compact/start", {"thread_id": self.id})
        response: m.ThreadCompactStartResponse = await self._client.perform(operation)
        return response

    @awaited
    async def review(
        self, target: m.ReviewTarget | dict[str, Any] | None = None, *, detached: bool = False
    ) -> AsyncTurnHandle:
        """Start a review, by default of the uncommitted changes; `detached` on a thread of its own."""
        operation = operations.review_start(self.id, target or {"type": "uncommittedChanges"}, detached)
        response, mailbox = await self._client.start_turn(operation)
        return AsyncTurnHandle(self._client, response.review_thread_id, response.turn.id, mailbox)

    @awaited
    async def set_goal(
        self, objective: str | None = None, *, status: Any = None, token_budget: int | None = None
    ) -> m.ThreadGoal:
        """Give the conversation a goal, or change the one it has."""
        fields = {"objective": objective, "status": status, "token_budget": token_budget}
        return (await self._client.perform(operations.goal_set(self.id, fields))).goal

    @awaited
    async def goal(self) -> m.ThreadGoal | None:
        """The conversation's goal, if it has one."""
        operation = operations.request("thread/goal/get", {"thread_id": self.id})
        response: m.ThreadGoalGetResponse = await self._client.perform(operation)
        return response.goal

    @awaited
    async def clear_goal(self) -> bool:
        """Take the goal away; whether there was one."""
        operation = operations.request("thread/goal/clear", {"thread_id": self.id})
        response: m.ThreadGoalClearResponse = await self._client.perform(operation)
        return response.cleared


class AsyncTurnStream(AsyncIterator[Notification]):
    """The notifications of a turn, each given out once.

    Breaking off a loop leaves the turn alone; `aclose`, or leaving it as a context manager, interrupts a turn that has
    not ended, unless its handle is detached.
    """

    def __init__(self, turn: AsyncTurnHandle, mailbox: AsyncMailbox) -> None:
        self._turn = turn
        self._mailbox = mailbox

    async def __anext__(self) -> Notification:
        self._mailbox.check()
        for there in self._mailbox.current:
            return there
        notification = await self._mailbox.get()
        if notification is None:
            raise StopAsyncIteration
        return notification

    async def next(self, timeout_s: float | None = None) -> Notification | None:
        """The next notification, None at the end. Raises TimeoutError when none comes in time; the turn goes on."""
        try:
            return await asyncio.wait_for(anext(self), timeout_s)
        except StopAsyncIteration:
            return None
        except asyncio.TimeoutError:
            raise TimeoutError(f"no notification within {timeout_s} s") from None

    async def __aenter__(self) -> AsyncTurnStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Interrupt the turn if it has not ended."""
        self._turn.abandon()


class AsyncTurnText(AsyncIterator[str]):
    """The text of a turn alone, each piece given out once. Without a turn `start` begins it at the first read.

    Breaking off a loop leaves the turn alone; cancelling the task that waits for the next piece, `aclose`, or leaving
    it as a context manager interrupts a turn that has not ended, unless its handle is detached.
    """

    def __init__(
        self, turn: AsyncTurnHandle | None = None, start: Callable[[], Awaitable[AsyncTurnHandle]] | None = None
    ) -> None:
        self._turn = turn
        self._start = start
        self._collector = TurnCollector(turn.id if turn is not None else "")

    async def __anext__(self) -> str:
        if self._start is not None:
            # Once only, also when it fails.
            start, self._start = self._start, None
            self._turn = await start()
            self._collector.turn_id = self._turn.id
        if self._turn is None:
            raise StopAsyncIteration
        try:
            while (notification := await self._turn._mailbox.get()) is not None:
                if notification.method == "item/agentMessage/delta":
                    return delta_of(notification).delta
                self._collector.add(notification)
        except asyncio.CancelledError:
            self._turn.abandon()
            raise
        self._collector.result()
        raise StopAsyncIteration

    async def __aenter__(self) -> AsyncTurnText:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Interrupt the turn if it has not ended; one that was not begun never will be."""
        self._start = None
        if self._turn is not None:
            self._turn.abandon()


class AsyncTurnHandle:
    """A turn under way. Its notifications are kept for this handle until they are read."""

    def __init__(
        self, client: AsyncAppServerClient, thread_id: str, id: str, mailbox: AsyncMailbox, detach: bool = False
    ) -> None:
        self._client = client
        self._mailbox = mailbox
        self._detach = detach
        self.thread_id = thread_id
        self.id = id

    def stream(self) -> AsyncTurnStream:
        """The notifications of this turn, and only of this one, to its end."""
        return AsyncTurnStream(self, self._mailbox)

    def text(self) -> AsyncTurnText:
        """The text of the turn alone, as it comes. Raises TurnFailedError at its end if it failed."""
        return AsyncTurnText(self)

    @awaited
    async def run(self, *, timeout: float | None = None) -> TurnResult:
        """Read the turn to its end. `timeout` in seconds; whatever ends the wait early interrupts the turn.

        Raises TurnFailedError, TransportClosedError, RequestTimeoutError, WrongEventLoopError.
        """
        self._mailbox.check()
        operations.check_timeout(timeout)
        last_error = LastError()
        try:
            return await asyncio.wait_for(self._run(last_error), timeout)
        except (asyncio.TimeoutError, TimeoutError):
            raise last_error.timeout(f"turn {self.id} did not end within {timeout} s") from None

    async def _run(self, last_error: LastError) -> TurnResult:
        collector = TurnCollector(self.id, last_error)
        try:
            while (notification := await self._mailbox.get()) is not None:
                collector.add(notification)
                for there in self._mailbox.current:
                    collector.add(there)
        except asyncio.CancelledError:
            self.abandon()
            raise
        return collector.result()

    def abandon(self) -> None:
        """Have the turn interrupted if it has not ended and the handle is not detached; waits for nothing."""
        if not self._detach and not self._mailbox.closed:
            mailbox = self._mailbox
            self._client._interrupt_soon(self.thread_id, self.id, lambda: mailbox.closed)

    async def steer(self, input: RunInput) -> None:
        """Add input to the running turn. Raises InvalidRequestError when it is over."""
        await self._client.perform(operations.turn_steer(self.thread_id, self.id, input))

    def sub_agents(self) -> list[AsyncTurnHandle]:
        """Handles on the turns of sub-agents that work for this turn and run now, also after its end.

        Each is one as of `Thread.follow`: what its turn sends from now on comes there, and no longer among the
        client's notifications. Raises TransportClosedError.
        """
        self._client._home.check()
        handles = []
        for thread_id, turn_id in self._client._connection.running_agents(self.thread_id, self.id):
            # One may be over by now.
            with contextlib.suppress(TurnEndedError, UnknownTurnError):
                handles.append(
                    AsyncTurnHandle(self._client, thread_id, turn_id, self._client.follow_turn(turn_id), True)
                )
        return handles

    def sub_agent_usage(self) -> dict[str, m.ThreadTokenUsage]:
        """The token usage of each sub-agent that has worked for this turn, by its thread, as last reported.

        It is all that the thread has used; the usage in the turn's result has none of it.
        """
        self._client._home.check()
        reports = self._client._connection.agent_usage(self.id)
        usages = {thread: getattr(Notification(line).payload, "token_usage", None) for thread, line in reports.items()}
        return {thread: usage for thread, usage in usages.items() if usage is not None}

    async def interrupt(self) -> None:
        """Stop the turn and its sub-agents; its stream then ends with status `interrupted`.

        One that is over is left alone, but sub-agents that outlive it are stopped. Right after its start the app-server
        does not know the turn yet: it is told again until it does.
        """
        await self._client.interrupt_turn(self.thread_id, self.id, lambda: self._mailbox.ended)


@described("TurnStartOptions")
def astream_text(thread: AsyncThread, input: RunInput, **options: Unpack[TurnKeywords]) -> AsyncTurnText:
    """Start one turn, when it is first read, and iterate over its text. Raises TurnFailedError at its end."""
    return AsyncTurnText(start=lambda: thread.turn(input, **options))
