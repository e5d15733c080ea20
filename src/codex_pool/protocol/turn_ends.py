"""Beginnings and ends of turns: read from lines of the app-server, and written where the pool ends a turn. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from codex_app_server._core.last_error import said

from .jsonrpc import UNREADABLE, encode


class _CompletedTurn(msgspec.Struct):
    status: str = "failed"


class _CompletedParams(msgspec.Struct):
    turn: _CompletedTurn


class _Completed(msgspec.Struct):
    params: _CompletedParams


class _StartedTurn(msgspec.Struct, rename="camel"):
    id: str = ""
    root_turn_id: str | None = None


class _StartedParams(msgspec.Struct):
    turn: _StartedTurn


class _Started(msgspec.Struct):
    params: _StartedParams


_decode_completed = msgspec.json.Decoder(_Completed).decode
_decode_started = msgspec.json.Decoder(_Started).decode


def turns_of(line: bytes) -> tuple[str, str]:
    """The turn that a turn/started line is about, and the turn that it is part of; of itself, if of no other."""
    try:
        turn = _decode_started(line).params.turn
    except msgspec.MsgspecError:
        return "", ""
    return turn.id, turn.root_turn_id or turn.id


def status_of(line: bytes) -> str:
    """The status in a turn/completed line."""
    try:
        return _decode_completed(line).params.turn.status
    except msgspec.MsgspecError:
        return "failed"


def ended_lines(
    thread_id: str,
    turn_id: str,
    kind: str,
    message: str,
    *,
    safe_to_retry: bool,
    completed: bytes = b"",
    last_error: dict[str, Any] | None = None,
) -> list[bytes]:
    """The end of a turn that the pool ends, the same for every client: what happened, then a completion.

    `completed`: the turn/completed of the app-server, if there is one; its other fields of the turn are kept. The kind
    also stands in the error of the completion, as its additional details. `last_error`: parameters of the last `error`
    of the turn, whose reason the completion gets.
    """
    ended: dict[str, Any] = {"threadId": thread_id, "turnId": turn_id, "kind": kind, "safeToRetry": safe_to_retry}
    ended["message"] = message
    error = {"message": message, "codexErrorInfo": "other", "additionalDetails": kind}
    if last_error is not None:
        ended["lastError"] = last_error
        error["codexErrorInfo"] = last_error["error"].get("codexErrorInfo") or "other"
    turn = {"items": [], "itemsView": "notLoaded", **_turn_of(completed)}
    turn |= {"id": turn_id, "status": "failed", "error": error}
    return [
        encode({"method": "pool/turn/ended", "params": ended}),
        encode({"method": "turn/completed", "params": {"threadId": thread_id, "turn": turn}}),
    ]


def stalled_lines(
    thread_id: str, turn_id: str, reason: str, *, error: bytes = b"", completed: bytes = b""
) -> list[bytes]:
    """The end of a turn that came to a standstill; `error` is its last `error` line, if there was one."""
    message = f"turn {turn_id} was stalled: {reason}"
    last_error = _params_of(error)
    if last_error is not None:
        message += f"; its last error: {said(last_error['error'])}"
    return ended_lines(
        thread_id, turn_id, "stalled", message, safe_to_retry=False, completed=completed, last_error=last_error
    )


def _params_of(error: bytes) -> dict[str, Any] | None:
    """The parameters of an `error` line; None without one that can be read."""
    try:
        params = msgspec.json.decode(error)["params"]
    except (*UNREADABLE, KeyError, TypeError):
        return None
    return params if isinstance(params, dict) and isinstance(params.get("error"), dict) else None


def _turn_of(completed: bytes) -> dict[str, Any]:
    """The turn in a turn/completed line; {} without one that can be read."""
    try:
        turn = msgspec.json.decode(completed)["params"]["turn"]
    except (*UNREADABLE, KeyError, TypeError):
        return {}
    return turn if isinstance(turn, dict) else {}
