"""LastError: the last `error` that a turn has sent, for those who wait for its end in vain.

While a provider cannot be reached codex sends one every few seconds, with `willRetry`, and the turn does not fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import RequestTimeoutError

if TYPE_CHECKING:
    from ..generated.models import ErrorNotification
    from ..notifications import Notification


class LastError:
    """Heeds the notifications of a turn."""

    __slots__ = ("_notification", "_params")

    def __init__(self) -> None:
        self._notification: Notification | None = None
        self._params: Any = None

    def observe(self, notification: Notification) -> None:
        """Keep it if it is an `error`, or the end of a stalled turn, which may bring the last one along."""
        if notification.method == "error":
            self._notification, self._params = notification, None
        elif notification.method == "pool/turn/ended":
            self._params = notification.params.get("lastError") or self._params

    @property
    def payload(self) -> ErrorNotification | None:
        """The error as it came; None if there was none, or none in a known form."""
        if self._params is not None:
            import msgspec

            from ..notifications import decode_payload

            found: Any = decode_payload("error", msgspec.json.encode(self._params))
        elif self._notification is not None:
            found = self._notification.payload
        else:
            return None
        error: ErrorNotification | None = found if hasattr(found, "will_retry") else None
        return error

    def timeout(self, message: str) -> RequestTimeoutError:
        """The error of who has waited too long."""
        error = self.payload
        if error is not None:
            message += f"; its last error: {said(error.error.model_dump(by_alias=True))}"
        return RequestTimeoutError(message, error)


def said(error: Any) -> str:
    """The words of an error of a turn, as JSON has it, in one line."""
    parts = [error.get(part) for part in ("message", "additionalDetails")] if isinstance(error, Mapping) else []
    return ": ".join(part for part in parts if isinstance(part, str) and part)
