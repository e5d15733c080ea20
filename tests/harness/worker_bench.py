"""A worker's core between an app-server and a broker that are written down here."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict, deque
from typing import Any

import msgspec
from session_ids import named, sid

from codex_pool.protocol import packs, wire
from codex_pool.worker.core import WorkerCore
from codex_pool.worker.effects import Effect, Fail, Note, Ready, ToAppServer, ToBroker

WORKSPACE_WRITE = '{"type":"workspaceWrite","writableRoots":["/data"],"networkAccess":false}'


def encode(message: Any) -> bytes:
    return msgspec.json.encode(message)


class Bench:
    """A worker core between an app-server and a broker that are written down here.

    `open` are the requests that the app-server has not answered, by its id; `answered` what the broker was told of
    its calls, `events` what each session got of each turn.
    """

    def __init__(self, **options: Any) -> None:
        self.core = WorkerCore(
            worker="w0", slot=0, pid=10, app_server_pid=11, initialize={"clientInfo": {"name": "x"}}, **options
        )
        self.now = 100.0
        self.open: dict[int, dict[str, Any]] = {}
        self.sent: list[dict[str, Any]] = []
        self.answered: dict[int, tuple[wire.Answered, dict[str, Any]]] = {}
        # What the app-server said after a change; log-ins that have ended; requests for external tokens.
        self.told: dict[int, list[dict[str, Any]]] = {}
        self.logins: list[tuple[wire.LoginEnded, list[dict[str, Any]]]] = []
        self.wanted: list[dict[str, Any]] = []
        self.routes: list[Any] = []
        self.events: dict[tuple[str, str], list[tuple[wire.Events, list[dict[str, Any]]]]] = defaultdict(list)
        self.lines: list[tuple[list[str], list[dict[str, Any]]]] = []
        # All that each session got, in order.
        self.received: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.ready = False
        self.notes: list[str] = []
        self.failed = ""
        self._calls = itertools.count(1)

    def start(self) -> Bench:
        self.apply(self.core.start(self.now))
        (request_id,) = self.open
        self.answer(request_id, {"userAgent": "codex/0"})
        return self

    def apply(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            match effect:
                case ToAppServer():
                    self._to_app_server(effect.line)
                case ToBroker():
                    self._to_broker(effect.frames)
                case Ready():
                    self.ready = True
                case Note():
                    self.notes.append(effect.message)
                case Fail():
                    self.failed = effect.reason
        return effects

    def _to_app_server(self, line: bytes) -> None:
        assert b"\n" not in line
        message = json.loads(line)
        self.sent.append(message)
        if "id" in message and "method" in message:
            assert message["id"] not in self.open
            self.open[message["id"]] = message

    def _to_broker(self, frames: list[bytes]) -> None:
        if len(frames) > 1 and packs.is_pack(frames[1:]):
            for message in packs.unpacked(frames[1:]):
                self._to_broker([frames[0], *message])
            return
        route = wire.decode_from_worker(frames[0])
        if isinstance(route, wire.Stack):
            for message in packs.unstacked(route, frames[1:]):
                self._to_broker(message)
            return
        self.routes.append(route)
        if isinstance(route, wire.Answered):
            assert route.call not in self.answered, "a call is answered once"
            if len(frames) == 1:
                # The answer of a command is in its stream.
                self.answered[route.call] = (route, {})
                return
            assert wire.decode_to_client(frames[1]) == wire.Lines()
            (body,) = frames[2:]
            first, *told = body.split(b"\n")
            self.answered[route.call] = (route, json.loads(first))
            self.told[route.call] = [json.loads(line) for line in told]
            if route.started is not None:
                # The broker hears of it as of any other turn.
                self.routes.append(wire.TurnStarted(*msgspec.structs.astuple(route.started)[:3]))
        elif isinstance(route, wire.TokensWanted):
            self.wanted.append(json.loads(frames[1]))
        elif isinstance(route, wire.LoginEnded):
            self.logins.append((route, [json.loads(line) for line in frames[2].split(b"\n")]))
        elif isinstance(route, wire.ToSessions) or (isinstance(route, wire.TurnEnded) and len(frames) > 1):
            head = wire.decode_to_client(frames[1])
            if isinstance(head, wire.Lines):
                lines = [json.loads(line) for line in frames[2].split(b"\n")]
                self.lines.append(([named(each) for each in route.sessions], lines))
                for session in route.sessions:
                    self.received[named(session)] += lines
                return
            assert isinstance(head, wire.Events) and route.sessions
            bodies = [body for run, body in zip(head.runs, frames[2:], strict=True) if run.cls != "dropped"]
            counts = [run.count for run in head.runs if run.cls != "dropped"]
            assert counts == [body.count(b"\n") + 1 for body in bodies]
            lines = [json.loads(line) for body in bodies for line in body.split(b"\n")]
            for session in route.sessions:
                self.events[named(session), head.turn_id].append((head, lines))
                self.received[named(session)] += lines

    def dispatch(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        session: str = "s1",
        interest: wire.Interest = "full",
        adopt: wire.ThreadRecord | None = None,
        id: str | None = None,
        again: bool = False,
        archived: bool = False,
        timeout_s: int = 60,
    ) -> int:
        call = next(self._calls)
        line = encode({"id": id or f"c{call}", "method": method, "params": params or {}})
        head = wire.Dispatch(call, sid(session), interest, adopt, again=again, archived=archived, timeout_s=timeout_s)
        self.apply(self.core.broker_message(head, [line], self.now))
        return call

    def request(self, method: str) -> int:
        """The app-server's id of the oldest open request of this method."""
        return next(number for number, message in self.open.items() if message["method"] == method)

    def answer(self, request_id: int, result: Any = None, *, error: str | None = None, code: int = -32600) -> None:
        self.open.pop(request_id, None)
        if error is None:
            self.say({"id": request_id, "result": result})
        else:
            self.say({"id": request_id, "error": {"code": code, "message": error}})

    def say(self, *messages: Any) -> None:
        """Lines of the app-server, in one read."""
        self.apply(self.core.lines([encode(message) for message in messages], self.now))

    def notify(self, method: str, **params: Any) -> None:
        self.say({"method": method, "params": params})

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.apply(self.core.tick(self.now))

    # Whole exchanges.

    def thread(self, thread_id: str = "t1", session: str = "s1", **fields: Any) -> None:
        self.dispatch("thread/start", session=session)
        self.answer(self.request("thread/start"), thread_result(thread_id, **fields))

    def turn(
        self, turn_id: str, thread_id: str = "t1", *, session: str = "s1", interest: wire.Interest = "full"
    ) -> int:
        call = self.dispatch("turn/start", {"threadId": thread_id}, session=session, interest=interest)
        self.answer(self.request("turn/start"), {"turn": {"id": turn_id}})
        return call

    def delta(self, turn_id: str, thread_id: str = "t1", text: str = "x") -> None:
        self.say(delta(turn_id, thread_id, text))

    def complete(self, turn_id: str, thread_id: str = "t1", status: str = "completed") -> None:
        self.say(completed(turn_id, thread_id, status))

    def back(self, session: str, *positions: wire.Position) -> None:
        self.apply(self.core.broker_message(wire.SessionResumed(sid(session), [*positions]), [], self.now))

    def new_broker(self) -> wire.WorkerState:
        """Return what the next broker is told."""
        (effect,) = self.apply(self.core.new_broker(self.now))
        assert isinstance(effect, ToBroker)
        return wire.decode_worker_state(effect.frames[2])

    def gone(self, session: str) -> None:
        self.apply(self.core.broker_message(wire.SessionGone(sid(session)), [], self.now))

    def ack(self) -> None:
        """Every session has got all that it was sent."""
        for (session, turn_id), messages in list(self.events.items()):
            positions = [wire.Position(turn_id, messages[-1][0].last)]
            self.apply(self.core.broker_message(wire.Acked(sid(session), positions), [], self.now))

    def ended(self) -> list[tuple[Any, ...]]:
        """The turns that have ended: thread, turn, status, and sessions of the last message if there is one."""
        ends = [msgspec.structs.astuple(end)[:4] for end in self.routed(wire.TurnEnded)]
        return [end if end[3] else end[:3] for end in ends]

    def routed(self, kind: type) -> list[Any]:
        return [route for route in self.routes if isinstance(route, kind)]

    def methods(self, session: str, turn_id: str) -> list[str]:
        return [line["method"] for _, lines in self.events[session, turn_id] for line in lines]

    def check_numbers(self, session: str, turn_id: str) -> int:
        """The numbers of this subscriber have no hole; the last of them."""
        heads = [head for head, _ in self.events[session, turn_id]]
        for before, head in itertools.pairwise(heads):
            assert head.after == before.last and not before.ended
        for head, lines in self.events[session, turn_id]:
            assert head.last - head.after >= len(lines)
        return heads[-1].last if heads else 0


def thread_result(thread_id: str, sandbox: str = '{"type":"readOnly"}', **fields: Any) -> dict[str, Any]:
    thread = {"id": thread_id, "ephemeral": False, **fields}
    return {"thread": thread, "cwd": "/w", "model": "m", "sandbox": json.loads(sandbox), "approvalPolicy": "never"}


def delta(turn_id: str, thread_id: str = "t1", text: str = "x") -> dict[str, Any]:
    params = {"threadId": thread_id, "turnId": turn_id, "itemId": "i", "delta": text}
    return {"method": "item/agentMessage/delta", "params": params}


def completed(turn_id: str, thread_id: str = "t1", status: str = "completed") -> dict[str, Any]:
    params = {"threadId": thread_id, "turn": {"id": turn_id, "status": status, "items": []}}
    return {"method": "turn/completed", "params": params}


def item(turn_id: str, thread_id: str = "t1") -> dict[str, Any]:
    params = {"item": {"type": "agentMessage", "id": "i", "text": "x"}, "threadId": thread_id, "turnId": turn_id}
    return {"method": "item/completed", "params": params}


def record(**fields: Any) -> wire.ThreadRecord:
    known: dict[str, Any] = {"turns": 1, "sandbox": WORKSPACE_WRITE, "approval_policy": '"never"', "cwd": "/w"}
    return wire.ThreadRecord("t9", False, **{**known, "model": "m", "name": "N", **fields})


class Reader:
    """A session that reads: what it has got of each turn, checked as it comes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last: dict[str, int] = {}
        self.ended: dict[str, str] = {}
        self.ended_before_reconnect: set[str] = set()
        self.dropped: dict[str, int] = {}
        self.lines: dict[str, list[dict[str, Any]]] = {}
        self.on_the_way: deque[list[bytes]] = deque()

    def read(self) -> wire.Position | None:
        """Take one message; the position to acknowledge."""
        if not self.on_the_way:
            return None
        frame, *bodies = self.on_the_way.popleft()
        head = wire.decode_to_client(frame)
        assert isinstance(head, wire.Events)
        turn_id = head.turn_id
        if turn_id in self.ended:
            # It ended, but that was not acknowledged when the connection was lost: it comes again.
            assert turn_id in self.ended_before_reconnect, "a turn ends once"
            return wire.Position(turn_id, head.last)
        # -1: it joined later, and does not know yet from where.
        if self.last.get(turn_id) == -1:
            self.last[turn_id] = head.after
        assert head.after == self.last.get(turn_id, head.after), "no number is missing or comes twice"
        assert len(head.runs) == len(bodies)
        if turn_id not in self.last:
            assert head.after == 0, "who was there from the start gets it from the start"
        lines = self.lines.setdefault(turn_id, [])
        for run, body in zip(head.runs, bodies, strict=True):
            if run.cls == "dropped":
                assert body == b"" and run.count > 0
                self.dropped[turn_id] = self.dropped.get(turn_id, 0) + run.count
            else:
                found = [json.loads(line) for line in body.split(b"\n")]
                assert len(found) == run.count
                lines += found
        self.last[turn_id] = head.last
        if head.ended:
            self.ended[turn_id] = lines[-2].get("params", {}).get("kind", "") if len(lines) > 1 else ""
        return wire.Position(turn_id, head.last)
