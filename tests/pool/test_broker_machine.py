"""The broker in any order of events: clients that come, go and come back, workers that die or drain, a new broker."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

from broker_bench import NOTHING_HELD, Bench, FakeWorker, starts_turn, total_held
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from session_ids import named, sid, sids

from codex_pool.broker.core import BrokerCore
from codex_pool.protocol import wire

THREADS = ["t1", "t2", "t3", "t4", "t5"]
SESSIONS = ["s1", "s2", "s3"]
METHODS = [
    *(
        "turn/start",
        "turn/start",
        "turn/start",
        "turn/start",
        "turn/start",
        "turn/start",
        "turn/start",
        "review/start",
        "turn/steer",
        "thread/start",
        "thread/resume",
    ),
    *("thread/read", "thread/list", "thread/unsubscribe", "model/list", "config/value/write", "account/read"),
    *("account/login/start", "account/login/start", "account/logout", "skills/extraRoots/set"),
]
CHANGES_ACCOUNT = {"account/login/start", "account/logout"}


class BrokerMachine(RuleBasedStateMachine):
    """`live` are the workers that run, by name; `started` the turns of those who are there: worker, thread, session.

    `over` are the turns whose end was told, or is a living worker's to tell.
    """

    @initialize(slots=st.integers(1, 3), turns=st.integers(1, 2), limit=st.sampled_from([0, 2]))
    def begin(self, slots: int, turns: int, limit: int) -> None:
        self.bench = Bench(slots=slots, turns_per_worker=turns, recycle_descendants=limit, waiting_turns_per_worker=2)
        self.limit = limit
        self.generations = itertools.count(2)
        self.live: dict[str, FakeWorker] = {}
        self.slot_of: dict[str, int] = {}
        self.calls: dict[tuple[str, Any], tuple[str, dict[str, Any]]] = {}
        self.sessions: set[str] = set()
        self.away: set[str] = set()
        self.started: dict[str, tuple[str, str, str]] = {}
        self.over: set[str] = set()
        # Log-ins and log-outs that have not been answered, and what was answered last.
        self.logins: dict[tuple[str, Any], str | None] = {}
        # What log-ins that were answered with an error have asked for, until another succeeds.
        self.in_doubt: set[str | None] = set()
        self.account: str | None = None
        self.seen_answers: set[tuple[str, Any]] = set()
        self.spawned: dict[int, str] = {}
        self.register(0)
        for session in SESSIONS:
            self.hello(session)
        if limit:
            # Threads of the beginning bring nothing along.
            self.bench.from_worker(self.live["w0.2"], wire.ProcessTree(threads=1, each=0))
        # Without threads that are there from the beginning few turns would ever meet.
        for thread, session in zip(THREADS[:3], SESSIONS, strict=True):
            self.bench.thread(thread, session=session)
        self.bench.thread("t5", session="s1", ephemeral=True)

    # Clients.

    @rule(session=st.sampled_from(SESSIONS))
    def hello(self, session: str) -> None:
        if session in self.sessions or not self.live:
            return
        self.bench.hello(session, connection=f"{session}/{next(self.generations)}")
        self.sessions.add(session)

    @rule(session=st.sampled_from(SESSIONS), how=st.sampled_from(["bye", "grace"]))
    def leave(self, session: str, how: str) -> None:
        if session not in self.sessions:
            return
        if how == "bye" and session in self.away:
            self.come_back(session)
        if how == "bye":
            self.bench.from_client(wire.Bye(), session=session)
        else:
            self.go_away(session)
            for _ in range(22):
                self.time_passes(1.0)
        assert sid(session) not in self.bench.core.state.sessions
        self.sessions.discard(session)
        self.away.discard(session)
        # The next session of that name begins anew.
        self.calls = {call: line for call, line in self.calls.items() if call[0] != session}
        self.bench.answers = {key: value for key, value in self.bench.answers.items() if key[0] != session}
        self.started = {turn: value for turn, value in self.started.items() if value[2] != session}

    @rule(session=st.sampled_from(SESSIONS))
    def go_away(self, session: str) -> None:
        if session in self.sessions - self.away:
            connection = self.bench.connections[session].encode()
            self.bench.apply(self.bench.core.client_unreachable(connection, self.bench.now))
            self.away.add(session)

    @rule(session=st.sampled_from(SESSIONS))
    def come_back(self, session: str) -> None:
        """Also while it is not away: its connection was cut and nobody here has noticed."""
        if session in self.sessions and self.bench.core.state.initialize is not None:
            self.say_hello_again(session)
            self.send_again(session)

    def say_hello_again(self, session: str) -> None:
        mine = {turn: thread for turn, (_, thread, owner) in self.started.items() if owner == session}
        places = [wire.Position(turn, 0, thread) for turn, thread in mine.items() if turn not in self.over]
        told = len(self.bench.ended)
        self.bench.hello(session, connection=f"{session}/{next(self.generations)}", positions=places)
        self.away.discard(session)
        self.over |= {turn for _, turn in self.bench.ended[told:]}

    def send_again(self, session: str) -> None:
        for call, (method, params) in list(self.calls.items()):
            if call[0] == session and call not in self.bench.answers:
                self.bench.call(method, params, session=session, id=call[1], again=True)

    @rule(
        session=st.sampled_from(SESSIONS),
        method=st.sampled_from(METHODS),
        thread=st.sampled_from([*THREADS, "unknown"]),
        count=st.integers(1, 3),
    )
    def call(self, session: str, method: str, thread: str, count: int) -> None:
        for _ in range(count):
            if session in self.sessions - self.away:
                params = {"threadId": thread}
                if method in CHANGES_ACCOUNT:
                    key = f"sk-{next(self.generations)}" if method == "account/login/start" else None
                    params = {"type": "apiKey", "apiKey": key} if key else {}
                    call = self.bench.call(method, params, session=session)
                    self.calls[call], self.logins[call] = (method, params), key
                    continue
                self.calls[self.bench.call(method, params, session=session)] = method, params

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        calls = [call for call in self.calls if call[0] not in self.away]
        if calls:
            call = data.draw(st.sampled_from(calls))
            waits = str(call[1]) in self.bench.core.state.sessions[sid(call[0])].held
            before = len(self.bench.answers.get(call, []))
            self.bench.cancel(call)
            assert len(self.bench.answers.get(call, [])) == before + waits

    # Workers.

    @rule(slot=st.integers(0, 2))
    def spawn(self, slot: int) -> None:
        """An app-server is started, and takes its time until it is there."""
        if slot < self.bench.slots and slot not in self.spawned:
            self.spawned[slot] = f"w{slot}.{next(self.generations)}"
            self.bench.spawn(self.spawned[slot])
            # Nothing else happens at the same time.
            self.bench.now += 0.001

    @rule(slot=st.integers(0, 2))
    def register(self, slot: int) -> None:
        taken = any(self.slot_of[worker.name] == slot for worker in self.live.values() if not worker.draining)
        if slot < self.bench.slots and not taken:
            name = self.spawned.pop(slot, None) or f"w{slot}.{next(self.generations)}"
            self.slot_of[name] = slot
            self.live[name] = self.bench.register(name, slot, holdings=self._empty())
            self.bench.now += 0.001

    def _empty(self) -> bytes:
        return wire.encode_worker_state(wire.WorkerState([], tree=wire.ProcessTree() if self.limit else None))

    @rule(data=st.data(), servers=st.integers(0, 3), threads=st.integers(0, 3), few=st.integers(0, 1))
    def count(self, data: st.DataObject, servers: int, threads: int, few: int) -> None:
        """A worker says how many processes are below it."""
        if self.live and self.limit:
            worker = self.live[data.draw(st.sampled_from(sorted(self.live)))]
            each = servers if threads else None
            settled = max(0, servers - few)
            self.bench.from_worker(
                worker, wire.ProcessTree(servers, settled, threads=threads, young=few, each=each, fresh=few)
            )

    @rule(data=st.data(), late=st.booleans())
    def lose(self, data: st.DataObject, late: bool) -> None:
        if self.live:
            self._lose(self.live[data.draw(st.sampled_from(sorted(self.live)))], late)

    def _lose(self, worker: FakeWorker, late: bool) -> None:
        del self.live[worker.name]
        ended = len(self.bench.ended)
        self.bench.lose(worker)
        told = {turn for _, turn in self.bench.ended[ended:]}
        followed = {turn for turn in worker.running if turn in self.started}
        assert told == {turn for turn in followed if self.started[turn][2] not in self.away}
        self.over |= told
        if late:
            self.bench.from_worker(worker, wire.Register(0, worker.name, 1, 1), b"{}", NOTHING_HELD)
            for turn_id, (thread_id, _) in worker.running.items():
                self.bench.from_worker(worker, wire.TurnEnded(thread_id, turn_id, "completed"))

    @rule(data=st.data())
    def new_connection(self, data: st.DataObject) -> None:
        if self.live:
            name = data.draw(st.sampled_from(sorted(self.live)))
            self.bench.register(name, self.slot_of[name], connection=f"{name}/{next(self.generations)}")

    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        """Drain a worker whose replacement is ready first."""
        staying = sorted(name for name, worker in self.live.items() if not worker.draining)
        if staying:
            self._drain(self.live[data.draw(st.sampled_from(staying))])

    def _drain(self, worker: FakeWorker) -> None:
        worker.draining = True
        self.register(self.slot_of[worker.name])
        self.bench.drain(worker)

    @rule()
    def renew(self) -> None:
        """The supervisor does what it was told to."""
        renewals = self.bench.renewals.keys() | self.bench.full.keys()
        stale = [worker for name, worker in self.live.items() if name in renewals and not worker.draining]
        if stale:
            self._drain(stale[0])

    @rule(ok=st.booleans())
    def change(self, ok: bool) -> None:
        """An app-server makes the change that it is to make, or refuses."""
        for worker in self.live.values():
            if worker.applies:
                self.bench.apply_one(worker, None if ok else {"error": {"code": -32600, "message": "no"}})
                return

    @rule(data=st.data(), key=st.booleans())
    def log_in_by_browser(self, data: st.DataObject, key: bool) -> None:
        """Somebody has logged in on one app-server, and nobody is at it elsewhere."""
        if self.live and not self.logins and self.sessions - self.away:
            worker = self.live[data.draw(st.sampled_from(sorted(self.live)))]
            if worker.name not in self.bench.renewals and worker.name not in self.bench.drained:
                self.account = worker.account = self.bench.stored = f"browser-{next(self.generations)}"
                worker.as_of = self.bench.now
                self.bench.from_worker(worker, wire.LoginEnded("x", [], changed=True))

    @rule(data=st.data(), ok=st.booleans())
    def put_away(self, data: st.DataObject, ok: bool) -> None:
        releasing = sorted(name for name, worker in self.live.items() if worker.releases)
        if releasing:
            self.bench.put_away(self.live[data.draw(st.sampled_from(releasing))], ok=ok)

    @rule()
    def stop_drained(self) -> None:
        for name in self.bench.drained:
            if name in self.live:
                worker = self.live[name]
                # What it has answered may be sent again meanwhile.
                assert all(head.again for head, _ in worker.open.values())
                assert not worker.running and not worker.releases
                self._lose(worker, late=False)

    @rule(data=st.data(), ok=st.booleans())
    def answer(self, data: st.DataObject, ok: bool) -> None:
        pending = [(worker, call) for worker in self.live.values() for call in worker.open]
        if pending:
            self._answer(*data.draw(st.sampled_from(pending)), ok)

    def _answer(self, worker: FakeWorker, call: int, ok: bool) -> None:
        dispatch, line = worker.open[call]
        method, thread = line["method"], line["params"]["threadId"]
        record = None
        if ok and method in ("thread/start", "thread/resume") and thread != "unknown":
            held = self.bench.core.state.threads.get(thread)
            if held is not None and (method == "thread/start" or held.worker != worker.name):
                ok = False  # An app-server gives every thread a new id; another one has the thread.
            else:
                record = wire.ThreadRecord(thread, thread == "t5", turns=held.record.turns if held else 1)
        if not ok and dispatch.adopt is not None:
            self.bench.from_worker(worker, wire.ThreadGone(thread, keep=True))
        if starts_turn(method) and thread not in self.bench.core.state.threads:
            ok = False
        new = len(worker.running)
        turn_id = self.bench.answer(worker, call, ok=ok, record=record)
        if turn_id is not None and len(worker.running) > new and named(dispatch.session) in self.sessions:
            self.started[turn_id] = worker.name, thread, named(dispatch.session)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        running = [(worker, turn) for worker in self.live.values() for turn in worker.running]
        if running:
            self._end(*data.draw(st.sampled_from(running)))

    @rule(data=st.data())
    def wait_or_go_on(self, data: st.DataObject) -> None:
        """A turn begins to wait for a person, or has its answer."""
        running = [(worker, turn) for worker in self.live.values() for turn in worker.running]
        if running:
            worker, turn_id = data.draw(st.sampled_from(running))
            (self.bench.go_on if turn_id in worker.waiting else self.bench.wait)(worker, turn_id)

    def _end(self, worker: FakeWorker, turn_id: str) -> None:
        worker.waiting.pop(turn_id, None)
        self.bench.end(worker, turn_id)
        self.over.add(turn_id)

    @rule(thread=st.sampled_from(THREADS), keep=st.booleans(), data=st.data())
    def thread_gone(self, thread: str, keep: bool, data: st.DataObject) -> None:
        busy = {t for worker in self.live.values() for t, _ in worker.running.values()}
        busy |= {line["params"]["threadId"] for worker in self.live.values() for _, line in worker.open.values()}
        if self.live and thread not in busy:
            worker = self.live[data.draw(st.sampled_from(sorted(self.live)))]
            self.bench.from_worker(worker, wire.ThreadGone(thread, keep))

    # The broker, and time.

    @rule(dead=st.booleans())
    def new_broker(self, dead: bool) -> None:
        """The broker dies, perhaps a worker with it; what lives comes to the next one."""
        # What a worker has under way it tells only by its id: starts are answered first.
        while starts := [
            (worker, call)
            for worker in self.live.values()
            for call, (_, line) in worker.open.items()
            if starts_turn(line["method"])
        ]:
            self._answer(*starts[0], True)
        if not self.live or any(worker.draining for worker in self.live.values()):
            return
        holdings = {name: self._holdings(worker) for name, worker in self.live.items()}
        self.bench.tick(1.5)
        known = set(self.bench.core.state.threads)
        self.bench.core = BrokerCore(
            slots=self.bench.slots,
            turns_per_worker=self.bench.turns_per_worker,
            now=self.bench.now,
            expect=self.live,
            checkpoint=self.bench.checkpoint,
            changed_at=self.bench.now if self.bench.account[1] else self.bench.account[0],
            recycle_descendants=self.limit,
            waiting_turns_per_worker=2,
        )
        if dead and len(self.live) > 1:
            worker = self.live.pop(min(self.live))
            worker.lost = True
            self.bench.apply(self.bench.core.worker_lost(worker.name, "killed", self.bench.now))
        self.bench.answers = {key: value for key, value in self.bench.answers.items() if key[0] in self.sessions}
        for session in sorted(self.sessions):
            self.say_hello_again(session)
        for name, worker in self.live.items():
            worker.open.clear()
            worker.applies.clear()
            ended = len(self.bench.ended)
            connection = f"{name}/{next(self.generations)}"
            self.bench.register(name, self.slot_of[name], holdings=holdings[name], connection=connection)
            self.over |= {turn for _, turn in self.bench.ended[ended:]}
        assert self.bench.core.state.threads.keys() >= known, "no thread is forgotten"
        for session in sorted(self.sessions):
            self.send_again(session)

    def _holdings(self, worker: FakeWorker) -> bytes:
        threads = {k: v for k, v in self.bench.core.state.threads.items() if v.worker == worker.name}
        calls = {(named(head.session), str(line["id"])) for head, line in worker.open.values()} | set(worker.answered)
        ended = [turn for turn, (name, _, _) in self.started.items() if name == worker.name and turn in self.over]
        return wire.encode_worker_state(
            wire.WorkerState(
                records=[thread.record for thread in threads.values()],
                followers={thread_id: list(thread.followers) for thread_id, thread in threads.items()},
                turns=[
                    wire.RunningTurn(
                        thread, turn, sids(*[session] if session in self.sessions else []), worker.waiting.get(turn)
                    )
                    for turn, (thread, session) in worker.running.items()
                ],
                calls=[wire.KnownCall(sid(session), request) for session, request in calls if session in self.sessions],
                ended=ended,
                replayed_requests=[json.dumps(line).encode() for line in worker.kept],
                replayed_at=worker.current.replayed_at if worker.current is not None else 0.0,
                tree=self.bench.core.state.workers[worker.name].tree,
            )
        )

    @rule(seconds=st.sampled_from([0.5, 1.5]))
    def time_passes(self, seconds: float) -> None:
        for session in self.sessions - self.away:
            self.bench.from_client(wire.Beat(), session=session)
        for worker in self.live.values():
            self.bench.loops += 1
            self.bench.from_worker(worker, wire.Progress(worker.name, self.bench.loops, 1, 0))
        self.bench.tick(seconds)
        # A session that was away for too long is over.
        for session in self.away - {named(each) for each in self.bench.core.state.sessions}:
            self.sessions.discard(session)
            self.away.discard(session)
            self.calls = {call: line for call, line in self.calls.items() if call[0] != session}
            self.bench.answers = {key: value for key, value in self.bench.answers.items() if key[0] != session}
            self.started = {turn: value for turn, value in self.started.items() if value[2] != session}

    # What holds at all times.

    @invariant()
    def within_bounds(self) -> None:
        if not hasattr(self, "bench"):
            return
        busy: Counter[str] = Counter()
        for worker in self.live.values():
            assert worker.load <= self.bench.turns_per_worker
            busy.update(thread for thread, _ in worker.running.values())
            busy.update(
                line["params"]["threadId"]
                for head, line in worker.open.values()
                if starts_turn(line["method"]) and (named(head.session), str(line["id"])) not in worker.answered
            )
        known = {thread: count for thread, count in busy.items() if thread in self.bench.core.state.threads}
        assert all(count == 1 for count in known.values()), known

    @invariant()
    def turns_begin_with_the_account_of_the_last_answer(self) -> None:
        """Or with one that was asked for and has not been answered."""
        if not hasattr(self, "bench"):
            return
        before = {self.account, *self.logins.values()}
        # In the order of the answers, which is that of the changes.
        for call in [call for call in self.bench.answers if call in self.logins]:
            (answer,) = self.bench.answers[call]
            key = self.logins.pop(call)
            if "result" in answer:
                self.account = key
                self.in_doubt.clear()
            else:
                # A log-in that failed may have been stored by one app-server, at once or later.
                self.in_doubt.add(key)
            before |= {self.account, self.bench.stored if self.in_doubt else self.account, *self.in_doubt}
        before |= self.in_doubt
        begun, self.bench.started_with = self.bench.started_with, []
        assert set(begun) <= before, (begun, before)

    @invariant()
    def answered_at_most_once(self) -> None:
        if hasattr(self, "bench"):
            assert all(len(answers) == 1 for answers in self.bench.answers.values())
            assert len(set(self.bench.ended)) == len(self.bench.ended)

    @invariant()
    def the_least_busy_worker_is_that_of_a_look_at_all(self) -> None:
        if not hasattr(self, "bench"):
            return
        assert self.bench.core.state.busy.faults() == []
        placement = self.bench.core._dispatcher.placement
        for loads in (False, True):
            assert placement.least_busy(loads=loads) is placement._least_busy_of_all(loads=loads)

    @invariant()
    def work_goes_on(self) -> None:
        """Nothing waits with a worker that has room for it."""
        if not hasattr(self, "bench"):
            return
        state = self.bench.core.state
        for worker in state.workers.values():
            if worker.load < self.bench.turns_per_worker and worker.takes_work:
                for call in worker.queue:
                    thread = state.threads[call.thread_id or ""]
                    # One that is with no worker waits for room.
                    assert (thread.busy and thread.worker == worker.name) or (self.limit and thread.worker is None)

    @invariant()
    def the_state_agrees(self) -> None:
        if hasattr(self, "bench"):
            assert self.bench.core.state.faults() == []

    def waits_for_room(self) -> bool:
        return bool(self.limit) and self.bench.core.held["waiting"] > 0

    def teardown(self) -> None:
        """Check that every call has one answer and nothing is kept, once everything has been answered and ended."""
        if not hasattr(self, "bench"):
            return
        self.register(0)
        for session in sorted(self.away):
            self.come_back(session)
        for _ in range(10_000):
            pending = [(worker, call) for worker in self.live.values() for call in worker.open]
            running = [(worker, turn) for worker in self.live.values() for turn in worker.running]
            releasing = [worker for worker in self.live.values() if worker.releases]
            self.turns_begin_with_the_account_of_the_last_answer()
            if self.bench.apply_all():
                continue
            self.renew()
            if pending:
                self._answer(*pending[0], True)
            elif running:
                self._end(*running[0])
            elif releasing:
                self.bench.put_away(releasing[0])
            else:
                before = len(self.live)
                self.stop_drained()
                if len(self.live) == before and not self.waits_for_room():
                    break
                self.register(0)
                if self.waits_for_room():
                    # Nobody waits without a limit.
                    self.time_passes(1.5)
        assert set(self.calls) <= set(self.bench.answers)
        assert total_held(self.bench) == 0, self.bench.core.held
        assert set(self.started) <= self.over


TestBrokerMachine = BrokerMachine.TestCase
TestBrokerMachine.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
