"""The broker's state machine. Pure: events in, effects out; `now` (monotonic seconds) comes with each event.

    event             from            what follows
    client_message    a client        sessions; requests routed by the scope of their method
    worker_message    a worker        answers and events passed on; turns and threads noted in the state
    slots             supervisor      what status shows of slots that have no worker
    set_limits        supervisor      other limits; turns that wait may begin
    set_mode          supervisor      new turns wait, are refused, or begin
    command_done      supervisor      a request of the pool's operator is answered
    drain             supervisor      the worker gets nothing new; what can leave it does, at its next request
    worker_lost       supervisor      its turns end lost, its requests fail, its threads wait to be adopted
    tick              the clock       beats; silent sessions and workers, limits and leases that have run out

Rules that hold throughout:
 - Only a ready worker gets a request. A worker has at most `turns_per_worker` turns, running or about to; further
   turns wait with it, fair across sessions, and are announced (`queue_notices`). A turn that waits for a person is not
   counted, within `waiting_turns_per_worker`: when it goes on, the next ones wait until there is a permit again.
 - Turns of one thread do not overlap: a start waits until the thread's running turn is over.
 - A turn ends once: by its worker's TurnEnded, or here when the worker is lost.
 - A request that was sent before goes to the worker that has it, which does nothing twice.
 - What a client claims in a header is not trusted: its request is decoded here, once. Bodies from workers are passed
   on and not decoded, but for lists that are merged.

Modules: `state` has all that is known; `sessions` and `client_requests` are the side of the clients, `worker_messages`
and `workers` that of the workers, `dispatch` is between them. `shared_changes` has what every app-server has in memory:
the account, and some settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..auth.ownership import Row
from ..auth.policy import AccessPolicy
from ..auth.usage_store import Counted, Rows
from ..protocol import wire
from ..protocol.pool_report import PoolReport
from ..protocol.tally import Tally
from .arguments import BrokerLimits
from .client_requests import ClientRequests
from .commands import Commands
from .counts import Counts, kept_of
from .dispatch import Dispatcher
from .effects import Effect, ToClient
from .external_tokens import Tokens
from .fault_report import FaultReport
from .mode import Mode
from .owned_list_requests import OwnedListRequests
from .pool_report import report_of
from .rate_limiter import RateLimiter
from .sessions import Sessions
from .state import MAX_WAITING_TURNS, BrokerState
from .status import status_of
from .steering import Steering
from .thread_lists import ThreadLists
from .thread_owners import ThreadOwners
from .usage_ledger import UsageLedger
from .usage_questions import UsageQuestions
from .worker_messages import WorkerMessages
from .workers import Workers

MAX_CLIENTS = 1024
# Of a pool that begins.
NOTHING_COUNTED: dict[str, Any] = {}


class BrokerCore:
    """See the module's docstring. `slots` is how many workers there are to be; `expect` names those alive already.

    `checkpoint` are the threads that the broker before this one knew; None if there was none. `changed_at` is when the
    account was changed last. `secret` signs the cursors of lists. `recycle_descendants`: as of Pool, 0 is no limit.
    `counted` is what the broker before has counted (`SaveCounts.kept`), None if that is not complete.
    """

    def __init__(
        self,
        *,
        slots: int,
        turns_per_worker: int,
        now: float,
        max_clients: int = MAX_CLIENTS,
        expect: Iterable[str] = (),
        checkpoint: Iterable[wire.ThreadRecord] | None = None,
        policy: AccessPolicy | None = None,
        owners: ThreadOwners | None = None,
        secret: bytes = b"",
        unix_offset: float = 0.0,
        changed_at: float = 0.0,
        recycle_descendants: int = 0,
        waiting_turns_per_worker: int = MAX_WAITING_TURNS,
        counted: dict[str, Any] | None = NOTHING_COUNTED,
        usage: UsageLedger | None = None,
    ) -> None:
        self._started_at = now
        self._next_beat = wire.next_beat(now)
        self._slot_states: list[dict[str, Any]] = []
        self._problems: list[dict[str, Any]] = []
        # Of a pool that has one.
        self._gateway: dict[str, Any] = {}
        self._tracer: dict[str, Any] = {}
        # Restarts and recycles of workers, by reason.
        self._replaced: dict[str, dict[str, int]] = {}
        self._configuration: dict[str, Any] = {}
        self._upgrade: dict[str, Any] = {}
        self._codex_pool: dict[str, Any] = {}
        expect = list(expect)
        self.state = BrokerState(
            slots=slots,
            turns_per_worker=turns_per_worker,
            waiting_turns_per_worker=waiting_turns_per_worker,
            now=now,
            policy=policy,
            owners=owners,
            unix_offset=unix_offset,
            counts=Counts(kept_of(counted), expect),
            usage=usage,
        )
        self._rate_limiter = RateLimiter(slots * turns_per_worker)
        self._dispatcher = Dispatcher(
            self.state, self._rate_limiter, changed_at=changed_at, recycle_descendants=recycle_descendants
        )
        self.changes = self._dispatcher.changes
        self.capacity = self._dispatcher.capacity
        self._tokens = Tokens(self.state, self.changes)
        self._lists = OwnedListRequests(
            self.state, self._dispatcher, secret=secret, nonce=f"list-{secret.hex()[:8]}-{now:.6f}"
        )
        self._thread_lists = ThreadLists(
            self.state, self._dispatcher, nonce=f"threads-{secret.hex()[:8]}-{unix_offset:.3f}-{now:.6f}"
        )
        self._dispatcher.lists = self._thread_lists
        self._sessions = Sessions(
            self.state, self._dispatcher, max_clients=max_clients, expect=expect, heir=checkpoint is not None
        )
        self._commands = Commands(self.state)
        self._steering = Steering(self.state, self._dispatcher, self._sessions, self._commands)
        self._usage = UsageQuestions(self.state)
        self._requests = ClientRequests(
            self.state, self._dispatcher, self._tokens, self._lists, self._steering, self._usage, self._status
        )
        for record in checkpoint or ():
            self.state.threads.restore(record)
        self._workers = Workers(
            self.state,
            self._dispatcher,
            self._sessions,
            self._tokens,
            self._lists,
            self._thread_lists,
            self._rate_limiter,
        )
        self._worker_messages = WorkerMessages(
            self.state,
            self._dispatcher,
            self._workers,
            self._tokens,
            self._lists,
            self._thread_lists,
            self._rate_limiter,
            unix_offset=unix_offset,
        )
        self._faults = FaultReport(self.state)

    @property
    def held(self) -> dict[str, int]:
        """Counts of what is kept, by kind, for leak checks."""
        state = self.state
        workers, threads = state.workers.values(), state.threads.values()
        return {
            "sessions": len(state.sessions),
            "callers": self._sessions.callers,
            "workers": len(workers),
            "threads": len(threads),
            "turns": len(state.turns),
            "turns_waiting": state.turns.waiting,
            "calls": len(state.requests.by_number) + len(state.requests.by_key),
            "requests": sum(state.requests.counts().values()),
            "starting": sum(len(worker.starting) for worker in workers) + sum(len(each.starting) for each in threads),
            "waiting": state.requests.held + sum(len(worker.queue) + len(worker.deferred) for worker in workers),
            "moving": len([thread for thread in threads if thread.moving is not None]),
            "unassigned": len(state.requests.unassigned),
            "awaiting_capacity": len(self.capacity.waiting),
            "lists": len(self._lists) + len(self._thread_lists),
            "changes": self.changes.held + self._tokens.held,
            "logins": len(state.account.logins),
            "bound": len(self._dispatcher.bound),
            "commands": len(self._commands),
            "usage": len(self._usage),
        }

    # Clients.

    def client_message(
        self,
        identity: bytes,
        frames: list[bytes],
        now: float,
        principal: str = "",
        key: str = "",
        *,
        screened: bool = False,
    ) -> list[Effect]:
        """Handle a message of a client of this principal, "" for the pool's owner.

        `key` is the public key that it came in with. `screened`: its bounds have been checked where it came in.
        """
        state = self.state
        state.now = now
        try:
            head = wire.decode_from_client(frames[0])
            if isinstance(head, wire.Call) and len(frames) != 2:
                raise wire.WireError(f"a call with {len(frames) - 1} bodies; it has one")
        except wire.WireError as error:
            state.log_for(principal, f"a client's message was refused: {error}")
            state.out.append(ToClient(identity, [wire.encode(wire.Refused(str(error)))]))
            return state.take_effects()
        if isinstance(head, wire.Hello):
            self._sessions.hello(identity, head, frames[1] if len(frames) > 1 else b"", principal, key)
            return state.take_effects()
        if isinstance(head, wire.Bye):
            self._sessions.bye(identity)
            return state.take_effects()
        session = self._sessions.session_of_message(identity)
        if session is None:
            return state.take_effects()
        if isinstance(head, wire.Call):
            self._requests.line(session, head, frames[1], screened=screened)
        elif isinstance(head, wire.Ack):
            worker = state.workers.get(head.worker)
            if worker is not None:
                state.to_worker(worker, wire.Acked(session.id, head.positions))
        return state.take_effects()

    def client_unreachable(self, identity: bytes, now: float) -> list[Effect]:
        """Note that a connection is gone; its session may come back on another."""
        self.state.now = now
        self._sessions.lose_connection(identity)
        return self.state.take_effects()

    def client_overflow(self, identity: bytes, now: float) -> list[Effect]:
        """More waits for this client than may: what it did not get its workers send again, on a new connection."""
        closed = wire.Closed("overflow: more waits for this client than the broker keeps", again=True)
        return [*self.client_unreachable(identity, now), ToClient(identity, [wire.encode(closed)])]

    def gateway_joined(self, instance: str, now: float) -> list[Effect]:
        """End the sessions of gateways before this one: their clients come back with sessions of their own."""
        self.state.now = now
        self._sessions.end_former(instance)
        return self.state.take_effects()

    def end_sessions(self, is_over: Callable[[str, str], bool], now: float) -> list[Effect]:
        """End the sessions whose keys have been revoked, as `is_over` reports by principal and key.

        The key is "" for one that is known from a worker only, and has not come back.
        """
        self.state.now = now
        self._sessions.end_revoked(is_over)
        self._workers.interrupt_revoked()
        return self.state.take_effects()

    # Workers and the supervisor.

    def worker_message(self, identity: bytes, frames: list[bytes], now: float) -> list[Effect]:
        """A message on the workers' socket."""
        self.state.now = now
        self._worker_messages.message(identity, frames)
        return self.state.take_effects()

    def slots(self, states: list[dict[str, Any]], workers: int | None = None) -> list[Effect]:
        """Take over what the supervisor knows of its slots, for status, and how many workers there are to be."""
        self._slot_states = states
        if workers is not None and workers != self.state.slots:
            self.state.slots = workers
            self._rate_limiter.resize(max(1, workers) * self.state.turns_per_worker)
        return []

    def set_limits(self, limits: BrokerLimits, now: float) -> list[Effect]:
        """Have other limits from now on: the pool's configuration was read again. Turns that run go on."""
        state = self.state
        state.now = now
        state.turns_per_worker = limits.turns_per_worker
        state.waiting_turns_per_worker = limits.waiting_turns_per_worker
        state.turns.share_permits()
        self._rate_limiter.resize(max(1, state.slots) * limits.turns_per_worker)
        self.capacity.set_limit(limits.recycle_descendants)
        self._dispatcher.load_waiting()
        self._dispatcher.start_all_queued()
        return state.take_effects()

    def configuration(self, row: dict[str, Any]) -> None:
        """Take over the state of the pool's configuration, for status."""
        self._configuration = row

    def upgrade(self, row: dict[str, Any]) -> None:
        """Take over the state of an upgrade of codex, for status."""
        self._upgrade = row

    def codex_pool(self, row: dict[str, Any]) -> None:
        """Take over the version of codex-pool that the supervisor runs, for status."""
        self._codex_pool = row

    def set_mode(self, mode: Mode, now: float) -> list[Effect]:
        """Take over how the pool takes new turns."""
        self.state.now = now
        self._steering.set_mode(mode)
        return self.state.take_effects()

    def command_done(self, number: int, result: dict[str, Any] | None, error: str | None, now: float) -> list[Effect]:
        """Handle the supervisor's answer to a `Command`."""
        self.state.now = now
        self._commands.done(number, result, error)
        return self.state.take_effects()

    def gateway(self, row: dict[str, Any]) -> None:
        """Take over the state of the gateway, for status."""
        self._gateway = row

    def tracer(self, row: dict[str, Any]) -> None:
        """Take over the state of the tracer, for status and metrics."""
        self._tracer = row

    def replaced(self, counts: dict[str, dict[str, int]]) -> None:
        """Take over how many workers were restarted and recycled, by reason, for metrics."""
        self._replaced = counts

    def problems(self, rows: list[dict[str, Any]]) -> None:
        """Take over what cannot be written or bound for now, for status (see `codex_pool.runtime.problems`)."""
        self._problems = rows

    def unreachable(self, now: float) -> None:
        """Workers cannot come for now: the socket that they connect to has no file."""
        self.state.now = now
        self._sessions.put_off_barrier()

    def drain(self, name: str, now: float) -> list[Effect]:
        """Send this worker nothing new: it is to be replaced."""
        self.state.now = now
        self._workers.drain(name)
        return self.state.take_effects()

    @property
    def registered(self) -> list[str]:
        """The workers that get requests, or have drained."""
        return list(self.state.workers)

    @property
    def drained(self) -> list[str]:
        """The workers that have nothing to do any more, and are to end."""
        return [worker.name for worker in self.state.workers.values() if worker.drained]

    def worker_lost(self, name: str, reason: str, now: float, counted: Tally | None = None) -> list[Effect]:
        """The worker and all that it ran are dead. May come for a worker that never registered; `counted`: its tally,
        if it has ended in order."""
        self.state.now = now
        self._workers.lost(name, reason, counted)
        return self.state.take_effects()

    def shut_down(self) -> list[Effect]:
        """Notify all clients that the pool ends."""
        closed = [wire.encode(wire.Closed("the pool was stopped"))]
        return [ToClient(session.identity, closed) for session in self.state.sessions.values() if session.identity]

    # The ownership store.

    def ownership_kept(self, number: int, rows: list[Row], problem: str | None, now: float) -> list[Effect]:
        """Handle the end of a `SaveOwners`; `problem` is the reason why its rows are not on the disk."""
        self.state.now = now
        self.state.owners.written(rows, ok=problem is None)
        self._worker_messages.ownership_written(number, problem)
        return self.state.take_effects()

    def ownership_read(self, rows: Iterable[Row], now: float) -> list[Effect]:
        """Take over the rows that another pool has written."""
        self.state.now = now
        self.state.threads.owners_changed(self.state.owners.read(rows))
        return self.state.take_effects()

    def ownership_opened(self, rows: Iterable[Row], now: float) -> list[Effect]:
        """Take over the rows of the store, and no others: it can be relied upon again."""
        self.state.now = now
        self.state.owners.replace(rows)
        self.state.threads.owners_changed(list(self.state.threads))
        return self.state.take_effects()

    # Limits of keys, and the usage store.

    def keys_changed(self, now: float) -> list[Effect]:
        """Begin turns that other limits of keys allow now."""
        self.state.now = now
        self._dispatcher.start_all_queued()
        return self.state.take_effects()

    def usage_opened(self, totals: Rows, today: Rows, workers: dict[str, Counted], now: float) -> list[Effect]:
        """Take over what the usage store has: it can be relied upon."""
        self.state.now = now
        self.state.usage.opened(totals, today, workers, now)
        return self.state.take_effects()

    def usage_closed(self, problem: str) -> None:
        """Note that the usage store cannot be relied upon, and why."""
        self.state.usage.closed(problem)

    def usage_found(
        self, number: int, rows: Rows, names: dict[str, str], problem: str | None, now: float
    ) -> list[Effect]:
        """Handle the answer to a `ReadUsage`; `problem` is the reason why there is none."""
        self.state.now = now
        self._usage.found(number, rows, names, problem)
        return self.state.take_effects()

    # The clock.

    def tick(self, now: float) -> list[Effect]:
        """Call it at `next_deadline`."""
        if now < self._next_beat:
            return []
        self.state.now = now
        self._next_beat = wire.next_beat(now)
        self.state.owners.tick()
        self._sessions.tick()
        self._worker_messages.tick()
        self._workers.tick()
        self._commands.tick()
        self._usage.tick()
        self._steering.tick()
        self._faults.tick()
        return self.state.take_effects()

    @property
    def next_deadline(self) -> float:
        return self._next_beat

    @property
    def recent_events(self) -> list[str]:
        """The last events as lines of a log, for a report of an error in the broker."""
        return self._faults.lines()

    def status(self, now: float) -> dict[str, Any]:
        """The result of pool/status: plain JSON values, times in milliseconds."""
        self.state.now = now
        return self._status(trace=False)

    def report(self, now: float) -> tuple[PoolReport, list[Effect]]:
        """The state of the pool for probes and metrics; the effects are to be applied before it is sent."""
        self.state.now = now
        report = report_of(
            self.state,
            self._rate_limiter,
            self._slot_states,
            self._replaced,
            changed_at=self.changes.changed_at,
            upgrade=self._upgrade.get("state", ""),
        )
        report.spans = {name: self._tracer[name] for name in ("exported", "lost") if name in self._tracer}
        return report, self.state.take_effects()

    def _status(self, *, trace: bool) -> dict[str, Any]:
        status = status_of(
            self.state,
            self._rate_limiter,
            self._slot_states,
            [*self._problems, *self._faults.problems()],
            self._started_at,
            awaiting_capacity=len(self.capacity.waiting),
        )
        if self.state.mode.draining:
            status["drained"] = self._steering.is_drained
        if self._gateway:
            sessions = sum(not session.beats for session in self.state.sessions.values())
            status["gateway"] = {**self._gateway, "sessions": sessions}
        if self._tracer:
            status["tracer"] = self._tracer
        if self._configuration:
            row = dict(self._configuration)
            age_s = self.state.now - row.pop("loadedAt")
            status["configuration"] = {**row, "loadedAgeMs": round(age_s * 1000)}
        if self._codex_pool:
            status["codexPool"] = self._codex_pool
        if self._upgrade:
            status["upgrade"] = self._upgrade
        return {**status, "trace": self._faults.trace()} if trace else status
