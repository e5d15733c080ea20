"""AsyncThread: a conversation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .. import operations
from .._core.awaited import awaited
from .._core.busy import OnBusy, check_on_busy
from .._core.deadlines import BUSY_POLL_S, deadline_after, left_s
from .._core.last_error import LastError
from .._core.signatures import described
from ..errors import InternalRpcError, JsonRpcError, ThreadBusyError, TurnEndedError
from ..inputs import RunInput
from ..results import TurnResult
from ..transport import Interest
from .client import AsyncAppServerClient
from .turn import AsyncTurnHandle
from .waiting import pause

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..generated import models as m
    from ..presets import TurnKeywords

T = TypeVar("T")


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
        self._client._loop_owner.enter()  # asyncio only
        operations.check_timeout(timeout)
        deadline = deadline_after(timeout)
        last_error = LastError()
        try:
            turn = await self._turn(input, "final", options, output_type, on_busy, detach, deadline, last_error)
            result = await turn._run(deadline, last_error)
        except TimeoutError:
            if deadline is None or time.monotonic() < deadline:
                raise
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
        `on_busy` sets what happens when the thread runs a turn already, of this client, of compaction or of a goal:
        "error" raises ThreadBusyError, "queue" waits for its end, "steer" adds the input to it (compaction and reviews
        take none: ThreadBusyError).
        `detach`: the turn goes on when it is no longer waited for or read.
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
        deadline: float | None = None,
        last_error: LastError | None = None,
    ) -> AsyncTurnHandle:
        self._client._loop_owner.enter()  # asyncio only
        check_on_busy(on_busy)
        operation = operations.turn_start(self.id, input, options, interest, output_type)
        while True:
            try:
                response, mailbox = await self._client.start_turn(
                    operation, detach=detach, deadline=deadline, if_idle=True
                )
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
                    # Its start is still to be reported.
                    await pause(BUSY_POLL_S, deadline)
                    continue
            if running is None:
                await self._client._wait_started(self.id, deadline)
                continue
            try:
                mailbox = self._client.follow_turn(running)
            except TurnEndedError:
                continue
            if on_busy == "steer":
                handle = AsyncTurnHandle(self._client, self.id, running, mailbox, detach)
                try:
                    await handle._steer(input, deadline)
                except JsonRpcError as error:
                    if operations.is_busy(error):
                        raise ThreadBusyError(self.id, running) from error
                    raise
                return handle
            while (notification := await mailbox.get(left_s(deadline))) is not None:
                if last_error is not None:
                    last_error.observe(notification)

    def follow(self, turn_id: str) -> AsyncTurnHandle:
        """A second handle on a running turn: what it sends from now on. It does not interrupt when it is closed.

        Raises at once TurnEndedError for a turn known to have ended, UnknownTurnError for one that was never seen. On
        a pool the turn may be another client's; then UnknownTurnError comes when the handle is read.
        """
        return AsyncTurnHandle(self._client, self.id, turn_id, self._client.follow_turn(turn_id, self.id), True)

    @awaited
    async def read(self, *, include_turns: bool = False) -> m.ThreadReadResponse:
        """Read what is stored of this conversation."""
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
        response = await self._client.perform(operations.goal_set(self.id, fields))
        return response.goal

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
