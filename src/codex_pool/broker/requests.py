"""What clients ask for: lines of theirs are read, judged and answered here, or routed. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from codex_app_server import envelope
from codex_app_server.generated.routing import REQUESTS
from codex_pool import rpc, wire
from codex_pool.broker.books import Books
from codex_pool.broker.dispatch import FOLLOW, INVALID_REQUEST, Dispatcher
from codex_pool.broker.doors import NEW_THREAD, Counts, Refusal
from codex_pool.broker.identity import MAX_ID_CHARS, rule_of
from codex_pool.broker.judge import STARTS_TURN
from codex_pool.broker.lists import OwnLists
from codex_pool.broker.records import Call, Session
from codex_pool.broker.status import seen_by
from codex_pool.broker.tokens import PREFIX, Tokens

PARSE_ERROR = -32700
METHOD_NOT_FOUND = -32601
MAX_OPT_OUTS = 256
MAX_METHOD_CHARS = 256


class _Capabilities(msgspec.Struct, rename="camel"):
    opt_out_notification_methods: list[str] = []


class _Params(msgspec.Struct, rename="camel"):
    request_id: envelope.RequestId | None = None
    interest: wire.Interest | None = None
    capabilities: _Capabilities | None = None


class _Line(msgspec.Struct):
    params: _Params | None = None


_decode = msgspec.json.Decoder(_Line).decode


class Requests:
    """See the module's docstring. `status` gives the result of pool/status."""

    def __init__(
        self,
        books: Books,
        dispatcher: Dispatcher,
        tokens: Tokens,
        lists: OwnLists,
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self._books = books
        self._dispatcher = dispatcher
        self._tokens = tokens
        self._lists = lists
        self._status = status

    def line(self, session: Session, head: wire.Call, line: bytes, *, screened: bool = False) -> None:
        """A line of a client: a request, a notification, or an answer. `screened`: its bounds have been checked."""
        try:
            header = envelope.scan(line)
        except ValueError as error:
            message = f"not a message of this protocol: {error}"
            self._books.say(session.id, rpc.error_line(b"null", PARSE_ERROR, message))
            return
        if header.id is not None and len(str(header.id)) > MAX_ID_CHARS:
            message = f"a request id of {len(str(header.id))} characters; expected at most {MAX_ID_CHARS}"
            self._books.say(session.id, rpc.error_line(rpc.encode(header.id), INVALID_REQUEST, message))
            return
        if session.who and self._books.doors is not None and not screened:
            refusal = self._books.doors.check_size(session.who, line)
            if refusal is not None:
                self._refuse(session, rpc.encode(header.id), refusal)
                return
        try:
            if not screened:
                rpc.check_line(line)
            if header.method is not None:
                rpc.decode_request(line)
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            message = f"not a request of this protocol: {error}"
            self._books.say(session.id, rpc.error_line(rpc.encode(header.id), INVALID_REQUEST, message))
            return
        if header.method is None:
            self._answer(session, header.id, line)
        elif header.id is None:
            # Of other notifications clients send only `initialized`, which the pool has sent already.
            if header.method == "pool/cancel":
                self._cancel(session, line)
        else:
            entry = REQUESTS.get(header.method)
            call = Call(
                session.id,
                header.id,
                header.method,
                # A thread that a method knows nothing of says nothing of where it goes.
                header.thread_id if entry is None or entry.thread is not None else None,
                line,
                head.interest,
                self._books.now,
                scope=entry.scope if entry is not None else "owner" if header.method == FOLLOW else "unassigned",
                starts_turn=entry is not None and entry.result_turn,
                turn_id=header.turn_id,
                again=head.again,
                timeout_s=head.timeout_s,
            )
            if self._may(session, call):
                self._request(session, call)

    def _may(self, session: Session, call: Call) -> bool:
        books = self._books
        if not session.who:
            return True
        assert books.doors is not None, "an identity came in where no doors are"
        turns = books.turns_of(session.who) if call.method in STARTS_TURN else 0
        threads = books.count(session.who)
        if call.method in NEW_THREAD:
            threads += books.threads_to_be(session.who)
        counts = Counts(threads, turns)
        if call.again and (call.key in books.seen or call.id_json in session.waiting):
            # What it asks for has been counted already.
            counts = Counts()
        own = call.thread_id if books.owned.owner_of(call.thread_id) == session.who else None
        record = books.record(call.thread_id)
        if record is None and own is not None and call.method in rpc.LOADS_THREAD:
            # No worker has it: the store knows where it works.
            row = books.owned.get(own)
            record = wire.ThreadRecord(own, ephemeral=False, cwd=row.cwd or None, owner=call.who) if row else None
        verdict = books.doors.check(session.who, call.method, call.line, record, counts, own=own)
        if isinstance(verdict, Refusal):
            self._refuse(session, call.id_json.encode(), verdict)
            return False
        call.line = verdict
        if call.method in STARTS_TURN and not call.starts_turn and call.thread_id in books.threads:
            books.threads[call.thread_id].begins_at = books.now
        return True

    def _refuse(self, session: Session, id_json: bytes, refusal: Refusal) -> None:
        books, what = self._books, refusal.data["what"]
        books.refused[what] += 1
        if books.refused[what] == 1:
            books.note(f"the first refusal of its kind, of {books.name_of(session.who)}: {refusal.message}")
        books.say(session.id, rpc.error_line(id_json, refusal.code, refusal.message, refusal.data))

    def _request(self, session: Session, call: Call) -> None:
        books = self._books
        if call.method == "initialize":
            assert books.initialize is not None
            capabilities = self._params(call).capabilities
            wanted = capabilities.opt_out_notification_methods[:MAX_OPT_OUTS] if capabilities is not None else []
            methods = [method for method in wanted if len(method) <= MAX_METHOD_CHARS]
            session.opted_out = tuple(b'{"method":%s,' % rpc.encode(method) for method in methods)
            books.say(session.id, b'{"id":%s,"result":%s}' % (rpc.encode(call.request_id), books.initialize))
        elif call.method == "pool/status":
            status = self._status()
            if books.is_limited(session.who):
                status = seen_by(status, session.who, books.count(session.who))
            books.say(session.id, rpc.encode({"id": call.request_id, "result": status}))
        elif call.method == "thread/unsubscribe":
            self._unsubscribe(session, call)
        elif call.scope in ("refused", "session", "unassigned"):
            message = f"{call.method} is not available through a pool; use a Codex client of its own for it"
            books.fail(call, METHOD_NOT_FOUND, message)
        elif books.is_limited(session.who) and rule_of(call.method) == "computed":
            self._lists.answer(call)
        elif books.is_limited(session.who) and rule_of(call.method) == "empty":
            books.say(session.id, rpc.encode({"id": call.request_id, "result": {"data": [], "nextCursor": None}}))
        elif (held := session.waiting.get(call.id_json)) is not None:
            if call.repeats(held):
                self._dispatcher.tell_again(held)
            else:
                self._dispatcher.refuse_id(call)
        elif self._dispatcher.repeat(call):
            return
        elif call.method == FOLLOW and not self._runs(call):
            message = f"turn {call.turn_id} of thread {call.thread_id} is not running: it is not known, or has ended"
            books.fail(call, INVALID_REQUEST, message)
        else:
            if call.method == FOLLOW:
                call.interest = self._params(call).interest or call.interest
            self._dispatcher.route(call)

    def _runs(self, call: Call) -> bool:
        """True while the turn runs on the thread that the request names, which is the one that was judged."""
        turn = self._books.turns.get(call.turn_id or "")
        return turn is not None and (turn.thread_id == call.thread_id or not self._books.is_limited(call.who))

    def _answer(self, session: Session, request_id: envelope.RequestId | None, line: bytes) -> None:
        """To a question of an app-server."""
        name = str(request_id).partition("/")[0]
        if name == PREFIX:
            self._tokens.answered(session.id, str(request_id), line)
        worker = self._books.workers.get(name)
        if worker is None:
            return
        if session.who:
            assert self._books.doors is not None
            line = self._books.doors.check_answer(session.who, line)
        self._books.to_worker(worker, wire.Tell(session.id), line)

    def _cancel(self, session: Session, line: bytes) -> None:
        try:
            params = _decode(line).params
        except msgspec.MsgspecError:
            return
        # One that is under way is the client's to interrupt, once it is answered.
        call = session.waiting.get(rpc.encode(params.request_id).decode()) if params is not None else None
        if call is not None:
            self._dispatcher.cancel(call)

    def _unsubscribe(self, session: Session, call: Call) -> None:
        """Kept per session here: passed down, it would silence the thread for everybody on its app-server."""
        thread = self._books.threads.get(call.thread_id or "")
        status = "notLoaded" if thread is None else "notSubscribed"
        if thread is not None and thread.followers.pop(session.id, 0) is None:
            status = "unsubscribed"
            worker = self._books.workers.get(thread.worker or "")
            if worker is not None:
                self._books.to_worker(worker, wire.Follow(session.id, thread.record.thread_id, on=False))
            self._books.let_go(thread)
        self._books.say(session.id, rpc.encode({"id": call.request_id, "result": {"status": status}}))

    def _params(self, call: Call) -> _Params:
        try:
            return _decode(call.line).params or _Params()
        except msgspec.MsgspecError:
            return _Params()
