"""Request: one request on its way through the broker, from the line of a client to its answer. Pure data.

    state        event                                                       next
    received     it cannot go on yet: a worker, a slot, a permit is missing  held
    received     it is sent to a worker                                      dispatched
    received     it is carried out as several requests of the pool's own     executing
    received     it is answered here, refused, or repeats another one        done
    held         what it waits for is there, and something else is missing   held
    held         what it waits for is there                                  dispatched, executing, done
    held         its client cancels it, or its session ends                  done
    dispatched   its worker answers, or dies, or has a new connection        returned
    dispatched   its client sends it again: the later one takes its place    returned
    returned     the answer is sent                                          done
    returned     it is safe to be sent again: to another worker, or the      dispatched, held
                 same one on its new connection
    executing    the last of the pool's own requests is answered             done

`BrokerState.requests` (`in_flight`) makes the transitions and has all indexes over requests. An answer that names a
thread whose owner is not on disk yet leaves its request `returned` until the write is reported. A request that all
workers answer is `done` once its parts are dispatched: each part is a request of its own, and they share a `FanOut`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from codex_app_server._protocol import envelope

from ..auth.principal import DEFAULT_PRIORITY
from ..protocol import jsonrpc, wire
from .client_line import ClientMessage, decode_message
from .fan_out import FanOut

# The session that sent a request, and the request's id in JSON.
RequestKey = tuple[wire.SessionId | None, str]

State = Literal["received", "held", "dispatched", "returned", "executing", "done"]
NEXT: dict[State, frozenset[State]] = {
    "received": frozenset({"held", "dispatched", "executing", "done"}),
    "held": frozenset({"held", "dispatched", "executing", "done"}),
    "dispatched": frozenset({"returned"}),
    "returned": frozenset({"done", "dispatched", "held"}),
    "executing": frozenset({"done"}),
    "done": frozenset(),
}

# Methods of the pool's own requests: a thread that is read for a list; a page of a worker's threads, for a list of all.
ENTRY = "pool/entry"
PAGE = "pool/page"
# Release a thread; apply a change to what an app-server has in memory.
RELEASE = "pool/release"
APPLY = "pool/apply"
FOLLOW = "pool/turn/follow"
# Scopes of requests that change what every app-server has in memory.
_CHANGES = frozenset({"account", "all", "renewing", "reloading"})


class RequestQueue(Protocol):
    """A place where held requests wait for the same thing, which `reason` names.

    A queue that gives a request away sets the request's `queue` to None.
    """

    @property
    def reason(self) -> str: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Request]: ...

    def add(self, request: Request, weight: int) -> None: ...

    def discard(self, request: Request) -> None: ...


@dataclass(slots=True, eq=False)
class Request:
    """See the module's docstring. `session` is None for the pool's own requests."""

    session: wire.SessionId | None
    request_id: envelope.RequestId
    method: str
    thread_id: str | None
    line: bytes
    interest: wire.Interest
    came_at: float
    timeout_s: int = 60
    scope: str = "owner"
    starts_turn: bool = False
    turn_id: str | None = None
    # It was sent to a worker before, and no answer was received.
    again: bool = False
    # The share of its principal, as of `Identity.priority`.
    priority: int = DEFAULT_PRIORITY
    # Its turn is one beside others of its session, which may not delay them (see `side_turns`).
    on_side: bool = False
    # How many workers that were to start its turn have died.
    tries: int = 0
    worker: str = ""
    fan_out: FanOut | None = None
    # Its client was sent pool/queued.
    queued_sent: bool = False
    state: State = "received"
    # Where it is held.
    queue: RequestQueue | None = None
    # Its number with the worker that it is dispatched to.
    number: int = 0
    # Its app-server loads a thread for it.
    loads: bool = False
    # Its line, decoded once; None until it is needed, or after the line has changed.
    decoded: ClientMessage | None = None
    # The id in JSON; with its session it names the request.
    id_json: str = field(init=False)
    key: RequestKey = field(init=False)

    def __post_init__(self) -> None:
        self.id_json = jsonrpc.encode(self.request_id).decode()
        self.key = self.session, self.id_json

    @property
    def changes_all(self) -> bool:
        """True if it changes what every app-server has in memory."""
        return self.scope in _CHANGES

    def repeats(self, before: Request) -> bool:
        """Return True if this is the request `before`, sent again by its client."""
        return self.again and self.line == before.line

    @property
    def principal(self) -> str:
        """Principal of its session."""
        return self.session.principal if self.session is not None else ""

    def param(self, name: str, kind: Any) -> Any:
        """A parameter, decoded as `kind`; None if there is none of this name and kind."""
        raw = (self.message.params or {}).get(name)
        try:
            return msgspec.json.decode(raw, type=kind) if raw is not None else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    @property
    def message(self) -> ClientMessage:
        """Return the decoded line; its parameters are raw JSON. Raises MsgspecError for a line that is no request."""
        if self.decoded is None:
            self.decoded = decode_message(self.line)
        return self.decoded
