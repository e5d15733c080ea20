"""The sessions of the gateway's clients: lines in and out, turns of the link, slow clients, lost links."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from codex_pool.auth.principal import Identity
from codex_pool.client import acks
from codex_pool.client.connections import FIRST_LIMIT_S, RECONNECT_LIMIT_S
from codex_pool.gateway import core as core_
from codex_pool.gateway.core import GatewayCore, PooledClient
from codex_pool.ingress.screening import SCREENED_BYTES
from codex_pool.protocol import ingress_frames, turn_ends, wire

LINES = wire.encode(wire.Lines())
NOTHING_HELD = {"clients": 0, "connections": 0, "waiting": 0, "deadlines": 0}


def line(**members: Any) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


def initialize(request_id: Any = 0, **info: Any) -> bytes:
    params = {"clientInfo": {"name": "tui", "title": None, "version": "1"} | info, "capabilities": {}}
    return line(id=request_id, method="initialize", params=params)


def note(number: int) -> bytes:
    return line(method="item/agentMessage/delta", params={"number": number})


def events(turn: str, after: int, lines: list[bytes], *, cls: wire.Class = "kept", ended: bool = False) -> list[bytes]:
    head = wire.Events("th", turn, after, after + len(lines), [wire.Run(len(lines), cls)], ended, "w1")
    return [wire.encode(head), b"" if cls == "dropped" else b"\n".join(lines)]


@dataclass
class FakeClient:
    """Messages that a client was sent."""

    lines: list[bytes] = field(default_factory=list)
    ended: tuple[str, bool] | None = None

    def deliver(self, lines: list[bytes]) -> None:
        assert self.ended is None, "nothing follows the end"
        self.lines += lines

    def end(self, reason: str, *, again: bool) -> None:
        assert self.ended is None, "it ends once"
        self.ended = reason, again

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(each) for each in self.lines]


class Bench:
    """A core whose link is joined. `sent`: what the broker got, decoded, by connection."""

    def __init__(self) -> None:
        self.now = 100.0
        self.core = GatewayCore("g1", endpoint="ipc:///pool", jitter=lambda: 1.0)
        self.core.joined(self.now)
        self.sent: list[tuple[int, Any, list[bytes]]] = []
        self.frames: list[core_.FrameToBroker] = []

    def pump(self) -> list[tuple[int, Any, list[bytes]]]:
        """Messages that the link takes now."""
        new: list[tuple[int, Any, list[bytes]]] = []
        while (frame := self.core.next_for_broker()) is not None:
            self.frames.append(frame)
            if isinstance(frame, ingress_frames.Keys):
                continue
            if isinstance(frame, ingress_frames.Ended):
                new.append((frame.connection, frame, []))
            else:
                new.append((frame.connection, wire.decode_from_client(frame.frames[0]), frame.frames[1:]))
        self.sent += new
        return new

    def open(
        self, identity: Identity | None = None, key: str = "", *, begin: bool = True
    ) -> tuple[FakeClient, PooledClient]:
        client = FakeClient()
        pooled = self.core.open(client, identity, key)
        if begin:
            self.core.receive(pooled, initialize(), self.now)
            self.welcome(pooled)
            self.give(pooled, [LINES, line(id=0, result={"userAgent": "tui/1"})])
            client.lines.clear()
            self.pump()
        return client, pooled

    def welcome(self, pooled: PooledClient, *, resumed: bool = False) -> None:
        self.give(pooled, [wire.encode(wire.Welcome(1, resumed)), b"{}"])

    def give(self, pooled: PooledClient, *messages: list[bytes]) -> None:
        """Messages of the broker in one read."""
        self.core.received({pooled.connection: [*messages]}, self.now)

    def receive(self, pooled: PooledClient, *lines: bytes) -> list[tuple[int, Any, list[bytes]]]:
        for each in lines:
            self.core.receive(pooled, each, self.now)
        return self.pump()

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.core.next_deadline <= until:
            self.now = max(self.now, self.core.next_deadline)
            self.core.tick(self.now)
        self.now = until


@pytest.fixture
def bench() -> Bench:
    return Bench()


# Before and at initialize.


def test_before_initialize_it_is_the_app_server_that_refuses(bench: Bench) -> None:
    """Measured on codex 0.163.0: texts and codes, and what has no answer."""
    client, pooled = bench.open(begin=False)
    for silent in (b"no json", b"[1]", line(method="initialized"), line(id=9, result={}), line(foo=1)):
        assert bench.receive(pooled, silent) == []
    for silent in (b'{"id":null,"method":"model/list"}', b'{"id":1.5,"method":"model/list"}', b'{"a":\n'):
        assert bench.receive(pooled, silent) == []
    assert client.messages == []
    bench.receive(pooled, line(id=1, method="model/list", params={}), line(id="x", method="initialize", params={}))
    first, second = client.messages
    assert first == {"id": 1, "error": {"code": -32600, "message": "Not initialized", "data": None}}
    assert second["id"] == "x" and second["error"]["code"] == -32600 and "clientInfo" in second["error"]["message"]
    assert bench.sent == [], "a client that was not initialized costs the broker nothing"


def test_initialize_begins_the_session_under_the_clients_name(bench: Bench) -> None:
    client, pooled = bench.open(begin=False)
    sent = bench.receive(pooled, initialize("initialize"), line(method="initialized"), line(id=1, method="model/list"))
    (connection, hello, _) = sent[0]
    assert hello == wire.Hello(
        "g1/1",
        "tui 1",
        "interactive",
        "keep",
        accepts_parts=True,
        all_turns=True,
        knows_queue=False,
        accepts_packs=True,
    )
    assert len(sent) == 1, "nothing is sent before the welcome"
    bench.welcome(pooled)
    calls = bench.pump()
    assert [(number, head.timeout_s) for number, head, _ in calls] == [(connection, 0)] * 2 + [(connection, 60)]
    assert {body for *_, (body,) in calls} == {
        initialize("initialize"),
        line(id=1, method="model/list"),
        line(method="initialized"),
    }
    bench.give(pooled, [LINES, line(id="initialize", result={"userAgent": "tui/1"})])
    assert client.messages == [{"id": "initialize", "result": {"userAgent": "tui/1"}}]
    bench.receive(pooled, initialize(7))
    assert client.messages[-1]["error"] == {"code": -32600, "message": "Already initialized", "data": None}


def test_a_client_that_is_refused_gets_the_reason_as_the_answer(bench: Bench) -> None:
    client, pooled = bench.open(begin=False)
    bench.receive(pooled, initialize("i"))
    bench.give(pooled, [wire.encode(wire.Refused("the pool has 2 clients, which is its limit"))])
    (answer,) = client.messages
    assert answer["id"] == "i" and "its limit" in answer["error"]["message"]
    assert client.ended is not None and "its limit" in client.ended[0] and not client.ended[1]
    bench.pump()
    bench.wait(FIRST_LIMIT_S)
    assert bench.core.held == NOTHING_HELD


def test_without_a_broker_a_client_waits_and_is_told_that_it_may_come_again(bench: Bench) -> None:
    bench.core.lost(bench.now)
    client, pooled = bench.open(begin=False)
    assert bench.receive(pooled, initialize("i")) == []
    bench.wait(FIRST_LIMIT_S / 2)
    assert client.ended is None
    bench.wait(FIRST_LIMIT_S)
    assert client.messages[0]["error"]["code"] == -32603
    assert client.ended is not None and "no connection to the broker" in client.ended[0] and client.ended[1]


# Lines.


def test_a_client_gets_lines_of_the_app_servers_protocol_only(bench: Bench) -> None:
    client, pooled = bench.open()
    assigned = line(method="pool/turn/assigned", params={"threadId": "th", "turnId": "u1"})
    bench.give(
        pooled,
        [LINES, b"\n".join([line(method="pool/queued", params={}), line(method="thread/started", params={})])],
        events("u1", 0, [assigned, note(2)]),
        events("u1", 2, [note(3), note(4)], cls="dropped"),
    )
    assert client.messages == [{"method": "thread/started", "params": {}}, json.loads(note(2))]


def test_deltas_of_one_message_are_lines_again(bench: Bench) -> None:
    client, pooled = bench.open()
    many = [
        line(method="item/agentMessage/delta", params={"threadId": "th", "turnId": "u1", "delta": "x" * 400})
        for _ in range(40)
    ]
    bench.give(pooled, events("u1", 0, many, cls="droppable"))
    assert client.lines == many


def test_deltas_that_follow_are_taken_at_once_and_others_as_they_are(bench: Bench) -> None:
    client, pooled = bench.open()
    core, number = bench.core, pooled.connection

    def deltas(after: int, count: int = 1, **more: Any) -> list[bytes]:
        return events("t1", after, [note(after + each + 1) for each in range(count)], **{"cls": "droppable", **more})

    # The first message of a turn is not taken: whether it follows is not known.
    assert core.received_deltas(number, deltas(0), bench.now) is None
    bench.give(pooled, deltas(0))
    # One begins the wait for an acknowledgement, of which the clock has to know; the next ones change nothing.
    assert core.next_deadline < math.inf
    assert core.received_deltas(number, deltas(1), bench.now) is False
    assert core.received_deltas(number, deltas(2, 3), bench.now) is False
    # A repeat, a gap, kept lines, dropped ones and the end are for the session as a whole.
    for other in (deltas(2), deltas(7), deltas(5, cls="kept"), deltas(5, cls="dropped"), deltas(5, ended=True)):
        assert core.received_deltas(number, other, bench.now) is None
    assert core.received_deltas(number + 1, deltas(5), bench.now) is None
    bench.give(pooled, deltas(5, ended=True))
    assert client.lines == [note(each) for each in range(1, 7)]
    bench.wait(2)
    ((_, ack, _),) = bench.pump()
    assert isinstance(ack, wire.Ack) and ack.positions == [wire.Position("t1", 6)]


def test_deltas_are_acknowledged_by_size_too(bench: Bench) -> None:
    client, pooled = bench.open()
    bench.give(pooled, events("t1", 0, [note(1)], cls="droppable"))
    long = line(method="item/agentMessage/delta", params={"delta": "x" * acks.ACK_BYTES})
    assert bench.core.received_deltas(pooled.connection, events("t1", 1, [long], cls="droppable"), bench.now) is True
    ((_, ack, _),) = bench.pump()
    assert isinstance(ack, wire.Ack) and client.lines == [note(1), long]


def test_a_turn_that_the_pool_ended_is_an_error_and_a_failed_turn(bench: Bench) -> None:
    client, pooled = bench.open()
    last = {"error": {"message": "m", "codexErrorInfo": "serverOverloaded"}}
    ends = turn_ends.ended_lines("th", "u1", "stalled", "it stalled", safe_to_retry=False, last_error=last)
    bench.give(pooled, events("u1", 0, [note(1)]), [wire.encode(wire.Ended("th", "u1")), b"\n".join(ends)])
    _, error, completed = client.messages
    expected = {"message": "it stalled", "codexErrorInfo": "serverOverloaded", "additionalDetails": "stalled"}
    assert error == {
        "method": "error",
        "params": {"error": expected, "willRetry": False, "threadId": "th", "turnId": "u1"},
    }
    assert completed["method"] == "turn/completed" and completed["params"]["turn"]["error"] == expected


def test_answers_and_questions_keep_their_ids(bench: Bench) -> None:
    client, pooled = bench.open()
    ((_, _, (asked,)),) = bench.receive(pooled, line(id=-5, method="model/list", params={}))
    assert json.loads(asked)["id"] == -5
    question = line(id="w1/7", method="item/fileChange/requestApproval", params={"threadId": "th", "turnId": "u1"})
    bench.give(pooled, [LINES, b"\n".join([line(id=-5, result={}), question, question])])
    assert client.lines == [line(id=-5, result={}), question], "one that is asked again is not shown again"
    ((_, _, (answer,)),) = bench.receive(pooled, line(id="w1/7", result={"decision": "accept"}))
    assert json.loads(answer)["id"] == "w1/7"


def test_an_id_that_is_in_use_is_refused(bench: Bench) -> None:
    client, pooled = bench.open()
    bench.receive(pooled, line(id=1, method="model/list"))
    assert bench.receive(pooled, line(id=1, method="model/list")) == []
    assert client.messages[0]["error"]["code"] == -32600
    bench.give(pooled, [LINES, line(id=1, result={})])
    assert len(bench.receive(pooled, line(id=1, method="model/list"))) == 1


def test_a_message_over_several_lines_is_one(bench: Bench) -> None:
    _, pooled = bench.open()
    ((_, _, (sent,)),) = bench.receive(
        pooled, b'{\r\n  "id": 1,\n  "method": "model/list", "params": {"a": "x\\ny"}\n}'
    )
    assert sent == b'{"id":1,"method":"model/list","params":{"a":"x\\ny"}}'


def test_long_requests_of_a_key_are_checked_here(bench: Bench) -> None:
    alice = Identity(name="alice", principal="p1", max_message_bytes=2 * SCREENED_BYTES)
    client, pooled = bench.open(alice, "KEY")
    bench.receive(pooled, line(id=1, method="turn/start", params={"x": "y" * SCREENED_BYTES}))
    assert bench.frames[0] == ingress_frames.Keys(), "it may be new: the broker reads the allow-list first"
    sent = bench.frames[-1]
    assert isinstance(sent, ingress_frames.Message) and sent.screened
    assert (sent.principal, sent.key) == ("p1", "KEY")
    assert bench.receive(pooled, line(id=2, method="turn/start", params={"x": "y" * 2 * SCREENED_BYTES})) == []
    assert client.messages[0]["id"] == 2 and "the key of alice allows" in client.messages[0]["error"]["message"]
    assert bench.receive(pooled, b"{" * 2 * SCREENED_BYTES) == [] and len(client.messages) == 1


# The link.


def test_sessions_take_turns_on_the_link(bench: Bench) -> None:
    busy, other = (bench.open()[1] for _ in range(2))
    for number in range(1, 20):
        bench.core.receive(busy, line(id=number, method="model/list"), bench.now)
    bench.core.receive(other, line(id=1, method="model/list"), bench.now)
    assert [number for number, *_ in bench.pump()].index(other.connection) == 1


def test_no_more_is_read_of_a_client_that_the_link_does_not_take(bench: Bench) -> None:
    _, pooled = bench.open()
    number = 0
    while pooled.accepts:
        number += 1
        bench.core.receive(pooled, line(id=number, method="x", params={"x": "y" * 8000}), bench.now)
    assert number * 8000 == pytest.approx(core_.MAX_UNSENT_BYTES, rel=0.1)
    bench.pump()
    assert pooled.accepts
    for extra in range(core_.MAX_UNSENT_MESSAGES + 1):
        bench.core.receive(pooled, line(id=f"s{extra}", method="x"), bench.now)
    assert not pooled.accepts
    bench.core.lost(bench.now)
    assert pooled.accepts, "its session keeps what has no answer"
    for extra in range(core_.MAX_UNSENT_MESSAGES + 1):
        bench.core.receive(pooled, line(id=f"t{extra}", method="x"), bench.now)
    assert not pooled.accepts
    bench.core.joined(bench.now)
    bench.welcome(pooled, resumed=True)
    bench.pump()
    assert pooled.accepts


def test_an_idle_session_costs_nothing(bench: Bench) -> None:
    for _ in range(3):
        bench.open()
    bench.wait(1.0)
    assert bench.core.next_deadline == math.inf
    bench.wait(1000.0)
    assert bench.pump() == []


def test_a_link_that_joins_again_connects_all_at_once(bench: Bench) -> None:
    clients = [bench.open() for _ in range(3)]
    _, first = clients[0]
    bench.give(first, events("u1", 0, [note(1), note(2)]))
    bench.receive(first, line(id=5, method="turn/start", params={"threadId": "th"}))
    old = [pooled.connection for _, pooled in clients]
    bench.core.lost(bench.now)
    bench.wait(5.0)
    assert bench.pump() == []
    bench.core.joined(bench.now)
    hellos = bench.pump()
    assert [head.session for _, head, _ in hellos] == ["g1/1", "g1/2", "g1/3"]
    assert not {number for number, *_ in hellos} & {*old}, "a number is used once"
    assert wire.decode_positions(hellos[0][2][0]) == [wire.Position("u1", 2, "th")]
    bench.welcome(first, resumed=True)
    again = [(head.again, json.loads(body)["method"]) for _, head, (body,) in bench.pump()]
    assert again == [(True, "initialize"), (True, "turn/start")]
    assert all(client.ended is None and client.lines == [] for client, _ in clients[1:])


def test_a_broker_that_stays_away_ends_the_client(bench: Bench) -> None:
    client, _ = bench.open()
    bench.core.lost(bench.now)
    bench.wait(RECONNECT_LIMIT_S + 1)
    assert client.ended is not None and client.ended[1]
    assert bench.core.held == NOTHING_HELD


def test_a_key_that_is_revoked_ends_its_client(bench: Bench) -> None:
    client, pooled = bench.open(Identity(name="alice", principal="p1"), "KEY")
    connection = pooled.connection
    bench.give(pooled, [ingress_frames.REVOKED])
    bench.core.ended(connection, bench.now)
    assert client.ended is not None and "has been revoked" in client.ended[0] and not client.ended[1]
    bench.core.close(pooled)
    assert not bench.core.held["clients"] and not bench.core.held["connections"]
    assert [frame for _, frame, _ in bench.pump()] == [ingress_frames.Ended(connection)]


def test_a_client_that_goes_says_bye(bench: Bench) -> None:
    _, pooled = bench.open()
    bench.core.close(pooled)
    bench.core.close(pooled)
    bench.core.receive(pooled, line(id=1, method="x"), bench.now)
    assert [type(head) for _, head, _ in bench.pump()] == [wire.Bye, ingress_frames.Ended]
    bench.wait(10.0)
    assert bench.core.held == NOTHING_HELD


def test_a_connection_that_the_broker_ends_is_made_again(bench: Bench) -> None:
    client, pooled = bench.open()
    old = pooled.connection
    bench.give(pooled, [wire.encode(wire.Closed("overflow", again=True))])
    bench.wait(1.0)
    sent = bench.pump()
    assert sent[0][1] == ingress_frames.Ended(old)
    assert isinstance(sent[1][1], wire.Hello) and sent[1][0] != old and client.ended is None


# Slow clients.


def test_the_turns_of_a_slow_client_wait_in_their_workers(bench: Bench) -> None:
    _, slow = bench.open()
    _, other = bench.open()
    bench.core.congested(slow, True, bench.now)
    for pooled in (slow, other):
        bench.give(pooled, events("u1", 0, [note(1)]))
    bench.wait(1.0)
    acks = [(number, head) for number, head, _ in bench.pump()]
    assert acks == [(other.connection, wire.Ack("w1", [wire.Position("u1", 1)]))]
    assert bench.core.next_deadline == math.inf
    bench.give(slow, events("u1", 1, [note(2)]))
    bench.core.congested(slow, False, bench.now)
    acks = [(number, head) for number, head, _ in bench.pump()]
    assert acks == [(slow.connection, wire.Ack("w1", [wire.Position("u1", 2)]))]
    bench.give(slow, events("u1", 2, [note(3)]))
    bench.wait(1.0)
    assert len(bench.pump()) == 1


def test_a_client_that_no_longer_gets_a_turn_is_cut(bench: Bench) -> None:
    """The client is not sent that the turn has failed, which goes on."""
    client, pooled = bench.open()
    ends = turn_ends.ended_lines("th", "u1", "overflow", "it reads too slowly", safe_to_retry=False)
    bench.give(pooled, events("u1", 0, [note(1)]), events("u1", 1, ends, ended=True))
    assert client.ended == ("it reads too slowly", True) and client.lines == [note(1)]
    assert wire.Bye() in [head for _, head, _ in bench.pump()]
