"""Connections that are cut, stall and trickle, and bytes that nobody should send: turns are whole, and done once."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codex_app_server import Codex, TransportClosedError, TurnHandle
from codex_app_server.testing import null_app_server
from codex_pool import Pool, connect
from codex_pool.auth.keys import KeyStore
from codex_pool.auth.principal import Identity

from .clients import GREETING, RawClient
from .driver import rows, seen, status, wait_until
from .proxy import Fault, Proxy

LIMIT_S = 60.0
DELTAS = 300
pytestmark = pytest.mark.timeout(120)


@dataclass
class House:
    """A pool of null app-servers, and how a client reaches it."""

    pool: Pool
    address: str
    key: Path | None

    def through(self, proxy: Proxy) -> Codex:
        return connect(proxy.endpoint, key=self.key, name="through the proxy")


@pytest.fixture(params=["unix", "tcp"])
def house(request: pytest.FixtureRequest, tmp_path: Path, work: Path) -> Iterator[House]:
    config = null_app_server(deltas=DELTAS, pace_ms=5)
    config.env = {"CODEX_HOME": str(tmp_path / "home")}
    listen, keys = None, KeyStore(tmp_path / "keys")
    if request.param == "tcp":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            listen = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        keys.new(Identity(name="chaos", cwd_roots=("/",)), tmp_path / "chaos.key")
    log = tmp_path / "pool.log"
    try:
        with Pool(2, config, listen=listen, keys=keys.directory if listen else None, log_file=log) as pool:
            yield House(pool, listen or pool.endpoint, tmp_path / "chaos.key" if listen else None)
    finally:
        print(log.read_text())


def deltas_of(turn: TurnHandle) -> list[str]:
    """The methods of a turn; it must have completed."""
    methods = []
    for notification in turn.stream():
        methods.append(notification.method)
        assert notification.method != "pool/turn/ended", notification.params
    return methods


def whole(methods: list[str]) -> None:
    """Every notification of a null turn, once, in order."""
    assert methods == [
        "pool/turn/assigned",
        "turn/started",
        "item/started",
        *["item/agentMessage/delta"] * DELTAS,
        "item/completed",
        "thread/tokenUsage/updated",
        "turn/completed",
    ]


FAULTS = {
    # A greeting and a handshake are 300 bytes or so: some cuts fall into them.
    "cut towards the client": [Fault("cut", after) for after in (2_000, 5_000, 100, 9_000, 600, 3_000)],
    "cut towards the pool": [Fault("cut", after, to="pool") for after in (700, 150, 1_100, 400, 900)],
    "stall": [Fault("stall", 4_000, seconds=20.0), Fault("stall", 2_000, seconds=20.0)],
    "trickle": [Fault("trickle", 1_000, chunk=600, pause_s=0.01)],
}


@pytest.mark.chaos
@pytest.mark.parametrize("name", FAULTS)
def test_a_turn_through_a_bad_connection_is_whole(house: House, name: str) -> None:
    with Proxy(house.address, FAULTS[name]) as proxy, house.pool.connect() as other:
        bystander = other.thread_start().turn("beside it")
        with ThreadPoolExecutor(1) as executor:
            beside = executor.submit(deltas_of, bystander)
            with house.through(proxy) as codex:
                # Requests are done once, however often their connection goes before they are answered.
                thread = codex.thread_start()
                methods = deltas_of(thread.turn("anything"))
                assert thread.run("again", timeout=LIMIT_S).status == "completed"
            whole(beside.result(LIMIT_S))
        whole(methods)
        assert status(other)["turns"]["completed"] == 3
        if name != "trickle":
            assert proxy.connections > 1, "the fault was met"


def test_every_connection_cut_again_and_again(house: House) -> None:
    """Connection cut by hand while it streams: on TCP and on UNIX sockets it comes back, and nothing is missing."""
    with Proxy(house.address) as proxy, house.through(proxy) as codex:
        turn = codex.thread_start().turn("anything")
        methods = []
        for notification in turn.stream():
            methods.append(notification.method)
            assert notification.method != "pool/turn/ended", notification.params
            if len(methods) in (50, 51, 120, 200):
                proxy.cut()
        whole(methods)
        assert proxy.connections >= 2


@pytest.mark.chaos
def test_a_proxy_that_never_comes_back_ends_every_wait(house: House) -> None:
    """The client tries for its 60 s, then everybody who waits is told how to start a pool."""
    with Proxy(house.address) as proxy:
        codex = house.through(proxy)
        turn = codex.thread_start().turn("anything")
    try:
        said = seen(turn.run, timeout=100)
        assert said.startswith("TransportClosedError: ") and "no pool at" in said, said
        with pytest.raises(TransportClosedError):
            codex.thread_start()
    finally:
        codex.close()


# Raw bytes.


def sockets_of(house: House) -> dict[str, Any]:
    """Every address that something of the pool listens on."""
    path = house.pool.endpoint.removeprefix("ipc://")
    found: dict[str, Any] = {"clients": path, "workers": path.removesuffix(".sock") + ".w"}
    if house.key is not None:
        host, _, port = house.address.removeprefix("tcp://").rpartition(":")
        found["tcp"] = (host, int(port))
    return found


def junk(seed: int) -> Iterator[bytes]:
    """Yield what is no ZMTP, what almost is, and what ends in the middle."""
    generator = random.Random(seed)
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    hello = GREETING + b"\x04" + bytes([len(ready)]) + ready
    yield b""
    yield b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"\x16\x03\x01" + generator.randbytes(500)
    yield GREETING[:20]
    yield GREETING
    yield GREETING.replace(b"NULL", b"CURVE"[:4])
    yield hello
    yield hello + b"\x00"
    yield hello + b"\x00\x05hello"
    yield hello + b"\x01\x01\x01" + b"\x00\x04\x01\x91\xa5\xff"
    # A frame said to be of 2^63 bytes, and one of 1 GiB of which nothing comes.
    yield hello + b"\x02" + (2**63).to_bytes(8, "big")
    yield hello + b"\x02" + (2**30).to_bytes(8, "big") + b"x" * 1000
    yield hello + b"\x01\x00" * 5000
    for _ in range(20):
        yield hello + generator.randbytes(generator.randrange(1, 3000))
    for _ in range(20):
        yield generator.randbytes(generator.randrange(1, 3000))


def test_raw_bytes_at_every_socket_disturb_nobody(house: House) -> None:
    with house.pool.connect() as codex, contextlib.ExitStack() as stack:
        before = rows(codex)
        turn = codex.thread_start().turn("meanwhile")
        with ThreadPoolExecutor(1) as executor:
            running = executor.submit(deltas_of, turn)
            for address in sockets_of(house).values():
                for data in junk(seed=len(str(address))):
                    raw = stack.enter_context(
                        socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
                    )
                    raw.settimeout(5)
                    raw.connect(address)
                    with contextlib.suppress(OSError):
                        raw.sendall(data)
            # They stay open, and say nothing more, while the turn goes on.
            whole(running.result(LIMIT_S))
            stack.close()
        assert codex.thread_start().run("after", timeout=LIMIT_S).status == "completed"
        after = rows(codex)
        assert [row["pid"] for row in after] == [row["pid"] for row in before]
        assert [row["state"] for row in after] == ["ready", "ready"]


@pytest.mark.chaos
@pytest.mark.parametrize("house", ["unix"], indirect=True)
def test_random_frames_of_a_session_disturb_nobody(house: House) -> None:
    """Frames of a session that is welcome, and then writes what nobody expects."""
    generator = random.Random(7)
    with house.pool.connect() as codex:
        turn = codex.thread_start().turn("meanwhile")
        with ThreadPoolExecutor(1) as executor:
            running = executor.submit(deltas_of, turn)
            with RawClient(house.pool.endpoint) as raw:
                for _ in range(300):
                    parts = [generator.randbytes(generator.randrange(0, 200)) for _ in range(generator.randrange(1, 4))]
                    if generator.random() < 0.5:
                        parts[0] = b"\x01" + parts[0]
                    raw.write(parts)
                for line in (b"", b"{}", b"[]", b"null", b'{"id":1}', b'{"method":1}', os.urandom(100), b"[" * 5000):
                    raw.call(line)
            whole(running.result(LIMIT_S))
        wait_until(lambda: len(status(codex)["clients"]) == 1, "the session is over")
        assert codex.thread_start().run("after", timeout=LIMIT_S).status == "completed"
