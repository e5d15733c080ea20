"""Floods of one hostile client with a read-only key: `python bench/floods.py NAME JSON`. For bench/neighbour.py.

The endpoint is tcp://HOST:PORT, or ws://HOST:PORT of the gateway.

It writes "ready" when it is set up, begins at the first line on stdin, and floods until stdin ends. It ignores
whatever it is told, connects again when it is put out, and uses every session that its key allows.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import zmq
from flood_sessions import QUEUED_MESSAGES, GatewaySession, Session, TcpSession
from websocket_client import PING, frame

from codex_app_server.generated.routing import REQUESTS
from codex_pool.auth.keys import read_client_key
from codex_pool.protocol import wire

MIB = 1024 * 1024
SESSIONS = 16
BODY_BYTES = 7 * MIB


class Flood:
    """State of one flood: its endpoint, key, sessions and connections."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.endpoint: str = settings["endpoint"]
        self.key = read_client_key(settings["key"])
        self.cwd: str = settings["cwd"]
        self.context: zmq.Context[Any] = zmq.Context()
        self.context.max_sockets = 8000
        self.sessions: list[Any] = []
        self.strangers: list[socket.socket] = []
        self.turn = itertools.count()

    def session(self, *, hello: bool = True) -> Any:
        """A new session."""
        if self.endpoint.startswith("ws://"):
            return GatewaySession(self.endpoint, self.key.token, hello=hello)
        return TcpSession(self.context, self.endpoint, self.key, hello=hello)

    def open(self, count: int = SESSIONS) -> None:
        self.sessions = [self.session() for _ in range(count)]

    def threads(self) -> dict[Session, list[str]]:
        """Some threads of each session, started and known."""
        found: dict[Session, list[str]] = {}
        for session in self.sessions:
            for _ in range(3):
                session.call("thread/start", {"cwd": self.cwd, "sandbox": "read-only"})
            found[session] = []
            deadline = time.monotonic() + 20
            while len(found[session]) < 3 and time.monotonic() < deadline:
                session.wait(0.1)
                for line in session.lines():
                    answer = json.loads(line)
                    if "result" in answer and "thread" in answer["result"]:
                        found[session].append(answer["result"]["thread"]["id"])
        return found

    def each(self, do: Callable[[Session], object]) -> None:
        """Once for each session; what was answered is read."""
        for session in self.sessions:
            do(session)
            session.attend()


def positions(flood: Flood) -> Callable[[], None]:
    """Say Hello with as many positions as a message holds."""
    count = BODY_BYTES // 3
    body = b"\xdd" + count.to_bytes(4, "big") + b"\x92\xa0\x00" * count

    def step() -> None:
        session = flood.session(hello=False)
        session.send(wire.Hello(session.id, "mallory"), body)
        flood.sessions.append(session)
        if len(flood.sessions) > SESSIONS:
            flood.sessions.pop(0).close()
        time.sleep(0.2)

    return step


def ids(flood: Flood) -> Callable[[], None]:
    """Requests whose ids are of megabytes."""
    flood.open()
    return lambda: flood.each(lambda one: one.call("model/list", {}, id=secrets.token_hex(4) + "x" * BODY_BYTES))


def parameters(flood: Flood) -> Callable[[], None]:
    """Threads with names, instructions and directories of megabytes, which records keep."""
    flood.open()
    known = flood.threads()
    text = "n" * BODY_BYTES

    def do(session: Session) -> None:
        for thread in known[session]:
            session.call("thread/name/set", {"threadId": thread, "name": secrets.token_hex(4) + text})
        session.call("thread/start", {"cwd": flood.cwd, "model": text})

    return lambda: flood.each(do)


def dense(flood: Flood) -> Callable[[], None]:
    """JSON that takes as long to decode as its size allows."""
    flood.open()
    inner = b",".join([b"{}"] * (BODY_BYTES // 3))
    line = b'{"id":1,"method":"thread/start","params":{"dynamicTools":[' + inner + b"]}}"
    return lambda: flood.each(lambda session: session.send(wire.Call(), line))


def deep(flood: Flood) -> Callable[[], None]:
    """JSON with as many levels as a message holds."""
    flood.open()
    line = b'{"id":1,"method":"thread/start","params":{"dynamicTools":' + b"[" * BODY_BYTES
    return lambda: flood.each(lambda session: session.send(wire.Call(), line))


def lists(flood: Flood) -> Callable[[], None]:
    """Requests that all workers answer, as fast as they can be sent."""
    flood.open()

    def do(session: Session) -> None:
        for _ in range(QUEUED_MESSAGES):
            session.call("thread/list", {"limit": 100})

    return lambda: flood.each(do)


def methods(flood: Flood) -> Callable[[], None]:
    """Every method of the schema, one after the other."""
    flood.open()
    names = itertools.cycle(sorted(REQUESTS))

    def do(session: Session) -> None:
        for _ in range(QUEUED_MESSAGES):
            session.call(next(names), {"cwd": flood.cwd})

    return lambda: flood.each(do)


def waiting(flood: Flood) -> Callable[[], None]:
    """Turns with much text, more than may run."""
    flood.open()
    known = flood.threads()
    text = [{"type": "text", "text": "w" * MIB}]

    def do(session: Session) -> None:
        for thread in known[session]:
            session.call("turn/start", {"threadId": thread, "input": text})

    return lambda: flood.each(do)


def unread(flood: Flood) -> Callable[[], None]:
    """Turns whose notifications nobody reads."""
    flood.open()
    known = flood.threads()

    def step() -> None:
        for session, threads in known.items():
            for thread in threads:
                session.call("turn/start", {"threadId": thread, "input": [{"type": "text", "text": "u"}]})
            session.send(wire.Beat())
        time.sleep(0.05)

    return step


def vanishing(flood: Flood) -> Callable[[], None]:
    """Sessions that are begun and left, to be waited for."""

    def step() -> None:
        session = flood.session(hello=False)
        session.begin(when_gone="keep")
        flood.sessions.append(session)
        if len(flood.sessions) > SESSIONS:
            flood.sessions.pop(0).close()
        time.sleep(0.005)

    return step


def silent(flood: Flood) -> Callable[[], None]:
    """Connections with a key that never say Hello."""

    def step() -> None:
        if len(flood.sessions) < 4200:
            flood.sessions += [flood.session(hello=False) for _ in range(20)]
        time.sleep(0.05)

    return step


def strangers(flood: Flood) -> Callable[[], None]:
    """TCP connections without a key: silent, with garbage, with half a handshake."""
    host, _, port = flood.endpoint.partition("://")[2].rpartition(":")
    head = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    greeting = b"\xff" + b"\0" * 8 + b"\x7f\x03\x00CURVE" + b"\0" * 47
    said = itertools.cycle([b"", os.urandom(4096), greeting, greeting + b"\x04\xc8" + os.urandom(200)])
    if flood.endpoint.startswith("ws://"):
        said = itertools.cycle([b"", os.urandom(4096), head, head + b"A: b\r\n" * 3000, head + b"X: " + b"y" * 15000])

    def step() -> None:
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, int(port)), 1)
            connection.setblocking(False)
            connection.send(next(said))
            flood.strangers.append(connection)
        while len(flood.strangers) > 500:
            flood.strangers.pop(0).close()

    return step


def parts(flood: Flood) -> Callable[[], None]:
    """Messages of very many parts."""
    flood.open()
    bodies = [b"p" * MIB] * 600
    return lambda: flood.each(lambda session: session.send(wire.Call(), *bodies))


def noise(flood: Flood) -> Callable[[], None]:
    """Heads that cannot be decoded, and lines that are no requests: what is written to a log."""
    flood.open()

    def do(session: Session) -> None:
        for _ in range(QUEUED_MESSAGES // 4):
            session.send(os.urandom(64))
            session.send(wire.Call(), b"{" * 64)
            session.send(wire.Call(), b'{"id":1,"method":"no/such/method%s"}' % secrets.token_hex(4).encode())
            session.send(wire.Hello(secrets.token_hex(8), "\x1b[2J" * 64))

    return lambda: flood.each(do)


def answers(flood: Flood) -> Callable[[], None]:
    """Answers to questions that nobody asked, and receipts for turns that there are not."""
    flood.open()
    ack = wire.Ack("worker", [wire.Position(secrets.token_hex(16), 1, secrets.token_hex(16)) for _ in range(500)])

    def do(session: Session) -> None:
        for _ in range(QUEUED_MESSAGES // 2):
            session.send(wire.Call(), b'{"id":"w/1","result":{"decision":"accept"}}')
            session.send(ack)

    return lambda: flood.each(do)


def write(flood: Flood, data: bytes) -> Callable[[], None]:
    """These bytes on the connections of all sessions, over and over."""
    flood.open()
    return lambda: flood.each(lambda session: session.write(data))


def pings(flood: Flood) -> Callable[[], None]:
    """The shortest frames that are to be answered."""
    return write(flood, frame(b"", PING) * 40_000)


def empty(flood: Flood) -> Callable[[], None]:
    """The shortest messages, which are no requests."""
    return write(flood, frame(b"{}") * 40_000)


def fragments(flood: Flood) -> Callable[[], None]:
    """One message in fragments without any bytes, and without an end."""
    flood.open()
    flood.each(lambda session: session.write(frame(b"", final=False)))
    return lambda: flood.each(lambda session: session.write(frame(b"", 0, final=False) * 40_000))


def levels(flood: Flood) -> Callable[[], None]:
    """Requests of 16 KiB, which are not screened, with as many levels as they hold."""
    line = b'{"id":1,"method":"thread/start","params":{"dynamicTools":' + b"[" * 8000 + b"]" * 8000 + b"}}"
    return write(flood, frame(line) * 200)


def departing(flood: Flood) -> Callable[[], None]:
    """Sessions that send as much as is taken at once, and go."""
    line = json.dumps({"id": 1, "method": "thread/list", "params": {"searchTerm": "x" * 15_000}}).encode()
    block = b"".join(frame(line.replace(b'"id": 1', b'"id": %d' % number)) for number in range(200))

    def step() -> None:
        session = flood.session()
        session.write(block)
        time.sleep(0.002)
        session.close()

    return step


FLOODS = {
    each.__name__: each
    for each in (
        positions,
        ids,
        parameters,
        dense,
        deep,
        lists,
        methods,
        waiting,
        unread,
        vanishing,
        silent,
        strangers,
        parts,
        noise,
        answers,
        pings,
        empty,
        fragments,
        levels,
        departing,
    )
}
# The others are of both.
TCP_ONLY = frozenset({"positions", "parts"})
GATEWAY_ONLY = frozenset({"pings", "empty", "fragments", "levels", "departing"})


def floods_of(through: str) -> list[str]:
    """The floods that there are over "tcp", or through "ws"."""
    left_out = TCP_ONLY if through == "ws" else GATEWAY_ONLY
    return [name for name in FLOODS if name not in left_out]


def main() -> None:
    flood = Flood(json.loads(sys.argv[2]))
    step = FLOODS[sys.argv[1]](flood)
    print("ready", flush=True)
    sys.stdin.readline()
    steps = 0
    while not select.select([0], [], [], 0)[0]:
        step()
        steps += 1
    print(json.dumps({"steps": steps}), flush=True)
    # Its connections are not closed, but torn: as those of a process that was killed.
    os._exit(0)


if __name__ == "__main__":
    main()
