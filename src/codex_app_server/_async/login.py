"""Log-ins under way: a place to send the user to, and the wait for the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import operations
from .client import AsyncAppServerClient

if TYPE_CHECKING:
    from ..generated import models


@dataclass(frozen=True, slots=True)
class AsyncChatgptLoginHandle:
    """A log-in by browser: the user opens `auth_url`."""

    _client: AsyncAppServerClient
    login_id: str
    auth_url: str

    async def wait(self, timeout_s: float | None = None) -> models.AccountLoginCompletedNotification:
        """Wait for the end, however it ends. Raises TimeoutError, TransportClosedError."""
        return await self._client.wait_for_login_completed(self.login_id, timeout_s)

    async def cancel(self) -> models.CancelLoginAccountResponse:
        """Give the log-in up."""
        return await self._client.perform(operations.login_cancel(self.login_id))


@dataclass(frozen=True, slots=True)
class AsyncDeviceCodeLoginHandle:
    """A log-in by code: the user opens `verification_url` anywhere and enters `user_code`."""

    _client: AsyncAppServerClient
    login_id: str
    verification_url: str
    user_code: str

    async def wait(self, timeout_s: float | None = None) -> models.AccountLoginCompletedNotification:
        """Wait for the end, however it ends. Raises TimeoutError, TransportClosedError."""
        return await self._client.wait_for_login_completed(self.login_id, timeout_s)

    async def cancel(self) -> models.CancelLoginAccountResponse:
        """Give the log-in up."""
        return await self._client.perform(operations.login_cancel(self.login_id))
