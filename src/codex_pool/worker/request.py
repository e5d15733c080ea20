"""A request on its way through the worker and its app-server: one object, with a state. Pure.

    state      the request                                                 next states
    new        was taken from the broker, or made by the worker            loading, history, queued, retry, answered
    loading    waits until its thread is loaded here (`threads`)           history, queued, retry, answered
    history    waits until its thread's history was searched for it        queued, retry, answered
    queued     waits for a permit                                          sent, running, answered
    sent       was sent to the app-server, and holds a permit              retry, answered
    running    was sent, and is answered when its command has ended:       retry, answered
               it holds no permit
    retry      waits until `retry_at`: the app-server was overloaded,      queued, retry, answered
               or its thread runs a turn that it would join
    answered   is over: answered, refused, or past its deadline            -

`RequestTable.move` alone changes the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec

from ..protocol import jsonrpc, wire

if TYPE_CHECKING:
    from .bound_object import BoundObject

# The deadlines of clients, and a little more: the client has given up by then.
REQUEST_LIMIT_S = 60.0 + 5.0

State = Literal["new", "loading", "history", "queued", "sent", "running", "retry", "answered"]

TRANSITIONS: dict[State, frozenset[State]] = {
    "new": frozenset({"loading", "history", "queued", "retry", "answered"}),
    "loading": frozenset({"history", "queued", "retry", "answered"}),
    "history": frozenset({"queued", "retry", "answered"}),
    "queued": frozenset({"sent", "running", "answered"}),
    "sent": frozenset({"retry", "answered"}),
    "running": frozenset({"retry", "answered"}),
    "retry": frozenset({"queued", "retry", "answered"}),
    "answered": frozenset(),
}

# Key of a request: session and request id in JSON, or, of the worker's own requests, a number.
Key = tuple[wire.SessionId, bytes] | int


@dataclass(slots=True, eq=False)
class Request:
    """A session's request, or, with `then`, one of the worker's own. See the module's docstring.

    `call` is the number under which the broker waits for the answer, None if it no longer does.
    """

    method: str
    thread_id: str | None
    line: jsonrpc.RequestLine
    call: int | None = None
    # Members of its line that are passed on unread, such as `trace`.
    others: dict[str, msgspec.Raw] = field(default_factory=dict)
    # None for the worker's own.
    session: wire.SessionId | None = None
    interest: wire.Interest = "full"
    queued_ms: int = 0
    # When it came to the pool.
    came_at: float = 0.0
    # It was sent before, on a connection that is gone or to a worker that is.
    again: bool = False
    # How long its client waits for the answer; 0 is without limit.
    timeout_s: int = 60
    # Its client accepts a long answer in parts.
    accepts_parts: bool = False
    # Its session is over; with `kept` its turns go on all the same.
    gone: bool = False
    kept: bool = False
    # Of the worker's own: receives the answer (a response line, and whether it is an error).
    then: Callable[[bytes, bool], None] | None = None
    control: bool = False
    # Digest of its method and parameters.
    digest: bytes = b""
    # The object of its session that it makes or names, and the id that the app-server knows it by.
    bound: BoundObject | None = None
    wire_id: str = ""
    state: State = "new"
    # Its key in the table: assigned there for the worker's own.
    key: Key = 0
    # Its id at the app-server, another one each time that it is sent.
    id: int = 0
    first_sent_at: float | None = None
    expires_at: float | None = None
    retry_at: float = 0.0
    tries: int = 0
    # It is sent again as soon as a turn ends, since its thread was busy.
    waits_for_turn: bool = False
    # Its message has the mark of this pool (`message_marks`).
    is_marked: bool = False
    # The app-server has sent a deprecationNotice about it.
    is_noticed: bool = False

    @property
    def is_deprecated(self) -> bool:
        """True if it asks for a whole history, or for a detached review: with a notice (codex 0.163.0)."""
        params = self.line.params or {}
        if self.method in ("thread/resume", "thread/fork"):
            return bytes(params.get("excludeTurns", b"")) != b"true"
        if self.method == "thread/read":
            return bytes(params.get("includeTurns", b"")) == b"true"
        return self.method == "review/start" and bytes(params.get("delivery", b"")) == b'"detached"'

    @property
    def principal(self) -> str:
        """Principal of its session, to which a thread that it creates belongs."""
        return self.session.principal if self.session is not None else ""

    @property
    def limit_s(self) -> float:
        """Time from sending to the deadline, in seconds."""
        return max(REQUEST_LIMIT_S, self.timeout_s + 5.0)
