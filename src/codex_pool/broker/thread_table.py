"""ThreadTable: the threads that are known, the workers that have them, their owners, and sub-agents. Pure.

    state        event                                                         next
    (unknown)    a worker reports it, or a request has made it                 assigned
    (unknown)    the checkpoint of the broker before names it                  unassigned
    assigned     its worker is to be replaced, and it is stored and idle       moving, at its next request
    moving       the worker has released it                                    unassigned
    moving       the worker will not                                           assigned, and pinned
    assigned     its worker dies, or unloads it                                unassigned
    unassigned   a request for it, if it is stored                             assigned to the worker that is sent it
    any          it is archived or deleted, or ephemeral and not used          (unknown)

A thread is `moving` while its `moving` queue is there, and unassigned while its `worker` is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from ..auth.ownership import Row
from ..protocol import wire
from .entities import Thread, Worker, bound
from .request import Request
from .thread_owners import ThreadOwners

if TYPE_CHECKING:
    from .state import BrokerState

MAX_THREADS = 100_000
MAX_ARCHIVED = 10_000
MAX_CHILDREN = 100_000
MAX_DEPTH = 64


class ThreadTable(dict[str, Thread]):
    """See the module's docstring. Threads by their ids."""

    def __init__(self, state: BrokerState, owners: ThreadOwners, unix_offset: float) -> None:
        super().__init__()
        self._state = state
        self.owners = owners
        self._unix_offset = unix_offset
        # Archived threads, and the worker that archived each.
        self.archived: dict[str, str] = {}
        # Threads of sub-agents, and the thread that each is a sub-agent of.
        self.parents: dict[str, str] = {}
        # Threads whose records are others than were written down.
        self.changed: dict[str, None] = {}

    def take_changed(self) -> dict[str, wire.ThreadRecord | None]:
        """The records that have changed since the last call; None for threads that are no more."""
        changed, self.changed = self.changed, {}
        return {thread_id: self.record(thread_id) for thread_id in changed}

    def record(self, thread_id: str | None) -> wire.ThreadRecord | None:
        thread = self.get(thread_id or "")
        return thread.record if thread is not None else None

    def model_of(self, thread_id: str | None) -> str:
        """The model of a thread; "" if it is not known, as of a sub-agent."""
        record = self.record(thread_id)
        return (record.model or "") if record is not None else ""

    # Which worker has it.

    def assign(self, record: wire.ThreadRecord, worker: Worker, request: Request, new_of: str = "") -> None:
        """Note that this worker has the thread now, and that the session of this request follows it.

        `new_of` is the principal that it was made for.
        """
        self.archived.pop(record.thread_id, None)
        if new_of:
            self.add_owner(record.thread_id, new_of, ephemeral=record.ephemeral)
        thread = self.get(record.thread_id)
        if thread is None:
            thread = self.add(record, worker)
        self.change(thread, record)
        self._update_owners(thread)
        thread.worker, thread.used_at = worker.name, self._state.now
        worker.threads.add(record.thread_id)
        if request.session in self._state.sessions:
            thread.followers[request.session] = None

    def add(self, record: wire.ThreadRecord, worker: Worker) -> Thread:
        """Add a thread that a worker has; its owner is that of the store."""
        thread = self._add(record, worker.name)
        self.changed[record.thread_id] = None
        worker.threads.add(record.thread_id)
        self._update_owners(thread)
        if len(self) > MAX_THREADS:
            self._remove_oldest_idle()
        return thread

    def restore(self, record: wire.ThreadRecord) -> None:
        """Add a thread that the broker before this one knew; a worker may come that has it."""
        self._update_owners(self._add(record, None))

    def _add(self, record: wire.ThreadRecord, worker: str | None) -> Thread:
        if record.owner and not self.owners.durable:
            self.add_owner(record.thread_id, record.owner, ephemeral=record.ephemeral)
        record = msgspec.structs.replace(record, owner=self.owners.owner_of(record.thread_id))
        thread = self[record.thread_id] = Thread(record, worker, used_at=self._state.now)
        return thread

    def change(self, thread: Thread, record: wire.ThreadRecord) -> None:
        """Take over what the worker reports of a thread, but for its owner, which only the broker knows."""
        record = msgspec.structs.replace(record, owner=thread.record.owner)
        if record != thread.record:
            if _lasting(record) != _lasting(thread.record):
                self.changed[record.thread_id] = None
            thread.record = record
            self._update_owners(thread)

    def detach(self, thread: Thread) -> None:
        """Note that no worker has this thread any more."""
        self._state.events.record(
            self._state.now, "thread detached", thread=thread.record.thread_id, worker=thread.worker or ""
        )
        thread.worker, thread.pinned = None, False
        if not thread.stored:
            # No client can have it again.
            self.owners.forget(thread.record.thread_id)

    def remove(self, thread_id: str) -> None:
        """Forget a thread; its owner stays in the store."""
        thread = self.pop(thread_id, None)
        if thread is None:
            return
        self.changed[thread_id] = None
        self.owners.unload(thread_id)
        worker = self._state.workers.get(thread.worker or "")
        if worker is not None:
            worker.threads.discard(thread_id)
            self._state.busy.eased(worker)

    def archive(self, thread_id: str, worker: str) -> None:
        """Forget a thread but for the worker that has archived it."""
        self.remove(thread_id)
        self.archived[thread_id] = worker
        bound(self.archived, MAX_ARCHIVED)

    def _remove_oldest_idle(self) -> None:
        for thread_id, thread in self.items():
            if not thread.busy and not self.runs_sub_agents(thread_id):
                self.remove(thread_id)
                return

    # Sub-agents.

    def add_sub_agents(self, parent: str, children: Iterable[str]) -> None:
        """Add threads that the app-server has made for sub-agents of a turn on another one; they have its owner."""
        owner, row = self.owner_of(parent), self.owners.get(parent)
        for child in children:
            known = self.get(child)
            # A thread that has an owner keeps it.
            if known is not None and known.record.owner != owner:
                continue
            self.parents.pop(child, None)
            self.parents[child] = parent
            if row is not None and known is None:
                self.add_owner(child, row.owner, parent=parent, ephemeral=row.ephemeral, stored=not row.ephemeral)
        bound(self.parents, MAX_CHILDREN)

    def ancestors(self, thread_id: str | None) -> Iterator[str]:
        """The threads that this one is a sub-agent of, the nearest first."""
        for _ in range(MAX_DEPTH):
            thread_id = self.parents.get(thread_id or "")
            if thread_id is None:
                return
            yield thread_id

    def holder_of(self, thread_id: str) -> str:
        """The worker that has this thread, or that above it; "" if none has."""
        for each in (thread_id, *self.ancestors(thread_id)):
            if (thread := self.get(each)) is not None and thread.worker is not None:
                return thread.worker
        return ""

    def descendants(self, thread_id: str) -> list[str]:
        """The threads of its sub-agents, at every depth."""
        return [child for child in self.parents if thread_id in self.ancestors(child)]

    def runs_sub_agents(self, thread_id: str) -> bool:
        """True while a sub-agent of this thread runs: it would end with what unloads the thread."""
        turns = (turn for turn in self._state.turns.values() if turn.thread_id in self.parents)
        return any(thread_id in self.ancestors(turn.thread_id) for turn in turns)

    # Owners.

    @property
    def unix_ms(self) -> int:
        return round((self._state.now + self._unix_offset) * 1000)

    def owner_of(self, thread_id: str) -> str:
        """The principal whose thread this is; the pool's owner's if it is not known."""
        record = self.record(thread_id)
        # One of a sub-agent may be in no worker's records, but in the store.
        return record.owner if record is not None else self.owners.owner_of(thread_id)

    def add_owner(
        self, thread_id: str, owner: str, *, parent: str = "", ephemeral: bool = False, stored: bool = False
    ) -> None:
        """Record that a thread has come into being for a principal with a key."""
        source = "subAgent" if parent else "vscode"
        self.owners.add(
            Row(
                thread_id=thread_id,
                owner=owner,
                parent=parent,
                source=source,
                created_ms=self.unix_ms,
                updated_ms=self.unix_ms,
                ephemeral=ephemeral,
                stored=stored,
            )
        )

    def note_activity(self, thread_id: str) -> None:
        """Record that a turn has begun or ended on this thread."""
        if self.owners.get(thread_id) is not None:
            self.owners.change(thread_id, updated_ms=self.unix_ms)

    def count_of(self, principal: str) -> int:
        """Count the threads of a principal: those on disk that are not archived, and those that live here only."""
        return self.owners.stored(principal) + self.owners.loaded(principal)

    def drop_if_unused(self, thread: Thread) -> None:
        """Remove an ephemeral thread of a principal with a key when it has no follower and nothing runs on it."""
        is_unused = not thread.followers and not thread.busy
        if thread.record.owner and thread.record.ephemeral and is_unused:
            if self.runs_sub_agents(thread.record.thread_id):
                return
            self.remove(thread.record.thread_id)
            self.owners.forget(thread.record.thread_id)

    def owners_changed(self, thread_ids: Iterable[str]) -> None:
        """Take over owners that the store has, and that were not known."""
        for thread_id in thread_ids:
            thread = self.get(thread_id)
            if thread is not None:
                thread.record = msgspec.structs.replace(thread.record, owner=self.owners.owner_of(thread_id))
                self.changed[thread_id] = None

    def _update_owners(self, thread: Thread) -> None:
        record = thread.record
        if self.owners.get(record.thread_id) is None:
            return
        self.owners.change(
            record.thread_id,
            name=record.name or "",
            cwd=record.cwd or "",
            model_provider=record.model_provider or "",
            ephemeral=record.ephemeral,
            stored=thread.stored or self.owners.is_stored(record.thread_id),
        )
        if thread.worker is not None:
            self.owners.load(record.thread_id)

    # Faults.

    def faults(self) -> list[str]:
        """Threads and workers that disagree; looks at every thread."""
        found = []
        for thread_id, thread in self.items():
            worker = self._state.workers.get(thread.worker) if thread.worker is not None else None
            if thread.worker is not None and (worker is None or thread_id not in worker.threads):
                found.append(f"thread {thread_id[:64]} is with worker {thread.worker}, which does not have it")
            if thread.turns - self._state.turns.keys():
                found.append(f"thread {thread_id[:64]} has turns that are not known")
        return found


def _lasting(record: wire.ThreadRecord) -> wire.ThreadRecord:
    """The part of a record that must be written down: of its turns, if it is stored at all, only whether it has any."""
    turns = 0 if record.ephemeral else min(record.turns, 1)
    return record if record.turns == turns else msgspec.structs.replace(record, turns=turns)
