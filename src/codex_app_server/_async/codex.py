"""AsyncCodex: an app-server for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from .. import _thread_pages, operations
from .._core.awaited import awaited
from .._core.signatures import described
from .._core.thread_walk import PageRequest, ThreadWalk
from ..notifications import Notification
from .lifecycle import AsyncLifecycle
from .login import AsyncChatgptLoginHandle, AsyncDeviceCodeLoginHandle
from .thread import AsyncThread

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..generated import models as m
    from ..generated.options import ThreadListOptions
    from ..presets import ThreadForkKeywords, ThreadResumeKeywords, ThreadStartKeywords


class AsyncCodex(AsyncLifecycle):
    """An app-server for asyncio. Starts at its first use, once however many tasks ask; use it with `async with`.

    `transport` replaces the child process, e.g. by a pool.
    """

    @described("ThreadStartOptions")
    @awaited
    async def thread_start(self, **options: Unpack[ThreadStartKeywords]) -> AsyncThread:
        """Begin a conversation."""
        response = await self._perform(operations.thread_start(options))
        return AsyncThread(self._client, response.thread.id)

    @described("ThreadResumeOptions")
    @awaited
    async def thread_resume(self, thread_id: str, **options: Unpack[ThreadResumeKeywords]) -> AsyncThread:
        """Resume a stored conversation."""
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
        """Iterate over all stored conversations, each once; unlike `thread_list`, skip none between two pages.

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
        """The account that is logged in, and how."""
        response: m.GetAccountResponse = await self._perform(operations.account(refresh_token))
        return response

    async def login_api_key(self, api_key: str) -> None:
        """Log in with an API key."""
        await self._perform(operations.login("apiKey", api_key=api_key))

    @awaited
    async def login_chatgpt(self) -> AsyncChatgptLoginHandle:
        """Begin a log-in by browser."""
        response = await self._perform(operations.login("chatgpt"))
        return AsyncChatgptLoginHandle(self._client, response.login_id, response.auth_url)

    @awaited
    async def login_chatgpt_device_code(self) -> AsyncDeviceCodeLoginHandle:
        """Begin a log-in by a code that the user enters elsewhere."""
        response = await self._perform(operations.login("chatgptDeviceCode"))
        return AsyncDeviceCodeLoginHandle(
            self._client, response.login_id, response.verification_url, response.user_code
        )

    async def logout(self) -> None:
        """Forget the account."""
        await self._perform(operations.request("account/logout"))

    async def notifications(self) -> AsyncIterator[Notification]:
        """The notifications of no turn of this client; they end when the client is closed. The newest 10,000 are kept.

        Raises TransportClosedError when the app-server dies.
        """
        self._client._loop_owner.enter()  # asyncio only
        if not self._closed:
            await self._ready()
        while (notification := await self._client.next_notification()) is not None:
            yield notification

    async def _perform(self, operation: operations.Operation[Any]) -> Any:
        await self._ready()
        return await self._client.perform(operation)
