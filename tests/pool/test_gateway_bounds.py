"""Bounds of a key on the gateway: what it may send in a second, its share of the link, strangers of each listener."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gateway_clients import answer, connect, request
from loops import on_a_loop
from ports import free_port
from test_gateway_listeners import bearer, frame, handshake, listening, new, until

from codex_pool.auth.keys import KeyStore
from codex_pool.gateway.listeners import limits
from codex_pool.gateway.listeners.allowance import Allowance
from codex_pool.gateway.rotation import MAX_SHARE_BYTES, Rotation
from codex_pool.protocol import ingress_frames

PING = 9


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys")


# What a key may send


def test_what_is_sent_is_counted_in_bytes_messages_and_time() -> None:
    for taken in ({"size": limits.BURST_BYTES}, {"messages": limits.BURST_MESSAGES}, {"cpu_s": limits.BURST_CPU_S}):
        allowance = Allowance(0.0)
        assert allowance.take(0.0, **taken) == 0.0
        wait_s = allowance.take(0.0, **{name: value / 10 for name, value in taken.items()})
        assert 0.0 < wait_s < 0.3
        assert allowance.take(wait_s) < 1e-9
        assert not allowance.is_full(wait_s) and allowance.is_full(10.0)


def test_a_key_that_sends_as_fast_as_it_may_is_exhausted_since_then() -> None:
    allowance, now = Allowance(0.0), 0.0
    for _ in range(5000):
        now += allowance.take(now, messages=1)
    assert 0.0 <= allowance.exhausted_since < 0.1 < now
    # A pause in which half of it comes back ends that.
    allowance.take(now + limits.BURST_MESSAGES / limits.RATE_MESSAGES)
    assert allowance.exhausted_since > now + 1e6


@on_a_loop
async def test_pings_and_messages_of_a_key_are_bounded_together(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BURST_MESSAGES", 40)
    monkeypatch.setattr(limits, "RATE_MESSAGES", 0.01)
    port = free_port()
    async with listening(ws=f"127.0.0.1:{port}", keys=str(store.directory)) as house:
        token = f"Authorization: {bearer(new(store))['Authorization']}"
        one, two = await handshake(port, token), await handshake(port, token)
        # A handshake counts as some messages.
        assert (await answer(port, request("/rpc", token)))[0] == 101
        one[1].write(frame(b"{}") * 200)
        two[1].write(frame(b"", PING) * 200)
        first, second = await house.session(0), await house.session(1)
        pongs = 0
        with pytest.raises(asyncio.TimeoutError):
            while True:
                await asyncio.wait_for(two[0].readexactly(2), 1.0)
                pongs += 1
        assert pongs + len(first.received) + len(second.received) <= 40 - 3 * limits.HANDSHAKE_MESSAGES
        status, _, text = await answer(port, request("/rpc", token))
        assert status == 429 and "faster than a key may" in text
        # Another key has its own.
        other = await handshake(port, f"Authorization: {bearer(new(store, 'bob'))['Authorization']}")
        other[1].write(frame(b"{}"))
        session = await house.session(3)
        await until(lambda: session.received == [b"{}"])
        for _, writer in (one, two, other):
            writer.close()


@on_a_loop
async def test_frames_that_make_no_message_are_bounded_too(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fragments without bytes, without end: they cost time, and at last the connection."""
    monkeypatch.setattr(limits, "THROTTLED_LIMIT_S", 0.5)
    monkeypatch.setattr(limits, "RATE_CPU_S", 0.001)
    monkeypatch.setattr(limits, "BURST_CPU_S", 0.005)
    monkeypatch.setattr(limits, "TICK_S", 0.1)
    port = free_port()
    async with listening(ws=f"127.0.0.1:{port}", keys=str(store.directory)) as house:
        token = f"Authorization: {bearer(new(store))['Authorization']}"
        reader, writer = await handshake(port, token)
        await house.session()
        writer.write(frame(b"", final=False) + frame(b"", 0, final=False) * 200_000)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        assert house.refused()["a client that sends too much for too long"] == 1
        writer.close()


@on_a_loop
async def test_a_sender_that_is_gone_is_not_worked_off(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest in the socket would last for hours, and hide that its sender has closed."""
    monkeypatch.setattr(limits, "THROTTLED_LIMIT_S", 0.5)
    monkeypatch.setattr(limits, "RATE_MESSAGES", 10)
    monkeypatch.setattr(limits, "BURST_MESSAGES", 20)
    monkeypatch.setattr(limits, "TICK_S", 0.1)
    port = free_port()
    async with listening(ws=f"127.0.0.1:{port}", keys=str(store.directory)) as house:
        token = f"Authorization: {bearer(new(store))['Authorization']}"
        _, writer = await handshake(port, token)
        writer.write(frame(b"{}") * 100_000)
        session = await house.session()
        await asyncio.sleep(0)
        writer.close()
        await asyncio.wait_for(until(lambda: session.is_closed), 20)
        assert house.listeners.counts()["clients"] == 0


@on_a_loop
async def test_a_client_that_says_goodbye_and_reads_nothing_is_not_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CLOSE_LIMIT_S", 0.2)
    async with listening(unix=str(path)) as house:
        _, writer = await handshake(path)
        session = await house.session()
        session.client.deliver([b"x" * 100_000] * 40)
        writer.write(frame(b"", 8))
        await asyncio.wait_for(until(lambda: not house.listeners.counts()["clients"]), 10)
        assert house.listeners.counts()["unsentBytes"] == 0
        writer.close()


@pytest.fixture
def path(runtime_directory: Path) -> Path:
    return runtime_directory / "a.sock"


# Strangers


@on_a_loop
async def test_strangers_over_tcp_put_out_nobody_at_the_unix_socket(
    path: Path, store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_STRANGERS", 4)
    port = free_port()
    async with listening(unix=str(path), ws=f"127.0.0.1:{port}", keys=str(store.directory)) as house:
        reader, writer = await connect(path)
        await until(lambda: house.listeners.counts()["strangers"] == 1)
        others = [await connect(port) for _ in range(20)]
        await until(lambda: house.refused().get("too many connections without a handshake") == 16)
        writer.write(request())
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        for _, each in [(reader, writer), *others]:
            each.close()


@on_a_loop
async def test_strangers_come_no_faster_than_they_may(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RATE_STRANGERS", 0.01)
    monkeypatch.setattr(limits, "BURST_STRANGERS", 5)
    port = free_port()
    async with listening(ws=f"127.0.0.1:{port}", keys=str(store.directory)) as house:
        sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        await until(lambda: house.listeners.counts()["strangers"] == 6)
        await asyncio.sleep(0.1)
        assert house.listeners.counts()["strangers"] == 6
        for each in sockets:
            each.close()


@on_a_loop
async def test_some_places_are_the_owners_alone(path: Path, store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CLIENTS", 4)
    monkeypatch.setattr(limits, "OWNER_CLIENTS", 3)
    port = free_port()
    async with listening(unix=str(path), ws=f"127.0.0.1:{port}", keys=str(store.directory)):
        token = f"Authorization: {bearer(new(store))['Authorization']}"
        # A quarter at most, so that some are left for keys.
        kept = [await handshake(port, token) for _ in range(3)]
        assert (await answer(port, request("/rpc", token)))[0] == 503
        kept.append(await handshake(path))
        for _, writer in kept:
            writer.close()


def test_descriptors_are_kept_for_the_link() -> None:
    for files in (100, 256, 1024, 4096, 1_000_000):
        for listeners in (1, 2, 3):
            strangers, clients = limits.room(files, listeners)
            assert strangers >= 1 and clients >= 1
            assert strangers * listeners + clients + limits.SPARE_DESCRIPTORS <= files
    assert limits.room(-1, 3) == limits.room(1_000_000, 3) == (limits.MAX_STRANGERS, limits.MAX_CLIENTS)


# The link


class _Client(SimpleNamespace):
    share_key: str
    unsent: deque[Any]
    unsent_bytes: int


def sender(share_key: str) -> _Client:
    return _Client(share_key=share_key, unsent=deque(), unsent_bytes=0)


def message(connection: int, size: int = 10) -> ingress_frames.Message:
    return ingress_frames.Message(connection, "", "", [b"x" * size])


def test_keys_take_turns_and_clients_of_a_key_within_them() -> None:
    rotation = Rotation()
    many, one, own = [sender("mallory") for _ in range(3)], sender("alice"), sender("/9")
    for number, each in enumerate((*many, one, own)):
        for _ in range(3):
            rotation.add(each, message(number))
    order = []
    while (frame := rotation.pop()) is not None:
        assert isinstance(frame, ingress_frames.Message)
        order.append(frame.connection)
    assert order == [0, 3, 4, 1, 3, 4, 2, 3, 4, 0, 1, 2, 0, 1, 2]
    assert len(rotation) == 0 and all(not each.unsent_bytes for each in (*many, one, own))


def test_clients_that_are_gone_count_in_the_share_of_their_key() -> None:
    rotation = Rotation()
    for number in range(5):
        rotation.add(sender("mallory"), message(number, MAX_SHARE_BYTES // 4))
    assert not rotation.accepts("mallory") and rotation.accepts("alice")
    assert rotation.pop() is not None
    assert rotation.accepts("mallory")
    gone = sender("alice")
    rotation.add(gone, message(9))
    rotation.remove(gone)
    rotation.remove(gone)
    assert not gone.unsent and not gone.unsent_bytes and len(rotation) == 4
    rotation.clear()
    assert len(rotation) == 0 and rotation.pop() is None and rotation.accepts("mallory")
