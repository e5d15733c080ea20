"""The worker between an app-server that does its work and sessions whose connections, and brokers, are lost."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from session_ids import named, sid
from worker_bench import Reader, completed, delta, encode, item, thread_result

from codex_pool.protocol import packs, wire
from codex_pool.worker.core import WorkerCore
from codex_pool.worker.effects import Effect, Fail, ToAppServer, ToBroker
from codex_pool.worker.subscription import Limits

SESSIONS = ("s1", "s2")
THREADS = ("t1", "t2", "t3")
SMALL = Limits(window=3000, session_window=6000, waiting=10**6, overflow=10**6, total=10**7)
OVERLOADED = {"code": -32001, "message": "Server overloaded; retry later.", "data": None}


class Session(Reader):
    """A client: its calls, until their answers have been read."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.unanswered: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, dict[str, Any]] = {}
        # The broker has died, and it has not come back yet.
        self.away = False

    def read_one(self) -> wire.Position | None:
        head = wire.decode_to_client(self.on_the_way[0][0])
        if not isinstance(head, wire.Lines):
            return self.read()
        _, body = self.on_the_way.popleft()
        for line in body.split(b"\n"):
            answer = json.loads(line)
            if "method" not in answer:
                assert answer["id"] not in self.answers, "a call is answered once"
                self.answers[answer["id"]] = answer
                del self.unanswered[answer["id"]]
        return None


class LossMachine(RuleBasedStateMachine):
    """Whatever is lost on the way: each call is done once and answered, each turn ends once for each who follows it."""

    @initialize()
    def begin(self) -> None:
        self.now = 100.0
        self.passed = 0.0
        self.core = WorkerCore(worker="w0", slot=0, pid=1, app_server_pid=2, initialize={}, limits=SMALL)
        self.sessions = {name: Session(name) for name in SESSIONS}
        self.ids = itertools.count(1)
        self.numbers = itertools.count(1)
        self.turn_ids = itertools.count(1)
        # What the broker waits for: call -> session.
        self.calls: dict[int, str] = {}
        self.latest: dict[tuple[str, str], int] = {}
        self.open: dict[int, dict[str, Any]] = {}
        self.done: Counter[str] = Counter()
        self.running: dict[str, str] = {}
        self.started: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.apply(self.core.start(self.now))
        self.answer(next(iter(self.open)))
        for thread in THREADS:
            self.call("s1", "thread/start", {})
            self.answer(next(iter(self.open)), thread)

    # The app-server and the broker.

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert not isinstance(effect, Fail)
            if isinstance(effect, ToAppServer):
                message = json.loads(effect.line)
                if "id" in message and "method" in message:
                    self.open[message["id"]] = message
            elif isinstance(effect, ToBroker):
                self.on_broker(*effect.frames)

    def on_broker(self, frame: bytes, *frames: bytes) -> None:
        route = wire.decode_from_worker(frame)
        match route:
            case wire.Stack():
                for message in packs.unstacked(route, frames):
                    self.on_broker(*message)
            case wire.ToSessions():
                for session in map(named, route.sessions):
                    if not self.sessions[session].away:
                        self.sessions[session].on_the_way += packs.unpacked([*frames])
            case wire.Answered():
                # A number that this broker never gave would be another call's.
                self.sessions[self.calls.pop(route.call)].on_the_way.append([*frames])
                if route.started is not None:
                    self.started[route.started.turn_id] += 1
            case wire.TurnStarted():
                self.started[route.turn_id] += 1
            case wire.TurnEnded():
                self.ended[route.turn_id] += 1
                for session in map(named, route.sessions):
                    if not self.sessions[session].away:
                        self.sessions[session].on_the_way.append([*frames])
            case wire.Register():
                self.holdings = wire.decode_worker_state(frames[1])

    def say(self, *messages: Any) -> None:
        self.apply(self.core.lines([encode(message) for message in messages], self.now, 0.3))

    def answer(self, number: int, thread: str = "") -> None:
        request = self.open.pop(number)
        method, params = request["method"], request.get("params") or {}
        result: dict[str, Any] = {}
        if method == "thread/start":
            result = thread_result(thread)
        elif method == "turn/start":
            turn_id = f"u{next(self.turn_ids)}"
            self.running[turn_id] = params["threadId"]
            self.done[params["clientUserMessageId"]] += 1
            result = {"turn": {"id": turn_id}}
        elif method == "thread/read":
            result = {"thread": {"id": params["threadId"], "turns": []}}
        elif method == "model/list":
            self.done["model/list"] += 1
        self.say({"id": number, "result": result})

    # The sessions.

    def call(self, session: str, method: str, params: dict[str, Any]) -> None:
        if self.sessions[session].away:
            return
        message = {"id": f"r{next(self.ids)}", "method": method, "params": params}
        self.sessions[session].unanswered[message["id"]] = message
        self.dispatch(session, message, again=False)

    def dispatch(self, session: str, message: dict[str, Any], *, again: bool) -> None:
        number = next(self.numbers)
        # The broker forgets the number under which it asked before.
        self.calls.pop(self.latest.get((session, message["id"]), 0), None)
        self.latest[session, message["id"]] = number
        self.calls[number] = session
        interest: wire.Interest = "items" if session == "s2" else "full"
        head = wire.Dispatch(number, sid(session), interest, again=again)
        self.apply(self.core.broker_message(head, [encode(message)], self.now))

    @rule(session=st.sampled_from(SESSIONS), thread=st.sampled_from(THREADS))
    def start_turn(self, session: str, thread: str) -> None:
        starting = [
            message["params"].get("threadId") for each in self.sessions.values() for message in each.unanswered.values()
        ]
        if thread not in starting and thread not in self.running.values():
            self.call(session, "turn/start", {"threadId": thread})

    @rule(session=st.sampled_from(SESSIONS))
    def ask_something(self, session: str) -> None:
        self.call(session, "model/list", {})

    @precondition(lambda self: self.running)
    @rule(session=st.sampled_from(SESSIONS), data=st.data())
    def join(self, session: str, data: st.DataObject) -> None:
        turn_id = data.draw(st.sampled_from(sorted(self.running)))
        reader = self.sessions[session]
        if turn_id not in reader.last and not reader.away:
            # What came before is not for who joins later.
            reader.last.setdefault(turn_id, -1)
            self.call(session, "pool/turn/follow", {"threadId": self.running[turn_id], "turnId": turn_id})

    @precondition(lambda self: self.open)
    @rule(data=st.data(), overloaded=st.booleans())
    def app_server_answers(self, data: st.DataObject, overloaded: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        if overloaded:
            del self.open[number]
            self.say({"id": number, "error": OVERLOADED})
        else:
            self.answer(number)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), makes=st.lists(st.sampled_from([delta, item]), min_size=1, max_size=6), ended=st.booleans())
    def app_server_says(self, data: st.DataObject, makes: list[Any], ended: bool) -> None:
        turn_id = data.draw(st.sampled_from(sorted(self.running)))
        thread = self.running[turn_id]
        lines = [make(turn_id, thread) for make in makes]
        if ended:
            del self.running[turn_id]
            lines.append(completed(turn_id, thread))
        self.say(*lines)

    @rule(session=st.sampled_from(SESSIONS), count=st.integers(1, 8), acks=st.booleans())
    def read(self, session: str, count: int, acks: bool) -> None:
        reader = self.sessions[session]
        for _ in range(min(count, len(reader.on_the_way))):
            position = reader.read_one()
            if position is not None and acks:
                self.apply(self.core.broker_message(wire.Acked(sid(session), [position]), [], self.now))

    @rule(session=st.sampled_from(SESSIONS))
    def connection_is_lost(self, session: str) -> None:
        reader = self.sessions[session]
        reader.on_the_way.clear()
        reader.ended_before_reconnect |= set(reader.ended)
        reader.away = False
        positions = [
            wire.Position(turn_id, max(last, 0)) for turn_id, last in reader.last.items() if turn_id not in reader.ended
        ]
        self.apply(self.core.broker_message(wire.SessionResumed(sid(session), positions), [], self.now))
        for message in [*reader.unanswered.values()]:
            self.dispatch(session, message, again=True)

    @rule()
    def broker_dies(self) -> None:
        for reader in self.sessions.values():
            reader.on_the_way.clear()
            reader.away = True
        self.calls.clear()
        self.numbers = itertools.count(1)
        self.latest.clear()
        self.apply(self.core.new_broker(self.now))
        assert {turn.turn_id for turn in self.holdings.turns} == {*self.started} - {*self.ended}

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        # Calls that run into their deadline (60 s) have tests of their own.
        if self.passed + seconds < 50:
            self.passed += seconds
            self._pass(seconds)

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        self.apply(self.core.tick(self.now))
        for number, message in list(self.open.items()):
            if message["method"] == "thread/loaded/list":
                self.answer(number)

    @invariant()
    def once(self) -> None:
        assert all(count == 1 for key, count in self.done.items() if key != "model/list"), self.done
        assert all(count == 1 for count in (*self.started.values(), *self.ended.values()))

    def teardown(self) -> None:
        """Check that in the end all is answered, all has ended for all, and nothing is kept."""
        if not hasattr(self, "core"):
            return
        for _ in range(1000):
            while self.open:
                self.answer(next(iter(self.open)))
            while self.running:
                turn_id, thread = self.running.popitem()
                self.say(completed(turn_id, thread))
            for session in SESSIONS:
                self.connection_is_lost(session)
                while self.sessions[session].on_the_way:
                    self.read(session, 1, True)
            if not self.open and not any(reader.unanswered for reader in self.sessions.values()):
                break
            self._pass(1.0)
        started = {
            answer["result"]["turn"]["id"]: name
            for name, reader in self.sessions.items()
            for answer in reader.answers.values()
            if "turn" in answer.get("result", {})
        }
        assert set(started) == set(self.started) == set(self.ended) == {f"u{n + 1}" for n in range(len(started))}
        for turn_id, session in started.items():
            assert self.sessions[session].ended[turn_id] == ""
            lines = self.sessions[session].lines[turn_id]
            assert lines[0]["method"] == "pool/turn/assigned" and lines[-1]["method"] == "turn/completed"
            assert turn_id not in self.sessions[session].dropped
        for reader in self.sessions.values():
            assert {turn for turn, last in reader.last.items() if last >= 0} == set(reader.ended)
        held = self.core.held
        assert not any(held.values()), held


TestLossMachine = LossMachine.TestCase
TestLossMachine.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
