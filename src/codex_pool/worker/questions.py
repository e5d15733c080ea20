"""Questions: what the app-server asks, who was asked, and how it is answered. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from codex_app_server import _asks
from codex_app_server._deliveries import Ask
from codex_app_server.envelope import RequestId
from codex_pool import rpc, wire
from codex_pool.worker.effects import Outbox


class _Question(NamedTuple):
    session: wire.SessionId | None
    ask: Ask
    line: bytes


class Questions:
    """Each goes to one session: the first of `candidates`; with nobody there it is declined.

    Sessions know a question as `worker/ID`, because the ids of different app-servers are the same numbers.
    """

    def __init__(self, worker: str, outbox: Outbox, candidates: Callable[[Ask], list[wire.SessionId]]) -> None:
        self._worker = worker
        self._outbox = outbox
        self._candidates = candidates
        self._open: dict[str, _Question] = {}

    @property
    def held(self) -> dict[str, int]:
        return {"asks": len(self._open)}

    @property
    def turns(self) -> set[str]:
        """The turns with an open question."""
        return {question.ask.turn_id for question in self._open.values() if question.ask.turn_id is not None}

    def ask(self, ask: Ask) -> None:
        candidates = self._candidates(ask)
        if not candidates:
            self.decline(ask)
            return
        public_id = self._public_id(ask.id)
        request = rpc.decode_request(ask.line)
        request.id = msgspec.Raw(rpc.encode(public_id))
        line = request.encode(rpc.others_of(ask.line))
        question = self._open[public_id] = _Question(candidates[0], ask, line)
        self._outbox.sessions([candidates[0]], question.line)

    def ask_broker(self, ask: Ask) -> None:
        """A question that the broker answers, or has answered; of no session."""
        public_id = self._public_id(ask.id)
        request = rpc.decode_request(ask.line)
        request.id = msgspec.Raw(rpc.encode(public_id))
        self._open[public_id] = _Question(None, ask, b"")
        self._outbox.broker(wire.encode(wire.TokensWanted()), request.encode(rpc.others_of(ask.line)))

    def ask_again(self, session: wire.SessionId) -> None:
        """The session has come back: what it was asked may never have reached it."""
        lines = [question.line for question in self._open.values() if question.session == session]
        if lines:
            self._outbox.sessions([session], b"\n".join(lines))

    def answer(self, session: wire.SessionId | None, line: bytes) -> None:
        """Only who was asked may answer, and once."""
        public_id = rpc.decode_request_id(line) or ""
        question = self._open.get(public_id)
        if question is not None and question.session == session:
            del self._open[public_id]
            self._outbox.app_server(rpc.with_id(line, rpc.encode(question.ask.id)))

    def forget_session(self, session: wire.SessionId) -> None:
        """Its questions go to somebody else, if there is anybody."""
        for public_id, question in list(self._open.items()):
            if question.session == session:
                del self._open[public_id]
                self.ask(question.ask)

    def turn_ended(self, turn_id: str) -> None:
        """A turn that is over asks nothing."""
        for public_id in [id for id, question in self._open.items() if question.ask.turn_id == turn_id]:
            del self._open[public_id]

    def resolved(self, line: bytes) -> bytes:
        """A question needs no answer any more: told under the id that it was asked under."""
        message = rpc.decode_request(line)
        if message.params is None or "requestId" not in message.params:
            return line
        public_id = self._public_id(msgspec.json.decode(message.params["requestId"]))
        self._open.pop(public_id, None)
        message.params["requestId"] = msgspec.Raw(rpc.encode(public_id))
        return message.encode(rpc.others_of(line))

    def decline(self, ask: Ask) -> None:
        self._outbox.app_server(_asks.refusal(ask))

    def _public_id(self, request_id: RequestId) -> str:
        # In JSON, because 1 and "1" are two ids. The broker reads the name of the worker up to the first slash.
        return f"{self._worker}/{rpc.encode(request_id).decode()}"
