"""The door on TCP by itself, attacked: who gets in, who does not, and that nobody else notices."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from codex_pool import key_files, keys, sockets
from codex_pool.broker import tcp, zap
from codex_pool.broker.identity import MAX_MESSAGE_BYTES, Identity
from codex_pool.broker.tcp import Message, TcpDoor
from codex_pool.keys import ClientKey, KeyStore

LIMIT_S = 20.0


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (result := condition()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)
    return result


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A door whose loop answers every message with the name of who sent it, and the message."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.store = KeyStore(directory / "keys")
        self.port = free_port()
        # Names by principal, of all that ever were on the list.
        self.names: dict[str, str] = {}
        self.allowed: list[str] = []
        self.refused: Counter[str] = Counter()
        self.closed: list[bytes] = []
        self.revocations: list[bool] = []
        self.log: list[str] = []
        self.peers: dict[bytes, Message] = {}
        self._options = options
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def key(self, name: str) -> ClientKey:
        return self.store.new(Identity(name=name, cwd_roots=("/",)), self.directory / f"{name}.key")

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(LIMIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LIMIT_S)

    def _on_allowed(self, identities: list[Identity]) -> None:
        self.names |= {identity.principal: identity.name for identity in identities}
        self.allowed = [identity.name for identity in identities]

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.door = TcpDoor(
            context,
            f"tcp://127.0.0.1:{self.port}",
            self.store,
            counts=self.refused,
            on_allowed=self._on_allowed,
            log=self.log.append,
            **self._options,
        )
        poller = zmq.Poller()
        for source in (self.door.router, self.door.zap, self.door.monitor):
            poller.register(source, zmq.POLLIN)
        self._ready.set()
        while not self._stop.is_set():
            poller.poll(20)
            changed = self.door.phase_handshakes()
            self.door.phase_monitor()
            messages, revoked = self.door.receive(100)
            for message in messages:
                self.peers[message.peer] = message
                with contextlib.suppress(zmq.ZMQError):
                    self.door.send(message.peer, [self.names[message.who].encode(), *message.frames])
            self.closed += revoked
            if self.door.tick(time.monotonic()) or changed:
                self.revocations += [self.door.is_revoked(each.who, each.key) for each in self.peers.values()]
        self.door.close()
        context.term()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as server:
        yield server


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    for each in Client.made:
        each.socket.close(linger=0)
    Client.made.clear()
    context.term()


class Client:
    made: ClassVar[list[Client]] = []

    def __init__(self, context: zmq.Context[Any], port: int, key: ClientKey | None, **options: Any) -> None:
        self.made.append(self)
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 50)
        for name, value in options.items():
            setattr(self.socket, name, value)
        if key is not None:
            sockets.use_key(self.socket, key)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def ask(self, text: bytes = b"hello") -> list[bytes]:
        self.socket.send(text)
        assert self.socket.poll(int(LIMIT_S * 1000)), "no answer"
        return self.socket.recv_multipart()

    def knock(self, text: bytes) -> None:
        """Send as one who may have been refused by now: a socket that was would wait for another peer for ever."""
        with contextlib.suppress(zmq.Again):
            self.socket.send(text, zmq.NOBLOCK)

    def silent(self) -> bool:
        return not self.socket.poll(0)


def stranger(server: Server, **fields: str) -> ClientKey:
    pair = keys.new_pair()
    known = {"public_key": pair.public_key, "secret_key": pair.secret_key}
    return ClientKey(name="x", **{**known, "server_public_key": server.store.server().public_key, **fields})


# Who gets in.


def test_a_key_on_the_list_is_let_in_under_its_name(server: Server, context: zmq.Context[Any]) -> None:
    alice, bob = (Client(context, server.port, server.key(name)) for name in ("alice", "bob"))
    assert alice.ask() == [b"alice", b"hello"] and bob.ask() == [b"bob", b"hello"]
    assert server.refused == {} and sorted(server.allowed) == ["alice", "bob"]


def test_no_key_a_password_an_unknown_key_and_a_wrong_server_are_refused(
    server: Server, context: zmq.Context[Any]
) -> None:
    key = server.key("alice")
    alice = Client(context, server.port, key)
    alice.ask()
    strangers = [
        Client(context, server.port, None),
        Client(context, server.port, None, plain_username=b"alice", plain_password=b"x"),
        Client(context, server.port, stranger(server)),
        Client(context, server.port, stranger(server, public_key=key.public_key)),
        Client(context, server.port, stranger(server, server_public_key=keys.new_pair().public_key)),
    ]
    for each in strangers:
        each.knock(b"let me in")
    # Who finds that the other side wants a key may hang up first: then it is only no handshake.
    until(lambda: {"unknown key", "bad handshake"} <= server.refused.keys())
    until(lambda: server.refused.get("no key", 0) + server.refused.get("no handshake", 0) >= 2)
    assert alice.ask() == [b"alice", b"hello"]
    assert all(each.silent() for each in strangers)
    assert {server.names[each.who] for each in server.peers.values()} == {"alice"}
    assert until(lambda: [line for line in server.log if "unknown key" in line])


def test_a_new_key_is_let_in_at_once_and_a_revoked_one_is_not(server: Server, context: zmq.Context[Any]) -> None:
    key = server.key("alice")
    bob = Client(context, server.port, server.key("bob"))
    alice = Client(context, server.port, key)
    assert alice.ask()[0] == b"alice" and bob.ask()[0] == b"bob"
    server.store.revoke("alice")
    late = Client(context, server.port, key)
    late.knock(b"again")
    until(lambda: server.refused.get("unknown key"))
    # Her live connection: said to end, and what comes on it is not listened to.
    assert until(lambda: any(server.revocations))
    alice.socket.send(b"still there")
    until(lambda: server.closed)
    assert server.closed[0].startswith(key.public_key.encode() + b"\0")
    assert alice.silent() and late.silent() and bob.ask()[0] == b"bob"
    assert server.revocations.count(True) == 1


def test_a_new_key_under_an_old_name_does_not_revive_the_old_connections(
    server: Server, context: zmq.Context[Any]
) -> None:
    old_key = server.key("alice")
    old = Client(context, server.port, old_key)
    old.ask()
    server.store.revoke("alice")
    (server.directory / "alice.key").unlink()
    new_key = server.key("alice")
    new = Client(context, server.port, new_key)
    assert new.ask() == [b"alice", b"hello"]
    old.socket.send(b"still there")
    assert until(lambda: server.closed) and old.silent()
    was, now = (
        next(each.who for each in server.peers.values() if each.key == key)
        for key in (old_key.public_key, new_key.public_key)
    )
    assert was != now, "another principal of the same name"
    is_revoked = server.door.is_revoked
    assert is_revoked(was, old_key.public_key) and is_revoked(now, old_key.public_key) and is_revoked(was, "")
    # A session that has not come back since the broker died has no key yet. That of the owner needs none.
    assert not is_revoked(now, new_key.public_key) and not is_revoked(now, "") and not is_revoked("", "")


def test_a_renewed_key_is_the_same_principal_and_ends_the_old_one(server: Server, context: zmq.Context[Any]) -> None:
    old_key, bob_key = server.key("alice"), server.key("bob")
    old, bob = Client(context, server.port, old_key), Client(context, server.port, bob_key)
    old.ask()
    bob.ask()
    new_key = server.store.renew("alice", server.directory / "alice.key")
    new = Client(context, server.port, new_key)
    assert new.ask() == [b"alice", b"hello"]
    old.socket.send(b"still there")
    assert until(lambda: server.closed) and old.silent() and bob.ask() == [b"bob", b"hello"]
    who = {each.key: each.who for each in server.peers.values()}
    alice = who[new_key.public_key]
    assert who[old_key.public_key] == alice
    is_revoked = server.door.is_revoked
    assert is_revoked(alice, old_key.public_key) and not is_revoked(alice, new_key.public_key)
    # One whose key is not known may have come in with the old one; those of others stay.
    assert is_revoked(alice, "") and not is_revoked(who[bob_key.public_key], "")


def test_two_clients_cannot_meet_under_one_identity_of_the_connection(
    server: Server, context: zmq.Context[Any]
) -> None:
    first = Client(context, server.port, server.key("alice"), identity=b"same")
    first.ask()
    first.socket.close()
    second = Client(context, server.port, server.key("mallory"), identity=b"same")
    assert second.ask() == [b"mallory", b"hello"]
    assert len(server.peers) == 2 and {peer.partition(b"\0")[2] for peer in server.peers} == {b"same"}


# What strangers do to it.


def test_a_message_beyond_the_bound_ends_its_connection_only(server: Server, context: zmq.Context[Any]) -> None:
    key = server.key("alice")
    bob = Client(context, server.port, server.key("bob"))
    alice = Client(context, server.port, key)
    assert alice.ask()[0] == b"alice" and bob.ask()[0] == b"bob"
    alice.socket.send(b"x" * (MAX_MESSAGE_BYTES + 1))
    assert bob.ask()[0] == b"bob"
    other = Client(context, server.port, key)
    assert other.ask(b"x" * 1_000_000)[1] == b"x" * 1_000_000
    assert all(b"x" * (MAX_MESSAGE_BYTES + 1) not in peer for peer in server.peers)


GREETING_NULL = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + bytes(32)
GREETING_CURVE = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(15) + bytes(32)
RAW = [
    b"",
    b"\0" * 10_000,
    b"\xff" * 10_000,
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    GREETING_NULL,
    GREETING_NULL + b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x06DEALER" + b"\0\x05hello",
    GREETING_CURVE,
    GREETING_CURVE + b"\x04\xc8\x05HELLO\x01\x00" + bytes(192),
    GREETING_CURVE + b"\x06\xff\xff\xff\xff\xff\xff\xff\xff",
    GREETING_CURVE + b"\0\x05hello",
]


def test_raw_bytes_change_nothing_for_others(server: Server, context: zmq.Context[Any]) -> None:
    alice = Client(context, server.port, server.key("alice"))
    alice.ask()
    with contextlib.ExitStack() as stack:
        for content in RAW:
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            raw.sendall(content)
            assert alice.ask() == [b"alice", b"hello"]
    assert {server.names[each.who] for each in server.peers.values()} == {"alice"}


def test_a_thousand_connections_that_never_speak(server: Server, context: zmq.Context[Any]) -> None:
    sockets.descriptors()
    # Both ends of each are in this process: as many at a time as it may have.
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir("/proc/self/fd")) - 100
    at_once = min(1000, allowed // 2)
    print(f"{at_once} connections at a time")
    alice = Client(context, server.port, server.key("alice"))
    alice.ask()
    slowest, made = 0.0, 0
    while made < 1000:
        with contextlib.ExitStack() as stack:
            silent = []
            for number in range(min(at_once, 1000 - made)):
                silent.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port))))
                if number % 20 == 0:
                    began = time.monotonic()
                    assert alice.ask() == [b"alice", b"hello"]
                    slowest = max(slowest, time.monotonic() - began)
            made += len(silent)
            # Newcomers are taken meanwhile, and the silent ones are let go of within the time for a handshake.
            newcomer = f"bob-{made}"
            assert Client(context, server.port, server.key(newcomer)).ask()[0] == newcomer.encode()
            until(lambda: server.refused.get("no handshake", 0) >= made)  # noqa: B023 - before it changes
            for each in silent:
                each.settimeout(LIMIT_S)
                with contextlib.suppress(ConnectionResetError):
                    while each.recv(4096):
                        pass
    assert slowest < 5.0, f"one answer took {slowest:.1f} s"
    assert alice.ask() == [b"alice", b"hello"]
    assert until(lambda: len([line for line in server.log if "no handshake" in line])) < 10


def test_connections_beyond_the_limit_are_turned_away_and_later_ones_taken(
    tmp_path: Path, context: zmq.Context[Any]
) -> None:
    with Server(tmp_path, max_connections=20) as server:
        alice = Client(context, server.port, server.key("alice"))
        alice.ask()
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(60)]
            until(lambda: server.refused.get("too many connections", 0) >= 41)
            # Who is in, stays in; who was turned away, hears so at once.
            assert alice.ask() == [b"alice", b"hello"]
            ready, _, _ = select.select(held, [], [], 0)
            assert sum(each in ready and not received(each) for each in held) >= 41
        assert Client(context, server.port, server.key("bob")).ask()[0] == b"bob"


def received(connection: socket.socket) -> bytes:
    """What a connection says after its greeting; nothing when it was ended."""
    with contextlib.suppress(ConnectionResetError):
        connection.settimeout(LIMIT_S)
        return connection.recv(100)[64:]
    return b""


def test_when_the_keys_cannot_be_read_for_now_nobody_is_sent_away(
    server: Server, context: zmq.Context[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = Client(context, server.port, server.key("alice"))
    alice.ask()

    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(key_files, "read", fail)
        (server.directory / "keys" / "clients" / "bob.json").touch()
        until(lambda: [line for line in server.log if "cannot be read" in line])
        assert alice.ask() == [b"alice", b"hello"] and server.allowed == ["alice"]


# The decision by itself.


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"1.0", b"CURVE", b"NULL", bytes(32)])), max_size=9))
def test_whatever_asks_is_answered_and_nobody_unknown_is_let_in(request_: list[bytes]) -> None:
    answer, reason = zap.decide(request_, {"k" * 40})
    assert len(answer) == 6 and answer[2] in (b"400", b"500") and reason is not None and answer[4] == b""


@pytest.mark.parametrize("mechanism", [b"NULL", b"PLAIN", b"GSSAPI", b"curve", b""])
def test_only_curve_is_let_in(mechanism: bytes) -> None:
    key = keys.new_pair().public_key
    raw = zmq.utils.z85.decode(key)
    request = [b"1.0", b"7", b"", b"127.0.0.1", b"", b"CURVE", raw]
    assert zap.decide(request, {key}) == ([b"1.0", b"7", b"200", b"OK", key.encode(), b""], None)
    answer, reason = zap.decide([*request[:5], mechanism, raw], {key})
    assert answer[2] == b"400" and reason == "no key"
    assert zap.decide([*request, raw], {key})[1] == "malformed"


def test_the_log_gets_one_line_of_a_kind_now_and_then() -> None:
    refusals = zap.Refusals(Counter())
    for _ in range(5):
        refusals.add("no key")
    assert refusals.news(100.0) == ["refused over TCP, no key: 5 (5 in all)"]
    refusals.add("no key")
    refusals.add("unknown key")
    assert refusals.news(101.0) == ["refused over TCP, unknown key: 1 (1 in all)"]
    assert refusals.news(100.0 + zap.LOG_EVERY_S) == ["refused over TCP, no key: 1 (6 in all)"]
    assert refusals.news(1000.0) == []


def test_a_peer_is_named_by_its_key_first() -> None:
    assert tcp.routing_id_of(b"k" * 40 + b"\0" + b"a\0b") == b"a\0b"
