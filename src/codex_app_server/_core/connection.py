"""Connection: one transport, one router, and those who wait. What the sync and the async client share.

Lines come in on the transport's I/O thread, are routed there under a lock, and their deliveries are handed out by
`post` - at once for threads, or in one wake-up of the event loop per read for asyncio; also at once where the transport
works on that loop itself.

The lock is held for moments, and no thread waits under it. But a signal handler, or a finalizer, may run in a
thread that holds it, and the I/O thread then waits until it returns. `is_inside` tells: from there nothing is sent, and
nothing waited for.
"""

from __future__ import annotations

import _thread
import contextlib
import itertools
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from .._protocol.envelope import RequestId
from .._protocol.framing import LongLine
from .._runtime import fork
from ..errors import (
    InvalidRequestError,
    ReentrantCallError,
    ThreadBusyError,
    TransportClosedError,
    UnknownTurnError,
    WrongProcessError,
)
from ..generated.routing import REQUESTS
from ..transport import Interest, LoopTransport, PromptTransport, Transport, TurnLines
from .calls import Call, Future, notification_line, request_line
from .deliveries import (
    Delivery,
    Malformed,
    ServerRequest,
)
from .dispatcher import Dispatcher
from .joining import Joining
from .mailbox import Mailbox
from .observer import NotificationObserver
from .router import MessageRouter
from .silence import SilentTurn
from .sub_agents import AgentTurn

if TYPE_CHECKING:
    import asyncio


GLOBAL_NOTIFICATIONS = 10_000
UNCLAIMED_TURNS = 256
FOLLOW_TURN = "pool/turn/follow"


class Connection:
    """See the module's docstring.

    `post(function, *args)` runs a function where the waiters live; called there are: `on_server_request(request)` for
    each request of the app-server, to be answered by `answer`; `on_resolved(id)` when one needs no answer any more;
    `on_abandoned(thread_id, turn_id)` for a turn whose starter had given up before the answer came, and for one of a
    sub-agent that begins when the turn that it works for was interrupted.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        post: Callable[..., None],
        on_server_request: Callable[[ServerRequest], None],
        on_resolved: Callable[[RequestId], None],
        on_abandoned: Callable[[str, str], None],
        global_mailbox: Mailbox,
    ) -> None:
        self._transport = transport
        self._post = post
        self.notifications = global_mailbox
        self._router = MessageRouter()
        self._lock = threading.RLock()
        self._made_in = os.getpid()
        self._ids = itertools.count(1)
        self._calls: dict[int, Call] = {}
        # Turns started through a plain request, whose mailbox has not been asked for yet.
        self._unclaimed: OrderedDict[str, Mailbox] = OrderedDict()
        self._observer = NotificationObserver(
            self._calls, on_resolved=on_resolved, on_abandoned=on_abandoned, new_mailbox=type(global_mailbox)
        )
        self._dispatcher = Dispatcher(
            self._calls,
            global_mailbox,
            self._observer,
            on_server_request=on_server_request,
            on_abandoned=on_abandoned,
            answer=lambda line: self.answer(line),
            reroute=self._reroute,
        )
        self._closing = False
        self._error: TransportClosedError | None = None

    @property
    def is_inherited(self) -> bool:
        """True if this process was forked from the one that made the connection."""
        return fork.is_inherited(self._made_in)

    @property
    def is_inside(self) -> bool:
        """True if this thread holds the lock, so that a signal handler or a finalizer runs now."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def check(self) -> None:
        """Raises WrongProcessError, and ReentrantCallError where nothing can be waited for."""
        fork.check_process(self._made_in, "client")
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
        # Without a thread for it, it ends only with the program.
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
        deadline: float | None = None,
        detach: bool = False,
        if_idle: bool = False,
    ) -> Call:
        """Send a request; its answer resolves `future` with the raw bytes of the result.

        `turn` is the mailbox of the turn that the request starts; with `detach` that turn goes on even when the
        answer is no longer waited for. `deadline` is the caller's, on the monotonic clock. Raises TransportClosedError;
        with `if_idle` ThreadBusyError, for a thread that is known to run a turn.
        """
        self.check()
        call = Call(next(self._ids), method, future, turn, timeout_s, thread_id, detach, deadline)
        line = request_line(call.id, method, params)
        starts_turn = method in REQUESTS and REQUESTS[method].result_turn
        # Any other start, such as a detached review, may run on a thread of its own.
        thread_of_turn = thread_id if method == "turn/start" else None
        if turn is not None:
            self._watch(turn)
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
        try:
            self._transport.send(line, interest=interest, timeout_s=timeout_s)
        except BaseException:
            self.give_up(call)
            raise
        return call

    def notify(self, method: str, params: bytes | None) -> None:
        fork.check_process(self._made_in, "client")
        self._transport.send(notification_line(method, params))

    def answer(self, line: bytes) -> None:
        """Answer a request of the app-server; an answer that can no longer be delivered is dropped."""
        with contextlib.suppress(TransportClosedError, WrongProcessError):
            fork.check_process(self._made_in, "client")
            self._transport.send(line)

    def overdue(self, now: float) -> tuple[list[Call], float]:
        """The calls that are overdue, and when to look at the others next: infinity if they have no deadlines."""
        over: list[Call] = []
        next_one = math.inf
        for call in list(self._calls.values()):
            if call.is_overdue(now):
                over.append(call)
            elif (check_at := call.check_at(now)) is not None:
                next_one = min(next_one, check_at)
        return over, next_one

    def give_up(self, call: Call) -> None:
        """Stop waiting for the answer of `call`; the turn that it has started, or will have, is interrupted."""
        if self.is_inherited:
            return
        with self._lock:
            self._calls.pop(call.id, None)
            self._router.forget(call.id)
        # The answer may be on its way to the waiter just now: the second one sees what the first has set.
        call.given_up = True
        if not call.detach:
            self._transport.cancel(call.id)
        if call.mailbox is not None and call.mailbox.turn_id is not None:
            self._dispatcher.abandon(call, call.mailbox.turn_id)

    # Turns.

    def running_turn(self, thread_id: str) -> tuple[bool, str | None]:
        """True if a turn runs on the thread, as far as this client knows, and its id once it is known."""
        fork.check_process(self._made_in, "client")
        with self._lock:
            return self._router.running_turn(thread_id)

    def turn_starts(self, thread_id: str) -> list[Any]:
        """The futures of the answers to the starts under way on a thread."""
        calls = list(self._calls.values())
        return [call.future for call in calls if call.method == "turn/start" and call.thread_id == thread_id]

    def has_ended(self, turn_id: str) -> bool:
        """True if the turn is known to have ended."""
        return self._router.has_ended(turn_id)

    def follow(self, turn_id: str, mailbox: Mailbox, thread_id: str | None = None) -> None:
        """`mailbox` gets what the turn sends from now on.

        A turn of `thread_id` that was never seen here is joined where the transport is shared; if it does not run, the
        mailbox is closed with UnknownTurnError. Raises TurnEndedError, UnknownTurnError, TransportClosedError.
        """
        self.check()
        mailbox.turn_id = turn_id
        self._watch(mailbox)
        with self._lock:
            try:
                self._router.follow(turn_id, mailbox.ref)
                return
            except UnknownTurnError:
                if thread_id is None or not self.shared:
                    raise
                self._router.follow(turn_id, mailbox.ref, thread_id=thread_id, even_unseen=True)
        params = msgspec.json.encode({"threadId": thread_id, "turnId": turn_id, "interest": "full"})
        self.begin(
            FOLLOW_TURN, params, Joining(turn_id, mailbox, self._not_joined), thread_id=thread_id, timeout_s=None
        )

    def _not_joined(self, turn_id: str, mailbox: Mailbox, error: BaseException) -> None:
        """A turn could not be joined."""
        with self._lock:
            self._router.unfollow(turn_id, mailbox.ref, unseen=True)
        known = isinstance(error, Exception) and not isinstance(error, InvalidRequestError)
        mailbox.close(error if known else UnknownTurnError(turn_id))  # type: ignore[arg-type]

    def _watch(self, mailbox: Mailbox) -> None:
        """Have the app-server asked whether a turn still runs that a reader waits for in vain."""

        def send(method: str, params: bytes, future: Future, thread_id: str) -> None:
            self.begin(method, params, future, thread_id=thread_id, timeout_s=None)

        turn = SilentTurn(mailbox.ref, send=send, thread_of=self._router.thread_of, on_ended=self.unfollow)
        mailbox.on_silence = turn.ask

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
        fork.check_process(self._made_in, "client")
        return self._unclaimed.pop(turn_id, None)

    @property
    def held(self) -> dict[str, int]:
        """The numbers of things kept for others, by kind (leak checks)."""
        fork.check_process(self._made_in, "client")
        with self._lock:
            return {**self._router.held, "calls": len(self._calls), "unclaimed": len(self._unclaimed)}

    # In: called by the transport, on its I/O thread or the loop that it works on.

    def on_batch(self, batch: list[bytes | LongLine | TurnLines]) -> None:
        with self._lock:
            if self._error is not None:
                return
            deliveries: list[Delivery] = []
            loose: list[bytes | LongLine] = []
            if TurnLines not in map(type, batch):
                loose, batch = batch, []  # type: ignore[assignment]
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
            self._post(self._dispatcher.deliver, deliveries)

    def on_closed(self, error: TransportClosedError) -> None:
        with self._lock:
            if self._error is not None:
                return
            self._error = error
            tokens = self._router.fail(error)
            self._calls.clear()
            closing = self._closing
        self._post(self._dispatcher.fail, tokens, error, closing)

    def _reroute(self, malformed: Malformed) -> list[Delivery]:
        """Route a line that is no JSON: it may have been the answer to a request."""
        with self._lock:
            return [] if self._error else self._router.receive_unreadable(malformed.line, malformed.reason)

    # Sub-agents and log-ins.

    def agent_usage(self, turn_id: str) -> dict[str, bytes]:
        """The last report on token usage of each thread of a sub-agent that has worked for this turn."""
        fork.check_process(self._made_in, "client")
        return self._observer.agent_usage(turn_id)

    def active_turn(self, thread_id: str, turn_id: str) -> str:
        """The turn that an interrupt must name: a review works in a turn of its own, inside of the one started."""
        return self._observer.agents.active(thread_id, turn_id)

    def stop_agents(self, thread_id: str, turn_id: str) -> list[AgentTurn]:
        """The turns of sub-agents that work for this turn and run, as far as is known here.

        Each that begins to work for it from now on is handed to `on_abandoned`.
        """
        return self._observer.agents.stop(thread_id, turn_id)

    def running_agents(self, thread_id: str, turn_id: str) -> list[AgentTurn]:
        """The turns of sub-agents that work for this turn and run, as far as is known here."""
        self.check()
        running = self._observer.agents.running(thread_id, turn_id)
        return [each for each in running if not self.has_ended(each.turn_id)]

    def note_stopping(self, turn_id: str) -> None:
        """Note that the app-server has answered the interrupt of this turn."""
        self._observer.note_stopping(turn_id)

    def is_stopping(self, turn_id: str) -> bool:
        return self._observer.is_stopping(turn_id)

    def login_mailbox(self, login_id: str) -> Mailbox:
        """The mailbox for the end of a log-in, which may have come already."""
        fork.check_process(self._made_in, "client")
        return self._observer.login_mailbox(login_id)
