"""What the broker knows, and the effects of the event at hand. Pure; each kind of entry has its bound."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from codex_app_server import errors
from codex_pool import rpc, wire
from codex_pool.broker.doors import NEW_THREAD, Doors
from codex_pool.broker.owned import Owned
from codex_pool.broker.records import (
    Call,
    CallKey,
    Effect,
    Keep,
    Note,
    Own,
    Session,
    Thread,
    ToClient,
    ToWorker,
    Turn,
    Worker,
)
from codex_pool.broker.shares import MAX_WAITING, MAX_WAITING_BYTES, NEXT_TURN_S, LogShares, Places, needs_place
from codex_pool.ownership import Row

MAX_THREADS = 100_000
MAX_LOST = 10_000
MAX_ARCHIVED = 10_000
MAX_CHILDREN = 100_000
MAX_DEPTH = 64
# As many as a worker remembers of the calls that it has taken.
MAX_SEEN_PER_WORKER = 4096
MAX_ENDED_PER_WORKER = 4096
MAX_HELD_PER_SESSION = 10_000
MAX_HELD = 100_000
# Of their bytes; one is always held, however large.
MAX_HELD_BYTES_PER_SESSION = 64 * 1024 * 1024
MAX_HELD_BYTES = 512 * 1024 * 1024
RETRY_AFTER_MS = 1000

LINES = wire.encode(wire.Lines())


class Unkept(NamedTuple):
    """An answer that names a thread whose ownership is not on the disk yet."""

    call: Call
    worker: Worker
    frames: list[bytes]
    thread_id: str


class Books:
    """`now` is the time of the event at hand, `out` what is to be done about it."""

    def __init__(
        self,
        *,
        slots: int,
        turns_per_worker: int,
        now: float,
        doors: Doors | None = None,
        owned: Owned | None = None,
        unix_offset: float = 0.0,
    ) -> None:
        self.doors = doors
        # The threads of clients with a key.
        self.owned = owned if owned is not None else Owned()
        # What makes the time of events Unix time.
        self.unix_offset = unix_offset
        # Answers that wait until it is on the disk whose thread they name; by the number of the write.
        self.unkept: list[Unkept] = []
        self.keeping: dict[int, list[Unkept]] = {}
        self.slots = slots
        self.turns_per_worker = turns_per_worker
        self.now = now
        self.out: list[Effect] = []
        self.initialize: bytes | None = None
        self.sessions: dict[wire.SessionId, Session] = {}
        self.session_of: dict[bytes, wire.SessionId] = {}
        self.workers: dict[str, Worker] = {}
        self.worker_of: dict[bytes, str] = {}
        # Names of workers that are dead: what they sent last may come after the news of it.
        self.lost: dict[str, None] = {}
        self.threads: dict[str, Thread] = {}
        # Threads that were put away, and by which worker.
        self.archived: dict[str, str] = {}
        # Threads of sub-agents, and whose they are.
        self.parents: dict[str, str] = {}
        self.turns: dict[str, Turn] = {}
        # Turns that have ended, and the worker that may still tell of it.
        self.ended_turns: dict[str, str] = {}
        self.calls: dict[int, Call] = {}
        # The numbers that a request has with workers, by session and id; who was sent it last.
        self.under_way: dict[CallKey, list[int]] = {}
        self.seen: dict[CallKey, str] = {}
        # Calls for which there is no worker.
        self.homeless: list[Call] = []
        self.held = 0
        self.held_bytes = 0
        # The same by principal, of those who have keys: how many, and their bytes.
        self.held_of: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        self.places = Places()
        self.log_shares = LogShares()
        # What clients with a key were refused, by reason.
        self.refused: Counter[str] = Counter()
        # Lines that the logs of the pool's processes lost, as of the supervisor's last ping.
        self.lost_lines = 0
        # Sessions that have logged in, the last one last: who is asked what belongs to no thread.
        self.logged_in: dict[wire.SessionId, None] = {}
        self.holder: wire.SessionId | None = None
        # Log-ins under way by their ids: the worker that has one, and the session that began it.
        self.logins: dict[str, tuple[str, wire.SessionId]] = {}
        self.ended: Counter[str] = Counter(dict.fromkeys(wire.TURN_ENDS, 0))
        self._next_call = 0
        self._next_own = 0
        # Threads whose records are others than were written down.
        self._changed: dict[str, None] = {}

    def take_effects(self) -> list[Effect]:
        """What is to be done; that a thread is written down comes before anybody hears of it."""
        out, self.out = self.out, []
        rows = self.owned.take_changed()
        if rows and not self.owned.durable:
            self.owned.written(rows)
        elif rows or self.unkept:
            self._next_own += 1
            self.keeping[self._next_own], self.unkept = self.unkept, []
            out.append(Own(self._next_own, rows))
        if self._changed:
            out.insert(0, Keep({thread_id: self.record(thread_id) for thread_id in self._changed}))
            self._changed = {}
        return out

    # Messages.

    def to_worker(self, worker: Worker, head: wire.Head, *bodies: bytes) -> None:
        self.out.append(ToWorker(worker.identity, [wire.encode(head), *bodies]))

    def to_all_workers(self, head: wire.Head) -> None:
        for worker in self.workers.values():
            self.to_worker(worker, head)

    def note(self, message: str) -> None:
        self.out.append(Note(message))

    def note_of(self, who: str, message: str) -> None:
        """Something for the log that this principal has caused."""
        if not who or self.log_shares.admit(who):
            self.note(message)

    def pass_on(self, sessions: Iterable[wire.SessionId], frames: list[bytes]) -> None:
        """Send to these sessions; one that is away gets nothing."""
        for session_id in sessions:
            session = self.sessions.get(session_id)
            if session is None:
                continue
            if session.away_since is not None:
                session.missed = True
            elif session.opted_out:
                wanted = without(frames, session.opted_out)
                if wanted:
                    self.out.append(ToClient(session.identity, wanted))
            else:
                self.out.append(ToClient(session.identity, frames))

    def own_sessions(self) -> list[wire.SessionId]:
        """Sessions of the pool's own user and of admins, who get notifications about account and configuration."""
        return [session.id for session in self.sessions.values() if not self.is_limited(session.who)]

    def is_limited(self, who: str) -> bool:
        """True for a client that may have its own threads only."""
        return bool(who) and (self.doors is None or self.doors.is_limited(who))

    def say(self, session_id: wire.SessionId, line: bytes) -> None:
        self.pass_on([session_id], [LINES, line])

    def answer(self, call: Call, line: bytes) -> None:
        """An answer that comes from here."""
        if call.session is not None:
            self.say(call.session, line)

    def fail(self, call: Call, code: int, message: str, data: Any = None) -> None:
        self.release(call)
        self.answer(call, rpc.error_line(rpc.encode(call.request_id), code, message, data))

    def overloaded(self, call: Call, message: str) -> None:
        self.fail(call, errors.SERVER_OVERLOADED, f"{message}; retry later", {"retryAfterMs": RETRY_AFTER_MS})

    def choose_holder(self) -> None:
        """Who holds the account: who has logged in last, else the first of the pool's own user's clients."""
        own = (session.id for session in self.sessions.values() if not session.who)
        holder = next(reversed(self.logged_in), None) or next(own, None)
        if holder != self.holder:
            self.holder = holder
            self.to_all_workers(wire.Holder(holder))

    def session_on(self, identity: bytes) -> Session | None:
        """The session of this connection."""
        session_id = self.session_of.get(identity)
        return self.sessions.get(session_id) if session_id is not None else None

    def name_of(self, who: str) -> str:
        """Name of a principal, for people."""
        return self.doors.name_of(who) if self.doors is not None else who

    def session(self, call: Call) -> Session | None:
        """The session of this call, unless it is over."""
        return self.sessions.get(call.session) if call.session is not None else None

    def has_logged_in(self, call: Call) -> None:
        """This call has changed the account, or begun to."""
        if call.session in self.sessions:
            self.logged_in.pop(call.session, None)
            self.logged_in[call.session] = None
            self.choose_holder()

    # Calls that are held here, until a worker has room for them.

    def hold(self, call: Call) -> bool:
        """Keep a call here; when that would be too many, it fails."""
        session = self.session(call)
        if session is None:
            return False
        if session.waiting.get(call.id_json) is call:
            return True
        # One that was sent to a worker which died has its place already.
        if not call.tries and call.who:
            count, waiting_bytes = self.held_of[call.who]
            if count >= MAX_WAITING or (count and waiting_bytes + len(call.line) > MAX_WAITING_BYTES):
                limit = f"{MAX_WAITING} requests or {MAX_WAITING_BYTES} bytes"
                self.overloaded(call, f"so many requests of this key wait already that it is at its limit: {limit}")
                return False
        if not call.tries:
            mine, all_bytes = session.waiting_bytes + len(call.line), self.held_bytes + len(call.line)
            if len(session.waiting) >= MAX_HELD_PER_SESSION or (session.waiting and mine > MAX_HELD_BYTES_PER_SESSION):
                limit = f"{MAX_HELD_PER_SESSION} requests or {MAX_HELD_BYTES_PER_SESSION} bytes"
                self.overloaded(call, f"so many requests of this client wait already that it is at its limit: {limit}")
                return False
            if self.held >= MAX_HELD or (self.held and all_bytes > MAX_HELD_BYTES):
                limit = f"{MAX_HELD} requests or {MAX_HELD_BYTES} bytes"
                self.overloaded(call, f"so many requests wait already that the pool is at its limit: {limit}")
                return False
        session.waiting[call.id_json] = call
        self._weigh(session, call, 1)
        return True

    def is_held(self, call: Call) -> bool:
        session = self.session(call)
        return session is not None and session.waiting.get(call.id_json) is call

    def release(self, call: Call) -> None:
        session = self.session(call)
        if session is not None and session.waiting.get(call.id_json) is call:
            del session.waiting[call.id_json]
            self._weigh(session, call, -1)

    def _weigh(self, session: Session, call: Call, sign: int) -> None:
        size = sign * len(call.line)
        session.waiting_bytes += size
        self.held += sign
        self.held_bytes += size
        if call.who:
            count, waiting_bytes = self.held_of[call.who]
            self.held_of[call.who] = count + sign, waiting_bytes + size
            if self.held_of[call.who] == (0, 0):
                del self.held_of[call.who]

    # Calls that are under way.

    def open_call(self, call: Call, worker: Worker) -> int:
        """A number under which the worker is to answer."""
        self._next_call += 1
        number = self._next_call
        self.calls[number] = call
        worker.calls.add(number)
        if needs_place(call):
            worker.places[call.who] += 1
        if call.session is not None:
            self.under_way.setdefault(call.key, []).append(number)
        if call.starts_turn:
            worker.starting.add(number)
            thread = self.threads.get(call.thread_id or "")
            if thread is not None:
                thread.starting.add(number)
        if call.session is not None and call.gather is None:
            self.saw(call.key, worker.name)
        return number

    def close_call(self, number: int) -> Call:
        call = self.calls.pop(number)
        numbers = self.under_way.get(call.key)
        if numbers is not None:
            numbers.remove(number)
            if not numbers:
                del self.under_way[call.key]
        worker = self.workers.get(call.worker)
        if worker is not None:
            worker.calls.discard(number)
            worker.starting.discard(number)
            worker.loading.discard(number)
            if needs_place(call):
                worker.places[call.who] -= 1
        thread = self.threads.get(call.thread_id or "")
        if thread is not None:
            thread.starting.discard(number)
        return call

    def saw(self, key: CallKey, worker: str) -> None:
        self.seen.pop(key, None)
        self.seen[key] = worker
        bound(self.seen, MAX_SEEN_PER_WORKER * max(self.slots, len(self.workers)))

    # Turns.

    def turn_ended(self, turn_id: str, worker: str) -> None:
        self.ended_turns[turn_id] = worker
        bound(self.ended_turns, MAX_ENDED_PER_WORKER * max(self.slots, len(self.workers)))

    def knows_turn(self, turn_id: str) -> bool:
        """Whether a worker runs this turn, or may still tell how it ended."""
        return turn_id in self.turns or self.ended_turns.get(turn_id) in self.workers

    def end_turn_for(self, sessions: Iterable[wire.SessionId], thread_id: str, turn_id: str, message: str) -> None:
        """The turn ends for these sessions, because nobody can tell them the rest of it."""
        lines = rpc.ended_lines(thread_id, turn_id, "lost", message, safe_to_retry=False)
        self.pass_on(sessions, [wire.encode(wire.Ended(thread_id, turn_id)), b"\n".join(lines)])

    @property
    def running(self) -> int:
        return sum(worker.load for worker in self.workers.values())

    def turns_of(self, who: str) -> int:
        """The turns of this principal that run, are about to, or wait."""
        calls = [call for worker in self.workers.values() for call in map(self.calls.__getitem__, worker.starting)]
        calls += [call for each in self.sessions.values() if each.who == who for call in each.waiting.values()]
        count = sum(call.who == who and call.starts_turn for call in calls)
        running = Counter(turn.thread_id for turn in self.turns.values() if self.owner_of(turn.thread_id) == who)
        # A goal that has been set begins turns by itself.
        begin = [
            thread_id
            for thread_id, thread in self.threads.items()
            if thread.begins_at > self.now - NEXT_TURN_S and thread.record.owner == who and thread_id not in running
        ]
        return count + running.total() + len(begin)

    def threads_to_be(self, who: str) -> int:
        """Count the requests of this principal that would create a thread."""
        calls = [*self.calls.values(), *(call for each in self.sessions.values() for call in each.waiting.values())]
        return sum(call.who == who and call.method in NEW_THREAD for call in calls)

    def owner_of(self, thread_id: str) -> str:
        """The principal whose thread this is; the pool's own user's if it is not known."""
        record = self.record(thread_id)
        # One of a sub-agent may be in no worker's records, but in the store.
        return record.owner if record is not None else self.owned.owner_of(thread_id)

    def key_turns(self, worker: Worker) -> int:
        """Count the turns of principals with keys that this worker runs, or is about to."""
        running = sum(bool(self.owner_of(self.turns[turn].thread_id)) for turn in worker.turns if turn in self.turns)
        return running + sum(bool(self.calls[number].who) for number in worker.starting)

    # Threads.

    def hold_thread(self, record: wire.ThreadRecord, worker: Worker, call: Call, new_of: str = "") -> None:
        """This worker has the thread now, and the session of this call follows it.

        `new_of` is the principal that it was made for.
        """
        self.archived.pop(record.thread_id, None)
        if new_of:
            self.own(record.thread_id, new_of, ephemeral=record.ephemeral)
        thread = self.threads.get(record.thread_id)
        if thread is None:
            thread = self.add_thread(record, worker)
        self.change_thread(thread, record)
        self._note_owned(thread)
        thread.worker, thread.used_at = worker.name, self.now
        worker.threads.add(record.thread_id)
        if call.session in self.sessions:
            thread.followers[call.session] = None

    def add_thread(self, record: wire.ThreadRecord, worker: Worker) -> Thread:
        """A thread that a worker holds; whose it is the store says."""
        if record.owner and not self.owned.durable:
            self.own(record.thread_id, record.owner, ephemeral=record.ephemeral)
        record = msgspec.structs.replace(record, owner=self.owned.owner_of(record.thread_id))
        thread = self.threads[record.thread_id] = Thread(record, worker.name, used_at=self.now)
        self._changed[record.thread_id] = None
        worker.threads.add(record.thread_id)
        self._note_owned(thread)
        if len(self.threads) > MAX_THREADS:
            self._forget_oldest_idle_thread()
        return thread

    def know(self, record: wire.ThreadRecord) -> None:
        """A thread that the broker before this one knew; a worker may come that has it."""
        if record.owner and not self.owned.durable:
            self.own(record.thread_id, record.owner, ephemeral=record.ephemeral)
        record = msgspec.structs.replace(record, owner=self.owned.owner_of(record.thread_id))
        thread = self.threads[record.thread_id] = Thread(record, None, used_at=self.now)
        self._note_owned(thread)

    def change_thread(self, thread: Thread, record: wire.ThreadRecord) -> None:
        """What the worker says of a thread; whose it is, only the broker knows."""
        record = msgspec.structs.replace(record, owner=thread.record.owner)
        if record != thread.record:
            if _lasting(record) != _lasting(thread.record):
                self._changed[record.thread_id] = None
            thread.record = record
            self._note_owned(thread)

    def drop_thread(self, thread_id: str) -> None:
        thread = self.threads.pop(thread_id, None)
        if thread is None:
            return
        self._changed[thread_id] = None
        self.owned.unload(thread_id)
        worker = self.workers.get(thread.worker or "")
        if worker is not None:
            worker.threads.discard(thread_id)

    def put_away(self, thread_id: str, worker: str) -> None:
        self.drop_thread(thread_id)
        self.archived[thread_id] = worker
        bound(self.archived, MAX_ARCHIVED)

    def _forget_oldest_idle_thread(self) -> None:
        for thread_id, thread in self.threads.items():
            if not thread.busy and not self.runs_agents(thread_id):
                self.drop_thread(thread_id)
                return

    # Sub-agents.

    def spawned(self, parent: str, children: Iterable[str]) -> None:
        """The app-server has made these threads for sub-agents of a turn on another one; they are its client's."""
        owner, row = self.owner_of(parent), self.owned.get(parent)
        for child in children:
            known = self.threads.get(child)
            # One that is somebody's already stays theirs.
            if known is not None and known.record.owner != owner:
                continue
            self.parents.pop(child, None)
            self.parents[child] = parent
            if row is not None and known is None:
                self.own(child, row.owner, parent=parent, ephemeral=row.ephemeral, stored=not row.ephemeral)
        bound(self.parents, MAX_CHILDREN)

    def above(self, thread_id: str | None) -> Iterator[str]:
        """The threads that this one is a sub-agent's of, the nearest first."""
        for _ in range(MAX_DEPTH):
            thread_id = self.parents.get(thread_id or "")
            if thread_id is None:
                return
            yield thread_id

    def below(self, thread_id: str) -> list[str]:
        """The threads of its sub-agents, however deep."""
        return [child for child in self.parents if thread_id in self.above(child)]

    def agents(self) -> list[Turn]:
        """The turns of sub-agents that run."""
        return [turn for turn in self.turns.values() if turn.thread_id in self.parents]

    def runs_agents(self, thread_id: str) -> bool:
        """True while a sub-agent of this thread runs: it would end with what unloads the thread."""
        return any(thread_id in self.above(turn.thread_id) for turn in self.agents())

    # Whose they are.

    @property
    def unix_ms(self) -> int:
        return round((self.now + self.unix_offset) * 1000)

    def own(
        self, thread_id: str, owner: str, *, parent: str = "", ephemeral: bool = False, stored: bool = False
    ) -> None:
        """A thread has come into being for a client with a key."""
        source = "subAgent" if parent else "vscode"
        self.owned.add(
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

    def touched(self, thread_id: str) -> None:
        """A turn has begun or ended on this thread."""
        if self.owned.get(thread_id) is not None:
            self.owned.change(thread_id, updated_ms=self.unix_ms)

    def count(self, who: str) -> int:
        """Count the threads of a client: those on disk that are not archived, and those that live here only."""
        return self.owned.stored(who) + self.owned.loaded(who)

    def let_go(self, thread: Thread) -> None:
        """An ephemeral thread of a client with a key is gone when nobody follows it and nothing runs on it."""
        is_unused = not thread.followers and not thread.busy
        if thread.record.owner and thread.record.ephemeral and is_unused:
            if self.runs_agents(thread.record.thread_id):
                return
            self.drop_thread(thread.record.thread_id)
            self.owned.forget(thread.record.thread_id)

    def owners_changed(self, thread_ids: Iterable[str]) -> None:
        """The store says that these threads have other owners than was known."""
        for thread_id in thread_ids:
            thread = self.threads.get(thread_id)
            if thread is not None:
                thread.record = msgspec.structs.replace(thread.record, owner=self.owned.owner_of(thread_id))
                self._changed[thread_id] = None

    def _note_owned(self, thread: Thread) -> None:
        record = thread.record
        if self.owned.get(record.thread_id) is None:
            return
        self.owned.change(
            record.thread_id,
            name=record.name or "",
            cwd=record.cwd or "",
            model_provider=record.model_provider or "",
            ephemeral=record.ephemeral,
            stored=thread.stored or self.owned.is_stored(record.thread_id),
        )
        if thread.worker is not None:
            self.owned.load(record.thread_id)

    def may_touch(self, who: str, thread_id: str) -> bool:
        return self.doors is None or self.doors.may_touch(who, self.record(thread_id))

    def orphan(self, thread: Thread) -> None:
        """No worker holds this thread any more."""
        thread.worker, thread.pinned = None, False
        if not thread.stored:
            # Nobody can have it again.
            self.owned.forget(thread.record.thread_id)

    def record(self, thread_id: str | None) -> wire.ThreadRecord | None:
        thread = self.threads.get(thread_id or "")
        return thread.record if thread is not None else None

    # Workers.

    def bury(self, name: str) -> Worker | None:
        """This worker is dead; it may never have registered."""
        self.lost[name] = None
        bound(self.lost, MAX_LOST)
        worker = self.workers.pop(name, None)
        if worker is not None:
            self.worker_of.pop(worker.identity, None)
        return worker

    def ready(self) -> list[Worker]:
        """The workers that take new work; those that are silent only if there are no others."""
        ready = [worker for worker in self.workers.values() if worker.takes_work]
        return [worker for worker in ready if not is_silent(worker, self.now)] or ready

    def open_calls_of(self, worker: Worker) -> Iterator[Call]:
        return (self.calls[number] for number in worker.calls)


WORKER_QUIET_S = 3 * wire.BEAT_S


def is_silent(worker: Worker, now: float) -> bool:
    return now - worker.seen_at > WORKER_QUIET_S


def without(frames: list[bytes], beginnings: tuple[bytes, ...]) -> list[bytes]:
    """A message to a client without the notifications that it does not want; told by how their lines begin."""
    if not any(beginning in body for body in frames[1:] for beginning in beginnings):
        return frames
    bodies = [b"\n".join(line for line in body.split(b"\n") if not line.startswith(beginnings)) for body in frames[1:]]
    head = wire.decode_to_client(frames[0])
    if not isinstance(head, wire.Events):
        kept = [body for body in bodies if body]
        return [frames[0], *kept] if kept else []
    runs = [
        (wire.Run(body.count(b"\n") + 1, run.cls) if body else run, body)
        for run, body in zip(head.runs, bodies, strict=True)
        if body or run.cls == "dropped"
    ]
    return [wire.encode(msgspec.structs.replace(head, runs=[run for run, _ in runs])), *(body for _, body in runs)]


def _lasting(record: wire.ThreadRecord) -> wire.ThreadRecord:
    """What must be written down of a thread: whether it has turns, if it is stored at all."""
    turns = 0 if record.ephemeral else min(record.turns, 1)
    return record if record.turns == turns else msgspec.structs.replace(record, turns=turns)


def bound(book: dict[Any, Any], limit: int) -> None:
    """Forget the oldest entries beyond the limit."""
    while len(book) > limit:
        del book[next(iter(book))]
