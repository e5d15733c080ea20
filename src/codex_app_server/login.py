"""Log-ins under way: a place to send the user to, and the wait for the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import operations
from .async_client import AsyncAppServerClient
from .client import AppServerClient

if TYPE_CHECKING:
    from .generated import models


@dataclass(frozen=True, slots=True)
class ChatgptLoginHandle:
    """A log-in by browser: the user opens `auth_url`."""

    _client: AppServerClient
    login_id: str
    auth_url: str

    def wait(self, timeout_s: float | None = None) -> models.AccountLoginCompletedNotification:
        """Wait for the end, however it ends. Raises TimeoutError, TransportClosedError."""
        return self._client.wait_for_login_completed(self.login_id, timeout_s)

    def cancel(self) -> models.CancelLoginAccountResponse:
        """Give the log-in up."""
        return self._client.perform(operations.login_cancel(self.login_id))


@dataclass(frozen=True, slots=True)
class DeviceCodeLoginHandle:
    """A log-in by code: the user opens `verification_url` anywhere and enters `user_code`."""

    _client: AppServerClient
    login_id: str
    verification_url: str
    user_code: str

    def wait(self, timeout_s: float | None = None) -> models.AccountLoginCompletedNotification:
        """Wait for the end, however it ends. Raises TimeoutError, TransportClosedError."""
        return self._client.wait_for_login_completed(self.login_id, timeout_s)

    def cancel(self) -> models.CancelLoginAccountResponse:
        """Give the log-in up."""
        return self._client.perform(operations.login_cancel(self.login_id))


@dataclass(frozen=True, slots=True)
class AsyncChatgptLoginHandle:
    """A log-in by browser: the user opens `auth_url`."""

    _client: AsyncAppServerClient
    login_id: str
    auth_url: str

    async def wait(self) -> models.AccountLoginCompletedNotification:
        """Wait for the end, however it ends. Raises TransportClosedError."""
        return await self._client.wait_for_login_completed(self.login_id)

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

    async def wait(self) -> models.AccountLoginCompletedNotification:
        """Wait for the end, however it ends. Raises TransportClosedError."""
        return await self._client.wait_for_login_completed(self.login_id)

    async def cancel(self) -> models.CancelLoginAccountResponse:
        """Give the log-in up."""
        return await self._client.perform(operations.login_cancel(self.login_id))
