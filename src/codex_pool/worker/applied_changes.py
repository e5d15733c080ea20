"""AppliedChanges that the broker makes in the app-server's memory, and log-ins that end without a request. Pure.

The broker applies one change at a time. Notifications about the account after a change are part of the answer,
so that sessions get them once and not from every worker: a log-in or log-out is over when `account/updated` has come,
or has not for UPDATE_LIMIT_S.

The end of a log-in by browser or device code is reported when its `account/updated` has come, because only then the
app-server uses it. It is reported again to another broker, until that one has acknowledged it (`Current`).
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ..protocol import jsonrpc, wire
from .effects import LINES, Outbox
from .request import Request
from .request_table import RequestTable

UPDATE_LIMIT_S = 10.0

_LOGIN, _LOGOUT = "account/login/start", "account/logout"
_LOGGED_IN, _UPDATED = "account/login/completed", "account/updated"
_GATEWAY = "account/gatewayOAuth/changed"
_MCP_LOGGED_IN = "mcpServer/oauthLogin/completed"
# After these the account is what it was.
_UNCHANGED = ("Login was not completed", "Login timed out")


class _Params(msgspec.Struct, rename="camel"):
    login_id: str | None = None
    success: bool = False
    error: str | None = None
    status: str = ""


class _Line(msgspec.Struct):
    params: _Params | None = None


_decode = msgspec.json.Decoder(_Line).decode


class _Applied(NamedTuple):
    """A change that the app-server has answered, and its notifications since."""

    call: int
    lines: list[bytes]
    until: float


class _Ended(NamedTuple):
    """A log-in that has succeeded, as far as it is known."""

    login_id: str
    sessions: list[wire.SessionId]
    line: bytes
    until: float


class AppliedChanges:
    """See the module's docstring. `started_at` is when the app-server was started, by CLOCK_MONOTONIC."""

    def __init__(self, *, requests: RequestTable, outbox: Outbox, started_at: float) -> None:
        self._requests = requests
        self._outbox = outbox
        self.as_of = started_at
        # Time of the last log-in here that others do not see.
        self.changed_at = 0.0
        self.replayed_requests: list[bytes] = []
        self.replayed_at = 0.0
        # The number under which the broker waits for the change that is under way; 0 when it does not.
        self._call = 0
        self._applied: _Applied | None = None
        self._ended: _Ended | None = None
        # The report of a log-in, until a broker has acknowledged it.
        self._reported: list[bytes] = []

    @property
    def waits(self) -> bool:
        """True while something waits for the app-server's next message."""
        return self._applied is not None or self._ended is not None

    def new_broker(self) -> None:
        """Forget the broker that waited for an answer, and report a log-in to the next one."""
        self._call, self._applied = 0, None
        if self._reported:
            self._outbox.broker(*self._reported)

    def current(self, head: wire.SharedState, replayed: list[bytes]) -> None:
        """Note the state of this app-server, as the broker reports it."""
        self.as_of, self.replayed_at, self.replayed_requests = head.as_of, head.replayed_at, replayed
        if self.as_of >= self.changed_at:
            self._reported = []

    # AppliedChanges by the broker.

    def apply(self, head: wire.Apply, line: bytes) -> None:
        """Send this request to the app-server."""
        call = self._call = head.call
        self._applied = None
        parsed = jsonrpc.decode_request(line)

        def answered(response: bytes, is_error: bool) -> None:
            if call != self._call:
                return
            if is_error or parsed.method not in (_LOGIN, _LOGOUT):
                self._answer(call, not is_error, [response])
            else:
                self._applied = _Applied(call, [response], self._outbox.now + UPDATE_LIMIT_S)

        others = jsonrpc.others_of(line)
        request = Request(parsed.method, None, parsed, then=answered, control=True, others=others)
        self._requests.add(request)
        self._requests.submit(request)

    def _answer(self, call: int, ok: bool, lines: list[bytes]) -> None:
        self._call, self._applied = 0, None
        self._outbox.broker(wire.encode(wire.Answered(call, ok)), LINES, b"\n".join(lines))

    # Notifications of the app-server.

    def observe(self, method: str, line: bytes, sessions: list[wire.SessionId] | None) -> bool:
        """True if clients get this notification another way. `sessions` began its log-in, or follow its thread."""
        if method not in (_LOGGED_IN, _UPDATED, _GATEWAY, _MCP_LOGGED_IN):
            return False
        params = _params(line)
        if method == _MCP_LOGGED_IN:
            route = wire.LoginEnded(params.login_id or "", sessions or [], changed=params.success, mcp=True)
            self._outbox.broker(wire.encode(route), LINES, line)
        elif method == _GATEWAY:
            if params.status != "succeeded":
                return False
            self._end("", [], [line], changed=True)
        elif method == _UPDATED:
            return self._updated(line)
        elif params.login_id is None:
            return self._completed(line, params)
        elif params.success:
            self._ended = _Ended(params.login_id, sessions or [], line, self._outbox.now + UPDATE_LIMIT_S)
        else:
            changed = not (params.error or "").endswith(_UNCHANGED)
            self._end(params.login_id, sessions or [], [line], changed=changed)
        return True

    def _updated(self, line: bytes) -> bool:
        if self._ended is not None:
            self._end(self._ended.login_id, self._ended.sessions, [self._ended.line, line], changed=True)
        elif self._applied is not None:
            self._answer(self._applied.call, True, [*self._applied.lines, line])
        else:
            return False
        return True

    def _completed(self, line: bytes, params: _Params) -> bool:
        """End of a log-in that was applied."""
        if self._applied is None:
            return False
        self._applied.lines.append(line)
        if not params.success:
            self._answer(self._applied.call, True, self._applied.lines)
        return True

    def _end(self, login_id: str, sessions: list[wire.SessionId], lines: list[bytes], *, changed: bool) -> None:
        self._ended = None
        message = [wire.encode(wire.LoginEnded(login_id, sessions, changed)), LINES, b"\n".join(lines)]
        if changed:
            self.changed_at = self.as_of = self._outbox.now
            self._reported = message
        self._outbox.broker(*message)

    def tick(self) -> None:
        """Stop waiting for notifications that are overdue."""
        if self._applied is not None and self._outbox.now > self._applied.until:
            self._answer(self._applied.call, True, self._applied.lines)
        if self._ended is not None and self._outbox.now > self._ended.until:
            self._end(self._ended.login_id, self._ended.sessions, [self._ended.line], changed=True)


def _params(line: bytes) -> _Params:
    try:
        return _decode(line).params or _Params()
    except msgspec.MsgspecError:
        return _Params()
