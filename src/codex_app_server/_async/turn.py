"""AsyncTurnHandle, and the streams of its notifications and of its text."""

from __future__ import annotations

import contextlib
from asyncio import CancelledError  # asyncio only
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from .. import operations
from .._core.awaited import awaited
from .._core.deadlines import deadline_after, left_s
from .._core.last_error import LastError
from ..errors import TurnEndedError, UnknownTurnError
from ..inputs import RunInput
from ..notifications import Notification
from ..results import TurnCollector, TurnResult, delta_of
from .client import AsyncAppServerClient
from .mailbox import AsyncMailbox, AsyncMailboxReader

if TYPE_CHECKING:
    from ..generated import models as m


class AsyncTurnStream(AsyncMailboxReader):
    """The notifications of a turn, each given out once.

    Breaking off a loop leaves the turn alone; `aclose`, or leaving it as a context manager, interrupts a turn that has
    not ended, unless its handle is detached.
    """

    def __init__(self, turn: AsyncTurnHandle) -> None:
        self._turn = turn
        self._mailbox = turn._mailbox

    async def __aenter__(self) -> AsyncTurnStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Interrupt the turn if it has not ended."""
        self._turn.abandon()


class AsyncTurnText(AsyncIterator[str]):
    """The text of a turn alone, each piece given out once.

    Breaking off a loop leaves the turn alone; cancelling the task that waits for the next piece, `aclose`, or leaving
    it as a context manager interrupts a turn that has not ended, unless its handle is detached.
    """

    def __init__(self, turn: AsyncTurnHandle) -> None:
        self._turn = turn
        self._collector = TurnCollector(turn.id)

    async def __anext__(self) -> str:
        try:
            while (notification := await self._turn._mailbox.get()) is not None:
                if notification.method == "item/agentMessage/delta":
                    return delta_of(notification).delta
                self._collector.add(notification)
        except CancelledError:
            self._turn.abandon()
            raise
        self._collector.result()
        raise StopAsyncIteration

    async def __aenter__(self) -> AsyncTurnText:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Interrupt the turn if it has not ended."""
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
        return AsyncTurnStream(self)

    def text(self) -> AsyncTurnText:
        """The text of the turn alone, as it comes. Raises TurnFailedError at its end if it failed."""
        return AsyncTurnText(self)

    @awaited
    async def run(self, *, timeout: float | None = None) -> TurnResult:
        """Read the turn to its end. `timeout` in seconds; whatever ends the wait early interrupts the turn.

        Raises TurnFailedError, TransportClosedError, RequestTimeoutError, WrongEventLoopError.
        """
        self._mailbox.check()  # asyncio only
        operations.check_timeout(timeout)
        last_error = LastError()
        try:
            return await self._run(deadline_after(timeout), last_error)
        except TimeoutError:
            raise last_error.timeout(f"turn {self.id} did not end within {timeout} s") from None

    async def _run(self, deadline: float | None, last_error: LastError) -> TurnResult:
        """Read the turn to its end. `deadline` is on the monotonic clock. Raises TimeoutError."""
        collector = TurnCollector(self.id, last_error)
        try:
            while (notification := await self._mailbox.get(left_s(deadline))) is not None:
                collector.add(notification)
                for there in self._mailbox.current:
                    collector.add(there)
        except (TimeoutError, CancelledError):
            self.abandon()
            raise
        return collector.result()

    def abandon(self) -> None:
        """Interrupt the turn if it has not ended and the handle is not detached; failures are of no interest."""
        if not self._detach and not self._mailbox.closed:
            mailbox = self._mailbox
            self._client._abandon(self.thread_id, self.id, lambda: mailbox.closed)

    async def steer(self, input: RunInput) -> None:
        """Add input to the running turn. Raises InvalidRequestError when it is over."""
        await self._steer(input, None)

    async def _steer(self, input: RunInput, deadline: float | None) -> None:
        await self._client.perform(operations.turn_steer(self.thread_id, self.id, input), deadline=deadline)

    def sub_agents(self) -> list[AsyncTurnHandle]:
        """Handles on the turns of sub-agents that work for this turn and run now, also after its end.

        Each is one as of `Thread.follow`: what its turn sends from now on comes there, and no longer among the
        client's notifications. Raises TransportClosedError.
        """
        self._client._loop_owner.check()  # asyncio only
        handles = []
        for thread_id, turn_id in self._client._connection.running_agents(self.thread_id, self.id):
            # One may be over by now.
            with contextlib.suppress(TurnEndedError, UnknownTurnError):
                mailbox = self._client.follow_turn(turn_id)
                handles.append(AsyncTurnHandle(self._client, thread_id, turn_id, mailbox, True))
        return handles

    def sub_agent_usage(self) -> dict[str, m.ThreadTokenUsage]:
        """The token usage of each sub-agent that has worked for this turn, by its thread, as last reported.

        It is all that the thread has used; the usage in the turn's result has none of it.
        """
        self._client._loop_owner.check()  # asyncio only
        reports = self._client._connection.agent_usage(self.id)
        usages = {thread: getattr(Notification(line).payload, "token_usage", None) for thread, line in reports.items()}
        return {thread: usage for thread, usage in usages.items() if usage is not None}

    async def interrupt(self) -> None:
        """Stop the turn and its sub-agents; its stream then ends with status `interrupted`.

        One that is over is left alone, but sub-agents that outlive it are stopped. Right after its start the app-server
        does not know the turn yet: the interrupt is repeated until it does.
        """
        await self._client.interrupt_turn(self.thread_id, self.id, lambda: self._mailbox.ended)
