"""Notification: one line of the app-server, decoded when somebody looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from .generated.routing import NOTIFICATIONS


class _Line(msgspec.Struct, gc=False):
    method: str = ""
    params: msgspec.Raw = msgspec.Raw(b"null")


_decode_line = msgspec.json.Decoder(_Line).decode


@dataclass(frozen=True, slots=True)
class UnknownNotification:
    """The payload of a notification that this SDK has no type for, or that does not fit its type."""

    params: Any


class Notification:
    """A notification: `method`, and `payload`, a model of `generated.models` or an `UnknownNotification`.

    `raw` is the line as it came. Nothing is decoded before `method` or `payload` is read.
    """

    __slots__ = ("_line", "_payload", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._line: _Line | None = None
        self._payload: Any = None

    @property
    def method(self) -> str:
        return self._header().method

    @property
    def payload(self) -> Any:
        if self._payload is None:
            line = self._header()
            self._payload = decode_payload(line.method, bytes(line.params))
        return self._payload

    @property
    def params(self) -> Any:
        """The parameters as plain JSON values."""
        return msgspec.json.decode(self._header().params)

    def _header(self) -> _Line:
        if self._line is None:
            self._line = _decode_line(self.raw)
        return self._line

    def __repr__(self) -> str:
        return f"Notification({self.method!r}, {self.raw[:200]!r})"


def decode_payload(method: str, params: bytes) -> Any:
    """The typed payload of a notification, or an UnknownNotification."""
    validate = _validator(method)
    if validate is not None:
        try:
            return validate(params)
        except (ValueError, RecursionError):
            pass
    try:
        return UnknownNotification(msgspec.json.decode(params))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Routed by its header, which says nothing of the rest.
        return UnknownNotification(params.decode("utf-8", "replace"))


@cache
def _validator(method: str) -> Callable[[bytes], Any] | None:
    entry = NOTIFICATIONS.get(method)
    if entry is None:
        return None
    from .generated import models

    return models.adapter(entry.payload).validate_json
