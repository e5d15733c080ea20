"""AsyncLifecycle: how an AsyncCodex starts and ends."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn

from ..config import AppServerConfig
from ..errors import CLOSED, TransportClosedError
from ..transport import Transport
from .client import AsyncAppServerClient
from .driver import AsyncApprovalHandler

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..generated import models as m


class AsyncLifecycle:
    """Starts the app-server at its first use, once for all tasks that ask."""

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

    async def __aenter__(self) -> Self:
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
        """The app-server's description of itself in the handshake. Raises TransportClosedError before the first use."""
        if self._starting is None or not self._starting.done():
            raise TransportClosedError("the app-server has not been started: await start(), or any other call, first")
        return self._starting.result()

    async def start(self) -> m.InitializeResponse:
        """Start the app-server now, unless it has been. Every other call does so too."""
        return await self._ready()

    async def close(self) -> None:
        """End the app-server and wait until it is gone. May be called twice.

        From another event loop only if its own does not run any more: else raises WrongEventLoopError. In a process
        forked from the one that made it, it does nothing, and so does the end of an `async with` block.
        """
        if self._client._connection.is_inherited:
            return
        self._client._loop_owner.check_may_close()
        self._closed = True
        if self._starting is not None and not self._starting.done() and self._client._loop_owner.is_current:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self._client.close()

    async def _ready(self) -> m.InitializeResponse:
        self._client._loop_owner.enter()
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
