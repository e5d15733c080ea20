"""Partial decoders of lines of the app-server, for what the worker needs of them. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from ..protocol import wire

TOO_MANY_REQUESTS = 429
UNAUTHORIZED = 401
USED_UP_PERCENT = 100
_LIMIT_ERRORS = frozenset({"usageLimitExceeded", "rateLimitExceeded"})
_INACTIVE_GOALS = frozenset({"paused", "blocked", "budgetLimited", "complete"})


class _Item(msgspec.Struct):
    id: str = ""
    type: str = ""


class _ItemParams(msgspec.Struct):
    item: _Item


class _ItemLine(msgspec.Struct):
    params: _ItemParams


class _Thread(msgspec.Struct, rename="camel"):
    id: str = ""
    parent_thread_id: str | None = None


class _ThreadParams(msgspec.Struct):
    thread: _Thread


class _ThreadLine(msgspec.Struct):
    params: _ThreadParams


class _Goal(msgspec.Struct):
    status: str = ""


class _GoalParams(msgspec.Struct):
    goal: _Goal


class _GoalLine(msgspec.Struct):
    params: _GoalParams


class _Error(msgspec.Struct, rename="camel"):
    codex_error_info: Any = None


class _FailedTurn(msgspec.Struct):
    error: _Error | None = None


class _ErrorParams(msgspec.Struct):
    error: _Error | None = None
    turn: _FailedTurn | None = None


class _Retried(msgspec.Struct, rename="camel"):
    will_retry: bool = False


class _RetriedLine(msgspec.Struct):
    params: _Retried


class _ErrorLine(msgspec.Struct):
    params: _ErrorParams


class _Window(msgspec.Struct, rename="camel"):
    used_percent: float = 0
    resets_at: int | None = None


class _Limits(msgspec.Struct, rename="camel"):
    limit_id: str | None = None
    primary: _Window | None = None
    secondary: _Window | None = None


class _LimitsParams(msgspec.Struct, rename="camel"):
    rate_limits: _Limits


class _LimitsLine(msgspec.Struct):
    params: _LimitsParams


class _Usage(msgspec.Struct, rename="camel"):
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_output_tokens: int = 0

    @property
    def tokens(self) -> wire.Tokens:
        return wire.Tokens(
            self.input_tokens, self.cached_input_tokens, self.output_tokens, self.reasoning_output_tokens
        )


class _ThreadUsage(msgspec.Struct):
    total: _Usage
    last: _Usage


class _UsageParams(msgspec.Struct, rename="camel"):
    token_usage: _ThreadUsage


class _UsageLine(msgspec.Struct):
    params: _UsageParams


class _UserItem(msgspec.Struct, rename="camel"):
    client_id: str | None = None


class _ReadTurn(msgspec.Struct):
    id: str = ""
    items: list[_UserItem] = []


class _ReadThread(msgspec.Struct):
    turns: list[_ReadTurn]


class _ReadResult(msgspec.Struct):
    thread: _ReadThread


class _ReadLine(msgspec.Struct):
    result: _ReadResult


class _Code(msgspec.Struct):
    code: int = 0


class _FailedLine(msgspec.Struct):
    error: _Code | None = None


_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_decode_item = msgspec.json.Decoder(_ItemLine).decode
_decode_thread = msgspec.json.Decoder(_ThreadLine).decode
_decode_goal = msgspec.json.Decoder(_GoalLine).decode
_decode_error = msgspec.json.Decoder(_ErrorLine).decode
_decode_retried = msgspec.json.Decoder(_RetriedLine).decode
_decode_limits = msgspec.json.Decoder(_LimitsLine).decode
_decode_usage = msgspec.json.Decoder(_UsageLine).decode
_decode_read = msgspec.json.Decoder(_ReadLine).decode
_decode_failed = msgspec.json.Decoder(_FailedLine).decode


def item_of(line: bytes) -> tuple[str, str]:
    """The id and the type of the item in an item/started or item/completed line; "" where there is none to read."""
    try:
        item = _decode_item(line).params.item
    except _UNREADABLE:
        return "", ""
    return item.id, item.type


def is_retried(line: bytes) -> bool:
    """True for an `error` line of which the app-server retries the request."""
    try:
        return _decode_retried(line).params.will_retry
    except _UNREADABLE:
        return False


def parent_of(line: bytes) -> tuple[str, str | None]:
    """The thread in a thread/started line, and the thread whose sub-agent it is."""
    try:
        thread = _decode_thread(line).params.thread
    except _UNREADABLE:
        return "", None
    return thread.id, thread.parent_thread_id


def goal_goes_on(line: bytes) -> bool:
    """Return True if the goal in a thread/goal/updated line may begin turns without a request, or that is not known."""
    try:
        return _decode_goal(line).params.goal.status not in _INACTIVE_GOALS
    except _UNREADABLE:
        return True


def usage_of(line: bytes) -> tuple[wire.Tokens, wire.Tokens] | None:
    """Tokens of the whole thread and of its last request, in a thread/tokenUsage/updated line; None if unreadable."""
    try:
        usage = _decode_usage(line).params.token_usage
    except _UNREADABLE:
        return None
    return usage.total.tokens, usage.last.tokens


def error_code_of(line: bytes) -> int | None:
    """The code of an error response."""
    try:
        error = _decode_failed(line).error
    except _UNREADABLE:
        return None
    return error.code if error is not None else None


def is_busy(line: bytes) -> bool:
    """True for the refusal of a turn because compaction or a review runs on its thread."""
    return b"ActiveTurnNotSteerable" in line


def limit_of(method: str, line: bytes) -> wire.Limited | None:
    """The rate limit of the account that a notification reports as reached; None if it reports none."""
    try:
        if method == "account/rateLimits/updated":
            return _used_up(_decode_limits(line).params.rate_limits)
        params = _decode_error(line).params
    except _UNREADABLE:
        return None
    info = _info_of(params)
    if isinstance(info, str):
        return wire.Limited(info) if info in _LIMIT_ERRORS else None
    kind = _kind_with_status(info, TOO_MANY_REQUESTS)
    return wire.Limited(f"{kind} {TOO_MANY_REQUESTS}") if kind is not None else None


def refuses_login(line: bytes) -> bool:
    """Return True if a turn/completed line has the error of a turn whose log-in the provider has refused."""
    try:
        info = _info_of(_decode_error(line).params)
    except _UNREADABLE:
        return False
    return info == "unauthorized" or _kind_with_status(info, UNAUTHORIZED) is not None


def _info_of(params: _ErrorParams) -> Any:
    error = params.turn.error if params.turn is not None else params.error
    return error.codex_error_info if error is not None else None


def _kind_with_status(info: Any, status: int) -> str | None:
    """The kind of an error with details that name this HTTP status."""
    for kind, details in info.items() if isinstance(info, dict) else ():
        if isinstance(details, dict) and details.get("httpStatusCode") == status:
            return str(kind)
    return None


def _used_up(limits: _Limits) -> wire.Limited | None:
    windows = [window for window in (limits.primary, limits.secondary) if window is not None]
    used = [window for window in windows if window.used_percent >= USED_UP_PERCENT]
    if not used:
        return None
    # With two windows used up the later one counts.
    resets = [window.resets_at for window in used if window.resets_at is not None]
    return wire.Limited(f"rate limit {limits.limit_id or 'of the account'}", max(resets, default=None))


def turn_with_key(line: bytes, key: str) -> tuple[bool, str | None]:
    """Search a thread/read response: True if its history is readable, and the turn that was started under this key."""
    try:
        turns = _decode_read(line).result.thread.turns
    except _UNREADABLE:
        return False, None
    return True, next((turn.id for turn in turns if any(item.client_id == key for item in turn.items)), None)
