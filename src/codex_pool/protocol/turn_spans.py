"""Beginnings and ends of turns, as workers report them to the tracer: one JSON line each. Pure.

A line that cannot be sent is counted, and the count follows as `Lost` once lines can be sent again.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .wire_types import Tokens

# Longer than any that a tracing library writes; the standard asks for at least 512 characters of tracestate.
MAX_TEXT = 1024


class TurnBegan(msgspec.Struct, frozen=True, tag="began", omit_defaults=True, kw_only=True):
    """A turn has begun. Times are of CLOCK_MONOTONIC, in seconds.

    `traceparent` and `tracestate` are those of its request (W3C Trace Context), "" without; `parent_turn` is the turn
    that a sub-agent's works for, "" for others. Its request came to the pool at `came_at` and was sent to the
    app-server at `sent_at`; a turn that has begun unasked came when it began, and has no `sent_at`. `principal` is that
    of its thread, "" for the pool's owner.
    """

    turn_id: str
    thread_id: str
    came_at: float
    sent_at: float | None = None
    traceparent: str = ""
    tracestate: str = ""
    parent_turn: str = ""
    principal: str = ""
    worker: str = ""
    slot: int = 0


class TurnEnded(msgspec.Struct, frozen=True, tag="ended", omit_defaults=True, kw_only=True):
    """A turn has ended; `began` is repeated for a tracer that has not had it.

    `status` is its outcome. `model` and `provider` are those of its thread, "" where not known; `tokens` None if none
    were reported; `first_delta_at` is when the first piece of its answer came, None if none did.
    """

    began: TurnBegan
    ended_at: float
    status: str
    model: str = ""
    provider: str = ""
    tokens: Tokens | None = None
    first_delta_at: float | None = None


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """So many lines were left out, because the tracer was not there or did not read."""

    lines: int


Line = TurnBegan | TurnEnded | Lost

_decode = msgspec.json.Decoder(Line).decode
_decode_trace = msgspec.json.Decoder(dict[str, Any]).decode


def encode(line: Line) -> bytes:
    """Encode a line, with its end."""
    return msgspec.json.encode(line) + b"\n"


def decode(line: bytes) -> Line:
    """Decode what `encode` has encoded. Raises msgspec.MsgspecError."""
    decoded: Line = _decode(line)
    return decoded


def trace_of(member: bytes | msgspec.Raw | None) -> tuple[str, str]:
    """The traceparent and tracestate in the member `trace` of a request; ("", "") where there is none to be read."""
    if member is None:
        return "", ""
    try:
        trace = _decode_trace(member)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "", ""
    parent, state = trace.get("traceparent"), trace.get("tracestate")
    if not isinstance(parent, str) or len(parent) > MAX_TEXT:
        return "", ""
    return parent, state if isinstance(state, str) and len(state) <= MAX_TEXT else ""
