"""Notification: one line of the app-server, decoded when it is first read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from ._protocol import runtime_version
from ._protocol.methods import common_method as common_method
from ._protocol.methods import known_method
from .generated.routing import NOTIFICATIONS

if TYPE_CHECKING:
    from .generated.payloads import NotificationPayload

log: logging.Logger = logging.getLogger("codex_app_server")


class _Line(msgspec.Struct, gc=False):
    method: str = ""
    params: msgspec.Raw = msgspec.Raw(b"null")


class _Params(msgspec.Struct, gc=False):
    params: Any = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_params = msgspec.json.Decoder(_Params).decode


@dataclass(frozen=True, slots=True)
class UnknownNotification:
    """The payload of a notification that this SDK has no type for, or that does not fit its type.

    `problem` is the way in which it does not fit; None where there is no type.
    """

    params: Any
    problem: str | None = field(default=None, compare=False)


# How often a notification of each method did not fit its type, in this process.
undecoded: Counter[str] = Counter()


def _note_undecoded(method: str, error: Exception) -> str:
    problem = " ".join(str(error).split())[:300]
    undecoded[method] += 1
    if undecoded[method] == 1:
        log.warning(
            "a notification %s does not fit its type, so that what it says is missing: %s; %s "
            "(said once for each method)",
            method,
            problem,
            runtime_version.both_in_use(),
        )
    return problem


class Notification(msgspec.Struct, eq=False, gc=False, repr_omit_defaults=True):
    """A notification: `method`, and `payload`, a model of `generated.models` or an `UnknownNotification`.

    `raw` is the line as it came. Nothing is decoded before `method` or `payload` is read.
    """

    raw: bytes
    _method: str = ""
    _payload: Any = None

    @property
    def method(self) -> str:
        method = self._method
        if not method:
            method = self._method = known_method(self.raw) or _decode_line(self.raw).method
        return method

    @property
    def payload(self) -> NotificationPayload | UnknownNotification:
        payload: NotificationPayload | UnknownNotification | None = self._payload
        if payload is not None:
            return payload
        raw = self.raw
        try:
            head, start, validate = _forms[self._method or self.method]
            # Should the params not end there, what is cut out is no JSON value.
            if raw[:start] == head:
                known: NotificationPayload = validate(raw[start:-_END_BYTES])
                self._payload = known
                return known
        except (ValueError, KeyError, RecursionError):
            pass
        found = self._payload = self._decode()
        return found

    def _decode(self) -> NotificationPayload | UnknownNotification:
        raw, method = self.raw, self.method
        try:
            params = bytes(_decode_line(raw).params)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # Routed by its beginning, which proves nothing about the rest.
            problem = _note_undecoded(method, error) if method in NOTIFICATIONS else None
            return UnknownNotification(raw.decode("utf-8", "replace"), problem)
        return decode_payload(method, params)

    @property
    def params(self) -> Any:
        """The parameters as plain JSON values."""
        return _decode_params(self.raw).params

    def __repr__(self) -> str:
        return f"Notification({self.method!r}, {self.raw[:200]!r})"


def decode_payload(method: str, params: bytes) -> NotificationPayload | UnknownNotification:
    """The typed payload of a notification, or an UnknownNotification."""
    form = _forms.get(method) or _new_form(method)
    problem: str | None = None
    if form is not None:
        try:
            known: NotificationPayload = form[2](params)
            return known
        except (ValueError, RecursionError) as error:
            problem = _note_undecoded(method, error)
    try:
        return UnknownNotification(msgspec.json.decode(params), problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Routed by its header, which proves nothing about the rest.
        return UnknownNotification(params.decode("utf-8", "replace"), problem)


# Behind the params stands the time alone, in milliseconds: 13 digits.
_END_BYTES = len(b',"emittedAtMs":1700000000000}')


# How lines of a method begin, up to their params; how long that is; what validates the params.
_Form = tuple[bytes, int, Callable[[bytes], Any]]
_forms: dict[str, _Form] = {}


def _new_form(method: str) -> _Form | None:
    entry = NOTIFICATIONS.get(method)
    if entry is None:
        return None
    from .generated import models

    head = b'{"method":"%s","params":' % method.encode()
    # The validator itself: the adapter's method is a wrapper that costs as much as a small payload.
    form = _forms[method] = (head, len(head), models.adapter(entry.payload).validator.validate_json)
    return form
