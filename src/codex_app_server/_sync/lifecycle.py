"""SyncLifecycle: how a Codex starts and ends."""

from __future__ import annotations

import contextlib
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn

from ..config import AppServerConfig
from ..transport import Transport
from .client import AppServerClient
from .driver import ApprovalHandler

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..generated import models as m


class SyncLifecycle:
    """Starts the app-server in the constructor."""

    def __init__(
        self,
        config: AppServerConfig | None = None,
        *,
        transport: Transport | None = None,
        approval_handler: ApprovalHandler | None = None,
    ) -> None:
        self._client = AppServerClient(config, transport=transport, approval_handler=approval_handler)
        try:
            self._client.start()
            self._metadata = self._client.initialize()
        except BaseException:
            self._client.close()
            raise
        self._closed = False

    def __del__(self) -> None:
        if getattr(self, "_closed", True) or sys.is_finalizing() or self._client._connection.is_inherited:
            return
        # It may run in the middle of anything, so that it waits for nothing.
        with contextlib.suppress(Exception):
            self._client._connection.close_soon()
        warnings.warn(
            f"unclosed {self!r}: use it as a context manager, or close() it", ResourceWarning, stacklevel=2, source=self
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> NoReturn:
        # There will be no `__aexit__`.
        self.close()
        raise TypeError("a Codex is not for asyncio: write `with`, or use AsyncCodex with `async with`")

    async def __aexit__(self, *_: object) -> None:
        """Never called."""

    @property
    def client(self) -> AppServerClient:
        """The client underneath, for requests without a method of their own here."""
        return self._client

    @property
    def metadata(self) -> m.InitializeResponse:
        """The description of itself that the app-server gave in the handshake."""
        return self._metadata

    def close(self) -> None:
        """End the app-server and wait until it is gone. May be called twice.

        In a process forked from the one that made it, it does nothing, and so does the end of a `with` block.
        """
        self._closed = True
        self._client.close()

    def _ready(self) -> m.InitializeResponse:
        return self._metadata
