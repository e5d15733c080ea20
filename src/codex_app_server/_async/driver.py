"""AsyncDriver: how the asyncio client starts, ends, waits and calls handlers. Its requests are in `client`.

Nothing blocks the event loop and nothing sits in an executor: the transport works on the loop itself where it can (a
pool's), else its own I/O thread wakes the loop once per read, however many turns that read belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from .. import operations
from .._core import approvals
from .._core.calls import Call, Future
from .._core.connection import GLOBAL_NOTIFICATIONS, Connection
from .._core.deadlines import left_s
from .._core.deliveries import ServerRequest
from .._core.dispatcher import log
from .._core.runtime import Runtime
from .._core.sub_agents import AgentTurn
from .._protocol.envelope import RequestId
from .._runtime import event_loops, threads
from .._runtime.start_failures import working_directory
from .._runtime.timer import LoopTimer
from ..config import AppServerConfig, config_of
from ..transport import StdioTransport, Transport
from .mailbox import AsyncMailbox

if TYPE_CHECKING:
    from typing_extensions import Self

AsyncApprovalHandler = Callable[[str, Any], Any | Awaitable[Any]]


class AsyncDriver:
    """See the module's docstring."""

    _interrupt_abandoned: Callable[[str, str, Callable[[], bool]], Coroutine[Any, Any, None]]

    def __init__(
        self,
        config: AppServerConfig | None = None,
        *,
        transport: Transport | None = None,
        approval_handler: AsyncApprovalHandler | None = None,
    ) -> None:
        self.config: AppServerConfig = config_of(config)
        approvals.check_handler(approval_handler, for_asyncio=True)
        # Whose directory relative paths are in is known of a process of our own.
        self._base = working_directory(self.config.cwd) if transport is None else None
        self._transport = transport or StdioTransport(self.config)
        self._approval_handler = approval_handler
        self._logged_declines: set[str] = set()
        self._runtime = Runtime()
        self._loop_owner = event_loops.LoopOwner()
        self._timer = LoopTimer(self._fail_overdue)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open_requests: dict[RequestId, asyncio.Task[None]] = {}
        self._connection = Connection(
            self._transport,
            post=self._post,
            on_server_request=self._on_server_request,
            on_resolved=self._on_resolved,
            on_abandoned=self._on_abandoned,
            global_mailbox=self._new_mailbox(max_lines=GLOBAL_NOTIFICATIONS),
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the transport, bound to the running event loop. Raises AppServerError."""
        loop = self._loop_owner.enter()
        # Starting a process and loading types takes a while, and must not block an event loop.
        try:
            await threads.in_thread(self._start)
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
        """End the connection; callers that still wait get TransportClosedError. May be called twice.

        From another event loop only if the client's own does not run any more: else raises WrongEventLoopError. In a
        process forked from the one that made the client it does nothing.
        """
        if self._connection.is_inherited:
            return
        self._loop_owner.check_may_close()
        if self._loop_owner.is_known:
            self._connection.move_to(None)
            await threads.in_thread(self._connection.close)
        # Nothing else does it for one that was never started.
        self._connection.notifications.close()
        self._timer.stop()
        for task in list(self._tasks):
            # Of a loop that is closed.
            with contextlib.suppress(RuntimeError):
                task.cancel()

    def _new_mailbox(self, *, max_lines: int | None = None) -> AsyncMailbox:
        return AsyncMailbox(max_lines=max_lines, owner=self._loop_owner)

    def _new_future(self) -> Future:
        return self._loop_owner.enter().create_future()

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        if self._loop_owner.is_here:
            # A transport that works on the loop.
            function(*args)
        else:
            # Nothing waits any more on a loop that is closed.
            self._loop_owner.call_soon(function, *args)

    async def _wait(self, call: Call) -> bytes:
        future: asyncio.Future[bytes] = call.future  # type: ignore[assignment]
        if (when := call.check_at(time.monotonic())) is not None:
            self._timer.set(asyncio.get_running_loop(), when)
        try:
            return await future
        except BaseException:
            self._connection.give_up(call)
            raise

    def _fail_overdue(self) -> None:
        """Fail the calls whose time is over; one timer looks after all of them."""
        over, next_one = self._connection.overdue(time.monotonic())
        for call in over:
            call.fail(call.overdue_error)
        if next_one < math.inf:
            self._timer.set(asyncio.get_running_loop(), next_one)

    async def _wait_started(self, thread_id: str, deadline: float | None = None) -> None:
        """Wait until the turn starts under way on a thread are answered. Raises TimeoutError."""
        self._loop_owner.enter()
        starts: Sequence[asyncio.Future[Any]] = self._connection.turn_starts(thread_id)
        if starts and (await asyncio.wait(starts, timeout=left_s(deadline)))[1]:
            raise TimeoutError(f"a turn start on thread {thread_id} was not answered in time")

    def _on_server_request(self, request: ServerRequest) -> None:
        self._open_requests[request.id] = self.spawn(self._answer(request))

    def _on_resolved(self, request_id: RequestId) -> None:
        task = self._open_requests.pop(request_id, None)
        if task is not None:
            task.cancel()

    async def _answer(self, request: ServerRequest) -> None:
        line = approvals.refusal(request)
        try:
            if self._approval_handler is not None:
                result = self._approval_handler(request.method, approvals.params_of(request))
                line = approvals.answer(request, await result if inspect.isawaitable(result) else result)
            elif request.method not in self._logged_declines:
                self._logged_declines.add(request.method)
                log.warning("no approval_handler: %s is declined", request.method)
        except Exception:
            log.exception("the approval handler failed: %s is declined", request.method)
        finally:
            if self._open_requests.pop(request.id, None) is not None:
                self._connection.answer(line)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside the callers, until it is done or the client is closed. Raises WrongEventLoopError."""
        try:
            task = self._loop_owner.enter().create_task(work)
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

    def _on_abandoned(self, thread_id: str, turn_id: str) -> None:
        self._interrupt_later(thread_id, turn_id, lambda: self._connection.has_ended(turn_id))

    def _interrupt_later(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        """Have a turn interrupted on the loop of the client, from anywhere; waits for nothing and raises nothing."""
        if self._connection.is_inherited:
            return
        if self._loop_owner.is_current:
            self.spawn(self._interrupt_abandoned(thread_id, turn_id, is_over))
        else:
            self._loop_owner.call_soon(lambda: self.spawn(self._interrupt_abandoned(thread_id, turn_id, is_over)))

    def _abandon(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        """Interrupt a turn that its reader has given up."""
        self._interrupt_later(thread_id, turn_id, is_over)

    async def _interrupt_agents(self, agents: Sequence[AgentTurn]) -> None:
        """Interrupt turns of sub-agents at once, and wait for that; failures are of no interest."""
        ends = [functools.partial(self._connection.has_ended, agent.turn_id) for agent in agents]
        # As tasks of the client: a caller that waits for this and is cancelled must not leave them running.
        tasks = [self.spawn(self._interrupt_abandoned(*agent, end)) for agent, end in zip(agents, ends, strict=True)]
        if tasks:
            await asyncio.wait(tasks)
