"""Connection: one transport, one router, and those who wait. What the sync and the async client share.

Lines come in on the transport's I/O thread, are routed there under a lock, and their deliveries are handed out by
`post` - at once for threads, or in one wake-up of the event loop per read for asyncio; also at once where the transport
works on that loop itself.

The lock is held for moments, and nobody waits for anything under it. But a signal handler, or a finalizer, may run in a
thread that holds it, and the I/O thread then waits until it returns. `is_inside` tells: from there nothing is sent, and
nothing waited for.
"""

from __future__ import annotations

import _thread
import contextlib
import itertools
import logging
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from . import _asks, _fork, envelope
from ._deliveries import Ask, Delivery, GlobalRun, LongAsk, Malformed, Reply, ThreadRun, TurnBroken, TurnRun
from ._mailbox import Mailbox
from ._message_router import MessageRouter
from ._sub_agents import AgentTurn, SubAgents, children_of, may_spawn
from .envelope import RequestId
from .errors import (
    AppServerError,
    InternalRpcError,
    InvalidInputError,
    InvalidRequestError,
    LineTooLongError,
    ReentrantCallError,
    ThreadBusyError,
    TransportClosedError,
    TurnEndedError,
    UnknownTurnError,
    WrongProcessError,
    map_jsonrpc_error,
)
from .generated.routing import REQUESTS
from .lines import LongLine
from .transport import Interest, LoopTransport, PromptTransport, Transport, TurnLines

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("codex_app_server")

GLOBAL_NOTIFICATIONS = 10_000
UNCLAIMED_TURNS = 256
LOGINS = 64
STOPPING_TURNS = 256
AGENT_USAGES = 1024
FOLLOW_TURN = "pool/turn/follow"


class Future(Protocol):
    """What `Answer` and `asyncio.Future` have in common."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


class Call:
    """A request under way. `deadline` is on the monotonic clock; None while it waits in a queue of the pool."""

    __slots__ = ("deadline", "detach", "future", "given_up", "id", "mailbox", "method", "thread_id", "timeout_s")

    def __init__(
        self,
        id: int,
        method: str,
        future: Future,
        mailbox: Mailbox | None,
        timeout_s: float | None,
        thread_id: str | None = None,
        detach: bool = False,
    ) -> None:
        self.id = id
        self.thread_id = thread_id
        self.detach = detach
        self.given_up = False
        self.method = method
        self.future = future
        self.mailbox = mailbox
        self.timeout_s = timeout_s
        self.deadline: float | None = None
        self.restart_deadline()

    def restart_deadline(self) -> None:
        self.deadline = None if self.timeout_s is None else time.monotonic() + self.timeout_s


class _Joining:
    """The future of a request to join a turn: nobody waits for it but the mailbox."""

    def __init__(self, connection: Connection, turn_id: str, mailbox: Mailbox) -> None:
        self._connection = connection
        self._turn_id = turn_id
        self._mailbox = mailbox

    def done(self) -> bool:
        return False

    def set_result(self, result: Any, /) -> None:
        """The turn's notifications are on their way."""

    def set_exception(self, exception: BaseException, /) -> None:
        self._connection.not_joined(self._turn_id, self._mailbox, exception)


class _Response(msgspec.Struct):
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: Any = None


class _QueueNotice(msgspec.Struct):
    requestId: int


class _QueueLine(msgspec.Struct):
    method: str
    params: _QueueNotice


class _Resolved(msgspec.Struct):
    requestId: RequestId


class _ResolvedLine(msgspec.Struct):
    params: _Resolved


class _Turn(msgspec.Struct):
    id: str
    rootTurnId: str | None = None


class _TurnParams(msgspec.Struct):
    turn: _Turn
    threadId: str = ""


class _TurnLine(msgspec.Struct):
    params: _TurnParams


class _Login(msgspec.Struct):
    loginId: str | None = None


class _LoginLine(msgspec.Struct):
    params: _Login


_decode_resolved = msgspec.json.Decoder(_ResolvedLine).decode
_decode_turn = msgspec.json.Decoder(_TurnLine).decode
_decode_login = msgspec.json.Decoder(_LoginLine).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_decode_queue_line = msgspec.json.Decoder(_QueueLine).decode


class Connection:
    """See the module's docstring.

    `post(function, *args)` runs a function where the waiters live; there are called: `on_ask(ask)` for every request of
    the app-server, which answers through `answer`; `on_resolved(id)` when one needs no answer any more;
    `on_orphan(thread_id, turn_id)` for a turn whose starter had given up before the answer came, and for one of a
    sub-agent that begins when the turn that it works for was interrupted.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        post: Callable[..., None],
        on_ask: Callable[[Ask], None],
        on_resolved: Callable[[RequestId], None],
        on_orphan: Callable[[str, str], None],
        global_mailbox: Mailbox,
    ) -> None:
        self._transport = transport
        self._post = post
        self._on_ask = on_ask
        self._on_resolved = on_resolved
        self._on_orphan = on_orphan
        self.notifications = global_mailbox
        self._router = MessageRouter()
        self._lock = threading.RLock()
        self._made_in = os.getpid()
        self._ids = itertools.count(1)
        self._calls: dict[int, Call] = {}
        # Turns started through a plain request, whose mailbox nobody has asked for yet.
        self._unclaimed: OrderedDict[str, Mailbox] = OrderedDict()
        self._agents = SubAgents()
        # By the turn that they work for, the last report of each sub-agent's thread on its token usage.
        self._agent_usage: OrderedDict[str, dict[str, bytes]] = OrderedDict()
        # Turns whose interrupt was answered.
        self._stopping: OrderedDict[str, None] = OrderedDict()
        self._logins: OrderedDict[str, Mailbox] = OrderedDict()
        self._closing = False
        self._error: TransportClosedError | None = None

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked from the one that made the connection."""
        return _fork.is_inherited(self._made_in)

    @property
    def is_inside(self) -> bool:
        """Whether this thread holds the lock, so that a signal handler or a finalizer runs now."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def check(self) -> None:
        """Raises WrongProcessError, and ReentrantCallError where nothing can be waited for."""
        _fork.check_process(self._made_in, "client")
        if self.is_inside:
            raise ReentrantCallError

    @property
    def shared(self) -> bool:
        """True where other clients use the same app-servers: over a pool."""
        return self._transport.shared

    def start(self) -> None:
        self.check()
        self._transport.start(self)

    def move_to(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Have the transport do its work on `loop`, if it can. Called on that loop; with None before the end of it."""
        if isinstance(self._transport, LoopTransport):
            self._transport.move_to(loop)

    def close(self) -> None:
        if self.is_inside:
            self.close_soon()
        elif not self.is_inherited:
            self._closing = True
            self._transport.close()

    def close_soon(self) -> None:
        """Begin to end the connection, and wait for nothing."""
        if self.is_inherited:
            return
        self._closing = True
        if isinstance(self._transport, PromptTransport):
            self._transport.close_soon()
            return
        # Without a thread for it there is nobody to end it but the end of the program.
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(self._transport.close, ())

    # Out.

    def begin(
        self,
        method: str,
        params: bytes | None,
        future: Future,
        *,
        thread_id: str | None = None,
        turn: Mailbox | None = None,
        interest: Interest = "full",
        timeout_s: float | None,
        detach: bool = False,
        if_idle: bool = False,
    ) -> Call:
        """Send a request; its answer resolves `future` with the raw bytes of the result.

        `turn` is the mailbox of the turn that the request starts; with `detach` that turn goes on even when nobody
        waits for the answer any more. Raises TransportClosedError; with `if_idle` ThreadBusyError, for a thread that is
        known to run a turn.
        """
        self.check()
        encoded = _encode_method(method)
        call = Call(next(self._ids), method, future, turn, timeout_s, thread_id, detach)
        starts_turn = method in REQUESTS and REQUESTS[method].result_turn
        # Any other start, such as a detached review, may run on a thread of its own.
        thread_of_turn = thread_id if method == "turn/start" else None
        with self._lock:
            if if_idle and thread_id is not None:
                busy, running = self._router.running_turn(thread_id)
                if busy:
                    raise ThreadBusyError(thread_id, running)
            self._router.expect(
                call.id,
                call,
                thread_id=thread_of_turn,
                starts_turn=starts_turn,
                turn=turn.ref if turn is not None else None,
            )
            self._calls[call.id] = call
        head = b'{"id":%d,"method":%s' % (call.id, encoded)
        try:
            line = head + (b',"params":%s}' % params if params is not None else b"}")
            self._transport.send(line, interest=interest, timeout_s=timeout_s)
        except BaseException:
            self.give_up(call)
            raise
        return call

    def notify(self, method: str, params: bytes | None) -> None:
        _fork.check_process(self._made_in, "client")
        head = b'{"method":%s' % _encode_method(method)
        self._transport.send(head + (b',"params":%s}' % params if params is not None else b"}"))

    def answer(self, line: bytes) -> None:
        """Answer a request of the app-server; an answer that can no longer be delivered is dropped."""
        with contextlib.suppress(TransportClosedError, WrongProcessError):
            _fork.check_process(self._made_in, "client")
            self._transport.send(line)

    def overdue(self, now: float) -> tuple[list[Call], float]:
        """The calls whose deadline is over, and when the next one's will be; what waits in a queue has none yet."""
        over: list[Call] = []
        next_one = math.inf
        for call in list(self._calls.values()):
            if call.deadline is None:
                continue
            if call.deadline <= now:
                over.append(call)
            else:
                next_one = min(next_one, call.deadline)
        return over, next_one

    def give_up(self, call: Call) -> None:
        """Stop waiting for the answer of `call`; the turn that it has started, or will have, is interrupted."""
        if self.is_inherited:
            return
        with self._lock:
            self._calls.pop(call.id, None)
            self._router.forget(call.id)
        # The answer may be on its way to the waiter just now: whoever comes second sees what the first has set.
        call.given_up = True
        if not call.detach:
            self._transport.cancel(call.id)
        if call.mailbox is not None and call.mailbox.turn_id is not None:
            self._abandon(call, call.mailbox.turn_id)

    def _abandon(self, call: Call, turn_id: str) -> None:
        if call.thread_id is not None and not call.detach:
            self._on_orphan(call.thread_id, turn_id)

    # Turns.

    def running_turn(self, thread_id: str) -> tuple[bool, str | None]:
        """Whether a turn runs on the thread, as far as this client knows, and its id once it is known."""
        _fork.check_process(self._made_in, "client")
        with self._lock:
            return self._router.running_turn(thread_id)

    def turn_starts(self, thread_id: str) -> list[Any]:
        """The futures of the answers to the starts under way on a thread."""
        calls = list(self._calls.values())
        return [call.future for call in calls if call.method == "turn/start" and call.thread_id == thread_id]

    def has_ended(self, turn_id: str) -> bool:
        """Whether the turn is known to have ended."""
        return self._router.has_ended(turn_id)

    def follow(self, turn_id: str, mailbox: Mailbox, thread_id: str | None = None) -> None:
        """`mailbox` gets what the turn sends from now on.

        A turn of `thread_id` that was never seen here is joined where the transport is shared; if it does not run, the
        mailbox is closed with UnknownTurnError. Raises TurnEndedError, UnknownTurnError, TransportClosedError.
        """
        self.check()
        mailbox.turn_id = turn_id
        with self._lock:
            try:
                self._router.follow(turn_id, mailbox.ref)
                return
            except UnknownTurnError:
                if thread_id is None or not self.shared:
                    raise
                self._router.follow(turn_id, mailbox.ref, thread_id=thread_id, even_unseen=True)
        params = msgspec.json.encode({"threadId": thread_id, "turnId": turn_id, "interest": "full"})
        self.begin(FOLLOW_TURN, params, _Joining(self, turn_id, mailbox), thread_id=thread_id, timeout_s=None)

    def not_joined(self, turn_id: str, mailbox: Mailbox, error: BaseException) -> None:
        """A turn could not be joined."""
        with self._lock:
            self._router.unfollow(turn_id, mailbox.ref, unseen=True)
        known = isinstance(error, Exception) and not isinstance(error, InvalidRequestError)
        mailbox.close(error if known else UnknownTurnError(turn_id))  # type: ignore[arg-type]

    def unfollow(self, mailbox: Mailbox) -> None:
        if mailbox.turn_id is not None:
            with self._lock:
                self._router.unfollow(mailbox.turn_id, mailbox.ref)

    def keep_unclaimed(self, turn_id: str, mailbox: Mailbox) -> None:
        self._unclaimed[turn_id] = mailbox
        if len(self._unclaimed) > UNCLAIMED_TURNS:
            self._unclaimed.popitem(last=False)

    def claim(self, turn_id: str) -> Mailbox | None:
        """The mailbox of a turn that was started through a plain request, once."""
        _fork.check_process(self._made_in, "client")
        return self._unclaimed.pop(turn_id, None)

    @property
    def held(self) -> dict[str, int]:
        """What is kept for others, by kind (leak checks)."""
        _fork.check_process(self._made_in, "client")
        with self._lock:
            return {**self._router.held, "calls": len(self._calls), "unclaimed": len(self._unclaimed)}

    # In: called by the transport, on its I/O thread or the loop that it works on.

    def on_batch(self, batch: list[bytes | LongLine | TurnLines]) -> None:
        with self._lock:
            if self._error is not None:
                return
            deliveries: list[Delivery] = []
            loose: list[bytes | LongLine] = []
            for entry in batch:
                if isinstance(entry, TurnLines):
                    if loose:
                        deliveries += self._router.receive(loose)
                        loose = []
                    deliveries += self._router.receive_run(*entry)
                else:
                    loose.append(entry)
            # Of no lines too: what else is due must not wait for the next read.
            deliveries += self._router.receive(loose)
        if deliveries:
            self._post(self._deliver, deliveries)

    def on_closed(self, error: TransportClosedError) -> None:
        with self._lock:
            if self._error is not None:
                return
            self._error = error
            tokens = self._router.fail(error)
            self._calls.clear()
            closing = self._closing
        self._post(self._fail, tokens, error, closing)

    # In: where the waiters live.

    def _fail(self, tokens: list[Any], error: TransportClosedError, closing: bool) -> None:
        for token in tokens:
            if isinstance(token, Call):
                if not token.future.done():
                    token.future.set_exception(error)
            else:
                _close(token, error)
        # They have no end of their own: a client that closes has them end.
        self.notifications.close(None if closing else error)
        for mailbox in list(self._logins.values()):
            mailbox.close(error)

    def _deliver(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            try:
                self._hand_out(delivery)
            except Exception as error:
                # One that fails is the affair of those it is for; what comes after it goes where it belongs.
                log.exception("a message from the app-server could not be handed out (%s)", type(delivery).__name__)
                self._fail_one(delivery, error)

    def _hand_out(self, delivery: Delivery) -> None:
        match delivery:
            case TurnRun():
                for token in delivery.tokens:
                    mailbox = token()  # type: ignore[operator]
                    if mailbox is not None:
                        mailbox.put(delivery.lines, delivery.methods, delivery.counts)
                        if delivery.ended:
                            mailbox.close()
                self._heed_turn(delivery)
            case Reply():
                self._resolve(delivery)
            case ThreadRun() | GlobalRun():
                self._heed(delivery.lines)
                self.notifications.put(delivery.lines, delivery.methods)
            case Ask():
                self._on_ask(delivery)
            case LongAsk():
                log.warning("%s is declined: %s", delivery.ask.method, delivery.reason)
                self.answer(_asks.refusal(delivery.ask))
            case TurnBroken():
                kind = TurnEndedError if delivery.ended else LineTooLongError
                for token in delivery.tokens:
                    _close(token, kind(f"turn {delivery.turn_id}: {delivery.reason}"))
            case Malformed():
                log.warning("ignored a line from the app-server: %s: %r", delivery.reason, delivery.line[:200])
                with self._lock:
                    failed = [] if self._error else self._router.receive_unreadable(delivery.line, delivery.reason)
                self._deliver(failed)

    def _fail_one(self, delivery: Delivery, error: Exception) -> None:
        """Nobody waits for what could not be handed out."""
        match delivery:
            case TurnRun():
                for token in delivery.tokens:
                    _close(token, AppServerError(f"turn {delivery.turn_id}: what it sent could not be kept: {error!r}"))
            case Reply():
                assert isinstance(delivery.token, Call)
                if not delivery.token.future.done():
                    why = f"the answer to {delivery.token.method} cannot be used: {error!r}"
                    delivery.token.future.set_exception(InternalRpcError(-32603, why))
            case Ask():
                self.answer(_asks.refusal(delivery))

    def _resolve(self, reply: Reply) -> None:
        call = reply.token
        assert isinstance(call, Call)
        self._calls.pop(call.id, None)
        if call.mailbox is not None:
            call.mailbox.turn_id = reply.turn_id
        call.thread_id = reply.thread_id or call.thread_id
        if (reply.forgotten or call.given_up) and reply.turn_id is not None:
            self._abandon(call, reply.turn_id)
        if call.future.done():
            return
        try:
            response = _decode_response(reply.line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as why:
            call.future.set_exception(InternalRpcError(-32603, f"the answer to {call.method} is unreadable: {why}"))
            return
        if reply.is_error:
            error = response.error if isinstance(response.error, dict) else {"message": str(response.error)}
            code, message = error.get("code"), error.get("message")
            call.future.set_exception(
                map_jsonrpc_error(code if isinstance(code, int) else -32603, str(message), error.get("data"))
            )
        else:
            call.future.set_result(bytes(response.result))

    def _heed(self, lines: list[bytes]) -> None:
        """What notifications say to the client itself."""
        for line in lines:
            head = line[:64]
            if b'"pool/queued"' in head or b'"pool/dequeued"' in head:
                self._on_queue(line)
            elif b'"serverRequest/resolved"' in head:
                with contextlib.suppress(msgspec.DecodeError):
                    self._on_resolved(_decode_resolved(line).params.requestId)
            elif b'"turn/started"' in head and b'"rootTurnId"' in line:
                with contextlib.suppress(msgspec.DecodeError):
                    self._on_turn_started(_decode_turn(line).params)
            elif b'"turn/completed"' in head and self._agents:
                with contextlib.suppress(msgspec.DecodeError):
                    ended = _decode_turn(line).params
                    self._agents.ended(ended.threadId, ended.turn.id)
            elif b'"thread/tokenUsage/updated"' in head and self._agents:
                self._note_usage(line)
            elif b'"item/completed"' in head and may_spawn(line):
                for late in self._agents.spawned(envelope.scan(line).thread_id or "", children_of(line)):
                    self._on_orphan(*late)
            elif b'"account/login/completed"' in head:
                with contextlib.suppress(msgspec.DecodeError):
                    self._on_login(_decode_login(line).params.loginId or "", line)

    def _heed_turn(self, run: TurnRun) -> None:
        """Note what the turn of a sub-agent says of its own sub-agents, and the end of any turn."""
        if run.turn_id in self._agents:
            self._heed(run.lines)
        if run.ended:
            self._agents.ended(run.thread_id or "", run.turn_id)

    def _on_turn_started(self, params: _TurnParams) -> None:
        turn, root = params.turn, params.turn.rootTurnId
        if root is not None and root != turn.id and self._agents.began(params.threadId, turn.id, root):
            self._on_orphan(params.threadId, turn.id)

    def _note_usage(self, line: bytes) -> None:
        header = envelope.scan(line)
        root = self._agents.root_of(header.turn_id)
        if root is not None and header.thread_id is not None:
            self._agent_usage.setdefault(root, {})[header.thread_id] = line
            if len(self._agent_usage) > AGENT_USAGES:
                self._agent_usage.popitem(last=False)

    def agent_usage(self, turn_id: str) -> dict[str, bytes]:
        """The last report on token usage of each thread of a sub-agent that has worked for this turn."""
        _fork.check_process(self._made_in, "client")
        return dict(self._agent_usage.get(turn_id, {}))

    def active_turn(self, thread_id: str, turn_id: str) -> str:
        """What an interrupt must name: a review works in a turn of its own inside of the one that was started."""
        return self._agents.active(thread_id, turn_id)

    def stop_agents(self, thread_id: str, turn_id: str) -> list[AgentTurn]:
        """The turns of sub-agents that work for this turn and run, as far as is known here.

        Each that begins to work for it from now on is handed to `on_orphan`.
        """
        return self._agents.stop(thread_id, turn_id)

    def running_agents(self, thread_id: str, turn_id: str) -> list[AgentTurn]:
        """The turns of sub-agents that work for this turn and run, as far as is known here."""
        self.check()
        return [each for each in self._agents.running(thread_id, turn_id) if not self.has_ended(each.turn_id)]

    def note_stopping(self, turn_id: str) -> None:
        """The app-server has said that it interrupts this turn."""
        self._stopping[turn_id] = None
        if len(self._stopping) > STOPPING_TURNS:
            self._stopping.popitem(last=False)

    def is_stopping(self, turn_id: str) -> bool:
        return turn_id in self._stopping

    def _on_queue(self, line: bytes) -> None:
        """Queue time in the pool is not a request's deadline."""
        with contextlib.suppress(msgspec.DecodeError):
            notice = _decode_queue_line(line)
            call = self._calls.get(notice.params.requestId)
            if call is not None and notice.method == "pool/queued":
                call.deadline = None
            elif call is not None:
                call.restart_deadline()

    # Log-ins: their end comes as a notification, maybe before anybody waits for it.

    def login_mailbox(self, login_id: str, new: Callable[[], Mailbox]) -> Mailbox:
        """Where the end of a log-in comes, or has come."""
        _fork.check_process(self._made_in, "client")
        mailbox = self._logins.setdefault(login_id, new())
        if len(self._logins) > LOGINS:
            self._logins.popitem(last=False)
        if self._error is not None:
            mailbox.close(self._error)
        return mailbox

    def _on_login(self, login_id: str, line: bytes) -> None:
        mailbox = self.login_mailbox(login_id, type(self.notifications))
        mailbox.put([line])
        mailbox.close()


def _encode_method(method: str) -> bytes:
    try:
        return msgspec.json.encode(method)
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"method {method!r} cannot be sent as UTF-8: {error}") from None


def _close(token: Any, error: Exception) -> None:
    mailbox = token()
    if mailbox is not None:
        mailbox.close(error)
