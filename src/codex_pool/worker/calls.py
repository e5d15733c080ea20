"""Requests of sessions: each is executed once, however often it is sent, and answered under its latest number. Pure.

A request whose thread is being loaded waits for it. A turn/start that was sent before, to a worker that may have died,
is searched for in its thread's history by its message id, and started only if it is not there.
"""

from __future__ import annotations

import msgspec

from codex_app_server import errors
from codex_app_server._core.deliveries import Reply

from ..protocol import jsonrpc, thread_records, wire
from ..protocol.bound_methods import KIND_OF_METHOD
from . import message_marks, peek
from .bound_objects import BoundObjects
from .dedupe import Answer, digest_of
from .effects import FillHistory, Outbox
from .request import Request
from .request_answers import INVALID_REQUEST, RequestAnswers
from .request_table import RequestTable
from .running_turns import RunningTurns
from .server_requests import ServerRequests
from .session_options import SessionOptions
from .threads import Threads

INTERNAL_ERROR = -32603

FOLLOW_TURN = "pool/turn/follow"
UNSUBSCRIBE = "thread/unsubscribe"

_RELEASES_THREAD = frozenset({"thread/archive", "thread/delete"})
_PARTS = _RELEASES_THREAD | {"thread/unarchive"}
_LOST = {"kind": "lost", "safeToRetry": False}


class Calls:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        requests: RequestTable,
        threads: Threads,
        running: RunningTurns,
        options: SessionOptions,
        server_requests: ServerRequests,
        bound: BoundObjects,
        outbox: Outbox,
    ) -> None:
        self._requests = requests
        self._threads = threads
        self._running = running
        self._options = options
        self._server_requests = server_requests
        self._bound = bound
        self._outbox = outbox
        self._answers = RequestAnswers(
            requests=requests, threads=threads, running=running, options=options, outbox=outbox
        )
        # Log-ins under way, and the sessions that began them.
        self._logins: dict[str, wire.SessionId] = {}

    @property
    def known(self) -> list[wire.KnownCall]:
        """Requests that were taken and may be sent again: answered ones, then open ones."""
        still_open = [(request.session, bytes(request.line.id)) for request in self._requests.of_sessions()]
        return self._answers.known + [wire.KnownCall(session, id.decode()) for session, id in still_open if session]

    @property
    def logins(self) -> dict[str, wire.SessionId]:
        """Log-ins under way, and the sessions that began them."""
        return self._logins

    def take(self, head: wire.Dispatch, line: bytes) -> None:
        """Take a request from the broker."""
        parsed = jsonrpc.decode_request(line)
        if b"\\" in bytes(parsed.id):
            # As the broker writes it: the same id may be written in several ways.
            parsed.id = msgspec.Raw(jsonrpc.encode(msgspec.json.decode(parsed.id)))
        request_id, digest = bytes(parsed.id), digest_of(parsed)
        still_open = self._requests.find(head.session, request_id)
        known = still_open or (self._answers.find(head.session, request_id) if head.again else None)
        if known is not None:
            if not head.again or known.digest != digest:
                self._answers.refuse_id(head.call, parsed)
            elif isinstance(known, Request):
                known.call, known.accepts_parts = head.call, head.accepts_parts
            elif known.line or not self._bound.is_answering(head.session, request_id, head.call):
                self._answers.send_again(known, head.call)
            return
        request = Request(
            parsed.method,
            _text_of(parsed, "threadId"),
            parsed,
            head.call,
            session=head.session,
            interest=head.interest,
            queued_ms=head.queued_ms,
            came_at=self._outbox.now - head.queued_ms / 1000,
            again=head.again,
            timeout_s=head.timeout_s,
            digest=digest,
            accepts_parts=head.accepts_parts,
            others=jsonrpc.others_of(line),
        )
        self._requests.add(request)
        if parsed.method == UNSUBSCRIBE:
            self._unsubscribe(request)
        elif self._threads.was_let_go(request.thread_id):
            # It was sent before the broker was informed of that.
            message = f"thread {request.thread_id} was let go because nobody followed it any more; start a new one"
            self.refuse(request, errors.THREAD_LOST, message, {"safeToRetry": not head.again})
        elif parsed.method == FOLLOW_TURN:
            self._follow_turn(request)
        elif parsed.method in KIND_OF_METHOD:
            problem = self._bound.take(request, line)
            if problem is None:
                self._requests.submit(request)
            else:
                error = {"code": INVALID_REQUEST, "message": problem}
                self._answers.send(request, False, jsonrpc.encode({"id": parsed.id, "error": error}))
        elif not self._threads.wait(request, head, self):
            self.go_on(request)

    def new_broker(self) -> None:
        """The next broker waits for no answer until the request is sent again."""
        for request in self._requests.of_sessions():
            request.call = None

    def forget_session(self, session: wire.SessionId, *, keep: bool) -> None:
        """Refuse the requests of this session that were not sent yet, unless they are of turns that are kept."""
        for request in self._requests.of_sessions(session):
            request.gone, request.kept = True, keep
        for request in self._requests.withdrawable(session):
            if not keep or request.wire_id:
                # No client reads it, but the broker counts answers.
                self.refuse(request, errors.TURN_LOST, "its session is over", {"safeToRetry": True})
        self._answers.forget_session(session)
        self._logins = {login: owner for login, owner in self._logins.items() if owner != session}

    def take_deprecated(self) -> Request | None:
        """The oldest request under way that the app-server may have sent a deprecationNotice about; each once."""
        for request in self._requests.under_way():
            if request.is_deprecated and not request.is_noticed:
                request.is_noticed = True
                return request
        return None

    def take_login(self, login_id: str | None) -> wire.SessionId | None:
        """Take out the session that began this log-in, which is over."""
        return self._logins.pop(login_id or "", None)

    def go_on(self, request: Request) -> None:
        """Continue with a request whose thread, if it has one, is loaded here."""
        if request.method != "turn/start":
            if _reads_history(request):
                self._fill_history(request.thread_id or "")
            self._requests.submit(request)
            return
        params = request.line.params = request.line.params or {}
        if bytes(params.get("clientUserMessageId", b"null")) == b"null":
            params["clientUserMessageId"] = msgspec.Raw(jsonrpc.encode(message_marks.mark_of(request)))
            request.is_marked = True
        thread = self._threads.get(request.thread_id)
        given = bytes(params.get("sandboxPolicy", b"null")) != b"null"
        if thread is not None and thread.restore_sandbox and thread.record.sandbox and not given:
            params["sandboxPolicy"] = msgspec.Raw(thread.record.sandbox.encode())
        if request.again and thread is not None and thread.record.turns and not thread.record.ephemeral:
            self._search_history(request, required=thread.adopted)
        else:
            self.submit(request)

    def _fill_history(self, thread_id: str) -> None:
        """Have the history of a thread that is not loaded here filled from where it was written.

        Not while another request for it is open, which may be about to load it.
        """
        if self._threads.is_elsewhere(thread_id) and self._requests.count_of(thread_id) == 1:
            self._outbox.put(FillHistory(thread_id))

    def submit(self, request: Request) -> None:
        """Send it; a turn not while its thread runs one, begun for example by a goal: it would join that turn.

        The broker holds turns of busy threads, but may not have been informed of this one yet.
        """
        request.waits_for_turn = False
        if request.method == "turn/start" and self._running.runs_own_on(request.thread_id):
            if not self._requests.wait_for_turn(request):
                message = f"thread {request.thread_id} runs a turn: ActiveTurnNotSteerable {{ turn_kind: Other }}"
                self.refuse(request, INTERNAL_ERROR, message, {"safeToRetry": True})
            return
        self._requests.submit(request)

    def due(self, *, turn_ended: bool = False) -> None:
        """Send again the requests whose time has come: the thread or the app-server was busy."""
        for request in self._requests.due(turn_ended=turn_ended):
            self.submit(request)

    def _search_history(self, request: Request, *, required: bool) -> None:
        """Search the thread's history for its message id: it may have begun elsewhere, or before it was forgotten."""
        self._requests.move(request, "history")
        key = _text_of(request.line, "clientUserMessageId") or ""

        def then(line: bytes, is_error: bool) -> None:
            readable, turn_id = peek.turn_with_key(line, key)
            if turn_id is not None:
                message = f"turn {turn_id} had begun when its worker was lost; it was not started again"
                self.refuse(request, errors.TURN_LOST, message, {**_LOST, "turnId": turn_id})
            elif required and not readable:
                why = jsonrpc.error_of(line) if is_error else "it is not readable"
                message = f"whether this turn had begun when its worker was lost cannot be told from its thread: {why}"
                self.refuse(request, errors.TURN_LOST, message, _LOST)
            elif request.gone and not request.kept:
                self.refuse(request, errors.TURN_LOST, "its session is over", {"safeToRetry": True})
            else:
                self.submit(request)

        params: dict[str, object] = {"threadId": request.thread_id, "includeTurns": True}
        self._requests.submit_own("thread/read", params, then, thread_id=request.thread_id)

    def on_reply(self, reply: Reply, jitter: float) -> None:
        request = reply.token
        assert isinstance(request, Request)
        if reply.forgotten:
            if reply.turn_id is not None and request.thread_id is not None:
                # Its client was informed that it failed.
                self._running.interrupts.interrupt(reply.turn_id, request.thread_id)
            if not reply.is_error:
                self._bound.answered_late(request)
            return
        line, ok = reply.line, not reply.is_error
        if not ok and peek.error_code_of(line) == errors.SERVER_OVERLOADED:
            retry_after_ms = self._requests.retry(request, jitter)
            if not retry_after_ms:
                return
            message = f"{request.method}: the app-server was overloaded all the time"
            line = jsonrpc.error_line(b"0", errors.SERVER_OVERLOADED, message, {"retryAfterMs": retry_after_ms})
        if request.then is not None:
            self._requests.finish(request)
            request.then(line, not ok)
            return
        if request.wire_id:
            self._answer_bound(request, line, ok=ok)
            return
        is_held_up = not ok and request.method == "turn/start" and peek.is_busy(line)
        if is_held_up and self._requests.wait_for_turn(request):
            return
        if reply.turn_id is not None and self._running.is_stalled(reply.turn_id):
            message = (
                f"thread {request.thread_id} still runs turn {reply.turn_id}, which was given up; start a new thread"
            )
            self.refuse(request, INTERNAL_ERROR, message, {"safeToRetry": False})
            return
        record = self._after(request, line) if ok else None
        line = message_marks.without(line)
        started = None
        if reply.turn_id is not None and request.thread_id is not None:
            started = self._running.started(reply.turn_id, request.thread_id, request)
        if self._answers.goes_in_parts(request, line, started):
            self._answers.send_in_parts(request, ok, line, record)
        else:
            self._answers.send(request, ok, jsonrpc.replace_id(line, bytes(request.line.id)), record, started)
        if ok and request.method == "thread/resume" and request.session is not None and not request.gone:
            self._server_requests.ask_too(request.session, self._threads.family(request.thread_id or ""))
        if reply.turn_id is not None:
            self._running.announce(reply.turn_id, request.queued_ms)

    def _answer_bound(self, request: Request, line: bytes, *, ok: bool) -> None:
        """Answer a request for an object of its session; that of a command is in the stream of the command."""
        answer = self._bound.answered(request, line, ok=ok)
        if answer is None:
            self._answers.finish(request, Answer(ok, b"", None, request.digest))
        elif self._answers.goes_in_parts(request, answer):
            self._answers.send_in_parts(request, ok, answer, None)
        else:
            self._answers.send(request, ok, answer)

    def _after(self, request: Request, line: bytes) -> wire.ThreadRecord | None:
        """Update the state after the success of this request; the record of a thread that it loaded here."""
        if request.method in thread_records.LOADS_THREAD:
            record = self._threads.hold(line, request)
            if record is not None and request.session is not None and not request.gone:
                self._running.followers.subscribe(record.thread_id, request.session)
            return record
        if request.method in _PARTS and request.thread_id is not None:
            owner = self._threads.owner_of(request.thread_id)
            owner = request.principal if owner is None else owner
            concerned = {*self._threads.followers_of(request.thread_id), request.session}
            everyone = self._options.all_turns
            parted = [each for each in everyone if each in concerned or each.principal == owner]
            self._threads.parted.add(request.thread_id, parted)
        if request.method in _RELEASES_THREAD and request.thread_id is not None:
            self._threads.release(request.thread_id, keep=False)
        elif request.method == "thread/name/set":
            self._threads.named(request.thread_id, _text_of(request.line, "name"))
        elif request.method == "account/login/start":
            login_id = jsonrpc.login_id_of(line)
            if login_id is not None and request.session is not None and not request.gone:
                self._logins[login_id] = request.session
        return None

    def on_expired(self, request: Request) -> None:
        message = f"the app-server has not answered {request.method} within {request.limit_s:.0f} s"
        if request.then is not None:
            self._requests.finish(request)
            request.then(jsonrpc.error_line(b"0", INTERNAL_ERROR, message), True)
        else:
            self.refuse(request, INTERNAL_ERROR, message, None)

    def refuse(self, request: Request, code: int, message: str, data: dict[str, object] | None) -> None:
        """Answer a request with an error of the worker's own."""
        self._bound.refused(request)
        self._answers.send(request, False, jsonrpc.error_line(bytes(request.line.id), code, message, data))

    def _follow_turn(self, request: Request) -> None:
        """Subscribe the session to a running turn, from here on."""
        turn = self._running.get(_text_of(request.line, "turnId"))
        if turn is None or turn.thread_id != request.thread_id:
            named = _text_of(request.line, "turnId")
            message = f"turn {named} of thread {request.thread_id} does not run here: it has ended, or never was"
            self.refuse(request, INVALID_REQUEST, message, None)
            return
        assert request.session is not None, "only sessions follow turns"
        wanted = _text_of(request.line, "interest")
        interests: dict[str | None, wire.Interest] = {"full": "full", "items": "items", "final": "final"}
        self._running.followers.follow(turn, request.session, interests.get(wanted, request.interest))
        self._answers.send(request, True, b'{"id":%s,"result":{}}' % bytes(request.line.id))
        self._server_requests.ask_too(request.session, self._threads.family(turn.thread_id))

    def _unsubscribe(self, request: Request) -> None:
        """Unsubscribe the session here: passed on, it would silence the thread for all sessions of this app-server.

        The app-server gets one once no session follows the thread any more (`threads`).
        """
        session, thread_id = request.session, request.thread_id or ""
        assert session is not None, "only sessions are subscribed to threads"
        gets_all = session in self._options.all_turns
        status = self._threads.unsubscribe(thread_id, session, keep=gets_all)
        if status == "notLoaded":
            # The app-server reports what is wrong with the id, if it is none.
            self._requests.submit(request)
            return
        if gets_all:
            self._running.followers.leave(thread_id, session)
            self._server_requests.leave(thread_id, session)
        result = jsonrpc.encode({"status": status})
        self._answers.send(request, True, b'{"id":%s,"result":%s}' % (bytes(request.line.id), result))


def _reads_history(request: Request) -> bool:
    if request.method == "thread/read":
        return bytes((request.line.params or {}).get("includeTurns", b"")) == b"true"
    return request.method in thread_records.READS_HISTORY


def _text_of(line: jsonrpc.RequestLine, name: str) -> str | None:
    raw = (line.params or {}).get(name)
    value = msgspec.json.decode(raw) if raw is not None else None
    return value if isinstance(value, str) else None
