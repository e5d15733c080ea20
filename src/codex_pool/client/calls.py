"""Requests of a client that are not answered yet, and how an answer that starts a turn is read. Pure."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from codex_app_server import errors
from codex_app_server._protocol.envelope import RequestId
from codex_app_server._protocol.turn_lines import Interest
from codex_app_server.generated.routing import REQUESTS

from ..protocol import jsonrpc, wire
from ..protocol.bound_methods import RUNS_ONCE
from .effects import Send

FOLLOW_TURN = "pool/turn/follow"


class Call(msgspec.Struct):
    """A request without an answer. `sent`: it was sent on a connection before, so it is sent again as a repetition."""

    line: bytes
    interest: Interest
    method: str
    thread_id: str | None
    turn_id: str | None
    timeout_s: float | None
    sent: bool = False
    cancelled: bool = False

    def send(self) -> Send:
        """The message that sends it, marked if it was sent before."""
        timeout_s = 0 if self.timeout_s is None else max(1, math.ceil(self.timeout_s))
        head = wire.Call(self.interest, self.sent, timeout_s)
        self.sent = True
        return Send([wire.encode(head), self.line])

    @property
    def may_have_started(self) -> bool:
        """True if it was sent, and must not be sent twice: what it starts would run twice."""
        return self.sent and (self.starts_turn or self.method in RUNS_ONCE)

    @property
    def starts_turn(self) -> bool:
        """True if its answer names a turn that it has started."""
        return self.method in REQUESTS and REQUESTS[self.method].result_turn

    def lost(self, request_id: RequestId, why: str) -> bytes:
        """The answer to one that the pool has ended."""
        data = {"kind": "lost", "safeToRetry": False}
        return jsonrpc.error_line(jsonrpc.encode(request_id), errors.TURN_LOST, f"{self.method}: {why}", data)

    def cancelled_unsent(self, request_id: RequestId) -> bytes:
        """The answer to one that was cancelled before it was sent."""
        message = f"{self.method} was cancelled before it was sent"
        return jsonrpc.error_line(jsonrpc.encode(request_id), errors.CANCELLED, message)

    def started_turn(self, answer: bytes) -> tuple[str, str] | None:
        """Thread and turn that a successful answer names; None if none can be read."""
        try:
            started: Any = _decode_start(answer).result
        except msgspec.DecodeError:
            return None
        return started.reviewThreadId or self.thread_id or "", started.turn.id


class _StartedTurn(msgspec.Struct):
    id: str


class _Started(msgspec.Struct):
    turn: _StartedTurn
    reviewThreadId: str | None = None


class _StartLine(msgspec.Struct):
    result: _Started


_decode_start = msgspec.json.Decoder(_StartLine).decode
_CALL = wire.encode(wire.Call())


def send_line(line: bytes) -> Send:
    """A line that is sent as it is: a notification, an answer, or a request whose answer is not waited for."""
    return Send([_CALL, line])


def send_cancel(request_id: RequestId) -> Send:
    """Tell the pool that the answer to a request is not wanted any more."""
    return send_line(jsonrpc.encode({"method": "pool/cancel", "params": {"requestId": request_id}}))
