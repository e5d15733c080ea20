"""Notifications and the answer of the handshake in the published SDK's form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from codex_app_server.notifications import Notification as SdkNotification

from ._shapes import shaped

if TYPE_CHECKING:
    from codex_app_server.generated import models


@dataclass(slots=True)
class Notification:
    """A notification: `method`, and `payload`, a wire type or an UnknownNotification."""

    method: str
    payload: Any


class ServerInfo(BaseModel):
    """Name and version of the app-server, from its user agent."""

    name: str | None = None
    version: str | None = None


class InitializeResponse(BaseModel):
    """The answer of the handshake."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow")

    serverInfo: ServerInfo | None = None
    userAgent: str | None = None
    platformFamily: str | None = None
    platformOs: str | None = None


def of_notification(notification: SdkNotification) -> Notification:
    """The notification with its payload decoded."""
    return Notification(notification.method, shaped(notification.payload))


def of_metadata(metadata: models.InitializeResponse) -> InitializeResponse:
    """The answer of the handshake with `serverInfo`, which the app-server itself does not send."""
    made = InitializeResponse.model_validate(metadata.model_dump(by_alias=True))
    name, _, version = (made.userAgent or "").strip().partition("/")
    known = made.serverInfo or ServerInfo()
    made.serverInfo = ServerInfo(name=known.name or name or None, version=known.version or version or None)
    return made
