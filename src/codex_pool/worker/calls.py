"""Calls of sessions: each is done once, however often it is sent, and answered under its latest number. Pure.

A call whose thread is being adopted waits for it. A turn/start that was sent before, to a worker that may have died, is
looked for in its thread's history by its key, and started only if it is not there.
"""

from __future__ import annotations

import msgspec

from codex_app_server import errors
from codex_app_server._deliveries import Reply
from codex_app_server.envelope import LONG_BYTES
from codex_pool import rpc, wire
from codex_pool.worker import reading
from codex_pool.worker.effects import LINES, Outbox
from codex_pool.worker.pieces import pieces_of
from codex_pool.worker.requests import Request, Requests
from codex_pool.worker.running import RunningTurns
from codex_pool.worker.seen import Answer, Seen, digest_of
from codex_pool.worker.threads import Threads

INVALID_REQUEST = -32600
INTERNAL_ERROR = -32603

FOLLOW_TURN = "pool/turn/follow"

_RELEASES_THREAD = frozenset({"thread/archive", "thread/delete"})
_MAKES_THREAD = frozenset({"thread/start", "thread/fork"})
_LOST = {"kind": "lost", "safeToRetry": False}


class Calls:
    """See the module's docstring."""

    def __init__(self, *, requests: Requests, threads: Threads, running: RunningTurns, outbox: Outbox) -> None:
        self._requests = requests
        self._threads = threads
        self._running = running
        self._outbox = outbox
        self._seen = Seen()
        # Log-ins under way, and who began them.
        self._logins: dict[str, wire.SessionId] = {}

    @property
    def held(self) -> dict[str, int]:
        return self._seen.held

    @property
    def seen(self) -> list[wire.CallSeen]:
        """What may be sent again."""
        return self._seen.calls

    @property
    def logins(self) -> dict[str, wire.SessionId]:
        """Log-ins under way, and who began them."""
        return self._logins

    def take(self, head: wire.Dispatch, line: bytes) -> None:
        """A call comes from the broker."""
        parsed = rpc.decode_request(line)
        known, digest = self._seen.find(head.session, bytes(parsed.id)), digest_of(parsed)
        if known is not None and (head.again or isinstance(known, Request)):
            if not head.again or known.digest != digest:
                self._refuse_id(head.call, parsed)
            elif isinstance(known, Request):
                known.call, known.pieces = head.call, head.pieces
            else:
                self._answer_again(known, head.call)
            return
        request = Request(
            parsed.method,
            _text_of(parsed, "threadId"),
            parsed,
            head.call,
            session=head.session,
            interest=head.interest,
            queued_ms=head.queued_ms,
            again=head.again,
            timeout_s=head.timeout_s,
            digest=digest,
            pieces=head.pieces,
            others=rpc.others_of(line),
        )
        self._seen.take(request)
        if self._threads.was_let_go(request.thread_id):
            # It has crossed the news of that: the broker sends no more.
            message = f"thread {request.thread_id} was let go because nobody followed it any more; start a new one"
            self.refuse(request, errors.THREAD_LOST, message, {"safeToRetry": not head.again})
        elif parsed.method == FOLLOW_TURN:
            self._follow_turn(request)
        elif not self._threads.wait(request, head, self):
            self.go_on(request)

    def new_broker(self) -> None:
        """Nobody waits for an answer until the call is sent again."""
        for request in self._seen.under_way():
            request.call = None

    def forget_session(self, session: wire.SessionId, *, keep: bool) -> None:
        """What was not sent yet of this session is refused, unless its turns are kept."""
        for request in self._seen.under_way(session):
            request.gone, request.kept = True, keep
        if not keep:
            for request in (*self._requests.withdraw(session), *self._threads.withdraw(session)):
                # Nobody reads it, but the broker counts by answers.
                self.refuse(request, errors.TURN_LOST, "its session is over", {"safeToRetry": True})
        self._seen.forget(session)
        self._logins = {login: owner for login, owner in self._logins.items() if owner != session}

    def who_began(self, login_id: str | None) -> wire.SessionId | None:
        """The session that began this log-in, which is over."""
        return self._logins.pop(login_id or "", None)

    def go_on(self, request: Request) -> None:
        """Its thread, if it has one, is here."""
        if request.method != "turn/start":
            self._requests.submit(request)
            return
        params = request.line.params = request.line.params or {}
        params.setdefault("clientUserMessageId", msgspec.Raw(rpc.encode(_key_of(request))))
        thread = self._threads.get(request.thread_id)
        given = bytes(params.get("sandboxPolicy", b"null")) != b"null"
        if thread is not None and thread.restore_sandbox and thread.record.sandbox and not given:
            params["sandboxPolicy"] = msgspec.Raw(thread.record.sandbox.encode())
        if request.again and thread is not None and thread.record.turns and not thread.record.ephemeral:
            self._look_through(request, required=thread.adopted)
        else:
            self.submit(request)

    def submit(self, request: Request) -> None:
        """Send it; a turn not while its thread runs one that a goal, say, has begun: it would join that.

        The broker holds turns of busy threads, but may not have heard of this one yet.
        """
        request.waits_for_thread = False
        if request.method == "turn/start" and self._running.runs_own_on(request.thread_id):
            if not self._requests.wait_for_thread(request):
                message = f"thread {request.thread_id} runs a turn: ActiveTurnNotSteerable {{ turn_kind: Other }}"
                self.refuse(request, INTERNAL_ERROR, message, {"safeToRetry": True})
            return
        self._requests.submit(request)

    def due(self, *, turn_ended: bool = False) -> None:
        """Send again what has waited long enough, for its thread or for a busy app-server."""
        for request in self._requests.due(turn_ended=turn_ended):
            self.submit(request)

    def _look_through(self, request: Request, *, required: bool) -> None:
        """It may have begun elsewhere, or before this worker forgot it: then its thread's history has its key."""
        key = _text_of(request.line, "clientUserMessageId") or ""

        def then(line: bytes, is_error: bool) -> None:
            readable, turn_id = reading.turn_with_key(line, key)
            if turn_id is not None:
                message = f"turn {turn_id} had begun when its worker was lost; it was not started again"
                self.refuse(request, errors.TURN_LOST, message, {**_LOST, "turnId": turn_id})
            elif required and not readable:
                why = rpc.error_of(line) if is_error else "it is not readable"
                message = f"whether this turn had begun when its worker was lost cannot be told from its thread: {why}"
                self.refuse(request, errors.TURN_LOST, message, _LOST)
            elif request.gone and not request.kept:
                self.refuse(request, errors.TURN_LOST, "its session is over", {"safeToRetry": True})
            else:
                self.submit(request)

        params: dict[str, object] = {"threadId": request.thread_id, "includeTurns": True}
        self._requests.ask("thread/read", params, then, thread_id=request.thread_id)

    def on_reply(self, reply: Reply, jitter: float) -> None:
        request = reply.token
        assert isinstance(request, Request)
        self._requests.answered(request)
        if reply.forgotten:
            if reply.turn_id is not None and request.thread_id is not None:
                # Who asked for it was told that it failed.
                self._running.interrupt(reply.turn_id, request.thread_id)
            return
        line, ok = reply.line, not reply.is_error
        if not ok and reading.error_code_of(line) == errors.SERVER_OVERLOADED:
            retry_after_ms = self._requests.try_again(request, jitter)
            if not retry_after_ms:
                return
            message = f"{request.method}: the app-server was overloaded all the time"
            line = rpc.error_line(b"0", errors.SERVER_OVERLOADED, message, {"retryAfterMs": retry_after_ms})
        if request.then is not None:
            request.then(line, not ok)
            return
        is_held_up = not ok and request.method == "turn/start" and reading.is_busy(line)
        if is_held_up and self._requests.wait_for_thread(request):
            return
        if reply.turn_id is not None and self._running.is_stalled(reply.turn_id):
            message = (
                f"thread {request.thread_id} still runs turn {reply.turn_id}, which was given up; start a new thread"
            )
            self.refuse(request, INTERNAL_ERROR, message, {"safeToRetry": False})
            return
        record = self._after(request, line) if ok else None
        started = None
        if reply.turn_id is not None and request.thread_id is not None:
            started = self._running.started(reply.turn_id, request.thread_id, request)
        if len(line) > LONG_BYTES and self._is_sent_in_pieces(request, started):
            self._answer_in_pieces(request, ok, line, record)
            return
        self._answer(request, ok, rpc.with_id(line, bytes(request.line.id)), record, started)
        if reply.turn_id is not None:
            self._running.announce(reply.turn_id, request.queued_ms)

    def _after(self, request: Request, line: bytes) -> wire.ThreadRecord | None:
        """What the success of this request means for the books; the record of a thread that it brought here."""
        if request.method in rpc.LOADS_THREAD:
            return self._threads.hold(line, request)
        if request.method in _RELEASES_THREAD and request.thread_id is not None:
            self._threads.release(request.thread_id, keep=False)
        elif request.method == "thread/name/set":
            self._threads.named(request.thread_id, _text_of(request.line, "name"))
        elif request.method == "account/login/start":
            login_id = rpc.login_id_of(line)
            if login_id is not None and request.session is not None and not request.gone:
                self._logins[login_id] = request.session
        return None

    def on_expired(self, request: Request) -> None:
        message = f"the app-server has not answered {request.method} within {request.limit_s:.0f} s"
        if request.then is not None:
            request.then(rpc.error_line(b"0", INTERNAL_ERROR, message), True)
        else:
            self.refuse(request, INTERNAL_ERROR, message, None)

    def refuse(self, request: Request, code: int, message: str, data: dict[str, object] | None) -> None:
        self._answer(request, False, rpc.error_line(bytes(request.line.id), code, message, data))

    def _answer(
        self,
        request: Request,
        ok: bool,
        line: bytes,
        record: wire.ThreadRecord | None = None,
        started: wire.TurnHeld | None = None,
    ) -> None:
        thread_id = record.thread_id if record is not None else None
        self._seen.answered(request, Answer(ok, line, thread_id, request.digest))
        if request.call is not None:
            self._outbox.broker(wire.encode(wire.Answered(request.call, ok, record, started)), LINES, line)
        elif started is not None:
            self._outbox.broker(wire.encode(wire.TurnStarted(started.thread_id, started.turn_id, started.sessions)))

    def _is_sent_in_pieces(self, request: Request, started: wire.TurnHeld | None) -> bool:
        # Whose a new thread is must be on the disk before its client hears of it.
        return request.pieces and request.call is not None and started is None and request.method not in _MAKES_THREAD

    def _answer_in_pieces(self, request: Request, ok: bool, line: bytes, record: wire.ThreadRecord | None) -> None:
        """Send a long answer piece by piece; the last one answers the call. What it brings here is said at once."""
        assert request.call is not None and request.session is not None, "only calls of sessions are sent in pieces"
        self._seen.answered(request, Answer(ok, line, None, request.digest))
        if record is not None:
            self._outbox.broker(wire.encode(wire.Held(request.call, record)))
        request_id = bytes(request.line.id)
        to_session = wire.encode(wire.ToSessions([request.session]))
        for piece, body in pieces_of(line, request_id):
            route = wire.encode(wire.Answered(request.call, ok)) if piece.last else to_session
            self._outbox.bulk(route, wire.encode(piece), body)

    def _answer_again(self, answer: Answer, call: int) -> None:
        thread = self._threads.get(answer.thread_id)
        record = thread.record if thread is not None else None
        answered = wire.Answered(call, answer.ok, record)
        self._outbox.broker(wire.encode(answered), LINES, answer.line)

    def _refuse_id(self, call: int, line: rpc.RequestLine) -> None:
        """Another request has this id: it is under way, or this one says that it is that one, and is not."""
        message = (
            f"{line.method}: request id {bytes(line.id).decode()} is that of another request; give it an id of its own"
        )
        refusal = rpc.error_line(bytes(line.id), INVALID_REQUEST, message)
        self._outbox.broker(wire.encode(wire.Answered(call, False)), LINES, refusal)

    def _follow_turn(self, request: Request) -> None:
        """Another session joins a running turn, from here on."""
        turn = self._running.get(_text_of(request.line, "turnId"))
        if turn is None or turn.thread_id != request.thread_id:
            named = _text_of(request.line, "turnId")
            message = f"turn {named} of thread {request.thread_id} does not run here: it has ended, or never was"
            self.refuse(request, INVALID_REQUEST, message, None)
            return
        assert request.session is not None, "only sessions follow turns"
        wanted = _text_of(request.line, "interest")
        interests: dict[str | None, wire.Interest] = {"full": "full", "items": "items", "final": "final"}
        self._running.follow(turn, request.session, interests.get(wanted, request.interest))
        self._answer(request, True, b'{"id":%s,"result":{}}' % bytes(request.line.id))


def _key_of(request: Request) -> str:
    """Key of a call among all calls, the same when it is sent again: principal, session, id and digest as JSON."""
    return rpc.encode([*(request.session or ()), request.line.id, request.digest.hex()]).decode()


def _text_of(line: rpc.RequestLine, name: str) -> str | None:
    raw = (line.params or {}).get(name)
    value = msgspec.json.decode(raw) if raw is not None else None
    return value if isinstance(value, str) else None
