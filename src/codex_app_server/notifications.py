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
        return _known_method(self.raw) or self._header().method

    @property
    def payload(self) -> Any:
        if self._payload is None:
            self._payload = self._decode()
        return self._payload

    def _decode(self) -> Any:
        method = _known_method(self.raw)
        if method is not None:
            try:
                return _line_validator(method)(self.raw)["params"]
            except (ValueError, RecursionError):
                pass
        line = self._header()
        return decode_payload(line.method, bytes(line.params))

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


_START = b'{"method":"'
_KNOWN = {name.encode(): name for name in NOTIFICATIONS}


def _known_method(raw: bytes) -> str | None:
    """The method that a line begins with, as all lines of the real app-server do; None if it has to be looked for."""
    if not raw.startswith(_START):
        return None
    return _KNOWN.get(raw[len(_START) : raw.find(b'"', len(_START))])


@cache
def _line_validator(method: str) -> Callable[[bytes], Any]:
    """Validates a whole line of a known method in one pass, to a dict with the typed payload as `params`."""
    from pydantic import TypeAdapter
    from typing_extensions import TypedDict

    from .generated import models

    payload = getattr(models, NOTIFICATIONS[method].payload)
    adapter: TypeAdapter[Any] = TypeAdapter(TypedDict("Line", {"params": payload}))  # type: ignore[operator]
    # The validator itself: the adapter's method is a wrapper that costs as much as a small payload.
    validate: Callable[[bytes], Any] = adapter.validator.validate_json
    return validate


@cache
def _validator(method: str) -> Callable[[bytes], Any] | None:
    entry = NOTIFICATIONS.get(method)
    if entry is None:
        return None
    from .generated import models

    return models.adapter(entry.payload).validate_json
