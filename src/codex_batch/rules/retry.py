"""Outcomes of attempts, and when to try again. Pure.

A sample that failed, was lost or stalled is tried again as often as `--retries` allows, however it failed unless
`--retry-on` names what: that is the user's decision. One that was interrupted or reached a limit never is.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import msgspec

from codex_app_server import (
    InvalidInputError,
    ServerBusyError,
    ThreadLostError,
    TransportClosedError,
    TurnFailedError,
    TurnLostError,
)
from codex_app_server._core.last_error import said
from codex_app_server._runtime.backoff import backoff_s

Status = Literal["completed", "failed", "interrupted", "lost", "stalled", "limit"]
STATUSES: tuple[Status, ...] = ("completed", "failed", "interrupted", "lost", "stalled", "limit")

INTERRUPTED = "interrupted"
INVALID_INPUT = "invalidInput"
OVERLOADED = "serverOverloaded"
SANDBOX_ERROR = "sandboxError"
UNDECODED = "undecoded"
ENVIRONMENT_LOST = "environmentLost"
TOOLS_UNAVAILABLE = "toolsUnavailable"
# An attempt that ran while a disk of the run was full.
DISK_FULL = "diskFull"
CANCELLED = "cancelled"
# A workspace that could not be made, or compared.
WORKSPACE = "workspace"
# The configuration was changed while the run went on.
OTHER_CONFIGURATION = "otherConfiguration"

# The service asks for patience; anything else may be tried again almost at once.
_OVERLOAD_KINDS = frozenset(
    {OVERLOADED, "rateLimitExceeded", "usageLimitExceeded", "flexUnavailable", "responseTooManyFailedAttempts"}
)
# What may stand in --retry-on: how an attempt ended, or the kind of its error.
OVERLOAD = "overload"
RETRY_ON_DEFAULT = frozenset({"failed", "lost", "stalled"})
RETRY_ON_KINDS = (
    OVERLOADED,
    "usageLimitExceeded",
    "contextWindowExceeded",
    "sessionBudgetExceeded",
    "httpConnectionFailed",
    "responseStreamConnectionFailed",
    "responseStreamDisconnected",
    "responseTooManyFailedAttempts",
    "internalServerError",
    "badRequest",
    "unauthorized",
    SANDBOX_ERROR,
    ENVIRONMENT_LOST,
    TOOLS_UNAVAILABLE,
    "cyberPolicy",
    "requestTimeout",
    "lineTooLong",
    UNDECODED,
    "other",
)
_OVERLOAD_FIRST_S = 1.0
_OTHER_FIRST_S = 0.1
_BACKOFF_MAX_S = 30.0


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of an attempt. `usage` counts tokens; times are milliseconds.

    `error` is {kind, message}, with http_status where that is known. `limit` names the limit that was reached, with the
    status of that name.
    """

    status: Status
    error: dict[str, str] | None = None
    final_response: str | None = None
    usage: dict[str, int] | None = None
    thread_id: str | None = None
    turn_id: str | None = None
    worker: str | None = None
    queued_ms: int | None = None
    duration_ms: int | None = None
    limit: str | None = None
    cost: float | None = None
    """Money; None where it is not known."""
    unpriced: str | None = None
    """The price for want of which the cost is not known, if that is why."""

    @property
    def is_paid(self) -> bool:
        """False for one whose turn was never started: it costs nothing."""
        return self.turn_id is not None or self.status == "lost"


def failure(error: Exception) -> tuple[Status, dict[str, str]]:
    """Status and error of an attempt that ended with an exception."""
    if isinstance(error, TurnFailedError):
        if error.kind == "lost":
            return "lost", _error("lost", error)
        if error.kind == "stalled":
            return "stalled", _error("stalled", error)
        status = http_status(error.codex_error_info)
        details = {} if status is None else {"http_status": str(status)}
        return "failed", _error(error_name(error.codex_error_info), error) | details
    if isinstance(error, TurnLostError | ThreadLostError | TransportClosedError):
        return "lost", _error("lost", error)
    if isinstance(error, ServerBusyError):
        return "failed", _error(OVERLOADED, error)
    if isinstance(error, InvalidInputError):
        return "failed", _error(INVALID_INPUT, error)
    name = type(error).__name__.removesuffix("Error")
    return "failed", _error(name[:1].lower() + name[1:], error)


def error_name(info: Any) -> str:
    """The camelCase name of a codexErrorInfo: a plain one, or one that carries details."""
    info = _plain(info)
    if info is None:
        return "other"
    if isinstance(info, dict):
        return next(iter(info), "other")
    return str(getattr(info, "value", info))


def http_status(info: Any) -> int | None:
    """The HTTP status that a codexErrorInfo carries, if it does."""
    info = _plain(info)
    details = next(iter(info.values()), None) if isinstance(info, dict) else None
    status = details.get("httpStatusCode") if isinstance(details, dict) else None
    return status if isinstance(status, int) else None


def is_no_way(error: Any) -> bool:
    """Return True if an error of a notification means that its turn waits until there is a network.

    Its codexErrorInfo is that of any stream that broke and is tried again; only its words differ.
    """
    return "waiting for network" in said(error)


def waited_in_vain(outcome: Outcome) -> bool:
    """True for an attempt that a pool's limit ended while it waited until there is a network."""
    return outcome.status == "stalled" and is_no_way(outcome.error)


def _plain(info: Any) -> Any:
    return info.model_dump(mode="json", by_alias=True, exclude_none=True) if hasattr(info, "model_dump") else info


def parse_retry_on(text: str) -> frozenset[str]:
    """Parse words between commas: what to try again after. Raises ValueError with all that are not known."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    known = (*sorted(RETRY_ON_DEFAULT), OVERLOAD, *RETRY_ON_KINDS)
    strange = [word for word in words if word not in known]
    if strange or not words:
        what = f"{', '.join(map(repr, strange))}: not known" if strange else "is empty"
        raise ValueError(f"{what}; expected some of {', '.join(known)}")
    return frozenset(words)


def may_retry(outcome: Outcome, tries: int, retries: int, on: Collection[str] = RETRY_ON_DEFAULT) -> bool:
    """Return True if there is to be another try after `tries` attempts, of which all but the first were retries.

    `on` holds statuses, kinds of errors, or `overload`.
    """
    if outcome.status in ("completed", "interrupted", "limit") or tries > retries:
        return False
    kind = "" if outcome.error is None else outcome.error["kind"]
    # Nothing was sent, and the same would be refused again.
    if kind == INVALID_INPUT:
        return False
    return outcome.status in on or kind in on or (OVERLOAD in on and kind in _OVERLOAD_KINDS)


def pause_s(outcome: Outcome, tries: int, *, jitter: float) -> float:
    """Seconds to wait before the next attempt, after `tries` attempts. `jitter` in [0, 1)."""
    overloaded = outcome.error is not None and outcome.error["kind"] in _OVERLOAD_KINDS
    first_s = _OVERLOAD_FIRST_S if overloaded else _OTHER_FIRST_S
    return backoff_s(tries - 1, first_s, _BACKOFF_MAX_S, jitter)


def _error(kind: str, error: Exception) -> dict[str, str]:
    return {"kind": kind, "message": str(error)}
