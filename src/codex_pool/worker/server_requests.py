"""Requests of the app-server: the sessions that are asked, and the answer that counts. Pure.

Measured on codex 0.163.0: an app-server asks every connection that is subscribed to the thread, under one id, and takes
the first answer; a request stays open while nobody is subscribed, and each connection that resumes the thread is asked,
after the answer to thread/resume.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import msgspec

from codex_app_server._core import approvals
from codex_app_server._core.deliveries import ServerRequest
from codex_app_server._protocol.envelope import RequestId
from codex_app_server._runtime.bounded import BoundedDict

from ..protocol import jsonrpc, wire
from .effects import Outbox
from .running_turns import RunningTurns
from .session_options import SessionOptions
from .threads import Threads
from .turn_stream import Turn

MAX_ANSWERED = 1024
APPROVAL_TIMEOUT_S = 24 * 3600.0

# Requests that a program answers at once, not a person.
_OF_PROGRAMS = frozenset({"item/tool/call", "account/chatgptAuthTokens/refresh", "attestation/generate"})


@dataclass(slots=True)
class _OpenRequest:
    """A request without an answer, and the sessions that were asked; the broker is asked without a session.

    `since`: when the app-server sent it; `alone_since`: from when on no session follows its turn, None if one does.
    """

    request: ServerRequest
    line: bytes
    sessions: dict[wire.SessionId, None]
    since: float
    of_broker: bool = False
    alone_since: float | None = None


class ServerRequests:
    """Open requests of the app-server.

    Asked are the first follower of its turn, else of its thread, and all other followers that get all turns; without a
    thread the `default_session`. If there is none the request is declined, unless a session that has left the thread
    keeps its turns: then it stays open, and the next session that resumes the thread or joins the turn is asked. After
    `approval_timeout_s` without any it is declined; None is without limit.

    Sessions know a request as `worker/ID`, because the ids of different app-servers are the same numbers.
    """

    def __init__(
        self,
        *,
        worker: str,
        outbox: Outbox,
        threads: Threads,
        running: RunningTurns,
        options: SessionOptions,
        approval_timeout_s: float | None = APPROVAL_TIMEOUT_S,
    ) -> None:
        self._worker = worker
        self._outbox = outbox
        self._threads = threads
        self._running = running
        self._options = options
        self._approval_timeout_s = approval_timeout_s
        self._open: dict[str, _OpenRequest] = {}
        # The turns that the broker knows to wait.
        self._reported: dict[str, tuple[float, str]] = {}
        # Sessions that were asked what is answered, and not by them: those of them that do not follow the thread.
        self._answered: BoundedDict[str, list[wire.SessionId]] = BoundedDict(MAX_ANSWERED)
        self.default_session: wire.SessionId | None = None

    def set_timeout(self, approval_timeout_s: float | None) -> None:
        """Have another limit from now on, for requests that are open too."""
        self._approval_timeout_s = approval_timeout_s

    @property
    def held(self) -> dict[str, int]:
        return {"server_requests": len(self._open)}

    @property
    def turns(self) -> set[str]:
        """Running turns with an open request."""
        return {turn.id for each in self._open.values() if (turn := self._turn(each.request)) is not None}

    @property
    def waiting(self) -> dict[str, tuple[float, str]]:
        """The running turns that wait for the answer of a person: since when, and the method of the oldest request."""
        waiting: dict[str, tuple[float, str]] = {}
        for each in self._open.values():
            turn = self._turn(each.request)
            if turn is not None and each.request.method not in _OF_PROGRAMS:
                found = each.since, each.request.method
                waiting[turn.id] = min(found, waiting.get(turn.id, found))
        return waiting

    def report_waiting(self) -> None:
        """Report to the broker which turns have begun to wait for a person, and which go on."""
        if not self._open and not self._reported:
            return
        waiting = self.waiting
        for turn_id in self._reported.keys() - waiting.keys():
            if self._running.get(turn_id) is not None:
                self._outbox.broker(wire.encode(wire.TurnWaits(turn_id, None)))
        for turn_id, found in waiting.items():
            if self._reported.get(turn_id) != found:
                self._outbox.broker(wire.encode(wire.TurnWaits(turn_id, *found)))
        self._reported = waiting

    def send(self, request: ServerRequest, since: float | None = None) -> None:
        """Send a request to sessions. `since`: when the app-server sent it, if that was before now."""
        since = self._outbox.now if since is None else since
        sessions = self._chosen(request)
        if not sessions and not self._is_kept(request):
            self.decline(request)
            return
        public_id, line = self._renamed(request)
        self._open[public_id] = _OpenRequest(request, line, dict.fromkeys(sessions), since)
        if sessions:
            self._outbox.sessions(sessions, line)

    def send_to_broker(self, request: ServerRequest) -> None:
        """Send a request that the broker answers, alone or through a session that it chooses."""
        public_id, line = self._renamed(request)
        self._open[public_id] = _OpenRequest(request, b"", {}, self._outbox.now, of_broker=True)
        self._outbox.broker(wire.encode(wire.TokensWanted()), line)

    def send_again(self, session: wire.SessionId) -> None:
        """Send its open requests to a session that has reconnected: they may never have arrived."""
        self._send_lines(session, (each for each in self._open.values() if session in each.sessions))

    def ask_too(self, session: wire.SessionId, thread_ids: Collection[str]) -> None:
        """Send the open requests of these threads to a session that has resumed the first, or joined its turn.

        One that does not get all turns is asked only what nobody else is.
        """
        asked = [each for each in self._open.values() if each.request.thread_id in thread_ids]
        if session not in self._options.all_turns:
            asked = [each for each in asked if not each.sessions]
        for each in asked:
            each.sessions[session] = None
        self._send_lines(session, asked)

    def answer(self, session: wire.SessionId | None, line: bytes) -> None:
        """Pass an answer on, if it is the first one, of a session that got the request."""
        public_id = jsonrpc.decode_request_id(line) or ""
        found = self._open.get(public_id)
        if found is None or not (found.of_broker if session is None else session in found.sessions):
            return
        del self._open[public_id]
        others = [each for each in found.sessions if each != session]
        if others:
            self._answered[public_id] = others
        self._outbox.app_server(jsonrpc.with_id(line, jsonrpc.encode(found.request.id)))

    def forget_session(self, session: wire.SessionId) -> None:
        """Send the open requests that only this session, which is over, was asked to another one, or decline them."""
        if self.default_session == session:
            self.default_session = None
        self._withdraw(session, [*self._open])

    def leave(self, thread_id: str, session: wire.SessionId) -> None:
        """Do the same for those of one thread, from which this session has unsubscribed."""
        self._withdraw(session, [id for id, each in self._open.items() if each.request.thread_id == thread_id])

    def turn_ended(self, turn_id: str) -> None:
        """Drop the requests of a turn that is over."""
        for public_id in [id for id, each in self._open.items() if each.request.turn_id == turn_id]:
            del self._open[public_id]

    def resolved(self, line: bytes, followers: Collection[wire.SessionId] = ()) -> bytes:
        """Drop the request in a serverRequest/resolved line; the line with the id that sessions know.

        `followers` get the line; others that were asked are sent it here.
        """
        message = jsonrpc.decode_request(line)
        if message.params is None or "requestId" not in message.params:
            return line
        public_id = self._public_id(msgspec.json.decode(message.params["requestId"]))
        found = self._open.pop(public_id, None)
        message.params["requestId"] = msgspec.Raw(jsonrpc.encode(public_id))
        line = message.encode(jsonrpc.others_of(line))
        asked = found.sessions if found is not None else self._answered.pop(public_id, ())
        if others := [session for session in asked if session not in followers]:
            self._outbox.sessions(others, line)
        return line

    def tick(self) -> None:
        """Decline the requests that no session could have answered for as long as the limit is."""
        now, limit_s = self._outbox.now, self._approval_timeout_s
        for public_id, found in list(self._open.items()):
            request = found.request
            if request.thread_id is None or self._candidates(request):
                found.alone_since = None
            elif found.alone_since is None:
                found.alone_since = now
            elif limit_s is not None and now - found.alone_since >= limit_s:
                del self._open[public_id]
                self._outbox.note(
                    f"declined {request.method} of turn {request.turn_id}, thread {request.thread_id}: no client has "
                    f"followed it for {limit_s:g} s (approval_timeout_s)"
                )
                self.decline(request)

    def decline(self, request: ServerRequest) -> None:
        """Answer that no client can decide."""
        self._outbox.app_server(approvals.refusal(request))

    def _withdraw(self, session: wire.SessionId, public_ids: list[str]) -> None:
        """Note that this session answers none of these requests any more."""
        for public_id in public_ids:
            found = self._open[public_id]
            if session not in found.sessions:
                continue
            del found.sessions[session]
            if found.sessions:
                continue
            del self._open[public_id]
            self.send(found.request, found.since)

    def _turn(self, request: ServerRequest) -> Turn | None:
        """The running turn that a request is of; the turn inside of a review has an id of its own."""
        if request.turn_id is None:
            return None
        return self._running.get(request.turn_id) or self._running.on(request.thread_id)

    def _candidates(self, request: ServerRequest) -> list[wire.SessionId]:
        turn = self._running.get(request.turn_id)
        if turn is not None and turn.subscribers:
            return [*turn.subscribers]
        if request.thread_id is not None:
            return self._threads.followers_of(request.thread_id)
        return [self.default_session] if self.default_session is not None else []

    def _chosen(self, request: ServerRequest) -> list[wire.SessionId]:
        """The sessions to ask: the first candidate, and those that get all turns."""
        candidates = self._candidates(request)
        return candidates[:1] + [session for session in candidates[1:] if session in self._options.all_turns]

    def _is_kept(self, request: ServerRequest) -> bool:
        """True if the request waits for a session that resumes its thread."""
        if request.method in _OF_PROGRAMS:
            return False
        turn = self._running.get(request.turn_id)
        return (turn is not None and turn.kept) or self._threads.is_kept(request.thread_id)

    def _send_lines(self, session: wire.SessionId, requests: Iterable[_OpenRequest]) -> None:
        lines = [each.line for each in requests]
        if lines:
            self._outbox.sessions([session], b"\n".join(lines))

    def _renamed(self, request: ServerRequest) -> tuple[str, bytes]:
        """The id that sessions know, and the request's line with it."""
        public_id = self._public_id(request.id)
        line = jsonrpc.decode_request(request.line)
        line.id = msgspec.Raw(jsonrpc.encode(public_id))
        return public_id, line.encode(jsonrpc.others_of(request.line))

    def _public_id(self, request_id: RequestId) -> str:
        # In JSON, because 1 and "1" are two ids. The broker reads the name of the worker up to the first slash.
        return f"{self._worker}/{jsonrpc.encode(request_id).decode()}"
