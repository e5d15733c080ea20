"""The result of a turn, collected from its notifications. Of these only what is asked for is decoded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from ._core.last_error import LastError
from ._protocol import runtime_version
from .errors import AppServerError, TurnEndedError, TurnFailedError
from .notifications import Notification, UnknownNotification

if TYPE_CHECKING:
    from .generated import models


class _Ended(msgspec.Struct, rename="camel"):
    id: str
    status: str
    error: msgspec.Raw = msgspec.Raw(b"null")
    started_at: int | None = None
    completed_at: int | None = None
    duration_ms: int | None = None


class _EndedParams(msgspec.Struct):
    turn: _Ended


class _EndedLine(msgspec.Struct):
    params: _EndedParams


class _Item(msgspec.Struct):
    type: str
    text: str | None = None
    phase: str | None = None


class _ItemParams(msgspec.Struct):
    item: _Item


class _ItemLine(msgspec.Struct):
    params: _ItemParams


_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_AGENT_MESSAGE = b"agentMessage"

_decode_ended = msgspec.json.Decoder(_EndedLine).decode
_decode_item = msgspec.json.Decoder(_ItemLine).decode


# Without slots: what is decoded later has no place before.
@dataclass(frozen=True)
class TurnResult:
    """The result of a turn.

    `final_response` is the last agent message marked `final_answer`, else the last one without a phase, else None.
    `usage` is the thread's token usage as last reported; that of sub-agents, whose threads are their own, is not in it:
    `TurnHandle.sub_agent_usage` has it. Times are Unix seconds, `duration_ms` milliseconds. Items and usage are decoded
    when they are looked at. `undecoded` names the notifications among them that do not fit their types, once for each:
    what they said is missing here, so that with `item/completed` among them an answer that is None, or an earlier one,
    may not be what the model said.
    """

    id: str
    status: models.TurnStatus
    error: models.TurnError | None
    final_response: str | None
    items: list[models.ThreadItem]
    usage: models.ThreadTokenUsage | None
    started_at: int | None
    completed_at: int | None
    duration_ms: int | None
    undecoded: tuple[str, ...] = field(default_factory=tuple)

    def __getattr__(self, name: str) -> Any:
        later: dict[str, Callable[[], Any]] = self.__dict__.get("_later", {})
        if name not in later:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        found = self.__dict__[name] = later[name]()
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class TurnCollector:
    """Gathers a turn's notifications into its TurnResult."""

    def __init__(self, turn_id: str, last_error: LastError | None = None) -> None:
        self.turn_id = turn_id
        self._last_error = last_error or LastError()
        self.kind: str | None = None
        self.safe_to_retry: bool = False
        self._is_empty = True
        self._items: list[Notification] = []
        self._usage: list[Notification] = []
        self._end: Notification | None = None

    def add(self, notification: Notification) -> None:
        self._is_empty = False
        match notification.method:
            case "item/completed":
                self._items.append(notification)
            case "thread/tokenUsage/updated":
                self._usage.append(notification)
            case "turn/completed":
                self._end = notification
            case "error":
                self._last_error.observe(notification)
            case "pool/turn/ended":
                self._last_error.observe(notification)
                self.kind = notification.params.get("kind")
                self.safe_to_retry = notification.params.get("safeToRetry") is True

    @property
    def last_error(self) -> models.ErrorNotification | None:
        """The last `error` notification of the turn."""
        return self._last_error.payload

    @property
    def items(self) -> list[Any]:
        """The completed items so far; one that is of no known form is left out."""
        return _items(self._items)

    @property
    def usage(self) -> models.ThreadTokenUsage | None:
        """The thread's token usage as last reported in a known form."""
        return _usage(self._usage)

    @property
    def final_response(self) -> str | None:
        """The answer among the items so far."""
        return _answer(_message_of(notification) for notification in reversed(self._items))

    @property
    def has_items(self) -> bool:
        """True if any item has been completed; one is the input, so that a turn without any was not read."""
        return bool(self._items)

    @property
    def may_lack_answer(self) -> bool:
        """True if a message does not fit its type, or if there is no answer and any other item does not."""
        if any(
            _AGENT_MESSAGE in each.raw and _message_of(each) is None and _is_undecoded(each) for each in self._items
        ):
            return True
        return self.final_response is None and any(map(_is_undecoded, self._items))

    @property
    def undecoded(self) -> tuple[str, ...]:
        """The methods of the items and usages so far that do not fit their types, once for each."""
        return _undecoded([*self._items, *self._usage])

    @property
    def duration_ms(self) -> int | None:
        """The duration that the turn reports, once it has ended."""
        turn = _end_of(self._end) if self._end is not None else None
        return turn.duration_ms if turn is not None else None

    def result(self) -> TurnResult:
        """The result of the turn.

        Raises TurnFailedError for one that failed, or whose end never came, TurnEndedError when all was read before.
        """
        turn = _end_of(self._end) if self._end is not None else None
        if turn is None and self._is_empty:
            raise TurnEndedError(
                f"turn {self.turn_id} has ended, and what it sent was read before; "
                "read what is stored of it with thread.read(include_turns=True)"
            )
        if turn is None:
            raise TurnFailedError(runtime_version.unreadable_end(self.turn_id))
        if turn.status == "failed":
            message = turn.error.message if turn.error is not None else "the turn failed without a reason"
            raise TurnFailedError(
                message,
                turn=turn,
                kind=self.kind or "failed",
                safe_to_retry=self.safe_to_retry,
                last_error=self.last_error,
            )
        result = TurnResult.__new__(TurnResult)
        items, usages = self._items, self._usage
        result.__dict__.update(
            id=turn.id,
            status=_status_of(turn.status),
            error=None if isinstance(turn, _Ended) else turn.error,
            final_response=self.final_response,
            started_at=turn.started_at,
            completed_at=turn.completed_at,
            duration_ms=turn.duration_ms,
            _later={
                "items": lambda: _items(items),
                "usage": lambda: _usage(usages),
                "undecoded": lambda: _undecoded([*items, *usages]),
            },
        )
        return result


@functools.lru_cache(16)
def _status_of(status: str) -> models.TurnStatus:
    from .generated.models import TurnStatus

    return TurnStatus(status)


def _items(notifications: list[Notification]) -> list[Any]:
    items = [getattr(notification.payload, "item", None) for notification in notifications]
    return [item for item in items if item is not None]


def _undecoded(notifications: list[Notification]) -> tuple[str, ...]:
    return tuple(each.method for each in notifications if _is_undecoded(each))


def _is_undecoded(notification: Notification) -> bool:
    return isinstance(notification.payload, UnknownNotification)


def delta_of(notification: Notification) -> models.AgentMessageDeltaNotification:
    """The payload of an item/agentMessage/delta. Raises AppServerError when it does not fit its type."""
    payload: Any = notification.payload
    if isinstance(payload, UnknownNotification):
        raise AppServerError(
            f"a piece of the text of a turn could not be read: {payload.problem}; {runtime_version.both_in_use()}"
        )
    delta: models.AgentMessageDeltaNotification = payload
    return delta


def _usage(notifications: list[Notification]) -> models.ThreadTokenUsage | None:
    for notification in reversed(notifications):
        usage: models.ThreadTokenUsage | None = getattr(notification.payload, "token_usage", None)
        if usage is not None:
            return usage
    return None


def final_response(items: list[Any]) -> str | None:
    """The answer among completed items."""
    return _answer(_as_message(item) for item in reversed(items))


def _answer(messages: Iterable[tuple[str, str | None] | None]) -> str | None:
    """The final answer among texts and phases, the last first: commentary never counts, an empty answer does."""
    fallback: str | None = None
    for message in messages:
        if message is None:
            continue
        text, phase = message
        if phase == "final_answer":
            return text
        if phase is None and fallback is None:
            fallback = text
    return fallback


def _message_of(notification: Notification) -> tuple[str, str | None] | None:
    """The text and the phase of an agent message; None for another item."""
    if notification.raw.find(_AGENT_MESSAGE) < 0:
        return None
    try:
        item = _decode_item(notification.raw).params.item
    except _UNREADABLE:
        item = None
    if item is None or (item.type == "agentMessage" and item.text is None):
        return _as_message(getattr(notification.payload, "item", None))
    return _as_message(item)


def _as_message(item: Any) -> tuple[str, str | None] | None:
    return (str(item.text), item.phase) if getattr(item, "type", None) == "agentMessage" else None


def _end_of(notification: Notification) -> Any:
    """The turn in its turn/completed, or as much of it as a result needs; None if it cannot be read."""
    try:
        ended = _decode_ended(notification.raw).params.turn
    except _UNREADABLE:
        ended = None
    if ended is None or ended.status != "completed" or bytes(ended.error) != b"null":
        return getattr(notification.payload, "turn", None)
    return ended
