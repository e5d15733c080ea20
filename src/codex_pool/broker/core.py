"""The broker's state machine. Pure: events in, effects out; `now` (monotonic seconds) comes with each event.

    event             from            what follows
    client_message    a client        sessions; requests routed by the scope of their method
    worker_message    a worker        answers and events passed on; turns and threads kept in the books
    slots             supervisor      what status shows of slots that have no worker
    drain             supervisor      the worker gets nothing new; what can leave it does, at its next request
    worker_lost       supervisor      its turns end lost, its requests fail, its threads wait to be adopted
    tick              the clock       beats; who is away or silent, limits and leases that have run out

Rules that hold throughout:
 - Only a ready worker gets a request. A worker has at most `turns_per_worker` turns, running or about to; further
   turns wait with it, fair across sessions, and are told so at once (`pool/queued`, then `pool/dequeued`).
 - Turns of one thread do not overlap: a start waits until the thread's running turn is over.
 - A turn ends once: by its worker's TurnEnded, or here when the worker is lost.
 - A request that was sent before goes to the worker that has it, which does nothing twice.
 - What a client says of itself in a header is not trusted: the envelope of its request is decoded here. Bodies from
   workers are passed on and not decoded, but for lists that are put together of several.

Where what is: `books` what is known; `sessions`, `requests` the side of the clients; `workers` that of the workers;
`dispatch` between them, with `queue`, `pace` and `gather`; `changes`, with `kinds`, `kept`, `announcements` and
`tokens`, what every app-server has in memory: the account, and some settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from codex_pool import wire
from codex_pool.broker.books import Books
from codex_pool.broker.dispatch import Dispatcher
from codex_pool.broker.doors import Doors
from codex_pool.broker.lists import OwnLists
from codex_pool.broker.owned import Owned
from codex_pool.broker.pace import Pace
from codex_pool.broker.records import Effect, ToClient
from codex_pool.broker.requests import Requests
from codex_pool.broker.sessions import Sessions
from codex_pool.broker.status import status_of
from codex_pool.broker.thread_lists import ThreadLists
from codex_pool.broker.tokens import Tokens
from codex_pool.broker.workers import Workers
from codex_pool.ownership import Row

MAX_CLIENTS = 1024


class BrokerCore:
    """See the module's docstring. `slots` is how many workers there are to be; `expect` names those alive already.

    `legacy` are the threads that the broker before this one knew; None if there was none. `changed_at` is when the
    account was changed last. `secret` signs the cursors of lists. `recycle_descendants`: as of Pool, 0 is no limit.
    """

    def __init__(
        self,
        *,
        slots: int,
        turns_per_worker: int,
        now: float,
        max_clients: int = MAX_CLIENTS,
        expect: Iterable[str] = (),
        legacy: Iterable[wire.ThreadRecord] | None = None,
        doors: Doors | None = None,
        owned: Owned | None = None,
        secret: bytes = b"",
        unix_offset: float = 0.0,
        changed_at: float = 0.0,
        recycle_descendants: int = 0,
    ) -> None:
        self._started_at = now
        self._next_beat = now + wire.BEAT_S
        self._slot_states: list[dict[str, Any]] = []
        self._problems: list[dict[str, Any]] = []
        self.books = Books(
            slots=slots, turns_per_worker=turns_per_worker, now=now, doors=doors, owned=owned, unix_offset=unix_offset
        )
        self._pace = Pace(slots * turns_per_worker)
        self._dispatcher = Dispatcher(
            self.books, self._pace, changed_at=changed_at, recycle_descendants=recycle_descendants
        )
        self.changes = self._dispatcher.changes
        self.room = self._dispatcher.room
        self._tokens = Tokens(self.books, self.changes)
        self._lists = OwnLists(self.books, self._dispatcher, secret=secret, nonce=f"list-{secret.hex()[:8]}-{now:.6f}")
        self._thread_lists = ThreadLists(
            self.books, self._dispatcher, nonce=f"threads-{secret.hex()[:8]}-{unix_offset:.3f}-{now:.6f}"
        )
        self._dispatcher.lists = self._thread_lists
        self._requests = Requests(self.books, self._dispatcher, self._tokens, self._lists, self._status)
        self._sessions = Sessions(
            self.books, self._dispatcher, max_clients=max_clients, expect=expect, heir=legacy is not None
        )
        for record in legacy or ():
            self.books.know(record)
        self._workers = Workers(
            self.books,
            self._dispatcher,
            self._sessions,
            self._tokens,
            self._lists,
            self._thread_lists,
            self._pace,
            unix_offset=unix_offset,
        )

    @property
    def held(self) -> dict[str, int]:
        """Counts of what is kept, by kind, for leak checks."""
        books = self.books
        workers, threads = books.workers.values(), books.threads.values()
        return {
            "sessions": len(books.sessions),
            "callers": self._sessions.callers,
            "workers": len(workers),
            "threads": len(threads),
            "turns": len(books.turns),
            "calls": len(books.calls) + len(books.under_way) + sum(len(worker.calls) for worker in workers),
            "starting": sum(len(worker.starting) for worker in workers) + sum(len(each.starting) for each in threads),
            "waiting": books.held + sum(len(worker.waiting) + len(worker.parked) for worker in workers),
            "moving": len([thread for thread in threads if thread.moving is not None]),
            "homeless": len(books.homeless),
            "roomless": len(self.room),
            "lists": len(self._lists) + len(self._thread_lists),
            "changes": self.changes.held + self._tokens.held,
            "logins": len(books.logins),
        }

    # Clients.

    def client_message(
        self, identity: bytes, frames: list[bytes], now: float, who: str = "", key: str = "", *, screened: bool = False
    ) -> list[Effect]:
        """A message of a client. `who` is its principal, "" the pool's owner; `key` the public key it came in with.

        `screened`: its bounds have been checked where it came in.
        """
        books = self.books
        books.now = now
        try:
            head = wire.decode_from_client(frames[0])
            if isinstance(head, wire.Call) and len(frames) != 2:
                raise wire.WireError(f"a call with {len(frames) - 1} bodies; it has one")
        except wire.WireError as error:
            books.note_of(who, f"a client's message was refused: {error}")
            books.out.append(ToClient(identity, [wire.encode(wire.Refused(str(error)))]))
            return books.take_effects()
        if isinstance(head, wire.Hello):
            self._sessions.hello(identity, head, frames[1] if len(frames) > 1 else b"", who, key)
            return books.take_effects()
        if isinstance(head, wire.Bye):
            self._sessions.bye(identity)
            return books.take_effects()
        session = self._sessions.heard(identity)
        if session is None:
            return books.take_effects()
        if isinstance(head, wire.Call):
            self._requests.line(session, head, frames[1], screened=screened)
        elif isinstance(head, wire.Ack):
            worker = books.workers.get(head.worker)
            if worker is not None:
                books.to_worker(worker, wire.Acked(session.id, head.positions))
        return books.take_effects()

    def client_unreachable(self, identity: bytes, now: float) -> list[Effect]:
        """The connection is gone; its session may come back on another."""
        self.books.now = now
        self._sessions.lose_connection(identity)
        return self.books.take_effects()

    def client_overflow(self, identity: bytes, now: float) -> list[Effect]:
        """More waits for this client than may: what it did not get its workers send again, on a new connection."""
        closed = wire.Closed("overflow: more waits for this client than the broker keeps", again=True)
        return [*self.client_unreachable(identity, now), ToClient(identity, [wire.encode(closed)])]

    def end_sessions(self, is_over: Callable[[str, str], bool], now: float) -> list[Effect]:
        """The sessions of which this says so, by their principal and key: their keys have been revoked.

        The key is "" for one that is known from a worker only, and has not come back.
        """
        self.books.now = now
        self._sessions.end_revoked(is_over)
        self._workers.interrupt_revoked()
        return self.books.take_effects()

    # Workers and the supervisor.

    def worker_message(self, identity: bytes, frames: list[bytes], now: float) -> list[Effect]:
        """A message on the workers' socket."""
        self.books.now = now
        self._workers.message(identity, frames)
        return self.books.take_effects()

    def slots(self, states: list[dict[str, Any]]) -> list[Effect]:
        """What the supervisor knows of its slots, for status."""
        self._slot_states = states
        return []

    def problems(self, rows: list[dict[str, Any]]) -> None:
        """What cannot be written or bound for now, for status (see `codex_pool.problems`)."""
        self._problems = rows

    def unreachable(self, now: float) -> None:
        """Workers cannot come for now: the socket that they connect to has no file."""
        self.books.now = now
        self._sessions.put_off_barrier()

    def drain(self, name: str, now: float) -> list[Effect]:
        """This worker is to be replaced: it gets nothing new."""
        self.books.now = now
        self._workers.drain(name)
        return self.books.take_effects()

    @property
    def registered(self) -> list[str]:
        """The workers that get requests, or have drained."""
        return list(self.books.workers)

    @property
    def drained(self) -> list[str]:
        """The workers that have nothing to do any more, and are to end."""
        return [worker.name for worker in self.books.workers.values() if worker.drained]

    def worker_lost(self, name: str, reason: str, now: float) -> list[Effect]:
        """The worker and all that it ran are dead. May come for a worker that never registered."""
        self.books.now = now
        self._workers.lost(name, reason)
        return self.books.take_effects()

    def shut_down(self) -> list[Effect]:
        """The pool ends: everybody is told."""
        closed = [wire.encode(wire.Closed("the pool was stopped"))]
        return [ToClient(session.identity, closed) for session in self.books.sessions.values() if session.identity]

    # The ownership store.

    def ownership_kept(self, number: int, rows: list[Row], problem: str | None, now: float) -> list[Effect]:
        """The rows of this `Own` are on the disk, or `problem` says why not."""
        self.books.now = now
        self.books.owned.written(rows, ok=problem is None)
        self._workers.kept(number, problem)
        return self.books.take_effects()

    def ownership_read(self, rows: Iterable[Row], now: float) -> list[Effect]:
        """Take over the rows that another pool has written."""
        self.books.now = now
        self.books.owners_changed(self.books.owned.read(rows))
        return self.books.take_effects()

    def ownership_opened(self, rows: Iterable[Row], now: float) -> list[Effect]:
        """The store can be relied upon again: what it says, and nothing else."""
        self.books.now = now
        self.books.owned.replace(rows)
        self.books.owners_changed(list(self.books.threads))
        return self.books.take_effects()

    # The clock.

    def tick(self, now: float) -> list[Effect]:
        """Call it at `next_deadline`."""
        if now < self._next_beat:
            return []
        self.books.now = now
        self._next_beat = now + wire.BEAT_S
        self.books.owned.tick()
        self._sessions.tick()
        self._workers.tick()
        return self.books.take_effects()

    @property
    def next_deadline(self) -> float:
        return self._next_beat

    def status(self, now: float) -> dict[str, Any]:
        """The result of pool/status: plain JSON values, times in milliseconds."""
        self.books.now = now
        return self._status()

    def _status(self) -> dict[str, Any]:
        return status_of(
            self.books, self._pace, self._slot_states, self._problems, self._started_at, roomless=len(self.room)
        )
