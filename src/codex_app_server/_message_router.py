"""MessageRouter: who gets which line. A pure machine: lines in, deliveries out.

    response      -> the request that waits for it
    notification  -> the followers of its turn, else of its thread, else everybody ("global")
    request       -> an `Ask` for whoever answers approvals

It knows no thread, socket, process or clock; the caller serialises the calls. Whoever waits is an opaque *token*.

Invariants
 - A turn is followed from the moment its start is answered: `expect(..., turn=token)` binds the token when the
   response names the turn. What the turn sent before its own response is kept while the start is in flight and is
   delivered right after the response, in order. So nothing can be lost between an answer and a registration.
 - A turn has one end, `turn/completed`. After it nothing is held for it but its id, in a bounded memory, so that
   who asks later is told at once. So are the ids of turns that run and that nobody follows: who asks for one that
   was never seen is told at once as well.
 - Failure is sticky: after `fail` every call raises the same error.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from . import envelope
from ._deliveries import (
    Ask,
    Delivery,
    GlobalRun,
    LongAsk,
    Malformed,
    Reply,
    ThreadRun,
    Token,
    TurnBroken,
    TurnRun,
)
from .envelope import RequestId
from .errors import TurnEndedError, UnknownTurnError
from .generated.routing import NOTIFICATIONS
from .lines import LongLine

MAX_EARLY_BYTES = 16 * 1024 * 1024
MAX_ENDED_TURNS = 4096
MAX_UNFOLLOWED_TURNS = 4096
MAX_FORGOTTEN_REQUESTS = 4096
# A block of less is taken apart at once; of a longer one so many lines are looked at for a stretch to begin there.
STRETCH_BYTES = 4096
STRETCH_TRIES = 8

# How the app-server begins notifications.
_NOTIFICATION = b'{"method":"'
# In a thread/status/changed.
_IDLE = b'"status":{"type":"idle"'
_TURN_STARTED = b'{"method":"turn/started"'

_DROPPABLE = frozenset(name for name, entry in NOTIFICATIONS.items() if entry.droppable)


@dataclass(slots=True)
class _Request:
    token: Token
    thread_id: str | None
    turn: Token | None
    starts_turn: bool
    # Known once it is answered.
    thread_of_turn: str | None = None


@dataclass(slots=True)
class _Turn:
    thread_id: str | None
    followers: list[Token] = field(default_factory=list)


@dataclass(slots=True)
class _Early:
    """What a turn sent before the answer that names it."""

    thread_id: str | None
    lines: list[bytes] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    size_bytes: int = 0
    ended: bool = False
    broken: str | None = None
    # Who follows the turn without waiting for that answer gets its lines as they come; `heard` is parallel to `lines`.
    followers: list[Token] = field(default_factory=list)
    heard: list[bool] = field(default_factory=list)


class _Read:
    """The deliveries of one read, and the runs among them that may still grow."""

    __slots__ = ("others", "out", "turns")

    def __init__(self, out: list[Delivery]) -> None:
        self.out = out
        self.turns: dict[str, TurnRun] = {}
        # By thread; None is everybody.
        self.others: dict[str | None, ThreadRun | GlobalRun] = {}

    def cut(self) -> None:
        """What comes next must not join a run that stands before it."""
        self.turns.clear()
        self.others.clear()


class _StartedTurn(msgspec.Struct):
    id: str


class _StartResult(msgspec.Struct):
    turn: _StartedTurn
    # Of a review: the thread it runs on.
    reviewThreadId: str | None = None


class _StartResponse(msgspec.Struct):
    result: _StartResult


class _BegunTurn(msgspec.Struct):
    rootTurnId: str | None = None


class _BegunParams(msgspec.Struct):
    turn: _BegunTurn


class _BegunLine(msgspec.Struct):
    params: _BegunParams


_decode_start = msgspec.json.Decoder(_StartResponse).decode
_decode_started = msgspec.json.Decoder(_BegunLine).decode


class MessageRouter:
    """See the module's docstring. Not thread-safe: the caller serialises."""

    def __init__(self, *, max_early_bytes: int = MAX_EARLY_BYTES) -> None:
        self._max_early_bytes = max_early_bytes
        self._scanner = envelope.Scanner()
        self._requests: dict[RequestId, _Request] = {}
        self._forgotten: OrderedDict[RequestId, _Request] = OrderedDict()
        self._turns: dict[str, _Turn] = {}
        # The turn that a thread runs, as far as it is followed here, or its turn/started was seen.
        self._running: dict[str, str] = {}
        self._threads: dict[str, list[Token]] = {}
        self._early: dict[str, _Early] = {}
        self._starting: dict[str | None, int] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        # Turns that run, as their lines say, and that nobody follows, with their threads.
        self._unfollowed: OrderedDict[str, str | None] = OrderedDict()
        # Deliveries that did not come out of a read; the next one has them, be it of no lines.
        self._let_go: list[Delivery] = []
        self._error: Exception | None = None
        # How many lines have come.
        self.received = 0

    # Who waits.

    def expect(
        self,
        request_id: RequestId,
        token: Token,
        *,
        thread_id: str | None = None,
        starts_turn: bool = False,
        turn: Token | None = None,
    ) -> None:
        """The response to `request_id` goes to `token`.

        With `starts_turn` the response names a turn (of `thread_id`, if known), which `turn` then follows.
        Raises the sticky error after a failure, and ValueError for an id that is already in flight.
        """
        self._check()
        if request_id in self._requests:
            raise ValueError(f"request id {request_id!r} is already in flight")
        self._requests[request_id] = _Request(token, thread_id, turn, starts_turn)
        if starts_turn:
            self._starting[thread_id] = self._starting.get(thread_id, 0) + 1

    def forget(self, request_id: RequestId) -> None:
        """Nobody waits for this response any more. It is still recognised when it comes."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        self._forgotten[request_id] = request
        if len(self._forgotten) > MAX_FORGOTTEN_REQUESTS:
            self._forgotten.popitem(last=False)
        if request.starts_turn:
            # The answer may never come: what was kept for it must not wait any longer.
            self._start_is_over(request.thread_id, self._let_go)

    def follow(self, turn_id: str, token: Token, *, thread_id: str | None = None, even_unseen: bool = False) -> None:
        """`token` gets what the turn sends from now on.

        Raises TurnEndedError for a turn known to have ended, and, unless `even_unseen`, UnknownTurnError for one that
        was never seen running.
        """
        self._check()
        early = self._early.get(turn_id)
        if turn_id in self._ended or (early is not None and early.ended):
            raise TurnEndedError(f"turn {turn_id} has already ended")
        if early is not None:
            # It stays early: the start that it may belong to must not lose what comes from now on.
            followers = early.followers
        elif turn_id in self._turns:
            followers = self._turns[turn_id].followers
        elif turn_id in self._unfollowed or even_unseen:
            thread_id = self._unfollowed.pop(turn_id, None) or thread_id
            followers = self._turns.setdefault(turn_id, _Turn(thread_id)).followers
        else:
            raise UnknownTurnError(turn_id)
        if token not in followers:
            followers.append(token)

    def unfollow(self, turn_id: str, token: Token, *, unseen: bool = False) -> None:
        """The opposite of `follow`; unknown turns and tokens are fine. `unseen` says that the turn does not run."""
        early = self._early.get(turn_id)
        if early is not None and token in early.followers:
            early.followers.remove(token)
        turn = self._turns.get(turn_id)
        if turn is None or token not in turn.followers:
            return
        turn.followers.remove(token)
        if not turn.followers:
            del self._turns[turn_id]
            if not unseen:
                self._remember_unfollowed(turn_id, turn.thread_id)
            elif self._running.get(turn.thread_id or "") == turn_id:
                del self._running[turn.thread_id or ""]

    def follow_thread(self, thread_id: str, token: Token) -> None:
        """`token` gets what the thread sends outside of followed turns."""
        self._check()
        followers = self._threads.setdefault(thread_id, [])
        if token not in followers:
            followers.append(token)

    def unfollow_thread(self, thread_id: str, token: Token) -> None:
        """The opposite of `follow_thread`; unknown threads and tokens are fine."""
        followers = self._threads.get(thread_id, [])
        if token in followers:
            followers.remove(token)
        if not followers:
            self._threads.pop(thread_id, None)

    def running_turn(self, thread_id: str) -> tuple[bool, str | None]:
        """Whether the thread runs a turn, and which one, once its start is answered.

        Known are turns that somebody here has started, and those of which a turn/started came: compaction, goals and
        other clients begin them too.
        """
        turn_id = self._running.get(thread_id)
        return turn_id is not None or thread_id in self._starting, turn_id

    def has_ended(self, turn_id: str) -> bool:
        """Whether the turn is known to have ended."""
        return turn_id in self._ended

    def turn_followers(self, turn_id: str) -> list[Token]:
        turn = self._turns.get(turn_id)
        return list(turn.followers) if turn is not None else []

    def thread_followers(self, thread_id: str) -> list[Token]:
        return list(self._threads.get(thread_id, ()))

    @property
    def in_flight(self) -> int:
        """Requests sent and not answered, given-up ones included."""
        return len(self._requests) + len(self._forgotten)

    @property
    def held(self) -> dict[str, int]:
        """What is kept, by kind; all of it returns to zero when nothing runs (leak checks)."""
        return {
            "requests": len(self._requests),
            "turns": len(self._turns),
            "early": len(self._early),
            "starting": sum(self._starting.values()),
        }

    # What comes.

    def receive(self, lines: Sequence[bytes | LongLine]) -> list[Delivery]:
        """Route the lines of one read. The lines for one turn, thread, or everybody come out as one run."""
        self._check()
        read = _Read(self._take_let_go())
        self._receive_lines(lines, read)
        return read.out

    def receive_blocks(self, blocks: Iterable[bytes | LongLine]) -> list[Delivery]:
        """The same for blocks of lines, with the newlines between them.

        Where many deltas of one method and one turn stand together, they stay together: a *stretch* is one entry of
        its run, and is not taken apart.
        """
        self._check()
        read = _Read(self._take_let_go())
        for block in blocks:
            if isinstance(block, LongLine):
                self._receive_lines([block], read)
                continue
            position, tries = 0, STRETCH_TRIES
            while tries and len(block) - position > STRETCH_BYTES:
                end = block.find(b"\n", position)
                if end < 0:
                    break
                tries -= 1
                stop = self._receive_stretch(block, position, end, read)
                if stop < 0:
                    stop = end
                    self._receive_lines([block[position:end]] if end > position else [], read)
                position = stop + 1
            self._receive_lines([*filter(None, block[position:].split(b"\n"))], read)
        return read.out

    def _receive_stretch(self, block: bytes, begin: int, end: int, read: _Read) -> int:
        """Take the line from `begin` to `end` with all that follow and begin and end as it does; where that stops.

        -1 if it is not a delta of a followed turn that others like it follow. Lines are alike if each begins with the
        same method, thread and turn, and ends with the same time: then as many ends meet such a beginning as there are
        newlines.
        """
        if not block.startswith(_NOTIFICATION, begin):
            return -1
        line = block[begin:end]
        try:
            header, beginning = self._scanner.scan(line)
        except ValueError:
            return -1
        turn_id, method = header.turn_id, header.method
        if beginning is None or method not in _DROPPABLE or turn_id not in self._turns or not envelope.is_whole(line):
            return -1
        line_end = line[-envelope.END_BYTES :]
        seam = line_end + b"\n" + beginning
        stop = block.rfind(seam, end - len(line_end)) + len(line_end)
        if stop < end:
            return -1
        # The line behind the last seam ends where it ends, perhaps otherwise.
        after = block.find(b"\n", stop + 1)
        after = len(block) if after < 0 else after
        if block.endswith(line_end, stop + 1, after):
            stop = after
        seams = block.count(seam, begin, stop)
        if seams != block.count(b"\n", begin, stop):
            return -1
        self.received += seams + 1
        run = self._turn_run(turn_id, header.thread_id, read)
        run.counts[len(run.lines)] = seams + 1
        run.lines.append(block[begin:stop])
        run.methods.append(method)
        return stop

    def _receive_lines(self, lines: Sequence[bytes | LongLine], read: _Read) -> None:
        scan, is_whole = self._scanner.scan, envelope.is_whole
        # Where the line before went, its method, and how a line must begin to go there too; how that one ended.
        run: TurnRun | None = None
        run_method, beginning, end = "", b"", b"\n"
        self.received += len(lines)
        for line in lines:
            if isinstance(line, LongLine):
                run = None
                self._receive_long(line, read)
                continue
            if run is not None:
                if line.startswith(beginning) and (line.endswith(end) or is_whole(line)):
                    run.lines.append(line)
                    run.methods.append(run_method)
                    continue
                run = None
            try:
                header, common_beginning = scan(line)
            except ValueError as error:
                read.out.append(Malformed(line, str(error)))
                continue
            method = header.method
            if method is None:
                self._receive_response(header, line, read)
            elif header.id is not None:
                read.out.append(Ask(header.id, method, header.thread_id, header.turn_id, line))
                read.cut()
            else:
                self._receive_notification(header, method, line, read)
                if common_beginning is not None and header.turn_id is not None:
                    run = read.turns.get(header.turn_id)
                    run_method, beginning = method, common_beginning
                    # Written within the same millisecond, lines end alike.
                    end = line[-envelope.END_BYTES :] if is_whole(line) else b"\n"

    def receive_run(
        self,
        thread_id: str,
        turn_id: str,
        lines: list[bytes],
        ended: bool,
        methods: list[str] | None = None,
        counts: dict[int, int] | None = None,
    ) -> list[Delivery]:
        """Route notifications that are known to belong to one turn, without looking into them.

        `methods` runs parallel to `lines`, where they are known: "" is a method that is not. `counts`: the stretches.
        """
        self._check()
        out = self._take_let_go()
        turn = self._turns.get(turn_id)
        methods = methods or [""] * len(lines)
        if turn is not None:
            out.append(TurnRun(list(turn.followers), thread_id, turn_id, lines, methods, ended, counts or {}))
            if ended:
                self._end(turn_id)
            return out
        if counts:
            lines, methods = _taken_apart(lines, methods, counts)
        if not self._keep_early(thread_id, turn_id, lines, methods, ended):
            self._note_running(turn_id, thread_id, lines)
            out.append(self._unclaimed(thread_id, lines, methods))
        return out

    def receive_unreadable(self, line: bytes, reason: str) -> list[Delivery]:
        """A line that is no JSON: if it begins as the response to a request under way, that one fails."""
        self._check()
        found = envelope.RESPONSE.match(line)
        id = msgspec.json.decode(found[1], type=RequestId) if found is not None else None
        if id is None or (id not in self._requests and id not in self._forgotten):
            return []
        read = _Read([])
        self._receive_response_unread(id, f"the answer is unreadable: {reason}", read)
        return read.out

    def fail(self, error: Exception) -> list[Token]:
        """Everybody who waits, each once, to be failed with `error`; from now on every call raises it."""
        if self._error is not None:
            return []
        self._error = error
        tokens: dict[Token, None] = {}
        for request in self._requests.values():
            tokens[request.token] = None
            if request.turn is not None:
                tokens[request.turn] = None
        for turn in self._turns.values():
            tokens.update(dict.fromkeys(turn.followers))
        for early in self._early.values():
            tokens.update(dict.fromkeys(early.followers))
        for followers in self._threads.values():
            tokens.update(dict.fromkeys(followers))
        for table in (self._requests, self._forgotten, self._turns, self._threads, self._early, self._starting):
            table.clear()
        self._running.clear()
        self._let_go.clear()
        return list(tokens)

    # Inside.

    def _check(self) -> None:
        if self._error is not None:
            # Raised again and again, one exception would gather the traces of all its raises.
            raise self._error.with_traceback(None)

    def _receive_response(self, header: envelope.Envelope, line: bytes, read: _Read) -> None:
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
        if not request.starts_turn:
            return
        # The early lines of a turn, bound or let go, stand after everything that came before.
        read.cut()
        read.out += self._take_let_go()
        if not header.is_error:
            try:
                result = _decode_start(line).result
                reply.turn_id = result.turn.id
                reply.thread_id = request.thread_of_turn = result.reviewThreadId or request.thread_id
            except msgspec.DecodeError:
                reply.turn_id = None
        if reply.turn_id is not None and request.turn is not None and not forgotten:
            self._bind(reply.turn_id, request, request.turn, read.out)
        if not forgotten:
            self._start_is_over(request.thread_id, read.out)

    def _bind(self, turn_id: str, request: _Request, token: Token, out: list[Delivery]) -> None:
        early = self._early.pop(turn_id, None)
        if early is None and turn_id in self._ended:
            # It joined a running turn that ended before the answer: nothing will ever come for this follower.
            reason = "it ended before the answer that names it"
            out.append(TurnBroken([token], request.thread_id, turn_id, reason, ended=True))
            return
        thread_id = request.thread_of_turn
        self._unfollowed.pop(turn_id, None)
        if early is not None and early.broken is not None:
            out.append(TurnBroken([token], early.thread_id, turn_id, early.broken))
            if not early.followers:
                self._remember_end(turn_id, early.thread_id)
                return
        turn = self._turns.setdefault(turn_id, _Turn(thread_id))
        turn.thread_id = turn.thread_id or thread_id
        if early is not None:
            turn.followers += early.followers
        if token not in turn.followers and (early is None or early.broken is None):
            turn.followers.append(token)
        if thread_id is not None:
            self._running[thread_id] = turn_id
        if early is None:
            return
        if early.broken is None:
            out.append(TurnRun([token], early.thread_id, turn_id, early.lines, early.methods, early.ended))
        if early.ended:
            self._end(turn_id)

    def _take_let_go(self) -> list[Delivery]:
        out, self._let_go = self._let_go, []
        return out

    def _start_is_over(self, thread_id: str | None, out: list[Delivery]) -> None:
        """One start less in flight; what no other start can claim any more goes where it would have gone."""
        left = self._starting.get(thread_id, 0) - 1
        if left > 0:
            self._starting[thread_id] = left
        else:
            self._starting.pop(thread_id, None)
        for turn_id, early in list(self._early.items()):
            if self._may_be_claimed(early.thread_id):
                continue
            del self._early[turn_id]
            if early.ended:
                self._remember_end(turn_id, early.thread_id)
            elif early.followers:
                self._turns[turn_id] = _Turn(early.thread_id, early.followers)
            else:
                self._remember_unfollowed(turn_id, early.thread_id)
            self._note_running(turn_id, early.thread_id, early.lines)
            unheard = [number for number, heard in enumerate(early.heard) if not heard]
            if unheard:
                lines = [early.lines[number] for number in unheard]
                methods = [early.methods[number] for number in unheard]
                out.append(self._unclaimed(early.thread_id, lines, methods))

    def _may_be_claimed(self, thread_id: str | None) -> bool:
        return bool(self._starting) and (None in self._starting or thread_id is None or thread_id in self._starting)

    def _receive_notification(self, header: envelope.Envelope, method: str, line: bytes, read: _Read) -> None:
        turn_id, thread_id = header.turn_id, header.thread_id
        ended = method == "turn/completed"
        if turn_id is not None:
            turn = self._turns.get(turn_id)
            if turn is not None:
                turn_run = self._turn_run(turn_id, thread_id, read)
                turn_run.lines.append(line)
                turn_run.methods.append(method)
                if ended:
                    turn_run.ended = True
                    self._end(turn_id)
                    del read.turns[turn_id]
                return
            if self._keep_early(thread_id, turn_id, [line], [method], ended):
                return
            if method == "turn/started":
                self._note_running(turn_id, thread_id, [line])
        elif method == "thread/status/changed" and _IDLE in line:
            self._note_idle(thread_id)
        key = thread_id if thread_id in self._threads else None
        run = read.others.get(key)
        if run is None:
            run = read.others[key] = self._unclaimed(key, [], [])
            read.out.append(run)
        run.lines.append(line)
        run.methods.append(method)

    def _turn_run(self, turn_id: str, thread_id: str | None, read: _Read) -> TurnRun:
        """The run of a followed turn within this read."""
        run = read.turns.get(turn_id)
        if run is None:
            run = read.turns[turn_id] = TurnRun(list(self._turns[turn_id].followers), thread_id, turn_id)
            read.out.append(run)
        return run

    def _unclaimed(self, thread_id: str | None, lines: list[bytes], methods: list[str]) -> ThreadRun | GlobalRun:
        followers = self._threads.get(thread_id) if thread_id is not None else None
        if thread_id is None or not followers:
            return GlobalRun(lines, methods)
        return ThreadRun(list(followers), thread_id, lines, methods)

    def _keep_early(
        self, thread_id: str | None, turn_id: str, lines: list[bytes], methods: list[str], ended: bool
    ) -> bool:
        """Keep what may belong to a turn whose start is still in flight; whether it was kept."""
        early = self._early.get(turn_id)
        if early is None:
            if turn_id in self._ended:
                return False
            if not self._may_be_claimed(thread_id):
                if ended:
                    self._remember_end(turn_id, thread_id)
                else:
                    self._remember_unfollowed(turn_id, thread_id)
                return False
            early = self._early[turn_id] = _Early(thread_id)
        early.ended = early.ended or ended
        if early.followers and lines:
            self._let_go.append(TurnRun(list(early.followers), thread_id, turn_id, lines, methods, ended))
        early.size_bytes += sum(map(len, lines))
        if early.size_bytes > self._max_early_bytes:
            self._break_early(early, f"more than {self._max_early_bytes} bytes came before the answer that names it")
        if early.broken is None:
            early.lines += lines
            early.methods += methods
            early.heard += [bool(early.followers)] * len(lines)
        return True

    def _break_early(self, early: _Early, reason: str) -> None:
        early.broken = early.broken or reason
        early.lines, early.methods, early.heard = [], [], []

    def _end(self, turn_id: str) -> None:
        turn = self._turns.pop(turn_id, None)
        self._remember_end(turn_id, turn.thread_id if turn is not None else None)

    def _remember_end(self, turn_id: str, thread_id: str | None) -> None:
        thread_id = self._unfollowed.pop(turn_id, None) or thread_id
        running = self._running.get(thread_id or "")
        # A review says that a turn within it has begun, and only of itself that it has ended.
        if running is not None and (running == turn_id or running not in self._turns):
            del self._running[thread_id or ""]
        self._ended[turn_id] = None
        if len(self._ended) > MAX_ENDED_TURNS:
            self._ended.popitem(last=False)

    def _remember_unfollowed(self, turn_id: str, thread_id: str | None) -> None:
        self._unfollowed[turn_id] = thread_id
        if len(self._unfollowed) > MAX_UNFOLLOWED_TURNS:
            turn_id, thread_id = self._unfollowed.popitem(last=False)
            if self._running.get(thread_id or "") == turn_id:
                del self._running[thread_id or ""]

    def _note_running(self, turn_id: str, thread_id: str | None, lines: Sequence[bytes]) -> None:
        """A turn has begun that nobody here has started, if one of its lines says so.

        Of a review it is the turn within it that begins, and the review that ends.
        """
        start = next((line for line in lines if line.startswith(_TURN_STARTED)), None)
        if start is None or thread_id is None or self._running.get(thread_id) in self._turns:
            return
        root = _root_of(start)
        if self._unfollowed.get(root) == thread_id:
            turn_id = root
        if turn_id not in self._ended:
            self._running[thread_id] = turn_id

    def _note_idle(self, thread_id: str | None) -> None:
        """The thread says that it runs nothing; of a turn that is followed the end says so."""
        if self._running.get(thread_id or "") not in self._turns:
            self._running.pop(thread_id or "", None)

    def _receive_response_unread(self, id: RequestId, why: str, read: _Read) -> None:
        """Fail a request whose answer came and cannot be used."""
        line = msgspec.json.encode({"id": id, "error": {"code": -32603, "message": why}})
        self._receive_response(envelope.scan(line), line, read)

    def _receive_long(self, line: LongLine, read: _Read) -> None:
        header = envelope.scan_truncated(line.head, line.tail)
        reason = f"a line of {line.size_bytes} bytes ({header.method or 'a response'}) is beyond the size cap"
        if header.method is None and header.id is not None:
            self._receive_response_unread(header.id, f"the answer was too long: {reason}", read)
            return
        if header.method is not None and header.id is not None:
            ask = Ask(header.id, header.method, header.thread_id, header.turn_id, line.head)
            read.out.append(LongAsk(ask, reason))
            read.cut()
            return
        turn_id, ended = header.turn_id, header.method == "turn/completed"
        followers = self.turn_followers(turn_id) if turn_id is not None else []
        if turn_id is not None and followers:
            self._end(turn_id)
            read.turns.pop(turn_id, None)
            read.out.append(TurnBroken(followers, header.thread_id, turn_id, reason))
            return
        if turn_id is not None and self._keep_early(header.thread_id, turn_id, [], [], ended):
            early = self._early[turn_id]
            self._break_early(early, reason)
            if early.followers:
                read.out += self._take_let_go()
                read.out.append(TurnBroken(early.followers, header.thread_id, turn_id, reason))
                early.followers = []
                return
        read.out.append(Malformed(line.head, reason))


def _root_of(line: bytes) -> str:
    """The turn that the one in a turn/started is part of; "" if it is of no other."""
    try:
        return _decode_started(line).params.turn.rootTurnId or ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _taken_apart(lines: list[bytes], methods: list[str], counts: dict[int, int]) -> tuple[list[bytes], list[str]]:
    """The same without stretches."""
    found: list[bytes] = []
    named: list[str] = []
    for place, (entry, method) in enumerate(zip(lines, methods, strict=True)):
        found += entry.split(b"\n") if place in counts else [entry]
        named += [method] * counts.get(place, 1)
    return found, named
