"""Session of a client on a pool, across its connections. Pure: events in, effects out; `now` comes with each.

    event        from         what follows
    start        the loop     the first connection
    line         the client   a request, an answer or a notification; kept until there is a connection that takes it
    cancel       the client   the answer to this request is not wanted any more
    messages     the socket   the messages of one read: one batch for the client, acknowledgements for the workers
    lost         the socket   the connection broke
    tick         the clock    beats, silence, the next try, acknowledgements

Its states are those of `connections`. Rules that hold throughout:
 - A connection is used once: the next one has another identity, and sends Hello for the same session with the numbers
   that were received so far.
 - A request that was sent and not answered is sent again, marked so; its answer is delivered once. A request that was
   never sent is sent as it is, or never if it was cancelled meanwhile.
 - A request of an app-server is delivered once; the answer to it is kept, and sent again if the request is, until it is
   resolved.
"""

from __future__ import annotations

from collections.abc import Callable

from codex_app_server._protocol import envelope
from codex_app_server._protocol.envelope import RequestId
from codex_app_server._protocol.turn_lines import DEFAULT_TIMEOUT_S, Interest

from ..protocol import jsonrpc, packs, wire
from ..protocol.answer_parts import AnswerAssembler
from . import connections
from .acks import Acks
from .bound_objects import BoundObjects
from .calls import FOLLOW_TURN, Call, send_cancel, send_line
from .connections import Connections
from .effects import Connect, Deliver, Disconnect, Effect, Failed, Send, Welcomed
from .received_lines import Batch, ReceivedLines
from .received_requests import ReceivedRequests
from .sequence import TurnSequences

# How long after a reconnect the workers may take to be informed of it.
SETTLE_S = 10.0


class Session:
    """See the module's docstring.

    `no_pool(why)` is the error message that there is no pool and how to start one; `jitter()` is in [0, 1).
    Acknowledgements may wait for `ack_delay_s`, so that one covers many messages. Without `beats` a connection is alive
    until `lost` reports its end: no beats are sent, and silence is no fault. The first connection may take
    `first_limit_s`, by default connections.FIRST_LIMIT_S.
    """

    def __init__(
        self,
        session: str,
        client: str,
        *,
        endpoint: str,
        no_pool: Callable[[str], str],
        jitter: Callable[[], float],
        priority: wire.Priority = "interactive",
        when_gone: wire.WhenGone = "interrupt",
        all_turns: bool = False,
        knows_queue: bool = True,
        ack_delay_s: float = 0.0,
        beats: bool = True,
        listener: str = "",
        first_limit_s: float | None = None,
    ) -> None:
        hello = wire.Hello(
            session,
            client,
            priority,
            when_gone,
            accepts_parts=True,
            all_turns=all_turns,
            knows_queue=knows_queue,
            accepts_packs=True,
            listener=listener,
        )
        self._hello = wire.encode(hello)
        self._session = session
        self._endpoint = endpoint
        self._no_pool = no_pool
        first_s = connections.FIRST_LIMIT_S if first_limit_s is None else first_limit_s
        self._connections = Connections(first_limit_s=first_s, beats=beats, jitter=jitter)
        # The result of `initialize`, as JSON; empty before the session has begun.
        self.server_info = b""
        self._settle_at: float | None = None
        self._calls: dict[RequestId, Call] = {}
        self._held: list[bytes] = []
        self._assembler = AnswerAssembler()
        self._requests = ReceivedRequests()
        self._sequences = TurnSequences()
        self._bound = BoundObjects()
        self._received = ReceivedLines(
            self._calls,
            assembler=self._assembler,
            requests=self._requests,
            sequences=self._sequences,
            bound=self._bound,
            all_turns=all_turns,
        )
        self._acks = Acks(ack_delay_s)
        # What `deltas` has returned last is to be followed by `after_deltas`.
        self.wants_ack = False

    @property
    def held(self) -> dict[str, int]:
        """Numbers of objects held, by kind; all return to zero when nothing runs (leak checks)."""
        return {
            "calls": len(self._calls),
            "held": len(self._held) + len(self._assembler),
            "server_requests": len(self._requests),
            "turns": self._sequences.turns,
            "bound": len(self._bound),
        }

    @property
    def open(self) -> bool:
        return self._connections.state == "open"

    def has_call(self, request_id: RequestId) -> bool:
        """Return True while the request with this id has no answer."""
        return request_id in self._calls

    # From the client.

    def start(self, now: float) -> list[Effect]:
        """The first connection."""
        out: list[Effect] = []
        self._connections.start(now)
        self._connect(now, out)
        return out

    def line(self, line: bytes, interest: Interest, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> list[Effect]:
        """A line of the client."""
        out: list[Effect] = []
        try:
            header = envelope.scan(line)
        except ValueError:
            header = None  # The pool reports what is wrong with it.
        if header is not None and header.method is not None and header.id is not None:
            call = Call(line, interest, header.method, header.thread_id, header.turn_id, timeout_s)
            self._calls[header.id] = call
            if call.method == FOLLOW_TURN and call.turn_id is not None:
                # Its notifications may overtake the answer, and begin at any number.
                self._sequences.follow(call.thread_id or "", call.turn_id, joined=True)
            if self.open:
                out.append(call.send())
            return out
        is_answer = header is not None and self._requests.answered(header.id, line)
        if self.open:
            out.append(send_line(line))
        elif not is_answer:
            self._held.append(line)
        return out

    def cancel(self, request_id: RequestId) -> list[Effect]:
        """The answer to this request is not wanted any more."""
        out: list[Effect] = []
        call = self._calls.get(request_id)
        if call is None:
            return out
        call.cancelled = True
        if not call.sent:
            del self._calls[request_id]
            out.append(Deliver([call.cancelled_unsent(request_id)]))
        elif self.open:
            out.append(send_cancel(request_id))
        return out

    def hold_acks(self, held: bool) -> list[Effect]:
        """Hold acknowledgements back while the client does not take what is delivered, or send those held back."""
        return [*self._acks.hold(held)]

    # From the socket.

    def messages(self, messages: list[list[bytes]], now: float) -> list[Effect]:
        """The messages of one read."""
        out: list[Effect] = []
        batch: Batch = []
        self._connections.heard(now)
        for frame, *bodies in packs.all_unpacked(messages):
            if self._connections.state not in ("connecting", "open"):
                break
            try:
                head = wire.decode_to_client(frame)
                match head:
                    case wire.Events():
                        self._received.turn_lines(self._sequences.events(head, bodies), batch, out)
                        last = self._sequences.last(head.turn_id)
                        if last is None and self._sequences.is_over(head.turn_id):
                            last = head.last
                        self._acks.received(head.worker, head.turn_id, last, bodies)
                    case wire.Pack():
                        packs.unpacked([frame, *bodies])
                    case wire.Ended(thread_id=""):
                        self._sequences.end_streams(head.turn_id)
                        self._received.lines(bodies, batch, out)
                    case wire.Ended():
                        self._received.turn_lines(self._sequences.ended(head, bodies), batch, out)
                    case wire.Lines():
                        self._received.lines(bodies, batch, out)
                    case wire.AnswerPart():
                        answer = self._assembler.add(head, bodies)
                        if answer is not None:
                            self._received.line(answer, batch, out)
                    case wire.Welcome():
                        self.server_info = b"".join(bodies)
                        self._on_welcome(head, now, batch, out)
                    case wire.Closed(again=True):
                        self._lose(head.message, now, out)
                    case wire.Refused() if self._connections.begun:
                        self._lose(f"it was refused: {head.message}", now, out)
                    case wire.Refused() | wire.Closed():
                        self._fail(f"the pool at {self._endpoint}: {head.message}", out)
            except wire.WireError as error:
                self._fail(f"the pool at {self._endpoint} sent what this client does not understand: {error}", out)
        if self.open:
            out += self._acks.after_read(now)
        # The batch comes first: the other effects may end the session.
        return [Deliver(batch), *out] if batch else out

    def deltas(self, frames: list[bytes]) -> bytes | None:
        """The lines of a message of deltas that follow what was received, with the newlines between them.

        None for any other message, which is for `messages`. Call `after_deltas` if `wants_ack` afterwards.
        """
        # Written out, because it comes for each delta by itself.
        if len(frames) != 2 or self._connections.state != "open" or not frames[0].startswith(wire.EVENTS):
            return None
        try:
            head = wire.decode_events(frames[0][1:])
        except jsonrpc.UNREADABLE:
            return None
        body = frames[1]
        if not self._sequences.takes_deltas(head):
            return None
        acks = self._acks
        acks.received_one(head.worker, head.turn_id, head.last, len(body))
        self.wants_ack = acks.due_at is None or acks.is_much
        return body

    def after_deltas(self, now: float) -> list[Effect]:
        """Begin to wait before what `deltas` has returned is acknowledged, or end the wait."""
        return [*self._acks.after_read(now)]

    def lost(self, why: str, now: float) -> list[Effect]:
        """The connection broke, or could not be made."""
        out: list[Effect] = []
        if self._connections.state in ("connecting", "open"):
            self._lose(why, now, out)
        return out

    def reachable(self, now: float) -> list[Effect]:
        """Try the next connection at once: the pool can be reached again."""
        out: list[Effect] = []
        if self._connections.state == "lost":
            self._connect(now, out)
        return out

    # The clock.

    def tick(self, now: float) -> list[Effect]:
        """Call it at `next_deadline`, and after everything else."""
        out: list[Effect] = []
        due = self._connections.due(now)
        if self._settle_at is not None and now >= self._settle_at and self.open:
            self._settle_at = None
            batch: Batch = []
            for lines in self._sequences.settle():
                self._received.turn_lines(lines, batch, out)
            out += [Deliver(batch)] if batch else []
        if due is not None:
            match due.action:
                case "give up":
                    self._fail(self._no_pool(due.why), out, again=True)
                case "lose":
                    self._lose(due.why, now, out)
                case "connect":
                    self._connect(now, out)
                case "beat":
                    out.append(Send([_BEAT]))
        if self.open:
            out += self._acks.due(now)
        return out

    @property
    def next_deadline(self) -> float:
        own = self._connections.next_deadline
        if not self.open:
            return own
        return min(own, self._settle_at or own, own if self._acks.due_at is None else self._acks.due_at)

    # Connections.

    def _connect(self, now: float, out: list[Effect]) -> None:
        self._connections.connect(now)
        body = [wire.encode_positions(self._sequences.positions())] if self._connections.begun else []
        out += [Connect(f"{self._session}/{self._connections.count}"), Send([self._hello, *body])]

    def _lose(self, why: str, now: float, out: list[Effect]) -> None:
        self._connections.lose(why, now)
        self._assembler.clear()
        self._acks.clear()
        out.append(Disconnect())

    def _fail(self, message: str, out: list[Effect], *, again: bool = False) -> None:
        self._connections.end()
        out.append(Failed(message, again))

    def _on_welcome(self, welcome: wire.Welcome, now: float, batch: Batch, out: list[Effect]) -> None:
        if self._connections.state != "connecting":
            return
        begun = self._connections.begun
        self._connections.welcomed(now)
        if welcome.resumed:
            # Also where only the answer to its first Hello was lost.
            self._sequences.resumed()
            self._settle_at = now + SETTLE_S
        elif begun:
            self._forget_old_session(batch)
        if not begun:
            out.append(Welcomed())
        if self._received.initialize is not None:
            # The broker may be another one, without its parameters. The client has had its answer: this one is ignored.
            out.append(Send([_AGAIN, self._received.initialize]))
        for request_id, call in self._calls.items():
            out.append(call.send())
            if call.cancelled:
                out.append(send_cancel(request_id))
        out += [send_line(line) for line in (*self._requests.answers, *self._held)]
        self._held.clear()

    def _forget_old_session(self, batch: Batch) -> None:
        """End what the pool has ended with its session. Requests that may have started something are not sent twice."""
        why = "this client was away for so long that the pool let its session go"
        batch += [*self._sequences.end_all(why), *self._bound.end_all(why)]
        for request_id, call in list(self._calls.items()):
            if call.may_have_started:
                del self._calls[request_id]
                batch.append(call.lost(request_id, why))
        self._requests.clear()


_AGAIN = wire.encode(wire.Call(again=True))
_BEAT = wire.encode(wire.Beat())
