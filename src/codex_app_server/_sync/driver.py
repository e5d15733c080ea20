"""SyncDriver: how the synchronous client starts, ends, waits and calls handlers. Its requests are in `client`."""

from __future__ import annotations

import _thread
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .. import operations
from .._core import approvals
from .._core.calls import Call, Future
from .._core.connection import GLOBAL_NOTIFICATIONS, Connection
from .._core.deadlines import INTERRUPT_ANSWER_S, left_s
from .._core.deliveries import ServerRequest
from .._core.dispatcher import log
from .._core.runtime import Runtime
from .._core.sub_agents import AgentTurn
from .._protocol.envelope import RequestId
from .._runtime.start_failures import working_directory
from .._runtime.wakeup import Answer
from ..config import AppServerConfig, config_of
from ..errors import AppServerError
from ..transport import StdioTransport, Transport
from .mailbox import SyncMailbox

if TYPE_CHECKING:
    from typing_extensions import Self

ApprovalHandler = Callable[[str, Any], Any]


class SyncDriver:
    """See the module's docstring."""

    _interrupt_abandoned: Callable[[str, str, Callable[[], bool]], None]

    def __init__(
        self,
        config: AppServerConfig | None = None,
        *,
        transport: Transport | None = None,
        approval_handler: ApprovalHandler | None = None,
    ) -> None:
        self.config: AppServerConfig = config_of(config)
        approvals.check_handler(approval_handler, for_asyncio=False)
        # Whose directory relative paths are in is known of a process of our own.
        self._base = working_directory(self.config.cwd) if transport is None else None
        self._transport = transport or StdioTransport(self.config)
        self._approval_handler = approval_handler
        self._logged_declines: set[str] = set()
        self._runtime = Runtime()
        self._open_requests: set[RequestId] = set()
        self._connection = Connection(
            self._transport,
            post=lambda function, *args: function(*args),
            on_server_request=self._on_server_request,
            on_resolved=self._on_resolved,
            on_abandoned=self._on_abandoned,
            global_mailbox=self._new_mailbox(max_lines=GLOBAL_NOTIFICATIONS),
        )

    def __enter__(self) -> Self:
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
        """End the connection; callers that still wait get TransportClosedError. May be called twice.

        In a process forked from the one that made the client it does nothing.
        """
        if self._connection.is_inherited:
            return
        self._connection.close()
        # Nothing else does it for one that was never started.
        self._connection.notifications.close()

    def _new_mailbox(self, *, max_lines: int | None = None) -> SyncMailbox:
        return SyncMailbox(max_lines=max_lines)

    def _new_future(self) -> Future:
        return Answer()

    def _wait(self, call: Call) -> bytes:
        answer: Answer = call.future  # type: ignore[assignment]
        while True:
            try:
                is_there = answer.wait(left_s(call.check_at(time.monotonic())))
            except BaseException:
                self._connection.give_up(call)
                raise
            if is_there:
                result: bytes = answer.result()
                return result
            if call.is_overdue(time.monotonic()):
                self._connection.give_up(call)
                raise call.overdue_error

    def _wait_started(self, thread_id: str, deadline: float | None = None) -> None:
        """Wait until the turn starts under way on a thread are answered. Raises TimeoutError."""
        for start in self._connection.turn_starts(thread_id):
            if not start.wait(left_s(deadline)):
                raise TimeoutError(f"a turn start on thread {thread_id} was not answered in time")

    def _on_server_request(self, request: ServerRequest) -> None:
        self._open_requests.add(request.id)
        try:
            threading.Thread(target=self._answer, args=(request,), name="codex-approval", daemon=True).start()
        except RuntimeError as error:
            self._open_requests.discard(request.id)
            log.error("no thread could be started for the approval handler (%s): %s is declined", error, request.method)
            self._connection.answer(approvals.refusal(request))

    def _on_resolved(self, request_id: RequestId) -> None:
        self._open_requests.discard(request_id)

    def _answer(self, request: ServerRequest) -> None:
        line = approvals.refusal(request)
        try:
            if self._approval_handler is not None:
                line = approvals.answer(request, self._approval_handler(request.method, approvals.params_of(request)))
            elif request.method not in self._logged_declines:
                self._logged_declines.add(request.method)
                log.warning("no approval_handler: %s is declined", request.method)
        except BaseException:
            # Also SystemExit: it ends this thread only, and would do so in silence.
            log.exception("the approval handler failed: %s is declined", request.method)
        finally:
            if request.id in self._open_requests:
                self._open_requests.discard(request.id)
                self._connection.answer(line)

    def _on_abandoned(self, thread_id: str, turn_id: str) -> None:
        self._interrupt_later(thread_id, turn_id, lambda: self._connection.has_ended(turn_id))

    def _interrupt_later(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        """Have a turn interrupted by another thread; waits for nothing."""
        try:
            # Not Thread.start: that waits for the thread to come up, which a finalizer must not.
            _thread.start_new_thread(self._interrupt_abandoned, (thread_id, turn_id, is_over))
        except RuntimeError as error:
            log.error("no thread could be started to interrupt turn %s (%s): it is requested once", turn_id, error)
            connection = self._connection
            active = AgentTurn(thread_id, connection.active_turn(thread_id, turn_id))
            with contextlib.suppress(AppServerError):
                for turn in (active, *connection.stop_agents(thread_id, turn_id)):
                    call = operations.turn_interrupt(*turn)
                    connection.begin(call.method, call.params, Answer(), timeout_s=INTERRUPT_ANSWER_S)

    def _abandon(self, thread_id: str, turn_id: str, is_over: Callable[[], bool]) -> None:
        """Interrupt a turn that its reader has given up."""
        self._interrupt_abandoned(thread_id, turn_id, is_over)

    def _interrupt_agents(self, agents: Sequence[AgentTurn]) -> None:
        """Interrupt turns of sub-agents; failures are of no interest."""
        for agent in agents:
            self._interrupt_abandoned(*agent, functools.partial(self._connection.has_ended, agent.turn_id))
