"""MessageRouter: which line goes to which listener. A pure machine: lines in, deliveries out.

    response      -> the request that waits for it
    notification  -> the followers of its turn, else of its thread, else the client ("global")
    request       -> a `ServerRequest`, to be answered by the approval handler

It knows no thread, socket, process or clock; the caller serialises the calls. A listener is an opaque *token*.

States of a request in flight: expected -> answered, or expected -> forgotten -> answered. Those of a turn are in
`turn_table`, and `early_turns` keeps what a turn sends before the answer to its start.

Invariants
 - A turn is followed from the moment its start is answered: `expect(..., turn=token)` binds the token when the
   response names the turn. What the turn sent before its own response is kept while the start is in flight and is
   delivered right after the response, in order. So nothing can be lost between an answer and a registration.
 - A turn has one end, `turn/completed`. After it only its id is remembered, in a bounded memory, so that a later
   `follow` is refused at once. So are the ids of turns that run without a follower: `follow` of any other is
   refused at once as well.
 - Failure is sticky: after `fail` every call raises the same error.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from .._protocol import envelope
from .._protocol.envelope import RequestId
from .._protocol.framing import LongLine
from .deliveries import (
    Delivery,
    Malformed,
    OversizedServerRequest,
    ReadDeliveries,
    Reply,
    ServerRequest,
    Token,
    TurnBroken,
    TurnRun,
)
from .early_turns import started_turn
from .listeners import MAX_EARLY_BYTES, Listeners, Request

# In a thread/status/changed.
IDLE = b'"status":{"type":"idle"'


class MessageRouter(Listeners):
    """See the module's docstring. Not thread-safe: the caller serialises.

    `ordered` are tokens: of a thread that one of them follows all lines come out in the order in which they were read.
    Of other threads those of one read that are of a turn, and those that are of none, may change places.
    """

    def __init__(self, *, max_early_bytes: int = MAX_EARLY_BYTES, ordered: Collection[Token] = ()) -> None:
        super().__init__(max_early_bytes)
        self._ordered = ordered
        self._scanner = envelope.Scanner()
        # Looked into for each line.
        self._followed = self._turns.followed
        # How many lines have come.
        self.received = 0

    def receive(self, lines: Sequence[bytes | LongLine]) -> list[Delivery]:
        """Route the lines of one read. The lines for one turn, one thread, or all listeners come out as one run."""
        self._check()
        read = ReadDeliveries(self._take_pending())
        scanner, is_end, end_bytes = self._scanner, envelope.is_end, envelope.END_BYTES
        # By their beginnings, the lines of turns that go where one before them went.
        known, end = read.known, b""
        beginning_bytes = scanner.beginning_bytes
        self.received += len(lines)
        # Bytes, or a LongLine, which is found in no table.
        line: Any
        for line in lines:
            found = known.get(line[:beginning_bytes])
            # Written within the same millisecond, lines end alike.
            if found is not None and ((line_end := line[-end_bytes:]) == end or is_end(line_end)):
                add_line, add_method, its_method = found
                add_line(line)
                add_method(its_method)
                end = line_end
                continue
            if isinstance(line, LongLine):
                self._receive_long(line, read)
                continue
            try:
                header, beginning = scanner.scan(line)
            except ValueError as error:
                read.out.append(Malformed(line, str(error)))
                continue
            method = header.method
            if method is None:
                self._receive_response(header, line, read)
            elif header.id is not None:
                read.out.append(ServerRequest(header.id, method, header.thread_id, header.turn_id, line))
                read.cut()
            else:
                run = self._receive_notification(header, method, line, read)
                if run is not None and beginning is not None:
                    known[beginning] = run.lines.append, run.methods.append, method
                    beginning_bytes = scanner.beginning_bytes
        return read.out

    def receive_run(
        self,
        thread_id: str,
        turn_id: str,
        lines: list[bytes],
        ended: bool,
        methods: list[str] | None = None,
    ) -> list[Delivery]:
        """Route notifications that are known to belong to one turn, without looking into them.

        `methods` runs parallel to `lines`, where they are known: "" is a method that is not.
        """
        self._check()
        out = self._take_pending()
        turn = self._followed.get(turn_id)
        methods = methods or [""] * len(lines)
        if turn is not None:
            out.append(TurnRun(list(turn.followers), thread_id, turn_id, lines, methods, ended))
            if ended:
                self._turns.end(turn_id)
            return out
        if not self._keep_early(thread_id, turn_id, lines, methods, ended):
            self._turns.note_running(turn_id, thread_id, lines)
            out.append(self._unclaimed(thread_id, lines, methods))
        return out

    def receive_unreadable(self, line: bytes, reason: str) -> list[Delivery]:
        """A line that is no JSON: if it begins as the response to a request under way, that one fails."""
        self._check()
        found = envelope.RESPONSE.match(line)
        id = msgspec.json.decode(found[1], type=RequestId) if found is not None else None
        if id is None or (id not in self._requests and id not in self._forgotten):
            return []
        read = ReadDeliveries([])
        self._receive_response_unread(id, f"the answer is unreadable: {reason}", read)
        return read.out

    def _receive_response(self, header: envelope.Envelope, line: bytes, read: ReadDeliveries) -> None:
        assert header.id is not None
        request = self._requests.pop(header.id, None)
        forgotten = request is None
        if request is None:
            request = self._forgotten.pop(header.id, None)
            if request is None:
                read.out.append(Malformed(line, f"a response to request {header.id!r}, which was never sent"))
                return
        reply = Reply(request.token, line, header.is_error, forgotten=forgotten)
        read.out.append(reply)
        # What came after an answer is delivered after it: a thread/resume gives the state as of then. So are the early
        # lines of a turn, bound or let go, which stand after everything that came before.
        read.cut()
        if not request.starts_turn:
            return
        read.out += self._take_pending()
        if not header.is_error:
            reply.turn_id, review_thread_id = started_turn(line)
            if reply.turn_id is not None:
                reply.thread_id = request.thread_of_turn = review_thread_id or request.thread_id
        if reply.turn_id is not None and request.turn is not None and not forgotten:
            self._bind(reply.turn_id, request, request.turn, read.out)
        if not forgotten:
            self._end_start(request.thread_id, read.out)

    def _bind(self, turn_id: str, request: Request, token: Token, out: list[Delivery]) -> None:
        early = self._early.take(turn_id)
        if early is None:
            if self._turns.has_ended(turn_id):
                # It joined a running turn that ended before the answer: nothing will ever come for this follower.
                reason = "it ended before the answer that names it"
                out.append(TurnBroken([token], request.thread_id, turn_id, reason, ended=True))
            else:
                self._turns.start(turn_id, request.thread_of_turn, [token])
            return
        if early.broken is None:
            self._turns.start(turn_id, request.thread_of_turn, [*early.followers, token])
            out.append(TurnRun([token], early.thread_id, turn_id, early.lines, early.methods, early.ended))
        else:
            out.append(TurnBroken([token], early.thread_id, turn_id, early.broken))
            if not early.followers:
                self._turns.end(turn_id, early.thread_id)
                return
            self._turns.start(turn_id, request.thread_of_turn, early.followers)
        if early.ended:
            self._turns.end(turn_id)

    def _receive_notification(
        self, header: envelope.Envelope, method: str, line: bytes, read: ReadDeliveries
    ) -> TurnRun | None:
        """The run of a followed turn that more lines like this one may join in this read; None if there is none."""
        turn_id, thread_id = header.turn_id, header.thread_id
        ended = method == "turn/completed"
        if turn_id is not None:
            if turn_id in self._followed:
                turn_run = self._turn_run(turn_id, thread_id, read)
                turn_run.lines.append(line)
                turn_run.methods.append(method)
                if not ended:
                    return turn_run
                turn_run.ended = True
                self._turns.end(turn_id)
                read.cut_turn(turn_id)
                return None
            if self._keep_early(thread_id, turn_id, [line], [method], ended):
                return None
            if method == "turn/started":
                self._turns.note_running(turn_id, thread_id, [line])
        elif method == "thread/status/changed" and IDLE in line:
            self._turns.note_idle(thread_id)
        key = thread_id if thread_id in self._threads else None
        if self._ordered and self._is_ordered(thread_id):
            read.cut_turns(thread_id)
        run = read.others.get(key)
        if run is None:
            run = read.others[key] = self._unclaimed(key, [], [])
            read.out.append(run)
        run.lines.append(line)
        run.methods.append(method)
        return None

    def _turn_run(self, turn_id: str, thread_id: str | None, read: ReadDeliveries) -> TurnRun:
        """The run of a followed turn within this read."""
        run = read.turns.get(turn_id)
        if run is None:
            if self._ordered and self._is_ordered(thread_id):
                read.cut_thread(thread_id)
            run = read.turns[turn_id] = TurnRun(list(self._followed[turn_id].followers), thread_id, turn_id)
            read.out.append(run)
        return run

    def _is_ordered(self, thread_id: str | None) -> bool:
        """True for a thread whose lines keep their order; also for one that nothing follows as yet."""
        followers = self._threads.get(thread_id) if thread_id is not None else None
        return followers is None or any(token in self._ordered for token in followers)

    def _keep_early(
        self, thread_id: str | None, turn_id: str, lines: list[bytes], methods: list[str], ended: bool
    ) -> bool:
        """Keep what may belong to a turn whose start is still in flight; True if it was kept."""
        early = self._early.get(turn_id)
        if early is None:
            if self._turns.has_ended(turn_id):
                return False
            if not self._early.may_be_claimed(thread_id):
                if ended:
                    self._turns.end(turn_id, thread_id)
                else:
                    self._turns.add_unfollowed(turn_id, thread_id)
                return False
            early = self._early.add(turn_id, thread_id)
        if early.followers and lines:
            self._pending.append(TurnRun(list(early.followers), thread_id, turn_id, lines, methods, ended))
        self._early.keep(early, lines, methods, ended)
        return True

    def _receive_response_unread(self, id: RequestId, why: str, read: ReadDeliveries) -> None:
        """Fail a request whose answer came and cannot be used."""
        line = msgspec.json.encode({"id": id, "error": {"code": -32603, "message": why}})
        self._receive_response(envelope.scan(line), line, read)

    def _receive_long(self, line: LongLine, read: ReadDeliveries) -> None:
        header = envelope.scan_truncated(line.head, line.tail)
        reason = f"a line of {line.size_bytes} bytes ({header.method or 'a response'}) is beyond the size cap"
        if header.method is None and header.id is not None:
            self._receive_response_unread(header.id, f"the answer was too long: {reason}", read)
            return
        if header.method is not None and header.id is not None:
            request = ServerRequest(header.id, header.method, header.thread_id, header.turn_id, line.head)
            read.out.append(OversizedServerRequest(request, reason))
            read.cut()
            return
        turn_id, ended = header.turn_id, header.method == "turn/completed"
        followers = self.turn_followers(turn_id) if turn_id is not None else []
        if turn_id is not None and followers:
            self._turns.end(turn_id)
            read.cut_turn(turn_id)
            read.out.append(TurnBroken(followers, header.thread_id, turn_id, reason))
            return
        if turn_id is not None and self._keep_early(header.thread_id, turn_id, [], [], ended):
            early = self._early.get(turn_id)
            assert early is not None
            early.break_off(reason)
            if early.followers:
                read.out += self._take_pending()
                read.out.append(TurnBroken(early.followers, header.thread_id, turn_id, reason))
                early.followers = []
                return
        read.out.append(Malformed(line.head, reason))
