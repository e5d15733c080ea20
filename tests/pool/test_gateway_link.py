"""The link between gateway and broker: who may name the owner, its beats, and sessions that need none of their own."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from broker_bench import Bench
from session_ids import sid

from codex_pool.broker import sessions
from codex_pool.broker.ingress_connection import ConnectionEnded, Events, GatewayJoined, IngressLinks, Message
from codex_pool.gateway.pool_sessions import PoolSessions
from codex_pool.protocol import ingress_frames, wire
from codex_pool.protocol.ingress_frames import GATEWAY, INGRESS, Join
from codex_pool.supervisor.gateway_child import LONGEST_DELAY_S
from codex_pool.supervisor.restarted_child import (
    BACKOFF_FIRST_S,
    STABLE_S,
    UNANSWERED_PINGS,
    UNANSWERED_PINGS_AT_START,
    RestartedChild,
)

LIMIT_S = 10.0
HELLO = wire.encode(wire.Hello("g1/1", "tui", when_gone="keep", all_turns=True))


class Links:
    """The broker's end, on a clock of its own, and processes that join."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "l.sock"
        self.now = 100.0
        self.log: list[str] = []
        self._poller = zmq.Poller()
        self.links = IngressLinks(
            self.path, {INGRESS: "secret of it", GATEWAY: "another"}, self._poller, self.log.append
        )
        self.links.bind()

    def join(self, kind: str, secret: str) -> socket.socket:
        joined = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        joined.settimeout(LIMIT_S)
        joined.connect(str(self.path))
        joined.sendall(ingress_frames.encode(Join(secret, kind, "g1")))
        return joined

    def receive(self, least: int = 1) -> list[Any]:
        """Messages that come, `least` or more."""
        found: list[Any] = []
        deadline = time.monotonic() + LIMIT_S
        while len(found) < least:
            assert time.monotonic() < deadline, found
            ready = dict(self._poller.poll(20))
            events: Events = self.links.receive(ready, self.now)
            found += events.messages
        return found

    def turn(self, seconds: float) -> None:
        """Some time passes, and the loop turns."""
        self.now += seconds
        self.links.receive(dict(self._poller.poll(20)), self.now)
        self.links.tick(self.now)
        self.links.flush()


@pytest.fixture
def links(tmp_path: Path) -> Iterator[Links]:
    links = Links(tmp_path)
    yield links
    links.links.close()


def frames(data: bytes) -> list[Any]:
    decoder = ingress_frames.Decoder(ingress_frames.FromBroker)
    decoder.feed(data)
    return list(iter(decoder.next, None))


def test_only_a_gateway_names_the_pools_owner(links: Links) -> None:
    message = ingress_frames.encode(ingress_frames.Message(1, "", "", [HELLO]))
    with links.join(INGRESS, "secret of it") as ingress, links.join(GATEWAY, "another") as gateway:
        for joined in (ingress, gateway):
            joined.sendall(message)
        found = links.receive(3)
        by_kind = {each.peer.partition(b"\0")[0]: each.is_owner for each in found if isinstance(each, Message)}
        assert by_kind == {b"tcp": False, b"gateway": True}
        assert GatewayJoined("g1") in found


def test_the_secret_of_the_ingress_makes_no_gateway(links: Links) -> None:
    with links.join(GATEWAY, "secret of it") as joined:
        links.turn(0), links.turn(0)
        assert joined.recv(100) == b""
    with links.join("other", "another") as joined:
        links.turn(0), links.turn(0)
        assert joined.recv(100) == b""
    assert len(links.log) == 2 and "another secret" in links.log[0]


def test_a_gateway_that_is_silent_is_cut(links: Links) -> None:
    with links.join(GATEWAY, "another") as gateway, links.join(INGRESS, "secret of it") as ingress:
        gateway.sendall(ingress_frames.encode(ingress_frames.Message(1, "", "", [HELLO])))
        links.receive(2)
        links.turn(1.0)
        assert frames(gateway.recv(1000)) == [ingress_frames.Joined(), ingress_frames.Beat()]
        assert frames(ingress.recv(1000)) == [ingress_frames.Joined()], "an ingress has no beats"
        for _ in range(5):
            gateway.sendall(ingress_frames.encode(ingress_frames.Beat()))
            links.turn(1.0)
        assert links.log == []
        for _ in range(4):
            links.turn(1.0)
        (ended,) = links.receive()
        assert isinstance(ended, ConnectionEnded) and ended.peer.startswith(b"gateway\0")
        assert "nothing has come from the gateway for 3 s" in links.log[0]


# The broker's sessions.


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.register("w0", 0)
    return bench


def hello(bench: Bench, session: str, peer: bytes) -> None:
    head = wire.Hello(session, session, when_gone="keep", all_turns=True)
    bench.apply(bench.core.client_message(peer, [wire.encode(head)], bench.now))


def test_a_session_of_the_gateway_lives_as_long_as_its_link(bench: Bench) -> None:
    hello(bench, "g1/1", b"gateway\x001.1")
    heads = len(bench.heads)
    bench.beat(sessions.AWAY_S + sessions.SESSION_GRACE_S + 5)
    (row,) = bench.status()["sessions"]
    assert row["state"] == "connected" and len(bench.heads) == heads, "no beats, and no silence"
    bench.apply(bench.core.client_unreachable(b"gateway\x001.1", bench.now))
    bench.beat(sessions.SESSION_GRACE_S + 3)
    assert bench.status()["sessions"] == []
    assert bench.workers["w0"].heads[-1] == wire.SessionGone(sid("g1/1"), True)


def test_another_gateway_ends_the_sessions_of_the_former_one(bench: Bench) -> None:
    hello(bench, "g1/1", b"gateway\x001.1")
    hello(bench, "s1", b"\0s1/1")
    bench.apply(bench.core.gateway_joined("g1", bench.now))
    assert len(bench.status()["sessions"]) == 2, "its link only broke"
    bench.apply(bench.core.gateway_joined("g2", bench.now))
    assert [row["client"] for row in bench.status()["sessions"]] == ["s1"]
    assert bench.workers["w0"].heads[-1] == wire.SessionGone(sid("g1/1"), True)
    assert bench.core.state.faults() == []


def test_the_bye_of_a_session_that_keeps_its_turns_keeps_them(bench: Bench) -> None:
    hello(bench, "g1/1", b"gateway\x001.1")
    bench.apply(bench.core.client_message(b"gateway\x001.1", [wire.encode(wire.Bye())], bench.now))
    assert bench.workers["w0"].heads[-1] == wire.SessionGone(sid("g1/1"), True)


def test_status_has_the_gateway(bench: Bench) -> None:
    assert "gateway" not in bench.status()
    bench.core.gateway({"state": "ready", "pid": 7, "restarts": 1})
    hello(bench, "g1/1", b"gateway\x001.1")
    assert bench.status()["gateway"] == {"state": "ready", "pid": 7, "restarts": 1, "sessions": 1}


# The gateway's end.


class FakeClient:
    """Messages that a client was sent."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def deliver(self, lines: list[bytes]) -> None:
        self.lines += lines

    def end(self, reason: str, *, again: bool) -> None:
        raise AssertionError(f"it ended: {reason}")


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.01)


def test_a_broker_that_is_silent_is_left_and_joined_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker joins, welcomes sessions, and then hangs; the next connection works."""
    monkeypatch.setattr(ingress_frames, "SILENT_S", 0.3)
    path = str(tmp_path / "l.sock")
    instances: list[str] = []
    hellos: list[wire.Hello] = []

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(frame: ingress_frames.FromBroker) -> None:
            writer.write(ingress_frames.encode(frame))

        decoder = ingress_frames.Decoder(ingress_frames.ToBroker)
        while data := await reader.read(65536):
            decoder.feed(data)
            for frame in iter(decoder.next, None):
                if isinstance(frame, Join):
                    assert (frame.kind, frame.secret) == (GATEWAY, "secret")
                    instances.append(frame.instance)
                    say(ingress_frames.Joined())
                elif isinstance(frame, ingress_frames.Message):
                    say(ingress_frames.Taken(1))
                    head = wire.decode_from_client(frame.frames[0])
                    if isinstance(head, wire.Hello):
                        hellos.append(head)
                        welcome = wire.encode(wire.Welcome(1, len(hellos) > 1))
                        say(ingress_frames.Send(frame.connection, [welcome, b"{}"]))
                    elif isinstance(head, wire.Call):
                        answer = b'{"id":%d,"result":{}}' % json.loads(frame.frames[1])["id"]
                        say(ingress_frames.Send(frame.connection, [wire.encode(wire.Lines()), answer]))
        writer.close()

    async def run() -> None:
        server = await asyncio.start_unix_server(broker, path)
        pool = PoolSessions(link=path, secret="secret", endpoint="ipc:///pool", instance="g1")
        client = FakeClient()
        session = pool.open(client, None, "")
        session.receive(b'{"id":0,"method":"initialize","params":{"clientInfo":{"name":"x","version":"1"}}}')
        await until(lambda: client.lines)
        await until(lambda: len(hellos) > 1)
        session.receive(b'{"id":1,"method":"model/list"}')
        await until(lambda: len(client.lines) == 2)
        session.close()
        await pool.close()
        server.close()
        await server.wait_closed()

    asyncio.run(asyncio.wait_for(run(), LIMIT_S))
    assert instances[:2] == ["g1", "g1"] and {each.session for each in hellos} == {"g1/1"}


# What the supervisor's children that are replaced alone have in common.


class _FakeChild:
    def __init__(self) -> None:
        self.last_report: dict[str, Any] = {}
        self.sent: list[dict[str, Any]] = []
        self.is_killed = False

    def send(self, record: dict[str, Any]) -> None:
        self.sent.append(record)

    def kill(self) -> None:
        self.is_killed = True


class _Launcher:
    def launch(self, module: str, arguments: Any, *, inherit: tuple[int, ...] = ()) -> Any:
        return _FakeChild()


def test_a_child_that_dies_again_and_again_is_replaced_later_and_later() -> None:
    child = RestartedChild("module", _Launcher(), longest_delay_s=LONGEST_DELAY_S)
    delays = []
    now = 0.0
    for _ in range(7):
        child.launch(None, now)  # type: ignore[arg-type]
        delays.append(child.died(now))
        now = child.due
    assert delays == [BACKOFF_FIRST_S * factor for factor in (1, 2, 4, 8, 16)] + [LONGEST_DELAY_S] * 2
    child.launch(None, now)  # type: ignore[arg-type]
    assert child.died(now + STABLE_S + 1) == BACKOFF_FIRST_S and child.child is None


def test_a_child_that_answers_no_ping_is_killed() -> None:
    child = RestartedChild("module", _Launcher(), longest_delay_s=LONGEST_DELAY_S)
    assert not child.ping(), "there is none"
    process: Any = child.launch(None, 0.0)  # type: ignore[arg-type]
    # While it has not reported yet, it may be loading.
    assert not any(child.ping() for _ in range(UNANSWERED_PINGS_AT_START))
    process.last_report = {"event": "ready"}
    for _ in range(2):
        child.take({"event": "pong"})
        assert not any(child.ping() for _ in range(UNANSWERED_PINGS))
    child.take({"event": "pong"})
    assert not any(child.ping() for _ in range(UNANSWERED_PINGS)) and not process.is_killed
    assert child.ping() and process.is_killed
