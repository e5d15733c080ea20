"""ClientRequests: lines of clients, checked against the policy, and answered here or dispatched. Pure."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from codex_app_server import errors
from codex_app_server._protocol import envelope
from codex_app_server.generated.routing import REFUSED, REQUESTS, RUNTIME_VERSION

from ..auth.parameters import STARTS_TURN
from ..auth.policy import NEW_THREAD, Counts, Refusal
from ..auth.principal import MAX_ID_CHARS, rule_of
from ..protocol import jsonrpc, thread_records, user_agent, wire
from . import audit, listings, steering
from .client_line import ClientMessage, decode_message, id_of, read
from .dispatch import Dispatcher
from .effects import Audit
from .entities import Session
from .external_tokens import PREFIX, Tokens
from .owned_list_requests import OwnedListRequests
from .request import FOLLOW, Request
from .state import BrokerState
from .status import limited_status
from .steering import Steering
from .usage_questions import UsageQuestions

MAX_OPT_OUTS = 256
MAX_METHOD_CHARS = 256


_decode_id = msgspec.json.Decoder(envelope.RequestId | None).decode


class _Capabilities(msgspec.Struct, rename="camel"):
    opt_out_notification_methods: list[str] | None = None
    # A client of the pool's own behind a gateway or a bridge: it understands pool/queued.
    pool_queue: bool = False


class StatusReport(Protocol):
    """Gives the result of pool/status."""

    def __call__(self, *, trace: bool) -> dict[str, Any]: ...


class ClientRequests:
    """See the module's docstring. `status` gives the result of pool/status."""

    def __init__(
        self,
        state: BrokerState,
        dispatcher: Dispatcher,
        tokens: Tokens,
        lists: OwnedListRequests,
        steering: Steering,
        usage: UsageQuestions,
        status: StatusReport,
    ) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._tokens = tokens
        self._lists = lists
        self._steering = steering
        self._usage = usage
        self._status = status

    def line(self, session: Session, head: wire.Call, line: bytes, *, screened: bool = False) -> None:
        """Handle a line of a client: a request, a notification, or an answer.

        `screened`: its bounds have been checked.
        """
        if session.principal and self._state.policy is not None and not screened:
            refusal = self._state.policy.check_size(session.principal, line)
            if refusal is not None:
                if self._state.audit_file is not None:
                    name = self._state.name_of(session.principal)
                    self._state.out.append(Audit(audit.of_line(session, name, refusal.data["what"])))
                self._refuse(session, id_of(line), refusal)
                return
        try:
            header, message = read(line)
        except ValueError as error:
            problem = f"not a message of this protocol: {error}"
            self._state.send_line(session.id, jsonrpc.error_line(b"null", errors.PARSE_ERROR, problem))
            return
        if header.id is not None and len(str(header.id)) > MAX_ID_CHARS:
            problem = f"a request id of {len(str(header.id))} characters; expected at most {MAX_ID_CHARS}"
            self._state.send_line(
                session.id, jsonrpc.error_line(jsonrpc.encode(header.id), errors.INVALID_REQUEST, problem)
            )
            return
        try:
            if not screened:
                jsonrpc.check_line(line)
            if header.method is not None and message is None:
                # For the error that reports what is wrong with it.
                decode_message(line)
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            problem = f"not a request of this protocol: {error}"
            self._state.send_line(
                session.id, jsonrpc.error_line(jsonrpc.encode(header.id), errors.INVALID_REQUEST, problem)
            )
            return
        if header.method is None:
            self._answer(session, header.id, line)
        elif header.id is None:
            # Of other notifications clients send only `initialized`, which the pool has sent already.
            if header.method == "pool/cancel":
                self._cancel(session, message)
        elif message is not None:
            entry = REQUESTS.get(header.method)
            request = Request(
                session.id,
                header.id,
                header.method,
                # A thread that the method does not know has no bearing on where it goes.
                header.thread_id if entry is None or entry.thread is not None else None,
                line,
                head.interest,
                self._state.now,
                scope=entry.scope if entry is not None else "owner" if header.method == FOLLOW else "unassigned",
                starts_turn=entry is not None and entry.result_turn,
                turn_id=header.turn_id,
                again=head.again,
                timeout_s=head.timeout_s,
                decoded=message,
            )
            if self._may(session, request):
                refusals = self._state.audit_refusals
                self._request(session, request)
                if self._state.audit_refusals == refusals:
                    self._state.audit_request(request, None)

    def _may(self, session: Session, request: Request) -> bool:
        state = self._state
        if not session.principal:
            return True
        assert state.policy is not None, "a client with a key needs an access policy"
        turns = state.turns.count_of(session.principal) if request.method in STARTS_TURN else 0
        threads = state.threads.count_of(session.principal)
        if request.method in NEW_THREAD:
            threads += state.turns.threads_to_be(session.principal)
        counts = Counts(threads, turns)
        is_counted = request.again and (request.key in state.requests.sent_to or request.id_json in session.held)
        if is_counted:
            # What it asks for has been counted already.
            counts = Counts()
        own = request.thread_id if state.owners.owner_of(request.thread_id) == session.principal else None
        record = state.threads.record(request.thread_id)
        if record is None and own is not None and request.method in thread_records.LOADS_THREAD:
            # No worker has it: the store knows where it works.
            row = state.owners.get(own)
            record = (
                wire.ThreadRecord(own, ephemeral=False, cwd=row.cwd or None, owner=request.principal) if row else None
            )
        verdict = state.policy.check(session.principal, request.method, request.line, record, counts, own=own)
        if not isinstance(verdict, Refusal) and not is_counted:
            verdict = state.limits.request_refusal(request) or verdict
        if isinstance(verdict, Refusal):
            state.audit_request(request, verdict.data["what"])
            self._refuse(session, request.id_json.encode(), verdict)
            return False
        if verdict is not request.line:
            request.line, request.decoded = verdict, None
        if (
            request.method in STARTS_TURN
            and not request.starts_turn
            and (thread := state.threads.get(request.thread_id or ""))
        ):
            thread.begins_at = state.now
        return True

    def _refuse(self, session: Session, id_json: bytes, refusal: Refusal) -> None:
        state = self._state
        state.count_refusal(session.principal, refusal)
        state.send_line(session.id, jsonrpc.error_line(id_json, refusal.code, refusal.message, refusal.data))

    def _request(self, session: Session, request: Request) -> None:
        state = self._state
        if request.method == "initialize":
            self._initialize(session, request)
        elif request.method == "pool/status":
            is_limited = state.is_limited(session.principal)
            status = self._status(trace=not is_limited and request.param("trace", bool) is True)
            if is_limited:
                status = limited_status(status, session.principal, state.threads.count_of(session.principal))
            state.send_line(session.id, jsonrpc.encode({"id": request.request_id, "result": status}))
        elif request.method == "pool/usage":
            self._usage.request(session, request)
        elif request.method in steering.METHODS:
            self._steering.request(session, request)
        elif request.method in listings.METHODS:
            own = session.principal if state.is_limited(session.principal) else None
            limit = request.param("limit", int)
            result = listings.listed(request.method, state, own, limit, lambda: self._status(trace=False))
            state.send_line(session.id, jsonrpc.encode({"id": request.request_id, "result": result}))
        elif request.method == "thread/unsubscribe":
            self._unsubscribe(session, request)
        elif request.scope in ("refused", "unassigned"):
            reason = REFUSED.get(request.method, "it is not a method of codex " + RUNTIME_VERSION)
            message = (
                f"{request.method} is not available through a pool: {reason}; use a Codex client of its own for it"
            )
            state.audit_request(request, "method")
            state.fail(request, errors.METHOD_NOT_FOUND, message)
        elif state.is_limited(session.principal) and rule_of(request.method) == "computed":
            self._lists.answer(request)
        elif state.is_limited(session.principal) and rule_of(request.method) == "empty":
            state.send_line(
                session.id, jsonrpc.encode({"id": request.request_id, "result": {"data": [], "nextCursor": None}})
            )
        elif (held := session.held.get(request.id_json)) is not None:
            if request.repeats(held):
                self._dispatcher.notices.queued_again(held)
            else:
                self._state.refuse_id(request)
        elif self._dispatcher.repetitions.repeat(request):
            return
        elif request.method == FOLLOW and not self._runs(request):
            message = (
                f"turn {request.turn_id} of thread {request.thread_id} is not running: it is not known, or has ended"
            )
            state.fail(request, errors.INVALID_REQUEST, message)
        elif (refusal := self._steering.refusal(request)) is not None:
            self._steering.refuse(request, refusal)
        else:
            if request.method == FOLLOW:
                request.interest = request.param("interest", wire.Interest) or request.interest
            self._dispatcher.route(request)

    def _initialize(self, session: Session, request: Request) -> None:
        """Answer as an app-server answers this client, and send it what an app-server sends to each new connection."""
        state = self._state
        assert state.initialize is not None
        capabilities = request.param("capabilities", _Capabilities)
        wanted = (capabilities.opt_out_notification_methods or []) if capabilities is not None else []
        methods = [method for method in wanted[:MAX_OPT_OUTS] if len(method) <= MAX_METHOD_CHARS]
        if capabilities is not None and capabilities.pool_queue:
            session.knows_queue = True
        session.opted_out = tuple(b'{"method":%s,' % jsonrpc.encode(method) for method in methods)
        client = request.param("clientInfo", user_agent.ClientInfo)
        problem = user_agent.problem_with(client) if client is not None else None
        if problem is not None:
            state.fail(request, errors.INVALID_REQUEST, problem)
            return
        if client is not None:
            session.program, session.program_version = client.name, client.version[: user_agent.MAX_NAME_CHARS]
        result = user_agent.for_client(state.initialize, client) if client is not None else state.initialize
        state.send_line(session.id, b'{"id":%s,"result":%s}' % (jsonrpc.encode(request.request_id), result))
        # Sent again it is for a broker that has replaced another one.
        if state.start_notices and not (session.greeted or request.again or state.is_limited(session.principal)):
            state.send_line(session.id, b"\n".join(state.start_notices))
        session.greeted = True

    def _runs(self, request: Request) -> bool:
        """True while the turn runs on the thread that the request names, which is the one that was checked."""
        turn = self._state.turns.get(request.turn_id or "")
        return turn is not None and (
            turn.thread_id == request.thread_id or not self._state.is_limited(request.principal)
        )

    def _answer(self, session: Session, request_id: envelope.RequestId | None, line: bytes) -> None:
        """Pass on a client's answer to a request of an app-server."""
        name = str(request_id).partition("/")[0]
        if name == PREFIX:
            self._tokens.answered(session.id, str(request_id), line)
        worker = self._state.workers.get(name)
        if worker is None:
            return
        given = line
        if session.principal:
            assert self._state.policy is not None
            line = self._state.policy.check_answer(session.principal, line)
        if self._state.audit_file is not None:
            refused = "sandbox" if b'"error"' in line and b'"error"' not in given else None
            record = audit.of_answer(session, self._state.name_of(session.principal), name, given, refused)
            self._state.out.append(Audit(record))
        self._state.to_worker(worker, wire.ServerRequestAnswer(session.id), line)

    def _cancel(self, session: Session, message: ClientMessage | None) -> None:
        raw = (message.params or {}).get("requestId") if message is not None else None
        try:
            request_id = _decode_id(raw if raw is not None else b"null")
        except msgspec.MsgspecError:
            return
        # One that is under way is the client's to interrupt, once it is answered.
        request = session.held.get(jsonrpc.encode(request_id).decode())
        if request is not None:
            self._dispatcher.cancel(request)

    def _unsubscribe(self, session: Session, request: Request) -> None:
        """Unsubscribe the session from a thread; its worker does the same and answers, behind what it has sent before.

        A thread that no worker has may have followers: it is loaded again with its next request.
        """
        state, thread_id = self._state, request.thread_id or ""
        if self._dispatcher.repetitions.repeat(request):
            return
        thread = state.threads.get(thread_id)
        was_subscribed = thread is not None and thread.followers.pop(session.id, 0) is None
        if session.all_turns:
            for turn in state.turns.values():
                if turn.thread_id == thread_id and session.id in turn.sessions:
                    turn.sessions.remove(session.id)
        # A sub-agent's thread is in no table but with the thread that it works for.
        holders = (state.threads.get(each) for each in (thread_id, *state.threads.ancestors(thread_id)))
        worker = next((state.workers.get(each.worker or "") for each in holders if each is not None), None)
        if worker is not None and not worker.drained:
            self._dispatcher.dispatch(request, worker)
        elif thread is None:
            # An app-server reports what is wrong with the id.
            self._dispatcher.route(request)
        else:
            status = "unsubscribed" if was_subscribed else "notLoaded"
            state.answer(request, jsonrpc.encode({"id": request.request_id, "result": {"status": status}}))
        if thread is not None and was_subscribed:
            state.threads.drop_if_unused(thread)
