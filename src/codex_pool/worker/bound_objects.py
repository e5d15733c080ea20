"""Commands, processes, watches and searches that sessions have in this app-server (see `bound_methods`). Pure.

    event                                   what follows
    a request begins one                    it is entered, under an id of its own at the app-server
    a request names one                     the app-server's id takes the place of the client's
    the app-server reports of one           the client's id takes the place of the app-server's, in the object's stream
    it is over                              the last line of its stream; the broker is informed that its id is free
    its session is over                     the app-server is told to end it, until it has
    its session does not read its stream    the same; the stream ends with an error
    Rebind, Unbind, EndProcesses            a watch or search comes from, or goes to, another worker; processes end

The app-server's ids begin with a number that is given out once: sessions may choose the same ids, and what comes late
is never taken for an object of the same id that is new. The answer to a `command/exec` is the last line of its stream,
so that it cannot overtake what the command has written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from ..protocol import jsonrpc, wire
from ..protocol.bound_methods import (
    COMMAND,
    KIND,
    KIND_OF_METHOD,
    STREAMING,
    WATCH,
    Kind,
)
from .bound_object import BoundObject, ended_line, inside, lines_unread, raw, text_of, warning
from .bound_streams import BoundStreams
from .bound_table import BoundTable
from .effects import Outbox
from .request import Request
from .request_table import RequestTable
from .running_turns import RunningTurns
from .subscription import Limits
from .turn_stream import Turn

# An app-server may not know yet what it is to end.
END_AGAIN_S = 0.5
# The part of what a worker keeps for turns that it keeps for these streams besides.
PART_OF_TOTAL = 2


@dataclass(slots=True)
class BoundObjects:
    """See the module's docstring. `worker` is the name of this worker, with which the ids of streams begin."""

    worker: str
    requests: RequestTable
    running: RunningTurns
    outbox: Outbox
    limits: Limits
    streams: BoundStreams = field(init=False)
    _table: BoundTable = field(default_factory=BoundTable)
    # Those whose last line is published, and may wait for credit.
    _finishing: dict[BoundObject, None] = field(default_factory=dict)
    # Those whose streams have ended because they are not read.
    _unread: list[BoundObject] = field(default_factory=list)
    # Those that the app-server was told to end, and may still have.
    _ending: dict[BoundObject, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limits = self.limits._replace(total=self.limits.total // PART_OF_TOTAL)
        self.streams = BoundStreams(self.worker, limits, self._overflow_lines)

    @property
    def held(self) -> dict[str, int]:
        of_streams = {f"bound_{name}": count for name, count in self.streams.held.items()}
        return {**of_streams, **self._table.held}

    @property
    def waits(self) -> bool:
        """Return True if anything is to be ended again soon."""
        return bool(self._ending)

    @property
    def oldest(self) -> int:
        """Number of the oldest command or process that runs; of the next one, or turn, if none does."""
        return self._table.oldest(self.running.begun + 1)

    @property
    def records(self) -> list[wire.BoundRecord]:
        """The objects whose ids are taken."""
        return [wire.BoundRecord(*bound.key, bound.begin, bound.update) for bound in self._table.by_key.values()]

    # Requests of sessions.

    def take(self, request: Request, line: bytes) -> str | None:
        """Put the app-server's id into a request that begins or names an object; `line` is the client's.

        Return why it is refused, None if it is not: of a second object of one id the app-server is not asked, because
        the first one may end meanwhile.
        """
        kind = KIND_OF_METHOD[request.method]
        assert request.session is not None, "objects belong to sessions"
        params = request.line.params = request.line.params or {}
        name = text_of(params.get(kind.id_field))
        begins = request.method == kind.begin
        if name is None and begins and kind is COMMAND and bytes(params.get(kind.id_field, b"null")) == b"null":
            if any(bytes(params.get(option, b"")) == b"true" for option in STREAMING):
                return None  # Refused by the app-server.
            # The app-server would give it an id that it tells nobody, so that nobody could end it.
            found = None
            bound = self._enter(kind, request.session, bytes(request.line.id).decode(), anonymous=True)
        elif name is None or not (name or kind.may_have_empty_id):
            return None  # Refused by the app-server.
        else:
            found = self._table.by_key.get((request.session, kind.name, name))
            if found is None and not begins:
                # No number is 0: the app-server answers that there is no such object.
                self._rename(request, params, kind, f"0/{name}")
                return None
            if found is not None and begins and kind.duplicate:
                return kind.duplicate.format(json=jsonrpc.encode(name).decode(), name=name)
            bound = found or self._enter(kind, request.session, name)
            if found is not None and request.method == kind.end and not kind.is_process:
                # From here on its id is free for another one.
                del self._table.by_key[bound.key]
        if begins and kind is not COMMAND:
            bound.pending += 1
        elif begins and found is None:
            bound.request, bound.request_id = request, bytes(request.line.id)
        if begins and not kind.is_process and (found is None or kind.update):
            # A search may be begun again.
            bound.begin, bound.update = line, b""
        elif request.method == kind.update:
            bound.update = line
        request.bound = bound
        self._rename(request, params, kind, bound.wire_id)
        return None

    @staticmethod
    def _rename(request: Request, params: dict[str, msgspec.Raw], kind: Kind, wire_id: str) -> None:
        request.wire_id = wire_id
        params[kind.id_field] = raw(wire_id)

    def answered(self, request: Request, line: bytes, *, ok: bool) -> bytes | None:
        """Note the answer to a request; return it for the client, None if it is the last line of a command's stream."""
        bound, name = request.bound, request.wire_id.partition("/")[2]
        line = jsonrpc.replace_id(line, bytes(request.line.id))
        if not ok and name:
            line = line.replace(inside(request.wire_id), inside(name))
        if bound is None:
            return line
        kind = bound.kind
        if kind is COMMAND and bound.request is request:
            bound.request = None
            return self._command_over(bound, request, line, ok=ok)
        if kind is not COMMAND and request.method == kind.begin:
            self._begin_answered(bound, ok=ok)
        elif request.method == kind.end and not kind.is_process:
            if ok and not bound.pending:
                self._over(bound)
            else:
                self._close(bound)
        return line

    def _begin_answered(self, bound: BoundObject, *, ok: bool, lines: Iterable[bytes] = ()) -> None:
        """Note the answer to a request to begin an object; if it never began, these are its last lines."""
        bound.pending -= 1
        bound.begun = bound.begun or ok
        if bound.pending:
            return
        if not bound.begun:
            self._over(bound, lines)
        elif bound.end_at is not None:
            self._end(bound)

    def _command_over(self, bound: BoundObject, request: Request, line: bytes, *, ok: bool) -> bytes | None:
        if bound.gone:
            self._over(bound)
            return line
        if bound.why and not bound.published:
            line, ok = ended_line(bound, bound.why), False
        bound.answers, bound.ok = request, ok and bound.ok
        self._over(bound, [line])
        return None

    def refused(self, request: Request) -> None:
        """Note that a request is answered by the worker itself; what it may have begun ends."""
        bound = request.bound
        if bound is None:
            return
        is_sent = request.state in ("sent", "running")
        if bound.request is request:
            bound.request = None
            if is_sent:
                self._close(bound)
            else:
                self._over(bound)
        elif bound.kind is not COMMAND and request.method == bound.kind.begin:
            if is_sent and not bound.begun:
                # It may have begun.
                self._close(bound)
            self._begin_answered(bound, ok=is_sent)

    def answered_late(self, request: Request) -> None:
        """End what a request has begun that is no longer waited for."""
        if request.bound is not None and request.method == request.bound.kind.begin:
            self._end(request.bound)

    def is_answering(self, session: wire.SessionId, request_id: bytes, call: int) -> bool:
        """Return True if the last line of this command waits for credit; the call is answered after it."""
        for bound in self._finishing:
            if bound.session == session and bound.request_id == request_id and bound.answers is not None:
                bound.answers.call = call
                return True
        return False

    def new_broker(self) -> None:
        """The next broker waits for no answer until the request is sent again."""
        for bound in self._finishing:
            if bound.answers is not None:
                bound.answers.call = None

    # Notifications of the app-server.

    def on_lines(self, lines: list[bytes], methods: list[str]) -> set[int]:
        """Publish the notifications about objects; return their places."""
        taken, runs, over = self._table.runs_of(lines, methods)
        for bound, run in runs.items():
            if bound in over:
                self._over(bound, run)
            elif not bound.published and not bound.gone:
                self._publish(bound, run)
        return taken

    # Sessions and the broker.

    def acked(self, head: wire.Acked) -> None:
        """Handle an acknowledgement of streams, among others."""
        self._send(self.streams.acked(head.session, head.positions, self.outbox.now))

    def back(self, head: wire.SessionResumed) -> None:
        """Send a session that has reconnected what it has not received."""
        self._send(self.streams.back(head.session, head.positions, self.outbox.now))

    def forget_session(self, session: wire.SessionId) -> None:
        """End all objects of a session that is over."""
        of_session = self._table.take_out(session)
        for bound in [each for each in self._finishing if each.session == session]:
            del self._finishing[bound]
        self.streams.forget(session)
        for bound in of_session:
            bound.gone = True
            self._end(bound)

    def end_processes(self, reason: str) -> None:
        """End the commands and processes of all sessions, for this reason."""
        for bound in list(self._table.by_wire_id.values()):
            if bound.kind.is_process and not bound.why and not bound.published:
                bound.why = reason
                self._end(bound)

    def rebind(self, head: wire.Rebind, bodies: list[bytes]) -> None:
        """Make a watch or a search again that another worker had."""
        kind = KIND.get(head.kind)
        if kind is None or kind.is_process or not bodies or (head.session, head.kind, head.name) in self._table.by_key:
            return
        bound = self._enter(kind, head.session, head.name)
        bound.begin, bound.update = bodies[0], bodies[1] if len(bodies) > 1 else b""
        bound.pending += 1
        self._submit(bound, kind.begin, bound.begin, lambda line, is_error: self._rebound(bound, line, is_error))

    def unbind(self, head: wire.Unbind) -> None:
        """End a watch or a search that another worker has now."""
        bound = self._table.by_key.get((head.session, head.kind, head.name))
        if bound is not None:
            self._close(bound)

    def tick(self) -> None:
        """Do what is due: end again what has not ended, and drop what no session has acknowledged."""
        for bound in [each for each in self._ending if each.end_at is not None and each.end_at <= self.outbox.now]:
            self._end(bound)
        self._send(self.streams.expire(self.outbox.now))
        for name, bound in list(self._table.by_stream.items()):
            is_over = bound.published and bound not in self._finishing
            if is_over and self.streams.find(bound.session, bound.stream) is None:
                del self._table.by_stream[name]

    # From the beginning to the end.

    def _enter(self, kind: Kind, session: wire.SessionId, name: str, *, anonymous: bool = False) -> BoundObject:
        bound = self._table.enter(kind, session, name, worker=self.worker, anonymous=anonymous)
        self.streams.join(bound.stream, session, "full")
        if kind.is_process:
            self.running.begun += 1
            bound.number = self.running.begun
        return bound

    def _submit(self, bound: BoundObject, method: str, line: bytes, then: Callable[[bytes, bool], None]) -> None:
        """Send a request of a client again, for an object that is made again."""
        params: dict[str, object] = {**(jsonrpc.decode_request(line).params or {})}
        params[bound.kind.id_field] = bound.wire_id
        self.requests.submit_own(method, params, then)

    def _rebound(self, bound: BoundObject, line: bytes, is_error: bool) -> None:
        """Note that an object was made again, or could not be."""
        why = f"{bound.kind.name} {bound.name!r} ended with its app-server, and could not be made again"
        lines = [warning(f"{why}: {jsonrpc.error_of(line)}")] if is_error else []
        self._begin_answered(bound, ok=not is_error, lines=lines)
        if is_error or bound.gone or bound.published:
            return
        if bound.kind is WATCH:
            # What has changed in between was not seen.
            path = (jsonrpc.decode_request(bound.begin).params or {}).get("path")
            changed = {"watchId": bound.name, "changedPaths": [path]}
            self._publish(bound, [jsonrpc.encode({"method": "fs/changed", "params": changed})])
        elif bound.update:
            self._submit(bound, bound.kind.update, bound.update, lambda *_: None)

    def _publish(self, bound: BoundObject, lines: list[bytes], *, ended: bool = False) -> None:
        status = "ended" if ended else None
        self._send(self.streams.publish(bound.stream, lines, [""] * len(lines), now=self.outbox.now, ended=status))

    def _over(self, bound: BoundObject, lines: Iterable[bytes] = ()) -> None:
        """Note that the app-server does not have this object any more; publish the last lines of its stream."""
        self._table.by_wire_id.pop((bound.kind.name, bound.wire_id), None)
        self._ending.pop(bound, None)
        bound.end_at = None
        if not bound.gone:
            self._end_stream(bound, [*lines])

    def _close(self, bound: BoundObject) -> None:
        """End the stream of an object, and have the app-server end the object."""
        self._end(bound)
        if not bound.gone:
            self._end_stream(bound, [])

    def _end_stream(self, bound: BoundObject, lines: list[bytes]) -> None:
        if bound.is_over:
            return
        self._finishing[bound] = None
        if bound.published:
            self._send([])
            return
        bound.published = True
        if lines or bound.stream.last:
            self._publish(bound, lines, ended=True)
        else:
            self.streams.discard(bound.session, bound.stream)
            self._send([])

    def _end(self, bound: BoundObject) -> None:
        """Have the app-server end an object; again if it is a process, until it has ended."""
        kind = bound.kind
        bound.end_at = self.outbox.now + END_AGAIN_S
        if bound.pending:
            # Once its beginning is answered.
            return
        self._ending[bound] = None

        def then(_: bytes, is_error: bool) -> None:
            # A process is over when that is reported; what is not there has ended, or is about to begin.
            if not bound.pending and bound.request is None and (is_error or not kind.is_process):
                self._ending.pop(bound, None)
                self._table.by_wire_id.pop((kind.name, bound.wire_id), None)

        self.requests.submit_own(kind.end, {kind.id_field: bound.wire_id}, then, control=True)

    def _send(self, messages: Iterable[list[bytes]]) -> None:
        """Send messages of streams, and with them what the broker is to know of those whose last line is sent.

        An id is free before its client can read that its object is over; the request of a command is answered later.
        """
        unread, self._unread = self._unread, []
        for bound in unread:
            if not bound.published:
                bound.published = True
                if bound.request is None:
                    self._finishing[bound] = None
                self._end(bound)
        over = [each for each in self._finishing if self.streams.is_sent(each.session, each.stream)]
        for bound in over:
            del self._finishing[bound]
            bound.is_over = True
            self._table.free(bound)
            self.outbox.broker(wire.encode(wire.Unbound(*bound.key, replaced=bound.key in self._table.by_key)))
        self.outbox.messages(messages)
        for bound in over:
            request = bound.answers
            if request is not None and request.call is not None:
                self.outbox.broker(wire.encode(wire.Answered(request.call, bound.ok)))
                request.call = None

    def _overflow_lines(self, stream: Turn, why: str) -> list[bytes]:
        """The last lines of a stream that its session does not read."""
        bound = self._table.by_stream[stream.id]
        self._unread.append(bound)
        bound.ok = False
        return lines_unread(bound, why)
