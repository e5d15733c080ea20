"""Session: one client's life on a pool, across its connections. Pure: events in, effects out; `now` comes with each.

    event        from         what follows
    start        the loop     the first connection
    line         the client   a call, an answer or a notification; kept until there is a connection that takes it
    cancel       the client   nobody waits for this call any more
    messages     the socket   what came in one read: one batch for the client, receipts for the workers
    lost         the socket   the connection broke
    tick         the clock    beats, silence, the next try

Rules that hold throughout:
 - A connection is used once: after it is lost comes another, under another identity, that says Hello for the same
   session with the numbers that it has got so far.
 - A call that was sent and not answered is sent again, marked so; its answer is passed on once. One that was never
   sent is sent as it is, or never if it was cancelled meanwhile.
 - A question is passed on once; the answer to it is kept, and given again to who asks again, until it is resolved.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from codex_app_server import envelope, errors
from codex_app_server.envelope import RequestId
from codex_app_server.generated.routing import REQUESTS
from codex_app_server.lines import LongLine
from codex_app_server.transport import DEFAULT_TIMEOUT_S, Interest, TurnLines
from codex_pool import rpc, wire
from codex_pool.client.effects import Connect, Deliver, Disconnect, Effect, Failed, Send, Welcomed
from codex_pool.client.numbers import Numbers

SILENT_S = 3 * wire.BEAT_S
FIRST_LIMIT_S = 10.0
RECONNECT_LIMIT_S = 60.0
# How long one connection may take to be welcomed, when it is not the first.
WELCOME_LIMIT_S = 5.0
# How long after a return the workers may take to hear of it.
SETTLE_S = 10.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 2.0
MAX_ASKS = 4096
# What came is acknowledged at the latest when it is so much, a small part of what its worker lets be on the way.
RECEIPT_BYTES = 128 * 1024
# What a message counts for beside its bodies, as its worker counts.
MESSAGE_BYTES = 512

CANCELLED = -32800
FOLLOW_TURN = "pool/turn/follow"


@dataclass(slots=True)
class _Call:
    """A call without an answer."""

    line: bytes
    interest: Interest
    method: str
    thread_id: str | None
    turn_id: str | None
    timeout_s: float | None
    sent: bool = False
    cancelled: bool = False


@dataclass(slots=True)
class _Ask:
    """A question of an app-server, and the line that answers it once there is one."""

    turn_id: str | None
    answer: bytes | None = None


class _StartedTurn(msgspec.Struct):
    id: str


class _Started(msgspec.Struct):
    turn: _StartedTurn
    reviewThreadId: str | None = None


class _StartLine(msgspec.Struct):
    result: _Started


class _Resolved(msgspec.Struct):
    requestId: RequestId


class _ResolvedLine(msgspec.Struct):
    params: _Resolved


_decode_start = msgspec.json.Decoder(_StartLine).decode
_decode_resolved = msgspec.json.Decoder(_ResolvedLine).decode

# greeting: Hello was sent; open: it was welcomed; waiting: for the next try; over: for good.
_State = Literal["new", "greeting", "open", "waiting", "over"]


class Session:
    """See the module's docstring.

    `no_pool(why)` says that there is no pool and how to start one; `jitter()` is in [0, 1). Receipts may wait for
    `receipt_delay_s`, so that one is for many messages.
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
        receipt_delay_s: float = 0.0,
    ) -> None:
        self._receipt_delay_s = receipt_delay_s
        self._hello = wire.encode(wire.Hello(session, client, priority, when_gone, pieces=True))
        self._session = session
        self._endpoint = endpoint
        self._no_pool = no_pool
        self._jitter = jitter
        self._state: _State = "new"
        self._begun = False
        self._connections = 0
        self._tries = 0
        # Until when it goes on trying; why the session lost its connection, and what the last try came to.
        self._limit = 0.0
        self._why = ""
        self._last_try = ""
        # Of the state: the end of a greeting, the next try.
        self._until = 0.0
        self._heard_at = self._next_beat = self._ticked_at = 0.0
        self._settle_at: float | None = None
        # What it asked for holds with one broker, and the next one may be another.
        self._initialize: bytes | None = None
        self._calls: dict[RequestId, _Call] = {}
        self._held: list[bytes] = []
        # What has come of long answers, by the id of the request in JSON.
        self._pieces: dict[str, list[bytes]] = {}
        self._asks: OrderedDict[RequestId, _Ask] = OrderedDict()
        self._numbers = Numbers()
        # What came on this connection and was not acknowledged, by worker and turn.
        self._receipts: dict[str, dict[str, int]] = {}
        self._receipt_bytes = 0
        self._receipts_at: float | None = None

    @property
    def held(self) -> dict[str, int]:
        """What is kept, by kind; all of it returns to zero when nothing runs (leak checks)."""
        return {
            "calls": len(self._calls),
            "held": len(self._held) + len(self._pieces),
            "asks": len(self._asks),
            "turns": self._numbers.turns,
        }

    @property
    def open(self) -> bool:
        return self._state == "open"

    # From the client.

    def start(self, now: float) -> list[Effect]:
        """The first connection."""
        out: list[Effect] = []
        self._limit = now + FIRST_LIMIT_S
        self._connect(now, out)
        return out

    def line(self, line: bytes, interest: Interest, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> list[Effect]:
        """A line of the client."""
        out: list[Effect] = []
        try:
            header = envelope.scan(line)
        except ValueError:
            header = None  # The pool says what is wrong with it.
        if header is not None and header.method is not None and header.id is not None:
            call = _Call(line, interest, header.method, header.thread_id, header.turn_id, timeout_s)
            self._calls[header.id] = call
            if call.method == FOLLOW_TURN and call.turn_id is not None:
                # What comes of it may overtake the answer, and begins anywhere.
                self._numbers.follow(call.thread_id or "", call.turn_id, joined=True)
            if self.open:
                self._send_call(call, out)
            return out
        ask = self._asks.get(header.id) if header is not None and header.id is not None else None
        if ask is not None:
            ask.answer = line
        if self.open:
            out.append(Send([_CALL, line]))
        elif ask is None:
            self._held.append(line)
        return out

    def cancel(self, request_id: RequestId) -> list[Effect]:
        """Nobody waits for the answer of this call any more."""
        out: list[Effect] = []
        call = self._calls.get(request_id)
        if call is None:
            return out
        call.cancelled = True
        if not call.sent:
            del self._calls[request_id]
            line = rpc.error_line(rpc.encode(request_id), CANCELLED, f"{call.method} was cancelled before it was sent")
            out.append(Deliver([line]))
        elif self.open:
            out.append(_cancel(request_id))
        return out

    # From the socket.

    def messages(self, messages: list[list[bytes]], now: float) -> list[Effect]:
        """What came in one read."""
        out: list[Effect] = []
        batch: list[bytes | LongLine | TurnLines] = []
        self._heard_at = now
        if self._begun and self._state == "greeting":
            # A broker that has just begun waits for its workers, and beats.
            self._until = now + WELCOME_LIMIT_S
        for frame, *bodies in messages:
            if self._state not in ("greeting", "open"):
                break
            try:
                head = wire.decode_to_client(frame)
                match head:
                    case wire.Events():
                        self._turn_lines(self._numbers.events(head, bodies), batch)
                        last = self._numbers.last(head.turn_id)
                        if last is not None or self._numbers.is_over(head.turn_id):
                            got = self._receipts.setdefault(head.worker, {})
                            got[head.turn_id] = head.last if last is None else last
                        self._receipt_bytes += MESSAGE_BYTES + sum(map(len, bodies))
                    case wire.Ended():
                        self._turn_lines(self._numbers.ended(head, bodies), batch)
                    case wire.Lines():
                        for body in bodies:
                            for line in body.split(b"\n"):
                                self._on_line(line, batch, out)
                    case wire.Piece():
                        answer = self._on_piece(head, bodies)
                        if answer is not None:
                            self._on_line(answer, batch, out)
                    case wire.Welcome():
                        self._on_welcome(head, now, batch, out)
                    case wire.Closed(again=True):
                        self._lose(head.message, now, out)
                    case wire.Refused() if self._begun:
                        self._lose(f"it was refused: {head.message}", now, out)
                    case wire.Refused() | wire.Closed():
                        self._fail(f"the pool at {self._endpoint}: {head.message}", out)
            except wire.WireError as error:
                self._fail(f"the pool at {self._endpoint} sent what this client does not understand: {error}", out)
        if self.open and self._receipts:
            if self._receipts_at is None:
                self._receipts_at = now + self._receipt_delay_s
            if self._receipt_bytes >= RECEIPT_BYTES or now >= self._receipts_at:
                self._acknowledge(out)
        # First of all: what follows may end the session.
        return [Deliver(batch), *out] if batch else out

    def lost(self, why: str, now: float) -> list[Effect]:
        """The connection broke, or could not be made."""
        out: list[Effect] = []
        if self._state in ("greeting", "open"):
            self._lose(why, now, out)
        return out

    # The clock.

    def tick(self, now: float) -> list[Effect]:
        """Call it at `next_deadline`, and after everything else."""
        out: list[Effect] = []
        if now - self._ticked_at > 2 * wire.BEAT_S:
            # It was this process that slept: what came meanwhile may not have been read yet.
            self._heard_at = max(self._heard_at, now - SILENT_S + wire.BEAT_S)
        self._ticked_at = now
        if self._settle_at is not None and now >= self._settle_at and self.open:
            self._settle_at = None
            batch: list[bytes | LongLine | TurnLines] = []
            for lines in self._numbers.settle():
                self._turn_lines(lines, batch)
            out += [Deliver(batch)] if batch else []
        if self._state in ("greeting", "waiting") and now >= self._limit:
            self._give_up(out)
        elif self._state == "greeting" and now >= self._until:
            self._lose("no answer", now, out)
        elif self._state == "waiting" and now >= self._until:
            self._connect(now, out)
        elif self._state == "open" and now >= self._heard_at + SILENT_S:
            self._lose(f"it was silent for {SILENT_S:.0f} s", now, out)
        elif self._state == "open" and now >= self._next_beat:
            self._next_beat = now + wire.BEAT_S
            out.append(Send([_BEAT]))
        if self.open and self._receipts_at is not None and now >= self._receipts_at:
            self._acknowledge(out)
        return out

    @property
    def next_deadline(self) -> float:
        if self._state == "open":
            receipts_at = self._next_beat if self._receipts_at is None else self._receipts_at
            return min(self._next_beat, self._heard_at + SILENT_S, self._settle_at or self._next_beat, receipts_at)
        return min(self._until, self._limit)

    # Receipts.

    def _acknowledge(self, out: list[Effect]) -> None:
        for worker, turns in self._receipts.items():
            positions = [wire.Position(turn_id, last) for turn_id, last in turns.items()]
            out.append(Send([wire.encode(wire.Ack(worker, positions))]))
        self._forget_receipts()

    def _forget_receipts(self) -> None:
        self._receipts.clear()
        self._receipt_bytes, self._receipts_at = 0, None

    # Connections.

    def _connect(self, now: float, out: list[Effect]) -> None:
        self._connections += 1
        self._state = "greeting"
        self._until = now + WELCOME_LIMIT_S if self._begun else self._limit
        self._ticked_at = now
        positions = self._numbers.positions()
        body = [wire.encode_positions(positions)] if self._begun else []
        out += [Connect(f"{self._session}/{self._connections}"), Send([self._hello, *body])]

    def _lose(self, why: str, now: float, out: list[Effect]) -> None:
        if self._state == "open":
            self._limit = now + RECONNECT_LIMIT_S
            self._why, self._tries = why, 0
        else:
            self._last_try = f": {why}"
        self._state = "waiting"
        self._pieces.clear()
        self._forget_receipts()
        backoff = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0**self._tries)
        self._tries += 1
        self._until = now + backoff * (0.5 + self._jitter() / 2)
        out.append(Disconnect())

    def _give_up(self, out: list[Effect]) -> None:
        why = f"no answer within {FIRST_LIMIT_S:.0f} s"
        if self._begun:
            why = f"the connection was lost ({self._why}) and did not come back within {RECONNECT_LIMIT_S:.0f} s"
        self._fail(self._no_pool(why + self._last_try), out)

    def _fail(self, message: str, out: list[Effect]) -> None:
        self._state = "over"
        out.append(Failed(message))

    def _on_welcome(
        self, welcome: wire.Welcome, now: float, batch: list[bytes | LongLine | TurnLines], out: list[Effect]
    ) -> None:
        if self._state != "greeting":
            return
        self._state = "open"
        self._last_try = ""
        self._next_beat = now + wire.BEAT_S
        if welcome.resumed:
            # Be it that only the answer to its first Hello was lost.
            self._numbers.returned()
            self._settle_at = now + SETTLE_S
        elif self._begun:
            self._forget_old_session(batch)
        if not self._begun:
            self._begun = True
            out.append(Welcomed())
        if self._initialize is not None:
            # Its answer came before, so that this one goes nowhere.
            out.append(Send([_CALL, self._initialize]))
        for request_id, call in self._calls.items():
            self._send_call(call, out)
            if call.cancelled:
                out.append(_cancel(request_id))
        for ask in self._asks.values():
            if ask.answer is not None:
                out.append(Send([_CALL, ask.answer]))
        out += [Send([_CALL, line]) for line in self._held]
        self._held.clear()

    def _forget_old_session(self, batch: list[bytes | LongLine | TurnLines]) -> None:
        """The pool has let the session go: its turns are over, and what may have started one is not sent twice."""
        why = "this client was away for so long that the pool let its session go"
        batch += self._numbers.end_all(why)
        for request_id, call in list(self._calls.items()):
            if call.sent and _starts_turn(call.method):
                del self._calls[request_id]
                data = {"kind": "lost", "safeToRetry": False}
                batch.append(rpc.error_line(rpc.encode(request_id), errors.TURN_LOST, f"{call.method}: {why}", data))
        self._asks.clear()

    def _send_call(self, call: _Call, out: list[Effect]) -> None:
        head = wire.Call(call.interest, call.sent, 0 if call.timeout_s is None else max(1, math.ceil(call.timeout_s)))
        call.sent = True
        out.append(Send([wire.encode(head), call.line]))

    # Lines of the pool.

    def _turn_lines(self, lines: TurnLines | None, batch: list[bytes | LongLine | TurnLines]) -> None:
        if lines is None:
            return
        batch.append(lines)
        if lines.ended and self._asks:
            for ask_id in [ask_id for ask_id, ask in self._asks.items() if ask.turn_id == lines.turn_id]:
                del self._asks[ask_id]

    def _on_piece(self, piece: wire.Piece, bodies: list[bytes]) -> bytes | None:
        """The answer that this piece completes, if it does."""
        if piece.number == 0:
            self._pieces[piece.request_id] = []
        parts = self._pieces.get(piece.request_id)
        if parts is None or len(parts) != piece.number:
            # Of an answer whose beginning went to a connection that is gone: the call is sent again.
            self._pieces.pop(piece.request_id, None)
            return None
        parts.append(b"".join(bodies))
        if not piece.last:
            return None
        del self._pieces[piece.request_id]
        return b"".join(parts)

    def _on_line(self, line: bytes, batch: list[bytes | LongLine | TurnLines], out: list[Effect]) -> None:
        if line.startswith(_NOTIFICATION) and not line.startswith(_RESOLVED):
            # The router reads it; a line is read here only for what it may say to the session.
            beginning = line[len(_NOTIFICATION) : line.find(b":", len(_NOTIFICATION))]
            if beginning.endswith(b'","params"'):
                batch.append(line)
                return
        try:
            header = envelope.scan(line)
        except ValueError:
            batch.append(line)
            return
        if header.method is None:
            call = self._calls.pop(header.id, None) if header.id is not None else None
            # No call: its answer came before.
            if call is not None:
                batch.append(line)
                # What had come of it may be the beginning of an answer by a worker that has died.
                self._pieces.pop(rpc.encode(header.id).decode(), None)
                if call.method == "initialize":
                    self._initialize = call.line
                self._on_answer(call, line, header.is_error)
        elif header.id is not None:
            ask = self._asks.get(header.id)
            if ask is None:
                self._asks[header.id] = _Ask(header.turn_id)
                if len(self._asks) > MAX_ASKS:
                    self._asks.popitem(last=False)
                batch.append(line)
            elif ask.answer is not None:
                out.append(Send([_CALL, ask.answer]))
        else:
            if header.method == "serverRequest/resolved":
                self._on_resolved(line)
            batch.append(line)

    def _on_answer(self, call: _Call, line: bytes, is_error: bool) -> None:
        """A turn that was started is followed from its answer on, even if nothing of it ever comes."""
        if call.method == FOLLOW_TURN and call.turn_id is not None and is_error:
            self._numbers.not_joined(call.turn_id)
        elif _starts_turn(call.method) and not is_error:
            try:
                started: Any = _decode_start(line).result
            except msgspec.DecodeError:
                return
            self._numbers.follow(started.reviewThreadId or call.thread_id or "", started.turn.id)

    def _on_resolved(self, line: bytes) -> None:
        try:
            self._asks.pop(_decode_resolved(line).params.requestId, None)
        except msgspec.DecodeError:
            return


def _starts_turn(method: str) -> bool:
    return method in REQUESTS and REQUESTS[method].result_turn


def _cancel(request_id: RequestId) -> Send:
    line = rpc.encode({"method": "pool/cancel", "params": {"requestId": request_id}})
    return Send([_CALL, line])


# How notifications begin; a pool writes the id of a question before its params.
_NOTIFICATION = b'{"method":"'
_RESOLVED = b'{"method":"serverRequest/resolved"'
_CALL = wire.encode(wire.Call())
_BEAT = wire.encode(wire.Beat())
