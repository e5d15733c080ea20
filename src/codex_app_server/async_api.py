"""AsyncCodex, AsyncThread and AsyncTurnHandle: the asyncio twins of `api`, over the same operations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from . import operations
from .api import INTERRUPT_LIMIT_S, INTERRUPT_RETRY_S
from .async_client import AsyncApprovalHandler, AsyncAppServerClient, AsyncMailbox, read
from .config import AppServerConfig
from .errors import InvalidRequestError, TransportClosedError
from .inputs import Input
from .notifications import Notification
from .operations import TurnCollector, TurnResult
from .transport import Interest, Transport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .generated import models as m
    from .generated.options import (
        ThreadForkOptions,
        ThreadListOptions,
        ThreadResumeOptions,
        ThreadStartOptions,
        TurnStartOptions,
    )


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

    @property
    def client(self) -> AsyncAppServerClient:
        """The client underneath, for requests without a method of their own here."""
        return self._client

    async def metadata(self) -> m.InitializeResponse:
        """What the app-server said of itself in the handshake."""
        return await self._ready()

    async def close(self) -> None:
        """End the app-server and wait until it is gone. May be called twice."""
        self._closed = True
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self._client.close()

    async def thread_start(self, **options: Unpack[ThreadStartOptions]) -> AsyncThread:
        """Begin a conversation."""
        response = await self._perform(operations.thread_start(options))
        return AsyncThread(self._client, response.thread.id)

    async def thread_resume(self, thread_id: str, **options: Unpack[ThreadResumeOptions]) -> AsyncThread:
        """Take up a stored conversation."""
        response = await self._perform(operations.thread_resume(thread_id, options))
        return AsyncThread(self._client, response.thread.id)

    async def thread_fork(self, thread_id: str, **options: Unpack[ThreadForkOptions]) -> AsyncThread:
        """Begin a new conversation with the history of another."""
        response = await self._perform(operations.thread_fork(thread_id, options))
        return AsyncThread(self._client, response.thread.id)

    async def thread_list(self, **options: Unpack[ThreadListOptions]) -> m.ThreadListResponse:
        """Stored conversations, a page at a time."""
        response: m.ThreadListResponse = await self._perform(operations.thread_list(options))
        return response

    async def thread_archive(self, thread_id: str) -> None:
        """Put a stored conversation away; also frees what the app-server holds of it in memory."""
        await self._perform(operations.request("thread/archive", {"thread_id": thread_id}))

    async def thread_unarchive(self, thread_id: str) -> None:
        """Bring an archived conversation back."""
        await self._perform(operations.request("thread/unarchive", {"thread_id": thread_id}))

    async def thread_delete(self, thread_id: str) -> None:
        """Delete a stored conversation for good."""
        await self._perform(operations.request("thread/delete", {"thread_id": thread_id}))

    async def models(self, *, include_hidden: bool = False) -> m.ModelListResponse:
        """The models on offer."""
        operation = operations.request("model/list", {"include_hidden": include_hidden})
        response: m.ModelListResponse = await self._perform(operation)
        return response

    async def _perform(self, operation: operations.Operation[Any]) -> Any:
        await self._ready()
        return await self._client.perform(operation)

    async def _ready(self) -> m.InitializeResponse:
        if self._closed:
            raise TransportClosedError("the client was closed")
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

    async def run(self, input: Input, **options: Unpack[TurnStartOptions]) -> TurnResult:
        """Run one turn to its end. Raises TurnFailedError."""
        return await (await self._turn(input, "items", options)).run()

    async def turn(
        self, input: Input, *, interest: Interest = "full", **options: Unpack[TurnStartOptions]
    ) -> AsyncTurnHandle:
        """Start a turn, to be streamed, steered or interrupted.

        `interest` "items" leaves out the deltas where the transport can (a pool); "full" is everything.
        """
        return await self._turn(input, interest, options)

    async def _turn(self, input: Input, interest: Interest, options: Any) -> AsyncTurnHandle:
        operation = operations.turn_start(self.id, input, options, interest)
        response, mailbox = await self._client.start_turn(operation)
        return AsyncTurnHandle(self._client, self.id, response.turn.id, mailbox)

    async def read(self, *, include_turns: bool = False) -> m.ThreadReadResponse:
        """What is stored of this conversation."""
        return await self._client.perform(operations.thread_read(self.id, include_turns))

    async def set_name(self, name: str) -> None:
        """Give the conversation a name."""
        await self._client.perform(operations.request("thread/name/set", {"thread_id": self.id, "name": name}))


class AsyncTurnHandle:
    """A turn under way. Its notifications are kept for this handle until they are read."""

    def __init__(self, client: AsyncAppServerClient, thread_id: str, id: str, mailbox: AsyncMailbox) -> None:
        self._client = client
        self._mailbox = mailbox
        self.thread_id = thread_id
        self.id = id

    def stream(self) -> AsyncIterator[Notification]:
        """The notifications of this turn, and only of this one, to its end. Each is given out once."""
        return read(self._mailbox)

    async def run(self) -> TurnResult:
        """Read the turn to its end. Raises TurnFailedError, TransportClosedError."""
        collector = TurnCollector(self.id)
        async for notification in self.stream():
            collector.add(notification)
        return collector.result()

    async def steer(self, input: Input) -> None:
        """Add input to the running turn. Raises InvalidRequestError when it is over."""
        await self._client.perform(operations.turn_steer(self.thread_id, self.id, input))

    async def interrupt(self) -> None:
        """Stop the turn; its stream then ends with status `interrupted`. One that is over is left alone.

        Right after its start the app-server does not know the turn yet: it is told again until it does.
        """
        deadline = asyncio.get_running_loop().time() + INTERRUPT_LIMIT_S
        while not self._mailbox.ended:
            try:
                await self._client.perform(operations.turn_interrupt(self.thread_id, self.id))
                return
            except InvalidRequestError as error:
                if not operations.is_not_active_yet(error) or asyncio.get_running_loop().time() > deadline:
                    raise
                if self._mailbox.closed:
                    # Its stream broke, so its end was not seen.
                    return
            await asyncio.sleep(INTERRUPT_RETRY_S)


async def astream_text(thread: AsyncThread, input: Input, **options: Unpack[TurnStartOptions]) -> AsyncIterator[str]:
    """Run one turn and yield its text as it comes. Raises TurnFailedError."""
    turn = await thread.turn(input, **options)
    collector = TurnCollector(turn.id)
    async for notification in turn.stream():
        if notification.method == "item/agentMessage/delta":
            yield notification.payload.delta
        else:
            collector.add(notification)
    collector.result()
