"""connect() and aconnect(): a client of a pool, such as the user's daemon."""

from __future__ import annotations

import os
from collections.abc import Callable

from codex_app_server import AsyncCodex, Codex
from codex_app_server._async.client import AsyncApprovalHandler
from codex_app_server._core.awaited import Awaited
from codex_app_server._sync.client import ApprovalHandler

from .client.transport import PoolTransport
from .options import options_of
from .protocol import endpoints
from .protocol.wire import Priority, WhenGone


def connect(
    endpoint: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    key: str | os.PathLike[str] | None = None,
    approval_handler: ApprovalHandler | None = None,
    priority: Priority = "interactive",
    when_gone: WhenGone = "interrupt",
) -> Codex:
    """A client of the pool at `endpoint`, by default the user's own daemon. `approval_handler` as for `Codex`.

    `key`: for an endpoint of the form tcp://HOST:PORT, the file that its owner has made with `codex-pool keys new`.
    `priority`: of its turns that wait; four of "interactive" clients are started for one of "batch".
    `when_gone`: what becomes of its running turns when nothing has come of it for 20 s; "keep" lets them run on.
    Raises EndpointError, and TransportClosedError when there is no pool.
    """
    transport = PoolTransport(_named(endpoint), client=name, key=key, priority=priority, when_gone=when_gone)
    return Codex(transport=transport, approval_handler=approval_handler)


def aconnect(
    endpoint: str | os.PathLike[str] | None = None,
    *,
    name: str = "",
    key: str | os.PathLike[str] | None = None,
    approval_handler: AsyncApprovalHandler | None = None,
    priority: Priority = "interactive",
    when_gone: WhenGone = "interrupt",
) -> Connecting:
    """An asyncio client of the pool at `endpoint`, connected: await it, or use it with `async with`, which closes it.

    Options and what it raises as for `connect`.
    """

    def transport() -> PoolTransport:
        return PoolTransport(_named(endpoint), client=name, key=key, priority=priority, when_gone=when_gone)

    return Connecting(transport, approval_handler, "aconnect")


class Connecting(Awaited[AsyncCodex]):
    """A client of a pool that is about to connect: awaited it is an AsyncCodex; with `async with` it is closed too."""

    __slots__ = ("_codex",)

    def __init__(
        self, transport: Callable[[], PoolTransport], approval_handler: AsyncApprovalHandler | None, called: str
    ) -> None:
        connected = _connected(transport, approval_handler)
        # The name in Python's warning that it was never awaited.
        connected.__qualname__ = called  # type: ignore[attr-defined]
        super().__init__(connected, called)

    async def __aenter__(self) -> AsyncCodex:
        self._codex: AsyncCodex = await self
        return self._codex

    async def __aexit__(self, *_: object) -> None:
        await self._codex.close()


async def _connected(
    transport: Callable[[], PoolTransport], approval_handler: AsyncApprovalHandler | None
) -> AsyncCodex:
    codex = AsyncCodex(transport=transport(), approval_handler=approval_handler)
    await codex.start()
    return codex


def _named(endpoint: str | os.PathLike[str] | None) -> str:
    """An endpoint by its address, or by the path of its socket; by default the daemon's. Raises InvalidInputError."""
    return options_of({"endpoint": endpoint}).endpoint or endpoints.default_endpoint()
