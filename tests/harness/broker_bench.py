"""A broker core, and the workers and clients around it, written down here: for the tests of the broker."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import msgspec
from session_ids import named

from codex_app_server.generated.routing import REQUESTS
from codex_pool.broker.core import BrokerCore
from codex_pool.broker.effects import (
    AccountChanged,
    Command,
    Drained,
    DrainProgress,
    DropConnection,
    Effect,
    LogLine,
    Registered,
    Renew,
    SaveThreads,
    Suspect,
    ToClient,
    ToWorker,
)
from codex_pool.protocol import wire

THREAD_LOST, TURN_LOST = -32010, -32011

NEW_WORK = {"thread/start", "model/list", "account/read"}
NOTHING_HELD = wire.encode_worker_state(wire.WorkerState([]))


def encode(message: Any) -> bytes:
    return msgspec.json.encode(message)


def starts_turn(method: str) -> bool:
    return method in REQUESTS and REQUESTS[method].result_turn


@dataclass
class FakeWorker:
    """Beliefs of the broker about a worker, seen from the worker.

    `open`: calls not answered; `running`: its turns; `answered`: what it has answered, by session and request id;
    `releases`: threads that it is to put away, by call.
    """

    name: str
    connection: str
    open: dict[int, tuple[wire.Dispatch, dict[str, Any]]] = field(default_factory=dict)
    running: dict[str, tuple[str, str]] = field(default_factory=dict)
    # Of its turns, those that wait for a person, and since when; those that have ever waited, which are not counted.
    waiting: dict[str, float] = field(default_factory=dict)
    waited: set[str] = field(default_factory=set)
    # How many of them run on the side.
    on_side: int = 0
    answered: dict[tuple[str, str], tuple[bool, str | None]] = field(default_factory=dict)
    releases: dict[int, str] = field(default_factory=dict)
    # Changes that it is to make, by call; what it was told to have.
    applies: dict[int, dict[str, Any]] = field(default_factory=dict)
    current: wire.SharedState | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)
    as_of: float = 0.0
    # What it is logged in with.
    account: str | None = None
    heads: list[Any] = field(default_factory=list)
    lost: bool = False
    draining: bool = False

    @property
    def load(self) -> int:
        starting = [(head, line) for head, line in self.open.values() if starts_turn(line["method"])]
        beside = len(self.waited & self.running.keys()) + self.on_side
        return len(self.running) - beside + sum(key_of(head, line) not in self.answered for head, line in starting)

    @property
    def methods(self) -> list[str]:
        return [line["method"] for _, line in self.open.values()]

    def take(self, head: wire.Dispatch, line: dict[str, Any]) -> None:
        """Take a request as a worker does: one that it has under way or has answered is not done again."""
        key = key_of(head, line)
        before = [call for call, (old, old_line) in self.open.items() if key_of(old, old_line) == key]
        assert head.again or not (before or key in self.answered), "what may be a duplicate says so"
        for call in before:
            del self.open[call]
        self.open[head.call] = (head, line)


def key_of(head: wire.Dispatch, line: dict[str, Any]) -> tuple[str, str]:
    return named(head.session), json.dumps(line["id"])


class Bench:
    """A broker core with the workers and clients around it. `answers`: by session and request id, as they came."""

    def __init__(self, slots: int = 2, turns_per_worker: int = 2, **options: Any) -> None:
        self.now = 1000.0
        self.slots, self.turns_per_worker = slots, turns_per_worker
        self.core = BrokerCore(slots=slots, turns_per_worker=turns_per_worker, now=self.now, **options)
        self.workers: dict[str, FakeWorker] = {}
        # By session, its connection; by connection, its session.
        self.connections: dict[str, str] = {}
        self.forgotten: list[bytes] = []
        self.drained: list[str] = []
        self.commands: list[Command] = []
        self.progress: list[DrainProgress] = []
        self.kept: dict[str, wire.ThreadRecord | None] = {}
        self.answers: dict[tuple[str, Any], list[dict[str, Any]]] = {}
        self.notices: list[tuple[str, dict[str, Any]]] = []
        self.ended: list[tuple[str, str]] = []
        self.heads: list[tuple[str, Any]] = []
        self.registered: list[str] = []
        self.suspects: list[str] = []
        self.notes: list[str] = []
        # Answers to questions of app-servers; workers that are to be renewed; what the supervisor knows of the account.
        self.tells: list[tuple[str, dict[str, Any]]] = []
        self.renewals: dict[str, str] = {}
        # Workers that are to be renewed because they have no room for threads; they may have turns meanwhile.
        self.full: dict[str, str] = {}
        self.account: tuple[float, bool] = 0.0, False
        # The account that is stored, and what those were that turns began with.
        self.stored: str | None = None
        self.started_with: list[str | None] = []
        self.loops = 0
        self._ids = itertools.count(1)
        self._turn_numbers = itertools.count(1)

    @property
    def checkpoint(self) -> list[wire.ThreadRecord]:
        """Return what the next broker reads."""
        return [record for record in self.kept.values() if record is not None]

    def apply(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            match effect:
                case ToClient():
                    self._to_client(effect.peer.decode("utf-8", "replace"), effect.frames)
                case ToWorker():
                    self._to_worker(effect.peer.decode("utf-8", "replace"), effect.frames)
                case Registered():
                    self.registered.append(effect.worker)
                case Suspect():
                    self.suspects.append(effect.worker)
                case DropConnection():
                    self.forgotten.append(effect.peer)
                case Renew() if "descendants" in effect.reason:
                    self.full[effect.worker] = effect.reason
                case Renew():
                    self.renewals[effect.worker] = effect.reason
                case AccountChanged():
                    self.account = effect.changed_at, effect.under_way
                case Drained():
                    self.drained.append(effect.worker)
                case Command():
                    self.commands.append(effect)
                case DrainProgress():
                    self.progress.append(effect)
                case SaveThreads():
                    self.kept |= effect.threads
                case LogLine():
                    self.notes.append(effect.message)
        return effects

    def _to_client(self, connection: str, frames: list[bytes]) -> None:
        head = wire.decode_to_client(frames[0])
        session = next((s for s, c in self.connections.items() if c == connection), connection)
        self.heads.append((session, head))
        if isinstance(head, wire.Ended):
            self.ended.append((session, head.turn_id))
        if not isinstance(head, wire.Lines):
            return
        for line in frames[1].split(b"\n"):
            message = json.loads(line)
            if "method" in message:
                self.notices.append((session, message))
            else:
                self.answers.setdefault((session, message["id"]), []).append(message)

    def _to_worker(self, name: str, frames: list[bytes]) -> None:
        head = wire.decode_to_worker(frames[0])
        if isinstance(head, wire.RegisterRequest):
            return
        worker = next(worker for worker in self.workers.values() if worker.connection == name)
        assert not worker.lost, "nothing is sent to a lost worker"
        worker.heads.append(head)
        if isinstance(head, wire.Dispatch):
            assert head.again or worker.name not in self.drained, "nothing new is sent to a drained worker"
            line = json.loads(frames[1])
            assert head.again or worker.name not in self.renewals or not starts_turn(line["method"]), "it is stale"
            if not head.again and starts_turn(line["method"]):
                self.started_with.append(worker.account)
            if worker.draining and not head.again:
                assert head.adopt is None and line["method"] not in NEW_WORK, "a draining worker gets nothing new"
            worker.take(head, line)
            assert worker.load <= self.turns_per_worker or not starts_turn(line["method"])
        elif isinstance(head, wire.Release):
            worker.releases[head.call] = head.thread_id
        elif isinstance(head, wire.Apply):
            worker.applies = {head.call: json.loads(frames[1])}
        elif isinstance(head, wire.SharedState):
            worker.current, worker.kept = head, [json.loads(line) for line in frames[1:]]
            worker.as_of = head.as_of
        elif isinstance(head, wire.ServerRequestAnswer):
            self.tells.append((worker.name, json.loads(frames[1])))

    # Clients.

    def hello(
        self,
        session: str = "s1",
        *,
        connection: str | None = None,
        positions: list[wire.Position] | None = None,
        priority: wire.Priority = "interactive",
        when_gone: wire.WhenGone = "interrupt",
        knows_queue: bool = True,
    ) -> None:
        connection = connection or session
        self.connections[session] = connection
        frames = [wire.encode(wire.Hello(session, session, priority, when_gone, knows_queue=knows_queue))]
        frames += [wire.encode_positions(positions)] if positions is not None else []
        self.apply(self.core.client_message(connection.encode(), frames, self.now))

    def from_client(self, head: Any, *frames: bytes, session: str = "s1") -> None:
        connection = self.connections.get(session, session).encode()
        self.apply(self.core.client_message(connection, [wire.encode(head), *frames], self.now))

    def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        session: str = "s1",
        id: Any = None,
        again: bool = False,
    ) -> tuple[str, Any]:
        request_id = next(self._ids) if id is None else id
        self.raw(encode({"id": request_id, "method": method, "params": params or {}}), session=session, again=again)
        return session, request_id

    def raw(self, line: bytes, *, session: str = "s1", again: bool = False) -> None:
        self.from_client(wire.Call(again=again), line, session=session)

    def cancel(self, call: tuple[str, Any]) -> None:
        self.raw(encode({"method": "pool/cancel", "params": {"requestId": call[1]}}), session=call[0])

    def error(self, call: tuple[str, Any]) -> dict[str, Any]:
        (answer,) = self.answers[call]
        error: dict[str, Any] = answer["error"]
        return error

    # Workers.

    def register(
        self,
        name: str = "w0",
        slot: int = 0,
        *,
        holdings: bytes = NOTHING_HELD,
        connection: str | None = None,
        as_of: float | None = None,
        changed_at: float = 0.0,
    ) -> FakeWorker:
        """A worker comes. Its app-server has just been started, unless `spawn` has, or `as_of` says when."""
        worker = self.workers.get(name) or self.spawn(name)
        worker.connection = connection or name
        worker.as_of = worker.as_of if as_of is None else as_of
        head = wire.Register(slot, name, 10, 11, worker.as_of, changed_at)
        self.from_worker(worker, head, b'{"userAgent":"x"}', holdings)
        return worker

    def spawn(self, name: str) -> FakeWorker:
        """An app-server is started: it reads the account that is stored."""
        self.workers[name] = worker = FakeWorker(name, name, as_of=self.now, account=self.stored)
        return worker

    def from_worker(self, worker: FakeWorker, route: Any, *frames: bytes) -> list[Effect]:
        frames = (wire.encode(route), *frames)
        return self.apply(self.core.worker_message(worker.connection.encode(), list(frames), self.now))

    def answer(
        self, worker: FakeWorker, call: int, *, ok: bool = True, record: wire.ThreadRecord | None = None
    ) -> str | None:
        """Answer a call as a worker would; a turn that it starts is named."""
        dispatch, line = worker.open.pop(call)
        key = key_of(dispatch, line)
        turn_id, started = None, None
        if key in worker.answered:
            ok, turn_id = worker.answered[key]
        elif ok and starts_turn(line["method"]):
            turn_id, thread_id = f"u{next(self._turn_numbers)}", line["params"]["threadId"]
            worker.running[turn_id] = (thread_id, named(dispatch.session))
            started = wire.RunningTurn(thread_id, turn_id, [dispatch.session])
        worker.answered[key] = (ok, turn_id)
        body = {"id": line["id"], **({"result": {}} if ok else {"error": {"code": -32600, "message": "no"}})}
        self.answer_with(worker, call, body, record=record, started=started)
        return turn_id

    def answer_with(
        self,
        worker: FakeWorker,
        call: int,
        body: dict[str, Any],
        *,
        record: wire.ThreadRecord | None = None,
        started: wire.RunningTurn | None = None,
    ) -> None:
        worker.open.pop(call, None)
        route = wire.Answered(call, "result" in body, record, started)
        self.from_worker(worker, route, wire.encode(wire.Lines()), encode(body))

    def put_away(self, worker: FakeWorker, *, ok: bool = True) -> None:
        """Answer all releases."""
        for call in list(worker.releases):
            del worker.releases[call]
            self.from_worker(worker, wire.Answered(call, ok))

    def apply_one(self, worker: FakeWorker, answer: dict[str, Any] | None = None, *told: dict[str, Any]) -> str:
        """Answer the change that this worker is to make, by default as an app-server that is logged in or out; its
        method."""
        ((call, line),) = worker.applies.items()
        worker.applies = {}
        method: str = line["method"]
        if answer is None:
            answer = {"result": {}}
            if method == "account/read":
                account = {"type": "apiKey"} if worker.account else None
                answer = {"result": {"account": account, "requiresOpenaiAuth": True}}
            elif method in ("account/login/start", "account/logout"):
                params = line["params"]
                kind = params.get("type")
                worker.account = params.get("apiKey", params.get("accessToken"))
                if kind != "chatgptAuthTokens":
                    self.stored = worker.account
                told = ({"method": "account/updated", "params": {"authMode": kind, "planType": None}},)
        body = b"\n".join(encode(message) for message in ({"id": 1, **answer}, *told))
        self.from_worker(worker, wire.Answered(call, "result" in answer), wire.encode(wire.Lines()), body)
        return method

    def apply_all(self) -> list[tuple[str, str]]:
        """Make all changes; which were made where, in order."""
        made = []
        while applying := [worker for worker in self.workers.values() if worker.applies and not worker.lost]:
            in_time = [worker for worker in applying if worker.name not in self.renewals]
            assert len(in_time) <= 1, "one after the other"
            made.append((applying[0].name, self.apply_one(applying[0])))
        return made

    def answer_all(self, worker: FakeWorker) -> None:
        for call in list(worker.open):
            self.answer(worker, call)

    def end(self, worker: FakeWorker, turn_id: str, status: str = "completed") -> None:
        thread_id, _ = worker.running.pop(turn_id)
        self.from_worker(worker, wire.TurnEnded(thread_id, turn_id, status))

    def wait(self, worker: FakeWorker, turn_id: str, since: float | None = None, method: str = "") -> None:
        """A turn waits for a person from now on, or from `since`."""
        worker.waited.add(turn_id)
        worker.waiting[turn_id] = self.now if since is None else since
        self.from_worker(worker, wire.TurnWaits(turn_id, worker.waiting[turn_id], method))

    def go_on(self, worker: FakeWorker, turn_id: str) -> None:
        """A turn that has waited for a person goes on."""
        del worker.waiting[turn_id]
        self.from_worker(worker, wire.TurnWaits(turn_id, None))

    def lose(self, worker: FakeWorker, reason: str = "killed") -> None:
        worker.lost = True
        self.apply(self.core.worker_lost(worker.name, reason, self.now))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.apply(self.core.tick(self.now))

    # Whole exchanges.

    def thread(self, thread_id: str, *, session: str = "s1", turns: int = 1, ephemeral: bool = False) -> FakeWorker:
        """A thread, held by the worker that is returned."""
        self.call("thread/start", session=session)
        worker, call = next(
            (worker, call)
            for worker in self.workers.values()
            for call, (_, line) in worker.open.items()
            if line["method"] == "thread/start"
        )
        self.answer(worker, call, record=wire.ThreadRecord(thread_id, ephemeral, turns=turns))
        return worker

    def turn(self, thread_id: str, *, session: str = "s1") -> tuple[FakeWorker, str]:
        """A turn that runs on this thread, and where."""
        call = self.call("turn/start", {"threadId": thread_id}, session=session)
        worker, number = next(
            (worker, number)
            for worker in self.workers.values()
            for number, (_, line) in worker.open.items()
            if line["id"] == call[1]
        )
        turn_id = self.answer(worker, number)
        assert turn_id is not None
        return worker, turn_id

    def dispatches(self, call: tuple[str, Any]) -> list[tuple[str, wire.Dispatch]]:
        """List the places where this request is under way."""
        return [
            (worker.name, head)
            for worker in self.workers.values()
            if not worker.lost
            for head, line in worker.open.values()
            if (named(head.session), line["id"]) == call
        ]

    def drain(self, worker: FakeWorker) -> None:
        worker.draining = True
        self.apply(self.core.drain(worker.name, self.now))

    def beat(self, seconds: float, *sessions: str, wedged: str = "") -> None:
        """Time passes; all workers beat, and of the clients these. The loop of a wedged worker does not turn."""
        for _ in range(int(seconds)):
            for session in sessions:
                self.from_client(wire.Beat(), session=session)
            for worker in self.workers.values():
                if not worker.lost:
                    self.loops += 1
                    loops = 7 if worker.name == wedged else self.loops + 100
                    self.from_worker(worker, wire.Progress(worker.name, loops, 1, 0))
            self.tick(1.0)

    def status(self) -> dict[str, Any]:
        return self.core.status(self.now)


def total_held(bench: Bench) -> int:
    held = bench.core.held
    kinds = (
        "requests",
        "calls",
        "waiting",
        "starting",
        "turns",
        "unassigned",
        "moving",
        "callers",
        "changes",
        "logins",
    )
    return sum(held[kind] for kind in kinds)
