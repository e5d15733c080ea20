"""The ingress without sockets: what one key may hold, who comes next, and what time ends."""

from __future__ import annotations

from typing import Any

import zmq
import zmq.utils.z85
from curve_client import GREETING, CurveClient

from codex_pool.auth.principal import Identity
from codex_pool.ingress import limits
from codex_pool.ingress.core import IngressCore, ServerKeys
from codex_pool.protocol import ingress_frames, wire

HELLO = wire.encode(wire.Hello("s", "test"))
MIB = 1024 * 1024


def pair() -> tuple[bytes, bytes]:
    public, secret = map(zmq.utils.z85.decode, zmq.curve_keypair())
    return public, secret


class Bench:
    """A core, and clients whose bytes go to and fro by themselves."""

    def __init__(self, *names: str, max_connections: int = 100, **fields: Any) -> None:
        self.now = 1000.0
        self.server = pair()
        self.keys = {name: pair() for name in names}
        self.identities = {name: Identity(name=name, principal=f"P-{name}", **fields) for name in names}
        self.core = IngressCore(ServerKeys(*self.server), max_connections=max_connections)
        self.allow(*names)
        self.frames()

    def allow(self, *names: str) -> None:
        self.core.allow({self.keys[name][0]: self.identities[name] for name in names}, self.now)

    def said(self, number: int) -> bytes:
        """All that waits for a client: it takes it."""
        connection = self.core.connections[number]
        said = b"".join(connection.outgoing)
        self.core.sent(number, len(said), self.now)
        return said

    def join(self, name: str, *, hello: bool = True) -> tuple[int, CurveClient]:
        client = CurveClient(*self.keys[name], self.server[0])
        number = self.core.accepted(self.now)
        self.core.received(number, GREETING + client.hello(), self.now)
        client.welcome(self.said(number)[66:])
        self.core.received(number, client.initiate(), self.now)
        if self.core.connections[number].usage is not None:
            assert b"\x05READY" in self.said(number)
            if hello:
                self.core.received(number, client.message(HELLO), self.now)
        return number, client

    def frames(self) -> list[ingress_frames.ToBroker]:
        """All that waits for the broker."""
        return list(iter(lambda: self.core.next_for_broker(self.now), None))

    def message(self, number: int, name: str, *frames: bytes) -> ingress_frames.Message:
        """Return what the broker is told of a message."""
        return ingress_frames.Message(number, f"P-{name}", zmq.utils.z85.encode(self.keys[name][0]).decode(), [*frames])

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.core.tick(self.now)

    def nothing_is_left(self) -> None:
        self.core.disconnect_all()
        assert not any(self.core.held.values()), self.core.held


def test_messages_name_connection_and_principal() -> None:
    bench = Bench("alice", "bob")
    one, alice = bench.join("alice")
    two, _ = bench.join("bob")
    bench.core.received(one, alice.message(b"head", more=True) + alice.message(b"body"), bench.now)
    assert bench.frames() == [
        bench.message(one, "alice", HELLO),
        bench.message(one, "alice", b"head", b"body"),
        bench.message(two, "bob", HELLO),
    ]
    bench.core.send(one, [b"to", b"her"], bench.now)
    assert alice.open(bench.said(one)[2:].partition(b"\0\x24\x07MESSAGE")[0])[1:] == b"to"
    bench.core.gone(one)
    assert bench.frames() == [ingress_frames.Ended(one)] and bench.core.over == [one]
    # To who is gone nothing is said.
    bench.core.send(one, [b"late"], bench.now)
    bench.nothing_is_left()


def test_the_end_of_a_connection_comes_behind_what_it_said() -> None:
    bench = Bench("alice")
    one, alice = bench.join("alice")
    bench.core.received(one, alice.message(wire.encode(wire.Bye())), bench.now)
    bench.core.gone(one)
    assert [type(frame).__name__ for frame in bench.frames()] == ["Message", "Message", "Ended"]
    bench.nothing_is_left()


def test_keys_take_turns() -> None:
    bench = Bench("alice", "bob")
    one, alice = bench.join("alice")
    two, bob = bench.join("bob")
    bench.frames()
    for _ in range(60):
        bench.core.received(one, alice.message(b"a" * 10), bench.now)
    bench.core.received(two, bob.message(b"b"), bench.now)
    order = [frame.principal for frame in bench.frames() if isinstance(frame, ingress_frames.Message)]
    assert order.index("P-bob") == limits.SHARE_MESSAGES and len(order) == 61


def test_what_waits_of_a_connection_is_bounded_and_it_is_read_again_later() -> None:
    bench = Bench("alice")
    one, alice = bench.join("alice")
    connection = bench.core.connections[one]
    while bench.core.may_read(connection):
        bench.core.received(one, alice.message(b"x"), bench.now)
    assert connection.queued_messages == limits.QUEUE_MESSAGES
    bench.core.resumed.clear()
    while not bench.core.may_read(connection):
        assert bench.core.next_for_broker(bench.now)
    assert connection.queued_messages == limits.QUEUE_MESSAGES // 4 - 1 and bench.core.resumed == {one}
    bench.nothing_is_left()


def test_incomplete_messages_of_a_key_have_its_share_and_others_come_in_their_place() -> None:
    bench = Bench("alice", "bob")
    size = 8 * MIB
    opened = [bench.join("alice") for _ in range(8)]
    for number, client in opened:
        bench.core.received(number, client.message(bytes(size))[:100], bench.now)
    reads = [bench.core.may_read(bench.core.connections[number]) for number, _ in opened]
    assert reads == [True] * 4 + [False] * 4 and bench.core.held["reserved"] <= limits.KEY_BYTES
    two, bob = bench.join("bob")
    bench.core.received(two, bob.message(bytes(size))[:100], bench.now)
    assert bench.core.may_read(bench.core.connections[two])
    # One goes: the next of the same key is read.
    bench.core.gone(opened[0][0])
    bench.tick(1)
    assert bench.core.may_read(bench.core.connections[opened[4][0]])
    # Who holds room for too long has to go.
    bench.tick(limits.MESSAGE_LIMIT_S)
    assert bench.core.refusals.counts["too slow a message"] >= 4
    bench.nothing_is_left()


def test_a_long_message_gives_its_room_back_once_it_is_passed_on() -> None:
    bench = Bench("alice")
    one, alice = bench.join("alice")
    content = alice.message(bytes(8 * MIB))
    bench.core.received(one, content[:100], bench.now)
    assert bench.core.held["reserved"] > 8 * MIB
    bench.core.received(one, content[100:], bench.now)
    assert not bench.core.may_read(bench.core.connections[one]) and bench.core.held["reserved"] < 8 * MIB
    assert len(bench.frames()) == 2
    assert bench.core.held["reserved"] == 0 and bench.core.may_read(bench.core.connections[one])


def test_time_ends_what_does_not_go_on() -> None:
    bench = Bench("alice")
    stranger = bench.core.accepted(bench.now)
    silent, _ = bench.join("alice", hello=False)
    idle, _ = bench.join("alice")
    slow, client = bench.join("alice")
    bench.core.send(slow, [b"x"], bench.now)
    bench.frames()
    bench.tick(limits.HANDSHAKE_LIMIT_S)
    assert bench.core.over == [stranger]
    bench.tick(limits.HELLO_LIMIT_S)
    assert bench.core.over == [stranger, silent]
    while bench.now < 1000 + limits.STALL_LIMIT_S:
        bench.core.received(slow, client.message(wire.encode(wire.Beat())), bench.now)
        bench.frames()
        bench.tick(5)
    assert bench.core.over == [stranger, silent, idle, slow]
    assert {"no handshake", "no hello", "idle", "too slow a reader"} == set(bench.core.refusals.counts)
    bench.nothing_is_left()


def test_of_too_many_strangers_the_first_has_to_go_and_clients_stay() -> None:
    bench = Bench("alice", max_connections=3)
    one, _ = bench.join("alice")
    strangers = [bench.core.accepted(bench.now) for _ in range(10)]
    assert all(strangers) and bench.core.over == strangers[:8]
    bench.join("alice")
    bench.join("alice")
    assert one in bench.core.connections and bench.core.held["strangers"] == 0
    assert bench.core.accepted(bench.now) == 0


def test_what_waits_for_one_key_is_bounded() -> None:
    bench = Bench("alice", "bob")
    one, _ = bench.join("alice")
    two, _ = bench.join("alice")
    other, _ = bench.join("bob")
    bench.core.send(other, [bytes(MIB)], bench.now)
    for _ in range(40):
        for number in (one, two):
            bench.core.send(number, [bytes(MIB)], bench.now)
    assert bench.core.held["outgoing"] <= limits.OUT_KEY_BYTES + 2 * MIB
    assert bench.core.over == [one] or bench.core.over == [two]
    assert other in bench.core.connections
    # A single message may be long, but not longer than what one may hold.
    bench.core.send(other, [bytes(limits.MAX_TO_CLIENT_BYTES + 1)], bench.now)
    bench.said(other)
    assert other in bench.core.over
    bench.nothing_is_left()


def test_a_revoked_key_is_not_listened_to() -> None:
    bench = Bench("alice", "bob")
    one, alice = bench.join("alice")
    two, _ = bench.join("bob")
    bench.core.received(one, alice.message(b"unheard"), bench.now)
    bench.allow("bob")
    said = bench.said(one)
    assert alice.open(said[9:] if said[0] == 2 else said[2:])[1:] == ingress_frames.REVOKED
    assert bench.frames() == [
        ingress_frames.Keys(),
        bench.message(two, "bob", HELLO),
        ingress_frames.Ended(one, revoked=True),
    ]
    assert bench.core.accepted(bench.now) and two in bench.core.connections
    number, _ = bench.join("alice")
    assert bench.core.refusals.counts == {"revoked key": 1, "unknown key": 1}
    assert bench.core.connections[number].closing_until is not None
    assert bench.said(number).endswith(b"\x05ERROR\x03400")
    bench.nothing_is_left()


def test_the_link_is_read_in_any_pieces() -> None:
    frames: list[ingress_frames.ToBroker] = [
        ingress_frames.Join("s", "tcp"),
        ingress_frames.Message(1, "a", "key", [b"x", b""]),
        ingress_frames.Ended(1),
        ingress_frames.Keys(),
    ]
    data = b"".join(map(ingress_frames.encode, frames))
    for size in (1, 3, 1000):
        decoder, got = ingress_frames.Decoder(ingress_frames.ToBroker), []
        for at in range(0, len(data), size):
            decoder.feed(data[at : at + size])
            while (frame := decoder.next()) is not None:
                got.append(frame)
        assert got == frames
