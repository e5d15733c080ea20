"""BoundObjects: which worker has the commands, processes, watches and searches of each session. Pure.

    event                                   what follows
    a request begins one                    the worker with the least to do has it, unless its session has too many
    a request names one                     it goes to that worker; one that is not known to any, to be refused there
    it is over                              its id is free
    its worker dies                         a watch or search is made again on another one; a process has exited
    its worker drains                       a watch or search moves; processes may go on for PROCESSES_LIMIT_S
    its session is over                     it is forgotten: each worker ends what it has of the session

A session that is away is sent what it has missed when it is back.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codex_app_server import errors

from ..protocol import jsonrpc, wire
from ..protocol.bound_methods import (
    ANONYMOUS,
    COMMAND,
    KIND,
    KIND_OF_METHOD,
    MAX_ID_CHARS,
    MAX_KEPT_BYTES,
    NO_THREAD,
    PROCESS,
    RUNS_ONCE,
    exited_params,
)
from .entities import Worker
from .request import Request
from .state import LINES, BrokerState

if TYPE_CHECKING:
    from .dispatch import Dispatcher

# Of one session; of all sessions of one principal, the pool's owner included.
MAX_OF_SESSION = 256
MAX_OF_PRINCIPAL = 1024
# How long the commands and processes of a worker that drains may go on.
PROCESSES_LIMIT_S = 60.0
# Of lines that a session has missed.
MAX_MISSED = MAX_OF_SESSION


# Session, kind and id at the client.
Key = tuple[wire.SessionId, str, str]


@dataclass(slots=True)
class _Object:
    """`worker` is "" while none has it. `begun`: its beginning was answered."""

    worker: str
    begin: bytes = b""
    update: bytes = b""
    begun: bool = False


class BoundObjects:
    """See the module's docstring. The length is the number of objects."""

    def __init__(self, state: BrokerState, dispatcher: Dispatcher) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._objects: dict[Key, _Object] = {}
        self._of_session: Counter[wire.SessionId] = Counter()
        self._of_principal: Counter[str] = Counter()
        # What sessions that were away have missed.
        self._missed: dict[wire.SessionId, list[bytes]] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def count_of(self, session_id: wire.SessionId) -> int:
        """Count the objects of a session."""
        return self._of_session[session_id]

    # Requests.

    def route(self, request: Request) -> None:
        """Send a request that begins or names an object to the worker that has it, or hold it until one is there."""
        key = self._key_of(request)
        known = self._objects.get(key) if key is not None else None
        is_begin = request.method == KIND_OF_METHOD[request.method].begin
        if is_begin and request.again and self._is_lost(request):
            if request.method in RUNS_ONCE:
                message = f"the worker that had {request.method} died before it answered; it was not executed again"
                self._state.fail(request, errors.TURN_LOST, message, {"kind": "lost", "safeToRetry": False})
                return
            if key is not None and known is not None:
                # It was made again meanwhile, and its client has no answer yet.
                self._unbind(key, known)
                known = None
        if is_begin and known is None and key is not None:
            problem = self._problem_with(key)
            if problem is not None:
                self._state.fail(request, errors.INVALID_REQUEST, f"{request.method}: {problem}")
                return
        placement = self._dispatcher.placement
        worker = self._state.workers.get(known.worker) if known is not None else placement.least_busy()
        if worker is None:
            self._dispatcher.hold_unassigned(request)
            return
        if worker.drained:
            self._state.requests.hold(request, worker.deferred)
            return
        self._dispatcher.send(request, worker)
        if request.state == "dispatched" and key is not None:
            self._note(key, request, worker)

    def _key_of(self, request: Request) -> Key | None:
        """The object that a request begins or names; None if the app-server will refuse it."""
        kind = KIND_OF_METHOD[request.method]
        assert request.session is not None, "objects belong to sessions"
        name = request.param(kind.id_field, str)
        if name is not None:
            return request.session, kind.name, name
        is_anonymous = kind is COMMAND and request.method == kind.begin
        return (request.session, ANONYMOUS, request.id_json) if is_anonymous else None

    def _is_lost(self, request: Request) -> bool:
        """True if the worker is dead that this request was sent to."""
        name = self._state.requests.sent_to.get(request.key)
        return name is not None and name not in self._state.workers

    def _problem_with(self, key: Key) -> str | None:
        session, _, name = key
        if len(name) > MAX_ID_CHARS:
            return f"an id of {len(name)} characters; expected at most {MAX_ID_CHARS}"
        owner = self._state.name_of(session.principal) or "the pool's owner"
        if self._of_session[session] >= MAX_OF_SESSION:
            whose, limit = "this client has", MAX_OF_SESSION
        elif self._of_principal[session.principal] >= MAX_OF_PRINCIPAL:
            whose, limit = f"the clients of {owner} have", MAX_OF_PRINCIPAL
        else:
            return None
        return f"{whose} {limit} commands, processes, watches and searches, the limit; end one first"

    def _note(self, key: Key, request: Request, worker: Worker) -> None:
        """Note what was sent to a worker."""
        kind = KIND_OF_METHOD[request.method]
        known = self._objects.get(key)
        if request.method == kind.begin:
            if known is None:
                known = self._add(key, _Object(worker.name))
            if not kind.is_process and (not known.begun or kind.update):
                known.begin, known.update = request.line, b""
        elif known is not None and request.method == kind.update:
            known.update = request.line

    def _add(self, key: Key, new: _Object) -> _Object:
        self._objects[key] = new
        self._of_session[key[0]] += 1
        self._of_principal[key[0].principal] += 1
        return new

    def _remove(self, key: Key) -> None:
        if self._objects.pop(key, None) is not None:
            _less(self._of_session, key[0])
            _less(self._of_principal, key[0].principal)

    # Workers.

    def answered(self, request: Request) -> None:
        """Note that a request has succeeded."""
        key = self._key_of(request)
        known = self._objects.get(key) if key is not None else None
        if known is not None and request.method == KIND_OF_METHOD[request.method].begin:
            known.begun = True

    def over(self, head: wire.Unbound, worker: Worker) -> None:
        """Note that a worker does not have an object any more."""
        key = (head.session, head.kind, head.name)
        known = self._objects.get(key)
        if known is not None and known.worker == worker.name and not head.replaced:
            self._remove(key)

    def registered(self, worker: Worker, records: list[wire.BoundRecord]) -> list[wire.SessionId]:
        """Take over what a worker has from before this broker; the sessions that it belongs to."""
        for record in records:
            key = (record.session, record.kind, record.name)
            if key not in self._objects:
                self._add(key, _Object(worker.name, record.begin, record.update, begun=True))
        return [record.session for record in records]

    def reconnected(self, worker: Worker, records: list[wire.BoundRecord]) -> None:
        """Compare with what a worker has that has a new connection: what was sent on the old one may be lost."""
        worker.processes_ended = False
        has = {(record.session, record.kind, record.name) for record in records}
        for key, known in [each for each in self._objects.items() if each[1].worker == worker.name]:
            if known.begun and key not in has:
                if known.begin:
                    self._rebind(key, known, worker)
                else:
                    self._remove(key)

    def place(self) -> None:
        """Make watches and searches again that no worker has."""
        for key, known in self._objects.items():
            if not known.worker and not self._move(key, known):
                break

    def _move(self, key: Key, known: _Object) -> bool:
        """Have another worker make an object again; False if there is none."""
        worker = self._dispatcher.placement.least_busy()
        if worker is None:
            return False
        self._rebind(key, known, worker)
        return True

    def _rebind(self, key: Key, known: _Object, worker: Worker) -> None:
        known.worker = worker.name
        bodies = [known.begin, *([known.update] if known.update else [])]
        self._state.to_worker(worker, wire.Rebind(*key), *bodies)

    def _unbind(self, key: Key, known: _Object) -> None:
        worker = self._state.workers.get(known.worker)
        if worker is not None:
            self._state.to_worker(worker, wire.Unbind(*key))
        self._remove(key)

    def worker_lost(self, worker: str, reason: str) -> None:
        """Report the processes of a dead worker, and make its watches and searches again.

        What was not begun is left to the request that begins it.
        """
        lines: dict[wire.SessionId, list[bytes]] = {}
        for key, known in [each for each in self._objects.items() if each[1].worker == worker]:
            session, kind, name = key
            of_session = lines.setdefault(session, [])
            if not known.begun or kind in (COMMAND.name, ANONYMOUS):
                self._remove(key)
            elif kind == PROCESS.name:
                self._remove(key)
                params = exited_params(name, f"its worker {worker} died: {reason}")
                of_session.append(jsonrpc.encode({"method": PROCESS.last_notification, "params": params}))
            elif not known.begin or max(len(known.begin), len(known.update)) > MAX_KEPT_BYTES:
                self._remove(key)
                message = f"{kind} {name!r} ended with worker {worker}: it is too long to be made again"
                of_session.append(jsonrpc.encode({"method": "warning", "params": {"message": message}}))
            else:
                known.worker = ""
        for session, of_session in lines.items():
            self._tell(session, worker, of_session)
        self.place()

    def _tell(self, session_id: wire.SessionId, worker: str, lines: list[bytes]) -> None:
        """Send a session what has become of its objects with this worker, now or when it is back."""
        session = self._state.sessions.get(session_id)
        if session is None:
            return
        if session.is_away:
            missed = self._missed.setdefault(session_id, [])
            missed += lines
            del missed[:-MAX_MISSED]
        bodies = [b"\n".join(lines)] if lines else []
        self._state.forward([session_id], [wire.encode(wire.Ended(NO_THREAD, worker)), *bodies])

    def hold(self, worker: Worker) -> bool:
        """Move what can leave a worker that drains; True while commands or processes keep it from ending."""
        state = self._state
        holds = False
        for key, known in [each for each in self._objects.items() if each[1].worker == worker.name]:
            if key[1] in KIND and not KIND[key[1]].is_process:
                if known.begun and state.ready() and self._move(key, known):
                    state.to_worker(worker, wire.Unbind(*key))
            else:
                holds = True
        since = worker.draining_since
        if holds and since is not None and state.now - since > PROCESSES_LIMIT_S and not worker.processes_ended:
            worker.processes_ended = True
            reason = f"ended after {PROCESSES_LIMIT_S:.0f} s, because worker {worker.name} is being replaced"
            state.to_worker(worker, wire.EndProcesses(reason))
        return holds

    # Sessions.

    def welcome(self, session_id: wire.SessionId, positions: list[wire.Position]) -> None:
        """Send a session that is back what it has missed, and the end of streams of workers that are dead."""
        streams = [position.turn_id for position in positions if position.thread_id == NO_THREAD]
        for worker in sorted({stream.partition("/")[0] for stream in streams}):
            if worker not in self._state.workers:
                self._tell(session_id, worker, [])
        lines = self._missed.pop(session_id, None)
        if lines:
            self._state.forward([session_id], [LINES, b"\n".join(lines)])

    def session_over(self, session_id: wire.SessionId) -> None:
        """Forget the objects of a session; the workers end them."""
        self._missed.pop(session_id, None)
        if self._of_session[session_id]:
            for key in [key for key in self._objects if key[0] == session_id]:
                self._remove(key)


def _less(counter: Counter[Any], what: Any) -> None:
    counter[what] -= 1
    if not counter[what]:
        del counter[what]
