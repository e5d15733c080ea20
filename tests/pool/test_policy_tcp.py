"""The ingress as a process, attacked: who gets in, who does not, and that nobody else notices."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
import zmq
from curve_client import GREETING, RawClient

from codex_pool.auth import keys
from codex_pool.auth.keys import ClientKey, KeyStore
from codex_pool.auth.principal import MAX_MESSAGE_BYTES, Identity
from codex_pool.broker.ingress_connection import IngressLinks, Message
from codex_pool.ingress.arguments import IngressArguments
from codex_pool.ingress.limits import HANDSHAKE_LIMIT_S, HELLO_LIMIT_S
from codex_pool.ingress.refusals import LOG_EVERY_S, Refusals
from codex_pool.protocol import ingress_frames, sockets, wire
from codex_pool.runtime import processes, startup

LIMIT_S = 20.0


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (result := condition()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)
    return result


HELLO = wire.encode(wire.Hello("s1", "test"))
MIB = 1024 * 1024


class Server:
    """An ingress, and a broker's end of its link that answers every message with its principal and the message."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.store = KeyStore(directory / "keys")
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.refused: Counter[str] = Counter()
        self.ended: list[tuple[bytes, bool]] = []
        self.keys_changed = 0
        self.peers: dict[bytes, str] = {}
        # What is done with a message instead of answering it.
        self.answer: Callable[[Message], None] | None = None
        # Names by principal, of all that ever were on the list.
        self.names: dict[str, str] = {}
        self._options = options
        self._secret = os.urandom(16).hex()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._bound = threading.Event()

    def key(self, name: str, **fields: Any) -> ClientKey:
        key = self.store.new(Identity(name=name, cwd_roots=("/",), **fields), self.directory / f"{name}.key")
        self.names[self.store.allowed().clients[key.public_key].principal] = name
        return key

    def launch(self) -> None:
        """Start the ingress."""
        arguments = IngressArguments(
            listen_fd=self.listener.fileno(),
            keys=str(self.store.directory),
            link=str(self.directory / "l.sock"),
            secret=self._secret,
            **self._options,
        )
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                startup.python("codex_pool.ingress"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=(self.listener.fileno(),),
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(startup.encode_arguments(arguments))
        self.process.stdin.flush()
        assert msgspec.json.decode(self.process.stdout.readline()) == {"event": "ready"}

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._bound.wait(LIMIT_S)
        self.launch()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._stop.set()
        self._thread.join(LIMIT_S)
        self.listener.close()

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(LIMIT_S)
        finally:
            self.process.kill()
            self.process.stdout.close()

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def resident_bytes(self) -> int:
        process = processes.identify(self.process.pid)
        assert process is not None
        return processes.resident_bytes(process) or 0

    def _run(self) -> None:
        poller = zmq.Poller()
        self.links = IngressLinks(self.directory / "l.sock", {"tcp": self._secret}, poller, lambda line: None)
        self.links.bind()
        self._bound.set()
        while not self._stop.is_set():
            ready: dict[Any, int] = dict(poller.poll(0 if self.links.has_more else 20))
            events = self.links.receive(ready, time.monotonic())
            self.refused.update(events.refused)
            self.keys_changed += events.keys_changed
            for event in events.messages:
                if not isinstance(event, Message):
                    self.ended.append(event)
                    continue
                self.peers[event.peer] = self.names[event.principal]
                if self.answer is not None:
                    self.answer(event)
                else:
                    self.links.send(event.peer, [self.names[event.principal].encode(), *event.frames])
            self.links.flush()
        self.links.close()


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
        self.said_hello = False
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 50)
        for name, value in options.items():
            setattr(self.socket, name, value)
        if key is not None:
            sockets.use_key(self.socket, key)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def ask(self, text: bytes = b"hello") -> list[bytes]:
        """Send a message, after Hello; the answer."""
        if not self.said_hello:
            self.said_hello = True
            self.socket.send(HELLO)
            assert self.socket.poll(int(LIMIT_S * 1000)), "no answer"
            assert self.socket.recv_multipart()[1] == HELLO
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
    assert server.refused == {} and server.keys_changed and set(server.peers.values()) == {"alice", "bob"}


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
    assert set(server.peers.values()) == {"alice"}
    assert until(lambda: "unknown key" in server.log())


def test_a_new_key_is_let_in_at_once_and_a_revoked_one_is_not(server: Server, context: zmq.Context[Any]) -> None:
    key = server.key("alice")
    bob = Client(context, server.port, server.key("bob"))
    alice = Client(context, server.port, key)
    assert alice.ask()[0] == b"alice" and bob.ask()[0] == b"bob"
    server.store.revoke("alice")
    late = Client(context, server.port, key)
    late.knock(b"again")
    until(lambda: server.refused.get("unknown key"))
    # Her live connection hears why and ends, and what comes on it is not listened to.
    assert alice.socket.poll(int(LIMIT_S * 1000)) and alice.socket.recv_multipart() == [ingress_frames.REVOKED]
    (ended,) = until(lambda: [each for each in server.ended if each[1]])
    assert server.peers[ended[0]] == "alice"
    assert late.silent() and bob.ask()[0] == b"bob"


def test_a_new_key_under_an_old_name_does_not_revive_the_old_connections(
    server: Server, context: zmq.Context[Any]
) -> None:
    old_key = server.key("alice")
    old = Client(context, server.port, old_key)
    old.ask()
    (old_peer,) = server.peers
    server.store.revoke("alice")
    (server.directory / "alice.key").unlink()
    new = Client(context, server.port, server.key("alice"))
    assert new.ask() == [b"alice", b"hello"]
    assert until(lambda: (old_peer, True) in server.ended)
    assert old.socket.recv_multipart() == [ingress_frames.REVOKED] and new.ask()[1] == b"hello"


def test_two_keys_may_choose_the_same_routing_id_at_the_same_time(server: Server, context: zmq.Context[Any]) -> None:
    names = ("alice", "bob", "mallory")
    clients = [Client(context, server.port, server.key(name), identity=b"same") for name in names]
    for _ in range(3):
        assert [each.ask()[0].decode() for each in clients] == list(names)
    assert len(server.peers) == 3


# What strangers and clients do to it.


def test_a_message_beyond_the_bound_ends_its_connection_only(server: Server, context: zmq.Context[Any]) -> None:
    key = server.key("alice", max_message_bytes=MAX_MESSAGE_BYTES)
    bob = Client(context, server.port, server.key("bob"))
    alice = Client(context, server.port, key)
    assert alice.ask()[0] == b"alice" and bob.ask()[0] == b"bob"
    alice.socket.send(b"x" * (MAX_MESSAGE_BYTES + wire.MAX_HEAD_BYTES + 1))
    assert alice.socket.poll(int(LIMIT_S * 1000))
    closed = wire.decode_to_client(alice.socket.recv())
    assert isinstance(closed, wire.Closed) and "--max-message-bytes" in closed.message and not closed.again
    assert bob.ask()[0] == b"bob"
    other = Client(context, server.port, key)
    assert other.ask(b"x" * MAX_MESSAGE_BYTES)[1] == b"x" * MAX_MESSAGE_BYTES
    assert server.refused["oversized message"] == 1


def test_a_message_of_many_parts_is_cut_at_the_first_that_is_too_many(
    server: Server, context: zmq.Context[Any]
) -> None:
    """600 parts of 1 MiB: libzmq bounds parts, not how many there are."""
    bob = Client(context, server.port, server.key("bob"))
    bob.ask()
    before = server.resident_bytes()
    raw = RawClient(server.port, server.key("mallory")).handshake()
    part = bytes(MIB)
    most = 0
    with raw.socket, pytest.raises((ConnectionError, TimeoutError)):
        raw.socket.sendall(raw.curve.message(HELLO))
        for _ in range(600):
            raw.socket.sendall(raw.curve.message(part, more=True))
            most = max(most, server.resident_bytes())
    assert bob.ask() == [b"bob", b"hello"]
    print(f"{(most - before) / MIB:.0f} MiB more at most")
    assert most - before < 48 * MIB
    until(lambda: server.refused.get("too many parts", 0) + server.refused.get("oversized message", 0))
    assert until(lambda: server.resident_bytes() - before < 24 * MIB)


@pytest.mark.slow
def test_many_incomplete_messages_of_one_key_hold_its_share_only(server: Server, context: zmq.Context[Any]) -> None:
    """Each of 8 MiB less the end, over as many connections as the key may have; others send long ones meanwhile."""
    bob = Client(context, server.port, server.key("bob"))
    bob.ask()
    key = server.key("mallory")
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            raw = RawClient(server.port, key).handshake()
            stack.callback(raw.close)
            raw.socket.sendall(raw.curve.message(HELLO))
            raw.part()
            raw.socket.setblocking(False)
            content = memoryview(raw.curve.message(bytes(8 * MIB - 100)))[:-10]
            deadline = time.monotonic() + 1
            while content and time.monotonic() < deadline:
                if select.select([], [raw.socket], [], 0.1)[1]:
                    content = content[raw.socket.send(content) :]
        assert bob.ask(b"y" * 8 * MIB)[1] == b"y" * 8 * MIB
        resident = server.resident_bytes()
        print(f"{resident / MIB:.0f} MiB")
        assert resident < 160 * MIB
    assert bob.ask() == [b"bob", b"hello"]


@pytest.mark.slow
def test_half_handshakes_and_clients_that_never_say_hello_have_to_go(server: Server, context: zmq.Context[Any]) -> None:
    key = server.key("alice")
    half = RawClient(server.port, key)
    half.socket.sendall(b"\xff" + bytes(8))
    welcomed = RawClient(server.port, key)
    welcomed.socket.sendall(GREETING + welcomed.curve.hello())
    whole = RawClient(server.port, key).handshake()
    began = time.monotonic()
    assert half.is_ended() and welcomed.is_ended()
    assert time.monotonic() - began < HANDSHAKE_LIMIT_S + 5
    assert whole.is_ended()
    assert HELLO_LIMIT_S - 1 < time.monotonic() - began < HELLO_LIMIT_S + 5
    other = RawClient(server.port, key).handshake()
    other.socket.sendall(other.curve.message(wire.encode(wire.Beat())))
    assert isinstance(wire.decode_to_client(other.part()), wire.Refused) and other.is_ended()
    until(lambda: server.refused.get("no handshake", 0) >= 2 and server.refused.get("no hello", 0) == 2)
    for each in (half, welcomed, whole, other):
        each.close()


def test_a_message_that_is_played_back_ends_the_connection(server: Server) -> None:
    raw = RawClient(server.port, server.key("alice")).handshake()
    hello = raw.curve.message(HELLO)
    raw.socket.sendall(hello)
    assert raw.part() == b"alice"
    raw.socket.sendall(hello)
    assert raw.is_ended() and until(lambda: server.refused.get("bad message"))
    raw.close()
    assert len(list(server.peers.values())) == 1


def test_one_key_has_so_many_connections(server: Server, context: zmq.Context[Any]) -> None:
    key = server.key("alice", max_sessions=2)
    alice = Client(context, server.port, key)
    alice.ask()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            raw = RawClient(server.port, key)
            stack.callback(raw.close)
            with contextlib.suppress(ConnectionError):
                raw.handshake()
        until(lambda: server.refused.get("too many connections of one key", 0) >= 15)
        assert alice.ask() == [b"alice", b"hello"]
        assert Client(context, server.port, server.key("bob")).ask()[0] == b"bob"


def test_a_client_that_does_not_read_is_let_go(server: Server, context: zmq.Context[Any]) -> None:
    bob = Client(context, server.port, server.key("bob"))
    bob.ask()
    sent = threading.Event()

    def answer(message: Message) -> None:
        if server.names[message.principal] == "bob":
            server.links.send(message.peer, [b"bob", *message.frames])
        elif message.frames != [HELLO]:
            for _ in range(100):
                server.links.send(message.peer, [bytes(MIB)])
            sent.set()

    server.answer = answer
    raw = RawClient(server.port, server.key("alice")).handshake()
    raw.socket.sendall(raw.curve.message(HELLO) + raw.curve.message(b"much"))
    assert sent.wait(LIMIT_S)
    assert until(lambda: server.refused.get("too slow a reader"))
    assert until(lambda: server.ended) and bob.ask() == [b"bob", b"hello"]
    assert server.resident_bytes() < 200 * MIB
    raw.close()


def test_a_flood_of_one_key_does_not_hold_up_another(server: Server, context: zmq.Context[Any]) -> None:
    bob = Client(context, server.port, server.key("bob"))
    bob.ask()
    key = server.key("mallory")
    floods = [RawClient(server.port, key).handshake() for _ in range(8)]
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            for raw in floods:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    raw.socket.sendall(b"".join(raw.curve.message(b"x" * 50) for _ in range(200)))

    server.answer = lambda message: (
        server.names[message.principal] == "bob" and server.links.send(message.peer, [b"bob", *message.frames])
    )
    for raw in floods:
        raw.socket.sendall(raw.curve.message(HELLO))
    thread = threading.Thread(target=flood)
    thread.start()
    try:
        took = []
        for _ in range(100):
            began = time.monotonic()
            assert bob.ask() == [b"bob", b"hello"]
            took.append(time.monotonic() - began)
    finally:
        stop.set()
        # A thread that waits for room in a socket is let go of by the end of the socket.
        for raw in floods:
            raw.socket.shutdown(socket.SHUT_RDWR)
        thread.join(LIMIT_S)
        for raw in floods:
            raw.close()
    print(f"median {sorted(took)[50] * 1000:.1f} ms, longest {max(took) * 1000:.1f} ms")
    assert sorted(took)[50] < 0.25


def test_at_its_limit_of_memory_it_dies_and_another_takes_its_place(tmp_path: Path, context: zmq.Context[Any]) -> None:
    with Server(tmp_path, memory_bytes=40 * MIB) as server:
        raw = RawClient(server.port, server.key("mallory", max_message_bytes=MAX_MESSAGE_BYTES)).handshake()
        with contextlib.suppress(ConnectionError):
            raw.socket.sendall(raw.curve.message(HELLO) + raw.curve.message(bytes(30 * MIB)))
        assert server.process.wait(LIMIT_S) == 1 and "the limit of memory is reached" in server.log()
        raw.close()
        server.end()
        # Who comes now waits in the backlog.
        early = Client(context, server.port, server.key("bob"))
        server.launch()
        assert early.ask() == [b"bob", b"hello"]


def test_when_the_broker_is_gone_connections_end_and_newcomers_wait_for_the_next(
    server: Server, context: zmq.Context[Any]
) -> None:
    raw = RawClient(server.port, server.key("alice")).handshake()
    raw.socket.sendall(raw.curve.message(HELLO))
    assert raw.part() == b"alice"
    server._stop.set()
    server._thread.join(LIMIT_S)
    assert raw.is_ended()
    raw.close()
    waiting = Client(context, server.port, server.key("bob"))
    server._stop.clear()
    server._thread = threading.Thread(target=server._run)
    server._thread.start()
    assert waiting.ask() == [b"bob", b"hello"]


def test_a_link_needs_the_secret(server: Server) -> None:
    for said in (
        ingress_frames.encode(ingress_frames.Join("another", "tcp")),
        ingress_frames.encode(ingress_frames.Message(1, "alice", "key", [HELLO])),
        b"\xff" * 100,
        b"\0\0\0\1\xc1",
    ):
        with socket.socket(socket.AF_UNIX) as other:
            other.settimeout(LIMIT_S)
            other.connect(str(server.directory / "l.sock"))
            other.sendall(said)
            with contextlib.suppress(ConnectionResetError):
                assert other.recv(100) == b""
    assert server.peers == {}
    assert os.stat(server.directory / "l.sock").st_mode & 0o777 == 0o600


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
    assert set(server.peers.values()) == {"alice"}


@pytest.mark.slow
def test_four_thousand_connections_that_never_speak(server: Server, context: zmq.Context[Any]) -> None:
    startup.descriptors()
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir("/proc/self/fd")) - 100
    # Its own end of each is in the ingress.
    at_once = min(1500, allowed)
    print(f"{at_once} connections at a time")
    alice = Client(context, server.port, server.key("alice"))
    alice.ask()
    slowest, made = 0.0, 0
    while made < 4096:
        with contextlib.ExitStack() as stack:
            silent = []
            for number in range(min(at_once, 4096 - made)):
                silent.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port))))
                if number % 50 == 0:
                    began = time.monotonic()
                    assert alice.ask() == [b"alice", b"hello"]
                    slowest = max(slowest, time.monotonic() - began)
            made += len(silent)
            # Newcomers are let in meanwhile, and the silent ones have to go within the time for a handshake.
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
    assert until(lambda: server.log().count("no handshake")) < 10


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
    """Return what a connection says after its greeting; nothing when it was ended."""
    with contextlib.suppress(ConnectionResetError):
        connection.settimeout(LIMIT_S)
        return connection.recv(100)[64:]
    return b""


def test_the_log_gets_one_line_of_a_kind_now_and_then() -> None:
    refusals = Refusals()
    for _ in range(5):
        refusals.add("no key")
    assert refusals.news(100.0) == ["refused over TCP, no key: 5 (5 in all)"]
    refusals.add("no key")
    refusals.add("unknown key")
    assert refusals.news(101.0) == ["refused over TCP, unknown key: 1 (1 in all)"]
    assert refusals.news(100.0 + LOG_EVERY_S) == ["refused over TCP, no key: 1 (6 in all)"]
    assert refusals.news(1000.0) == []
