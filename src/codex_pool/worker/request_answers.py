"""Answers to requests of sessions: sent under the latest number of their call, in parts if they are long. Pure.

They are kept until the session acknowledges them, for a request that is sent again (`dedupe`).
"""

from __future__ import annotations

from codex_app_server._protocol.envelope import LONG_BYTES

from ..protocol import jsonrpc, wire
from ..protocol.answer_parts import parts_of
from .dedupe import Answer, AnswerCache
from .effects import LINES, Outbox
from .request import Request
from .request_table import RequestTable
from .running_turns import RunningTurns
from .session_options import SessionOptions
from .threads import Threads

INVALID_REQUEST = -32600

_MAKES_THREAD = frozenset({"thread/start", "thread/fork"})


class RequestAnswers:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        requests: RequestTable,
        threads: Threads,
        running: RunningTurns,
        options: SessionOptions,
        outbox: Outbox,
    ) -> None:
        self._requests = requests
        self._threads = threads
        self._running = running
        self._options = options
        self._outbox = outbox
        self._answers = AnswerCache()

    @property
    def known(self) -> list[wire.KnownCall]:
        """Requests that are answered, and may be sent again."""
        return self._answers.calls

    def find(self, session: wire.SessionId, request_id: bytes) -> Answer | None:
        """The answer that was given to this request; None if it is not known."""
        return self._answers.find(session, request_id)

    def forget_session(self, session: wire.SessionId) -> None:
        """Drop the answers that are kept for a session that is over."""
        self._answers.forget(session)

    def send(
        self,
        request: Request,
        ok: bool,
        line: bytes,
        record: wire.ThreadRecord | None = None,
        started: wire.RunningTurn | None = None,
    ) -> None:
        """Answer a request; `line` has the id that the client gave it.

        `record`: the thread that it has loaded here; `started`: the turn that begins with it.
        """
        thread_id = record.thread_id if record is not None else None
        self.finish(request, Answer(ok, line, thread_id, request.digest))
        if request.call is not None:
            self._outbox.broker(wire.encode(wire.Answered(request.call, ok, record, started)), LINES, line)
        elif started is not None:
            self._outbox.broker(wire.encode(wire.TurnStarted(started.thread_id, started.turn_id, started.sessions)))

    def finish(self, request: Request, answer: Answer) -> None:
        """Note that a request is answered, and keep its answer."""
        self._requests.finish(request)
        if request.session is not None and not request.gone:
            self._answers.put(request.session, bytes(request.line.id), answer)

    def goes_in_parts(self, request: Request, line: bytes, started: wire.RunningTurn | None = None) -> bool:
        """Return True if this answer is so long that it is sent in parts, where its client takes them."""
        if len(line) <= LONG_BYTES:
            return False
        # The owner of a new thread must be on the disk before its client gets the answer. What runs on a thread comes
        # after the answer that has its history.
        if request.session in self._options.all_turns and self._running.runs_on(request.thread_id or ""):
            return False
        return (
            request.accepts_parts
            and request.call is not None
            and started is None
            and request.method not in _MAKES_THREAD
        )

    def send_in_parts(self, request: Request, ok: bool, line: bytes, record: wire.ThreadRecord | None) -> None:
        """Send a long answer in parts; the last one answers the call. A thread that it loads is reported at once."""
        assert request.call is not None and request.session is not None, "only answers to sessions are sent in parts"
        self.finish(request, Answer(ok, line, None, request.digest))
        if record is not None:
            self._outbox.broker(wire.encode(wire.ThreadLoaded(request.call, record)))
        request_id = bytes(request.line.id)
        to_session = wire.encode(wire.ToSessions([request.session]))
        for part, body in parts_of(line, request_id):
            route = wire.encode(wire.Answered(request.call, ok)) if part.last else to_session
            self._outbox.bulk(route, wire.encode(part), body)

    def send_again(self, answer: Answer, call: int) -> None:
        """Answer a request that was sent again."""
        thread = self._threads.get(answer.thread_id)
        record = thread.record if thread is not None else None
        frames = (LINES, answer.line) if answer.line else ()
        self._outbox.broker(wire.encode(wire.Answered(call, answer.ok, record)), *frames)

    def refuse_id(self, call: int, line: jsonrpc.RequestLine) -> None:
        """Refuse a request with the id of another that is open, or whose answer it claims with other content."""
        message = (
            f"{line.method}: request id {bytes(line.id).decode()} is that of another request; give it an id of its own"
        )
        refusal = jsonrpc.error_line(bytes(line.id), INVALID_REQUEST, message)
        self._outbox.broker(wire.encode(wire.Answered(call, False)), LINES, refusal)
