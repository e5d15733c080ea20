"""BrokerState: all that the broker's core knows, and the effects of the event at hand. Pure.

What has transitions of its own has a table, and a module with its rules: `requests` (`in_flight`), `threads`
(`thread_table`), `turns` (`turn_table`), `account` (`account_holder`); sessions are in `sessions`. `events` is the log
of recent events. `faults` lists how these disagree, which they never should.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from codex_app_server import errors

from ..auth.policy import AccessPolicy, Refusal
from ..auth.usage import Rates
from ..protocol import jsonrpc, packs, turn_ends, wire
from . import audit
from .account_holder import AccountHolder
from .busy_order import BusyOrder
from .counts import Counts, Kept
from .effects import Audit, Effect, LogLine, SaveCounts, SaveOwners, SaveThreads, SaveUsage, ToClient, ToWorker
from .entities import Session, Worker, bound
from .event_log import EventLog
from .in_flight import InFlight
from .key_limits import KeyLimits
from .mode import Mode
from .quotas import LogQuotas
from .request import Request, RequestQueue
from .thread_owners import ThreadOwners
from .thread_table import ThreadTable
from .turn_table import TurnTable
from .usage_ledger import UsageLedger

MAX_LOST = 10_000
MAX_WAITING_TURNS = 32
RETRY_AFTER_MS = 1000

LINES = wire.encode(wire.Lines())


class PendingAnswer(NamedTuple):
    """An answer that names a thread whose owner is not on the disk yet."""

    request: Request
    slot: int
    frames: list[bytes]
    thread_id: str


class BrokerState:
    """See the module's docstring. `now` is the time of the event at hand, `out` the effects so far."""

    def __init__(
        self,
        *,
        slots: int,
        turns_per_worker: int,
        waiting_turns_per_worker: int = MAX_WAITING_TURNS,
        now: float,
        policy: AccessPolicy | None = None,
        owners: ThreadOwners | None = None,
        unix_offset: float = 0.0,
        counts: Counts | None = None,
        usage: UsageLedger | None = None,
    ) -> None:
        # What has become of turns.
        self.counts = counts if counts is not None else Counts(Kept())
        # What they have used, by principal, and the limits of keys.
        self.usage = usage if usage is not None else UsageLedger(Rates(None), unix_offset)
        self.limits = KeyLimits(self)
        self.policy = policy
        self.slots = slots
        self.turns_per_worker = turns_per_worker
        self.waiting_turns_per_worker = waiting_turns_per_worker
        self.now = now
        self.out: list[Effect] = []
        self.events = EventLog()
        self.mode = Mode()
        self.initialize: bytes | None = None
        # Notifications that an app-server sends to each new connection, as of the last one that has sent them.
        self.start_notices: list[bytes] = []
        self.sessions: dict[wire.SessionId, Session] = {}
        self.session_of: dict[bytes, wire.SessionId] = {}
        self.workers: dict[str, Worker] = {}
        self.worker_of: dict[bytes, str] = {}
        self.busy = BusyOrder(self.workers)
        # Names of workers that are dead: what they sent last may come after the news of it.
        self.lost: dict[str, None] = {}
        # The threads of clients with a key.
        self.owners = owners if owners is not None else ThreadOwners()
        self.threads = ThreadTable(self, self.owners, unix_offset)
        self.turns = TurnTable(self)
        self.requests = InFlight(self)
        self.requests.queues.append(self._queues)
        self.account = AccountHolder(self)
        # Answers that wait until the thread that they name is on disk; by the number of the write.
        self.pending_answers: list[PendingAnswer] = []
        self.answers_by_write: dict[int, list[PendingAnswer]] = {}
        self.log_quotas = LogQuotas()
        # Requests of clients with a key that were refused, by reason.
        self.refused: Counter[str] = Counter()
        # Lines that the logs of the pool's processes lost, as of the supervisor's last ping.
        self.lost_lines = 0
        # The file of that log, None where it is stderr.
        self.log_file: str | None = None
        # The audit log, None without one; refusals that it has been given, and the lines that it has lost.
        self.audit_file: str | None = None
        self.audit_refusals = 0
        self.audit_lost = 0
        self._last_write = 0

    def take_effects(self) -> list[Effect]:
        """The effects of the event; that a thread is written down comes before anybody is sent it."""
        out, self.out = self.out, []
        rows = self.owners.take_changed()
        if rows and not self.owners.durable:
            self.owners.written(rows)
        elif rows or self.pending_answers:
            self._last_write += 1
            self.answers_by_write[self._last_write], self.pending_answers = self.pending_answers, []
            out.append(SaveOwners(self._last_write, rows))
        news = self.counts.take_news()
        if news is not None:
            out.append(SaveCounts(**news))
        if self.usage.has_news and self.usage.is_open:
            names = {each: self.name_of(each) for each in self.usage.unsaved_principals}
            out.append(SaveUsage(self.usage.take_changed(names)))
        if self.threads.changed:
            out.insert(0, SaveThreads(self.threads.take_changed()))
        return out

    def answers_waiting(self) -> Iterator[PendingAnswer]:
        """Answers that wait for a write."""
        yield from self.pending_answers
        for answers in self.answers_by_write.values():
            yield from answers

    # Messages.

    def to_worker(self, worker: Worker, head: wire.Head, *bodies: bytes) -> None:
        self.out.append(ToWorker(worker.identity, [wire.encode(head), *bodies]))

    def to_all_workers(self, head: wire.Head) -> None:
        for worker in self.workers.values():
            self.to_worker(worker, head)

    def log(self, message: str) -> None:
        self.out.append(LogLine(message))

    def log_for(self, principal: str, message: str) -> None:
        """Log something that this principal has caused, within its quota."""
        if not principal or self.log_quotas.admit(principal):
            self.log(message)

    def forward(self, sessions: Iterable[wire.SessionId], frames: list[bytes]) -> None:
        """Send to these sessions; one that is away gets nothing, and has to come back on a new connection."""
        for session_id in sessions:
            session = self.sessions.get(session_id)
            if session is None:
                continue
            if session.state != "connected":
                if session.state == "silent":
                    self.set_session_state(session, "outdated")
            elif session.opted_out or (not session.takes_packs and packs.is_pack(frames)):
                for each in packs.unpacked(frames):
                    wanted = without(each, session.opted_out)
                    if wanted:
                        self.out.append(ToClient(session.identity, wanted))
            else:
                self.out.append(ToClient(session.identity, frames))

    def send_line(self, session_id: wire.SessionId, line: bytes) -> None:
        self.forward([session_id], [LINES, line])

    def answer(self, request: Request, line: bytes) -> None:
        """Answer a request from here, which is done then."""
        self.requests.finish(request)
        if request.session is not None:
            self.send_line(request.session, line)

    def fail(self, request: Request, code: int, message: str, data: Any = None) -> None:
        """Answer a request with an error."""
        self.answer(request, jsonrpc.error_line(jsonrpc.encode(request.request_id), code, message, data))

    def count_refusal(self, principal: str, refusal: Refusal) -> None:
        """Count a refusal by its reason; the first of each is logged."""
        what = refusal.data["what"]
        self.refused[what] += 1
        if self.refused[what] == 1:
            self.log(f"the first refusal of its kind, of {self.name_of(principal)}: {refusal.message}")

    def refuse(self, request: Request, refusal: Refusal) -> None:
        """Answer a request with the reason why it is refused."""
        self.count_refusal(request.principal, refusal)
        self.audit_request(request, refusal.data["what"])
        self.fail(request, refusal.code, refusal.message, refusal.data)

    def audit_request(self, request: Request, refused: str | None) -> None:
        """Note the decision about a request in the audit log; `refused` is the reason for a refusal."""
        session = self.session(request)
        if self.audit_file is not None and session is not None:
            self.audit_refusals += refused is not None
            self.out.append(Audit(audit.of_request(session, self.name_of(session.principal), request, refused)))

    def overloaded(self, request: Request, message: str) -> None:
        """Answer a request with the error that asks to try again later."""
        self.fail(request, errors.SERVER_OVERLOADED, f"{message}; retry later", {"retryAfterMs": RETRY_AFTER_MS})

    def refuse_id(self, request: Request) -> None:
        """Answer that another request of this session has this id, and is not answered yet."""
        message = f"{request.method}: request id {request.id_json} is that of another request; give it an id of its own"
        self.fail(request, errors.INVALID_REQUEST, message)

    def end_turn_for(self, sessions: Iterable[wire.SessionId], thread_id: str, turn_id: str, message: str) -> None:
        """Send these sessions the end of a turn, because no worker can send them the rest of it."""
        lines = turn_ends.ended_lines(thread_id, turn_id, "lost", message, safe_to_retry=False)
        self.forward(sessions, [wire.encode(wire.Ended(thread_id, turn_id)), b"\n".join(lines)])

    # Sessions.

    def session(self, request: Request) -> Session | None:
        """The session of this request, unless it is over."""
        return self.sessions.get(request.session) if request.session is not None else None

    def session_on(self, identity: bytes) -> Session | None:
        """The session of this connection."""
        session_id = self.session_of.get(identity)
        return self.sessions.get(session_id) if session_id is not None else None

    def set_session_state(self, session: Session, state: Any) -> None:
        """Note a transition of a session; `sessions` has the table."""
        session.state = state
        self.events.record(self.now, f"session {state}", session=session.id)

    def unlimited_sessions(self) -> list[wire.SessionId]:
        """Sessions of the pool's owner and of admins, who get notifications about account and configuration."""
        return [session.id for session in self.sessions.values() if not self.is_limited(session.principal)]

    # Principals.

    def is_limited(self, principal: str) -> bool:
        """True for a principal that may have its own threads only."""
        return bool(principal) and (self.policy is None or self.policy.is_limited(principal))

    def name_of(self, principal: str) -> str:
        """Name of a principal, for people."""
        return self.policy.name_of(principal) if self.policy is not None else principal

    def may_touch(self, principal: str, thread_id: str) -> bool:
        """True if this principal may see and use this thread."""
        return self.policy is None or self.policy.may_touch(principal, self.threads.record(thread_id))

    # Workers.

    def remove_worker(self, name: str) -> Worker | None:
        """Remove a worker that is dead; it may never have registered."""
        self.lost[name] = None
        bound(self.lost, MAX_LOST)
        worker = self.workers.pop(name, None)
        if worker is not None:
            self.worker_of.pop(worker.identity, None)
        return worker

    def ready(self) -> list[Worker]:
        """The workers that take new work; those that are silent only if there are no others."""
        ready = [worker for worker in self.workers.values() if worker.takes_work]
        return [worker for worker in ready if not worker.is_silent(self.now)] or ready

    # Faults.

    def faults(self) -> list[str]:
        """Return all ways in which the tables disagree: none, unless the broker has a bug. Looks at everything."""
        found = self.requests.faults() + self.threads.faults() + self.turns.faults() + self.busy.faults()
        for session in self.sessions.values():
            has_connection = bool(session.identity)
            if (session.state == "disconnected") == has_connection or session.state == "ended":
                found.append(f"session {session.id!r} is {session.state}, connection {session.identity!r}")
            if (session.away_since is None) != (session.state == "connected"):
                found.append(f"session {session.id!r} is {session.state}, away since {session.away_since}")
            if has_connection and self.session_of.get(session.identity) != session.id:
                found.append(f"session {session.id!r} is not that of its connection {session.identity!r}")
        if len(self.session_of) != sum(bool(session.identity) for session in self.sessions.values()):
            found.append("there are connections without a session")
        if {worker.identity: name for name, worker in self.workers.items()} != self.worker_of:
            found.append("workers and their connections differ")
        return found

    def _queues(self) -> Iterator[RequestQueue]:
        for worker in self.workers.values():
            yield worker.queue
            yield worker.deferred
        for thread in self.threads.values():
            if thread.moving is not None:
                yield thread.moving


def without(frames: list[bytes], beginnings: tuple[bytes, ...]) -> list[bytes]:
    """A message to a client without the notifications that it does not want, found by how their lines begin."""
    if not any(beginning in body for body in frames[1:] for beginning in beginnings):
        return frames
    bodies = [b"\n".join(line for line in body.split(b"\n") if not line.startswith(beginnings)) for body in frames[1:]]
    head = wire.decode_to_client(frames[0])
    if not isinstance(head, wire.Events):
        left = [body for body in bodies if body]
        return [frames[0], *left] if left else []
    runs = [
        (wire.Run(body.count(b"\n") + 1, run.cls) if body else run, body)
        for run, body in zip(head.runs, bodies, strict=True)
        if body or run.cls == "dropped"
    ]
    return [wire.encode(msgspec.structs.replace(head, runs=[run for run, _ in runs])), *(body for _, body in runs)]
