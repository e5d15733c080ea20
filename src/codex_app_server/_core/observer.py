"""NotificationObserver: the notifications that concern the client itself, whatever listener they are for. No I/O.

These are: requests that wait in a queue of the pool or have left it, requests of the app-server that were resolved
otherwise, turns of sub-agents with their token usage, and the ends of log-ins.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping

import msgspec

from .._protocol import envelope
from .._protocol.envelope import RequestId
from .calls import Call
from .deliveries import TurnRun
from .mailbox import Mailbox
from .sub_agents import SubAgents, children_of, may_spawn

LOGINS = 64
STOPPING_TURNS = 256
AGENT_USAGES = 1024


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
_decode_queue_line = msgspec.json.Decoder(_QueueLine).decode


class NotificationObserver:
    """See the module's docstring. `calls` are the client's requests under way, by id.

    `on_resolved(id)` is called when a request of the app-server needs no answer any more, `on_abandoned(thread_id,
    turn_id)` for the turn of a sub-agent that is to be interrupted; `new_mailbox` makes one for the end of a log-in.
    """

    def __init__(
        self,
        calls: Mapping[int, Call],
        *,
        on_resolved: Callable[[RequestId], None],
        on_abandoned: Callable[[str, str], None],
        new_mailbox: Callable[[], Mailbox],
    ) -> None:
        self._calls = calls
        self._on_resolved = on_resolved
        self._on_abandoned = on_abandoned
        self._new_mailbox = new_mailbox
        self.agents = SubAgents()
        # By the turn that they work for, the last report of each sub-agent's thread on its token usage.
        self._agent_usage: OrderedDict[str, dict[str, bytes]] = OrderedDict()
        # Turns whose interrupt was answered.
        self._stopping: OrderedDict[str, None] = OrderedDict()
        self._logins: OrderedDict[str, Mailbox] = OrderedDict()
        self._error: Exception | None = None

    def observe(self, lines: list[bytes]) -> None:
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
            elif b'"turn/completed"' in head and self.agents:
                with contextlib.suppress(msgspec.DecodeError):
                    ended = _decode_turn(line).params
                    self.agents.ended(ended.threadId, ended.turn.id)
            elif b'"thread/tokenUsage/updated"' in head and self.agents:
                self._note_usage(line)
            elif b'"item/completed"' in head and may_spawn(line):
                for late in self.agents.spawned(envelope.scan(line).thread_id or "", children_of(line)):
                    self._on_abandoned(*late)
            elif b'"account/login/completed"' in head:
                with contextlib.suppress(msgspec.DecodeError):
                    self._on_login(_decode_login(line).params.loginId or "", line)

    def observe_turn(self, run: TurnRun) -> None:
        """Note what the turn of a sub-agent reports of its own sub-agents, and the end of any turn."""
        if run.turn_id in self.agents:
            self.observe(run.lines)
        if run.ended:
            self.agents.ended(run.thread_id or "", run.turn_id)

    # Turns.

    def _on_turn_started(self, params: _TurnParams) -> None:
        turn, root = params.turn, params.turn.rootTurnId
        if root is not None and root != turn.id and self.agents.began(params.threadId, turn.id, root):
            self._on_abandoned(params.threadId, turn.id)

    def _note_usage(self, line: bytes) -> None:
        header = envelope.scan(line)
        root = self.agents.root_of(header.turn_id)
        if root is not None and header.thread_id is not None:
            self._agent_usage.setdefault(root, {})[header.thread_id] = line
            if len(self._agent_usage) > AGENT_USAGES:
                self._agent_usage.popitem(last=False)

    def agent_usage(self, turn_id: str) -> dict[str, bytes]:
        """The last report on token usage of each thread of a sub-agent that has worked for this turn."""
        return dict(self._agent_usage.get(turn_id, {}))

    def note_stopping(self, turn_id: str) -> None:
        """Note that the app-server has answered the interrupt of this turn."""
        self._stopping[turn_id] = None
        if len(self._stopping) > STOPPING_TURNS:
            self._stopping.popitem(last=False)

    def is_stopping(self, turn_id: str) -> bool:
        return turn_id in self._stopping

    def _on_queue(self, line: bytes) -> None:
        """Keep the time in a queue of the pool out of a request's deadline."""
        with contextlib.suppress(msgspec.DecodeError):
            notice = _decode_queue_line(line)
            call = self._calls.get(notice.params.requestId)
            if call is not None and notice.method == "pool/queued":
                call.deadline = None
            elif call is not None:
                call.restart_deadline()

    # Log-ins: their end comes as a notification, maybe before anybody waits for it.

    def login_mailbox(self, login_id: str) -> Mailbox:
        """The mailbox for the end of a log-in, which may have come already."""
        mailbox = self._logins.setdefault(login_id, self._new_mailbox())
        if len(self._logins) > LOGINS:
            self._logins.popitem(last=False)
        if self._error is not None:
            mailbox.close(self._error)
        return mailbox

    def fail(self, error: Exception) -> None:
        """End the wait for all log-ins, those to come too."""
        self._error = error
        for mailbox in list(self._logins.values()):
            mailbox.close(error)

    def _on_login(self, login_id: str, line: bytes) -> None:
        mailbox = self.login_mailbox(login_id)
        mailbox.put([line])
        mailbox.close()
