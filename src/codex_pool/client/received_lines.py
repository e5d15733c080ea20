"""ReceivedLines: lines of the pool, each matched with what the session knows, on their way to the client. Pure.

What is for the client goes to `batch`; effects, such as the answer to a request that is asked again, to `out`.
"""

from __future__ import annotations

from codex_app_server._protocol import envelope
from codex_app_server._protocol.envelope import RequestId
from codex_app_server._protocol.framing import LongLine
from codex_app_server._protocol.turn_lines import TurnLines

from ..protocol import jsonrpc
from ..protocol.answer_parts import AnswerAssembler
from ..protocol.bound_methods import KIND_OF_METHOD, NO_THREAD
from .bound_objects import BoundObjects
from .calls import FOLLOW_TURN, Call, send_line
from .effects import Effect
from .received_requests import ReceivedRequests
from .sequence import TurnSequences

Batch = list[bytes | LongLine | TurnLines]

# Beginnings of notifications; in a request of an app-server the id precedes the params.
_NOTIFICATION = b'{"method":"'
_EXITED = b'{"method":"process/exited"'
_RESOLVED = b'{"method":"serverRequest/resolved"'
_SUBSCRIPTION = frozenset({"thread/resume", "thread/unsubscribe"})


class ReceivedLines:
    """See the module's docstring. `calls` are the requests of the client that have no answer.

    `initialize`: the client's, once it is answered.
    """

    def __init__(
        self,
        calls: dict[RequestId, Call],
        *,
        assembler: AnswerAssembler,
        requests: ReceivedRequests,
        sequences: TurnSequences,
        bound: BoundObjects,
        all_turns: bool,
    ) -> None:
        self._calls = calls
        self._assembler = assembler
        self._requests = requests
        self._sequences = sequences
        self._bound = bound
        self._all_turns = all_turns
        self.initialize: bytes | None = None

    def lines(self, bodies: list[bytes], batch: Batch, out: list[Effect]) -> None:
        """Take in the lines of these bodies."""
        for body in bodies:
            for line in body.split(b"\n"):
                self.line(line, batch, out)

    def turn_lines(self, lines: TurnLines | None, batch: Batch, out: list[Effect]) -> None:
        """Take in lines of a turn, or of a command, process, watch or search."""
        if lines is None:
            return
        if lines.thread_id == NO_THREAD:
            # Of a command, process, watch or search: routed by content.
            for line in lines.lines:
                self.line(line, batch, out)
            return
        batch.append(lines)
        if self._all_turns and len(self._requests):
            # They get notifications of a thread within the turn that runs on it.
            for line in lines.lines:
                if line.startswith(_RESOLVED):
                    self._requests.resolved(line)
        if lines.ended:
            self._requests.turn_ended(lines.turn_id)

    def line(self, line: bytes, batch: Batch, out: list[Effect]) -> None:
        """Take in one line that is of no turn."""
        if line.startswith(_NOTIFICATION) and not line.startswith(_RESOLVED):
            # The router decodes it; a line is decoded here only if it may concern the session.
            beginning = line[len(_NOTIFICATION) : line.find(b":", len(_NOTIFICATION))]
            if beginning.endswith(b'","params"'):
                if line.startswith(_EXITED):
                    self._bound.exited(line)
                batch.append(line)
                return
        try:
            header = envelope.scan(line)
        except ValueError:
            batch.append(line)
            return
        if header.method is None:
            call = self._calls.pop(header.id, None) if header.id is not None else None
            # Without a call its answer was delivered before.
            if call is not None:
                batch.append(line)
                # Parts of it may be the beginning of an answer by a worker that has died.
                self._assembler.drop(jsonrpc.encode(header.id).decode())
                if call.method == "initialize":
                    self.initialize = call.line
                self._on_answer(call, line, header.is_error)
        elif header.id is not None:
            if header.id not in self._requests:
                self._requests.add(header.id, header.thread_id, header.turn_id)
                batch.append(line)
            elif (given := self._requests.answer_of(header.id)) is not None:
                out.append(send_line(given))
        else:
            if header.method == "serverRequest/resolved":
                self._requests.resolved(line)
            batch.append(line)

    def _on_answer(self, call: Call, line: bytes, is_error: bool) -> None:
        """Follow a turn that was started from its answer on, even if no notification of it ever comes.

        Likewise a process, a watch or a search.
        """
        if call.method == FOLLOW_TURN and call.turn_id is not None and is_error:
            self._sequences.not_joined(call.turn_id)
        elif self._all_turns and call.method in _SUBSCRIPTION and not is_error:
            if call.method == "thread/unsubscribe":
                self._sequences.leave(call.thread_id or "")
            # The requests of a thread that is resumed are asked again.
            self._requests.thread_left(call.thread_id)
        elif call.starts_turn and not is_error and (started := call.started_turn(line)) is not None:
            self._sequences.follow(*started)
        elif call.method in KIND_OF_METHOD and not is_error:
            self._bound.answered(call.method, call.line)
