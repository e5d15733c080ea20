"""External tokens (chatgptAuthTokens): what app-servers ask for them is asked of the client once. Pure.

Each app-server has a copy of the tokens, and asks for new ones for every turn that the model refuses: several at once,
and several times for the same tokens. The client that holds the account is asked once; its answer goes to all that
wait, and to all other app-servers as a log-in. A request within FRESH_S of that has the same answer: it does not tell
which tokens were refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from codex_app_server import errors

from ..protocol import jsonrpc, wire
from . import change_kinds
from .entities import Worker
from .shared_changes import Changes
from .state import BrokerState

PREFIX = "tokens"
# An app-server waits 10 s for new tokens.
LIMIT_S = 12.0
FRESH_S = 5.0


@dataclass(slots=True)
class _Question:
    """Question to the client, and the workers that wait for its answer, with their ids for it (JSON)."""

    id: str
    request: jsonrpc.RequestLine
    others: dict[str, msgspec.Raw]
    until: float
    session: wire.SessionId | None = None
    identity: bytes = b""
    askers: list[tuple[str, bytes]] = field(default_factory=list)


class Tokens:
    """See the module's docstring."""

    def __init__(self, state: BrokerState, changes: Changes) -> None:
        self._state = state
        self._changes = changes
        self._open: _Question | None = None
        self._count = 0
        self._fresh_until = 0.0

    @property
    def held(self) -> int:
        return self._open is not None

    def wanted(self, worker: Worker, line: bytes) -> None:
        """An app-server wants new tokens."""
        request = jsonrpc.decode_request(line)
        known = self._changes.tokens
        if known is not None and self._state.now < self._fresh_until:
            self._tell(
                worker.name, b'{"id":%s,"result":%s}' % (request.id, jsonrpc.encode(change_kinds.tokens_result(known)))
            )
            return
        if self._open is None:
            self._count += 1
            self._open = _Question(
                f"{PREFIX}/{self._count}", request, jsonrpc.others_of(line), self._state.now + LIMIT_S
            )
        self._open.askers.append((worker.name, bytes(request.id)))
        self._ask(self._open)

    def _ask(self, question: _Question) -> None:
        """Ask the holder of the account, if that one was not asked on its present connection."""
        session = (
            self._state.sessions.get(self._state.account.session) if self._state.account.session is not None else None
        )
        if session is None:
            error = "no client is there that could give new tokens; connect, and log in again"
            self._end(question, jsonrpc.error_line(b"0", errors.INTERNAL_ERROR, error))
        elif session.identity and (session.id, session.identity) != (question.session, question.identity):
            question.session, question.identity = session.id, session.identity
            line = jsonrpc.RequestLine(
                question.request.method, msgspec.Raw(jsonrpc.encode(question.id)), question.request.params
            )
            self._state.send_line(session.id, line.encode(question.others))

    def answered(self, session: wire.SessionId, request_id: str, line: bytes) -> None:
        """A client answers."""
        question = self._open
        if question is None or (question.id, question.session) != (request_id, session):
            return
        login = change_kinds.tokens_line(line)
        if login is not None:
            self._fresh_until = self._state.now + FRESH_S
        self._end(question, line)
        if login is not None:
            self._changes.tokens_refreshed(login, {name for name, _ in question.askers})

    def _end(self, question: _Question, line: bytes) -> None:
        self._open = None
        for name, request_id in question.askers:
            self._tell(name, jsonrpc.with_id(line, request_id))

    def _tell(self, name: str, line: bytes) -> None:
        worker = self._state.workers.get(name)
        if worker is not None:
            self._state.to_worker(worker, wire.ServerRequestAnswer(), line)

    def tick(self) -> None:
        """The client that was asked may be gone, or on another connection."""
        if self._open is not None and self._state.now > self._open.until:
            self._end(
                self._open,
                jsonrpc.error_line(b"0", errors.INTERNAL_ERROR, f"no new tokens came within {LIMIT_S:.0f} s"),
            )
        elif self._open is not None:
            self._ask(self._open)
