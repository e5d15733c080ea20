"""The listeners of the gateway with clients that are slow, broken or hostile, and sessions that echo."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType
from gateway_clients import answer, connect, request
from loops import on_a_loop
from ports import free_port

from codex_pool.auth.keys import ClientKey, KeyStore
from codex_pool.auth.principal import Identity
from codex_pool.gateway.listeners import limits
from codex_pool.gateway.listeners import server as server_module
from codex_pool.gateway.listeners.server import Listeners
from codex_pool.gateway.sessions import Client, ListenerConfig


class Session:
    """A session that answers each message with itself, unless it is told otherwise."""

    def __init__(self, client: Client, identity: Identity | None) -> None:
        self.client = client
        self.identity = identity
        self.received: list[bytes] = []
        self.states: list[bool] = []
        self.is_closed = False
        self.accepts = True
        self.echoes = True
        self.callbacks: list[Callable[[], None]] = []

    def receive(self, line: bytes) -> None:
        if line == b"fail":
            raise ValueError("a bug")
        self.received.append(line)
        if self.echoes:
            self.client.deliver([line])

    def congested(self, is_congested: bool) -> None:
        self.states.append(is_congested)

    def close(self) -> None:
        self.is_closed = True


class Sessions:
    """The sessions of a test, in the order in which they were opened."""

    def __init__(self) -> None:
        self.all: list[Session] = []

    def open(self, client: Client, identity: Identity | None, public_key: str, listener: str = "") -> Session:
        self.all.append(Session(client, identity))
        return self.all[-1]

    def resume_reading(self, session: Any, callback: Callable[[], None]) -> None:
        session.callbacks.append(callback)


class House:
    """Listeners that are open."""

    def __init__(self, listeners: Listeners, sessions: Sessions, log: list[str]) -> None:
        self.listeners, self.sessions, self.log = listeners, sessions, log

    def refused(self) -> dict[str, int]:
        found = self.listeners.counts()["refused"]
        assert isinstance(found, dict)
        return found

    async def session(self, number: int = 0) -> Session:
        await until(lambda: len(self.sessions.all) > number)
        return self.sessions.all[number]


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; the test's own limit bounds it."""
    while not condition():
        await asyncio.sleep(0.005)


@asynccontextmanager
async def listening(**config: Any) -> AsyncIterator[House]:
    sessions, log = Sessions(), list[str]()
    listeners = Listeners(ListenerConfig(**config), sessions, log.append)
    await listeners.open()
    try:
        yield House(listeners, sessions, log)
    finally:
        await listeners.close("the test is over")
    assert all(session.is_closed for session in sessions.all)
    counts = listeners.counts()
    assert (counts["clients"], counts["strangers"], counts["unsentBytes"]) == (0, 0, 0)


@asynccontextmanager
async def client(where: Path | int, **given: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    connector = aiohttp.UnixConnector(str(where)) if isinstance(where, Path) else aiohttp.TCPConnector()
    url = "http://localhost/rpc" if isinstance(where, Path) else f"http://127.0.0.1:{where}/"
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(url, max_msg_size=0, **given) as ws,
    ):
        yield ws


@pytest.fixture
def path(runtime_directory: Path) -> Path:
    return runtime_directory / "a.sock"


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys")


def new(store: KeyStore, name: str = "alice", **fields: Any) -> ClientKey:
    return store.new(Identity(name=name, **fields), store.directory.parent / f"{name}.key")


def bearer(key: ClientKey) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.token}"}


def frame(payload: bytes, opcode: int = 1, *, final: bool = True, size: int | None = None) -> bytes:
    """A frame of a client, masked with zeros; `size` is what it says of its length."""
    size = len(payload) if size is None else size
    head = bytes([(0x80 if final else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += b"\xfe" + struct.pack("!H", size)
    else:
        head += b"\xff" + struct.pack("!Q", size)
    return head + bytes(4) + payload


async def handshake(where: Path | int, *headers: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await connect(where)
    writer.write(request("/rpc", *headers))
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


# What is answered


@on_a_loop
async def test_messages_go_through_whole_and_in_order(path: Path) -> None:
    async with listening(unix=str(path)) as house, client(path) as ws:
        texts = [json.dumps({"id": number, "params": "ä" * size}) for number, size in enumerate((1, 200, 70_000))]
        for text in texts:
            await ws.send_str(text)
        assert [await ws.receive_str() for _ in texts] == texts
        session = await house.session()
        assert session.identity is None
        # What is delivered in one pass arrives message by message.
        session.client.deliver([b"a", b""])
        session.client.deliver([b"b" * 100_000])
        assert [await ws.receive_str() for _ in range(3)] == ["a", "", "b" * 100_000]
        await ws.ping(b"x")
        await ws.send_str("after the ping")
        assert await ws.receive_str() == "after the ping"
        # Binary messages are passed over, as by the real server.
        await ws.send_bytes(b"binary")
        await ws.send_str("text")
        assert await ws.receive_str() == "text" and b"binary" not in session.received


@on_a_loop
async def test_answers_as_of_the_real_server(path: Path) -> None:
    port = free_port()
    async with listening(unix=str(path), ws=f"127.0.0.1:{port}", insecure_no_auth=True):
        status, headers, _ = await answer(path, request("/anything?x=1"))
        assert (status, headers["sec-websocket-accept"]) == (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        assert headers["x-codex-websocket-max-unfragmented-message-bytes"] == "16777216"
        deflate = "Sec-WebSocket-Extensions: permessage-deflate"
        status, headers, _ = await answer(port, request("/", deflate))
        assert status == 101 and not [name for name in headers if name.startswith(("sec-websocket-ext", "x-codex"))]
        for probe in ("/readyz", "/healthz"):
            assert (await answer(port, request(probe, "Connection: close", "Upgrade: ")))[::2] == (200, "")
        for given, expected in (
            (("Origin: http://127.0.0.1",), 403),
            (("Host: evil.example",), 403),
            (("Connection: close",), 400),
            (("Sec-WebSocket-Version: 8",), 400),
        ):
            assert (await answer(port, request("/", *given)))[0] == expected, given
        assert (await answer(port, request("/", method="POST")))[0] == 405
        assert (await answer(port, b"hello world\r\n\r\n"))[0] == 400
        # The version of what answers is nobody's business.
        for sent in (
            request("/", method="POST"),
            b"hello\r\n\r\n",
            request("/", "Sec-WebSocket-Key: zz"),
            request("/a b"),
        ):
            status, headers, _ = await answer(port, sent)
            assert status in (400, 405) and headers["server"] == "codex-pool"


@on_a_loop
async def test_tokens_are_needed_on_loopback_too(store: KeyStore) -> None:
    key, port = new(store, max_sessions=2), free_port()
    async with listening(ws=f"127.0.0.1:{port}", keys=str(store.directory)) as house:
        for given, said in (
            ((), "missing"),
            (("Authorization: Bearer wrong",), "invalid websocket bearer token"),
            (("Authorization: Basic wrong",), "invalid authorization header"),
            ((f"Authorization: Bearer {key.public_key}",), "invalid"),
        ):
            status, _, text = await answer(port, request("/", *given))
            assert status == 401 and said in text
        assert (await answer(port, request("/healthz")))[0] == 200
        async with client(port, headers=bearer(key)) as one, client(port, headers=bearer(key)):
            assert [session.identity.name for session in house.sessions.all if session.identity] == ["alice", "alice"]
            status, _, text = await answer(port, request("/", f"Authorization: Bearer {key.token}"))
            assert status == 429 and "2 connections already" in text
            await one.close()
            await until(lambda: house.sessions.all[0].is_closed)
            async with client(port, headers=bearer(key)):
                await house.session(2)
        # A key that is made while it runs works at once.
        other = new(store, "bob")
        async with client(port, headers=bearer(other)):
            assert (await house.session(3)).identity is not None
    assert house.refused()["an unknown token"] == 2 and key.token not in "".join(house.log)


@on_a_loop
async def test_a_token_ends_with_its_key(store: KeyStore, tmp_path: Path) -> None:
    alice, bob, port = new(store), new(store, "bob"), free_port()
    async with (
        listening(ws=f"127.0.0.1:{port}", keys=str(store.directory)),
        client(port, headers=bearer(alice)) as first,
        client(port, headers=bearer(bob)) as second,
    ):
        store.revoke("alice")
        store.renew("bob", tmp_path / "bob-2.key")
        for ws in (first, second):
            message = await ws.receive(timeout=2.0)
            assert (message.type, message.data) == (WSMsgType.CLOSE, 1008) and "revoked" in message.extra
        assert (await answer(port, request("/", f"Authorization: Bearer {alice.token}")))[0] == 401


CONNECT = """\
import os, socket, sys
path, sent = sys.argv[1:]
os.geteuid() == 0 and (os.setgroups([GID]), os.setgid(UID), os.setuid(UID))
with socket.socket(socket.AF_UNIX) as client:
    client.connect(path)
    client.sendall(bytes.fromhex(sent))
    print(client.recv(65536).decode(), flush=True)
    sys.stdin.read()
"""
OTHER_UID = 61234


@asynccontextmanager
async def other_user(path: Path) -> AsyncIterator[str]:
    """The answer that another user of this machine gets, who is in the group of the socket."""
    code = CONNECT.replace("UID", str(OTHER_UID)).replace("GID", str(path.stat().st_gid))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(path), request().hex(), stdin=pipe, stdout=pipe, cwd="/"
    )
    assert process.stdin is not None and process.stdout is not None
    lines = [await process.stdout.readline()]
    while lines[-1] != b"\r\n":
        lines.append(await process.stdout.readline())
    if b" 403 " in lines[0]:
        lines.append(await process.stdout.readline())
    yield b"".join(lines).decode()
    process.stdin.close()
    await process.wait()


@on_a_loop
async def test_users_of_the_machine(path: Path, store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # Others enter the directory, and cannot write in it.
    path.parent.chmod(0o711)
    if os.geteuid() != 0:
        # Only root becomes another user.
        monkeypatch.setattr(server_module.endpoint_name, "peer_of", lambda connected: (1, OTHER_UID))
    async with listening(unix=str(path), unix_group=str(os.getgid()), keys=str(store.directory)) as house:
        async with other_user(path) as said:
            assert " 403 " in said and f"codex-pool keys new NAME --unix-user {OTHER_UID}" in said
        store.new(Identity(name="alice"), store.directory.parent / "alice.key", unix_uid=OTHER_UID)
        async with other_user(path) as said:
            assert " 101 " in said
            session = await house.session()
            assert session.identity is not None and session.identity.name == "alice"
            store.revoke("alice")
            await until(lambda: session.is_closed)
        async with other_user(path) as said:
            assert " 403 " in said
    assert house.refused() == {"a user without a key": 2}


# Who is slow, broken or hostile


@on_a_loop
async def test_a_handshake_has_so_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_LIMIT_S", 0.2)
    async with listening(unix=str(path)) as house:
        silent, writer_of_silent = await connect(path)
        slow, writer = await connect(path)
        writer.write(request()[:-2])
        assert await silent.read() == b"" == await slow.read()
        writer_of_silent.close()
        writer.close()
        assert house.refused() == {"a handshake that is too slow": 2}
        # A client that has made it is not bound by that.
        async with client(path) as ws:
            await asyncio.sleep(0.4)
            await ws.send_str("x")
            assert await ws.receive_str() == "x"


@on_a_loop
async def test_headers_have_so_many_bytes(path: Path) -> None:
    async with listening(unix=str(path)) as house:
        for sent in (request("/", f"X: {'a' * 10_000_000}"), b"GET /" + b"a" * 100_000, request() + b"a" * 100_000):
            reader, writer = await connect(path)
            writer.write(sent)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                while await reader.readuntil(b"\n"):
                    writer.write(b"a" * 4096)
                    await writer.drain()
        many = [f"X-{number}: a" for number in range(100)]
        assert (await answer(path, request("/", *many)))[0] == 400
        assert house.refused()["headers that are too long"] >= 2 and len(house.sessions.all) <= 1


@on_a_loop
async def test_strangers_do_not_keep_clients_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STRANGERS", 3)
    async with listening(unix=str(path)) as house, client(path) as ws:
        strangers = [await connect(path) for _ in range(10)]
        async with client(path):
            await house.session(1)
        # Those that came first had to go.
        for reader, _ in strangers[:7]:
            assert await reader.read() == b""
        await ws.send_str("x")
        assert await ws.receive_str() == "x"
        counts = house.listeners.counts()
        assert counts["clients"] == 1 and counts["strangers"] in (2, 3)
        for _, writer in strangers:
            writer.close()


@on_a_loop
async def test_a_message_that_is_too_long_is_refused_before_it_comes(store: KeyStore) -> None:
    key, port = new(store, max_message_bytes=1000), free_port()
    async with listening(ws=f"127.0.0.1:{port}", keys=str(store.directory)) as house:
        token = f"Authorization: Bearer {key.token}"
        reader, writer = await handshake(port, token)
        writer.write(frame(b"x" * 1000) + frame(b"", size=1001))
        assert await reader.readexactly(1004) == b"\x81\x7e" + struct.pack("!H", 1000) + b"x" * 1000
        assert struct.unpack("!H", (await reader.readexactly(4))[2:]) == (1009,)
        writer.close()
        # Nor in pieces.
        reader, writer = await handshake(port, token)
        writer.write(frame(b"x" * 600, final=False) + frame(b"x" * 600, 0))
        assert struct.unpack("!H", (await reader.readexactly(4))[2:]) == (1009,)
        writer.close()
        reader, writer = await handshake(port, token)
        writer.write(frame(b"", size=2**63 - 1))
        assert struct.unpack("!H", (await reader.readexactly(4))[2:]) == (1009,)
        writer.close()
        await until(lambda: all(session.is_closed for session in house.sessions.all))
        assert [len(session.received) for session in house.sessions.all] == [1, 0, 0]


@on_a_loop
async def test_fragments_are_one_message(path: Path) -> None:
    async with listening(unix=str(path)) as house:
        reader, writer = await handshake(path)
        whole = frame(b"ab", final=False) + frame(b"cd", 0, final=False) + frame(b"ping", 9) + frame(b"ef", 0)
        for byte in whole:
            writer.write(bytes([byte]))
            await writer.drain()
        assert await reader.readexactly(6) == b"\x8a\x04ping"
        assert await reader.readexactly(8) == b"\x81\x06abcdef"
        assert (await house.session()).received == [b"abcdef"]
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        frame(b"x", 3),
        frame(b"x", 0),
        frame(b"x" * 126, 9),
        frame(b"x", final=False) + frame(b"y"),
        b"\xc1\x81\0\0\0\0x",
        frame(b"\x00", 8),
    ],
    ids=("opcode", "continuation", "long ping", "interleaved", "reserved bit", "close"),
)
@on_a_loop
async def test_frames_against_the_protocol_end_their_connection_alone(path: Path, sent: bytes) -> None:
    async with listening(unix=str(path)) as house, client(path) as ws:
        reader, writer = await handshake(path)
        writer.write(sent)
        assert struct.unpack("!H", (await reader.readexactly(4))[2:]) == (1002,)
        writer.close()
        await until(lambda: house.sessions.all[1].is_closed)
        await ws.send_str("x")
        assert await ws.receive_str() == "x"
        assert house.refused() == {"a frame that is not allowed (code 1002)": 1}


@on_a_loop
async def test_half_a_frame_is_not_kept_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MESSAGE_LIMIT_S", 0.3)
    monkeypatch.setattr(limits, "TICK_S", 0.05)
    async with listening(unix=str(path)) as house:
        reader, writer = await handshake(path)
        writer.write(frame(b"x" * 100_000, size=200_000))
        assert await reader.read() == b""
        assert house.refused() == {"a message that is not complete in time": 1}
        writer.close()


@on_a_loop
async def test_long_messages_have_a_bound_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ALL_INCOMPLETE_BYTES", 1_000_000)
    monkeypatch.setattr(limits, "TICK_S", 0.05)
    async with listening(unix=str(path)) as house:
        parts = [await handshake(path) for _ in range(3)]
        for size, (_, writer) in zip((300_000, 600_000, 400_000), parts, strict=True):
            writer.write(frame(b"x" * size, size=2_000_000))
        # The one with the most goes, and that is enough.
        assert await parts[1][0].read() == b""
        assert house.refused() == {"too much that is not complete": 1}
        for _, writer in parts:
            writer.close()


@on_a_loop
async def test_a_client_is_read_no_faster_than_its_session_accepts(path: Path) -> None:
    async with listening(unix=str(path)) as house:
        reader, writer = await handshake(path)
        session = await house.session()
        session.accepts = session.echoes = False
        message = frame(b"x" * 10_000)
        sent = 0
        # Until nothing more fits between here and there.
        while True:
            writer.write(message)
            sent += 1
            try:
                await asyncio.wait_for(writer.drain(), 0.5)
            except asyncio.TimeoutError:
                break
            assert sent * len(message) < 50_000_000
        assert len(session.received) == 1
        session.accepts = True
        session.callbacks.pop()()
        await until(lambda: len(session.received) == sent)
        # One that has gone while it was held is noticed.
        session.accepts = False
        writer.write(message)
        await until(lambda: session.callbacks)
        writer.close()
        await until(lambda: session.is_closed)
        reader.feed_eof()


@on_a_loop
async def test_a_client_that_never_reads_is_disconnected(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNSENT_MESSAGES", 1000)
    async with listening(unix=str(path)) as house, client(path) as other:
        _, writer = await handshake(path)
        session = await house.session(1)
        while session.states != [True]:
            session.client.deliver([b"x" * 1000])
            await asyncio.sleep(0)
        before = house.listeners.budget.bytes
        assert 0 < before < 4 * limits.CONGESTED_BYTES
        for _ in range(999):
            session.client.deliver([b"x" * 1000])
        assert not session.is_closed
        for _ in range(10):
            session.client.deliver([b"x" * 1000])
        await until(lambda: session.is_closed)
        assert house.refused() == {"a client that does not read": 1} and house.listeners.budget.bytes == 0
        # Delivering to it means nothing any more, and others do not notice.
        session.client.deliver([b"x"])
        await other.send_str("x")
        assert await other.receive_str() == "x"
        writer.close()


@on_a_loop
async def test_one_long_message_counts_in_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNSENT_BYTES", 4_000_000)
    async with listening(unix=str(path)) as house:
        _, writer = await handshake(path)
        session = await house.session()
        session.client.deliver([b"x" * 3_000_000])
        await until(lambda: session.states == [True])
        session.client.deliver([b"x" * 900_000])
        assert not session.is_closed
        session.client.deliver([b"x" * 900_000])
        await until(lambda: session.is_closed)
        writer.close()


@on_a_loop
async def test_of_all_clients_the_one_with_the_most_goes_first(path: Path) -> None:
    async with listening(unix=str(path)) as house:
        house.listeners.budget._limit_bytes = 10_000_000
        connections = [await handshake(path) for _ in range(3)]
        await house.session(2)
        for size, session in zip((3_000_000, 5_000_000, 1_000_000), house.sessions.all, strict=True):
            session.client.deliver([b"x" * size])
        await until(lambda: all(session.states for session in house.sessions.all))
        house.sessions.all[2].client.deliver([b"x" * 3_000_000])
        await until(lambda: house.sessions.all[1].is_closed)
        assert [session.is_closed for session in house.sessions.all] == [False, True, False]
        # Who reads gets all of it.
        reader, _ = connections[2]
        assert len(await reader.readexactly(4_000_020)) == 4_000_020
        await until(lambda: house.sessions.all[2].states == [True, False])
        for _, writer in connections:
            writer.close()


@on_a_loop
async def test_a_session_that_fails_ends_its_client_alone(path: Path) -> None:
    async with listening(unix=str(path)) as house, client(path) as one, client(path) as other:
        await one.send_str("fail")
        message = await one.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1011)
        assert "ValueError('a bug')" in house.log[0]
        await other.send_str("x")
        assert await other.receive_str() == "x"


# The end


@on_a_loop
async def test_the_end_comes_after_what_was_delivered(path: Path) -> None:
    async with listening(unix=str(path)) as house, client(path) as ws:
        session = await house.session()
        lines = [b"%d " % number + b"x" * 10_000 for number in range(200)]
        session.client.deliver(lines)
        session.client.end("the pool is being restarted " + "ä" * 200, again=True)
        session.client.deliver([b"too late"])
        assert [await ws.receive_str() for _ in lines] == [line.decode() for line in lines]
        message = await ws.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1012)
        assert message.extra.startswith("the pool is being restarted ä")


@on_a_loop
async def test_clients_are_told_when_it_closes_and_find_the_next_one(path: Path) -> None:
    port = free_port()
    async with (
        listening(unix=str(path), ws=f"127.0.0.1:{port}", insecure_no_auth=True) as house,
        client(path) as one,
        client(port) as other,
    ):
        await house.session(1)
        stranger, writer_of_stranger = await connect(path)
        _, writer = await handshake(path)
        (await house.session(2)).client.deliver([b"x" * 10_000_000])
        closing = asyncio.create_task(house.listeners.close("restart"))
        for ws in (one, other):
            message = await ws.receive(timeout=5)
            assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 1012, "restart")
        assert await stranger.read() == b""
        writer_of_stranger.close()
        with pytest.raises(OSError):
            await connect(path)
        # One that does not read does not hold it up.
        await asyncio.wait_for(closing, 4 * limits.CLOSE_LIMIT_S)
        writer.close()
    async with listening(unix=str(path), ws=f"127.0.0.1:{port}", insecure_no_auth=True), client(path), client(port):
        pass


@on_a_loop
async def test_a_socket_that_was_removed_is_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TICK_S", 0.05)
    async with listening(unix=str(path)) as house, client(path) as ws:
        path.unlink()
        await until(path.exists)
        async with client(path):
            await house.session(1)
        await ws.send_str("x")
        assert await ws.receive_str() == "x"
        assert house.log == [f"{path} was removed, and is made again"]


@on_a_loop
async def test_a_port_that_is_taken(path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match="cannot listen on"):
            async with listening(unix=str(path), ws=where, insecure_no_auth=True):
                pass
    assert not path.exists()
