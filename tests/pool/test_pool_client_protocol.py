"""docs/protocol.md: its bytes and fields are those of the wire, and a client can be written from it alone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from codex_app_server import AppServerConfig
from codex_pool import Pool
from codex_pool.protocol import wire

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
LIMIT_S = 30.0

EXAMPLES: dict[str, bytes] = {
    "hello": wire.encode(wire.Hello("s1", "demo")),
    "welcome": wire.encode(wire.Welcome(2, True)),
    "call": wire.encode(wire.Call()),
    "call, again": wire.encode(wire.Call("items", True)),
    "events": wire.encode(wire.Events("t1", "u1", 5, 7, [wire.Run(2, "droppable")], False, "w0")),
    "ack": wire.encode(wire.Ack("w0", [wire.Position("u1", 7)])),
    "positions": wire.encode_positions([wire.Position("u1", 7, "t1")]),
    "beat": wire.encode(wire.Beat()),
}


def test_the_bytes_of_the_examples_are_those_of_the_wire() -> None:
    found = dict(re.findall(r"^(\w[\w, ]*?) {2,}((?:[0-9a-f]{2} ?)+)$", PAGE, re.MULTILINE))
    assert {name: bytes.fromhex(text) for name, text in found.items()} == EXAMPLES


@pytest.mark.parametrize("head", [*wire.FromClient.__args__, *wire.ToClient.__args__], ids=lambda head: head.__name__)
def test_the_fields_of_each_head_are_documented_in_their_order(head: Any) -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|(.*?)\|", PAGE, re.MULTILINE)
    documented = [fields for names, fields in rows if f"`{head.__struct_config__.tag}`" in names.split(", ")]
    names = [re.findall(r"(?:^|, )(\w+): ", f"{fields.strip()}") for fields in documented]
    names = [[name for name in each if name not in ("count", "class")] for each in names]
    assert list(head.__struct_fields__) in names


class FromThePage:
    """A client that knows nothing of this package: ZeroMQ, msgpack, JSON, and what the page says."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._endpoint = endpoint
        self._connections = 0
        self._beat_at = 0.0
        self.socket: zmq.Socket[bytes] | None = None
        self.lines: list[dict[str, Any]] = []
        self.turns: dict[str, int] = {}
        self.notifications: list[dict[str, Any]] = []
        self.ended = False

    def connect(self) -> list[Any]:
        """A new connection; what welcomes it."""
        self.close()
        self._connections += 1
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, f"page/{self._connections}".encode())
        self.socket.setsockopt(zmq.RECONNECT_IVL, 3_600_000)
        self.socket.setsockopt(zmq.LINGER, 500)
        self.socket.connect(self._endpoint)
        positions = [[turn, last, "?"] for turn, last in self.turns.items()]
        self.send(["hello", "page", "by hand"], *([msgspec.msgpack.encode(positions)] if self._connections > 1 else []))
        while True:
            head, _ = self.receive()
            if head[0] == "welcome":
                return head

    def send(self, head: list[Any], *bodies: bytes) -> None:
        assert self.socket is not None
        self.socket.send_multipart([b"\x01" + msgspec.msgpack.encode(head), *bodies])

    def request(self, number: int, method: str, params: dict[str, Any], *, again: bool = False) -> None:
        line = msgspec.json.encode({"id": number, "method": method, "params": params})
        self.send(["call", "full", again], line)

    def receive(self) -> tuple[list[Any], list[bytes]]:
        assert self.socket is not None
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if time.monotonic() - self._beat_at > 1 and self._connections:
                self._beat_at = time.monotonic()
                self.send(["beat"])
            if self.socket.poll(200):
                frame, *bodies = self.socket.recv_multipart()
                assert frame[:1] == b"\x01"
                return msgspec.msgpack.decode(frame[1:]), bodies
        raise AssertionError("silence")

    def step(self) -> None:
        """One message, as the page says."""
        head, bodies = self.receive()
        if head[0] == "lines":
            self.lines += [msgspec.json.decode(line) for body in bodies for line in body.split(b"\n")]
        elif head[0] == "events":
            _, _, turn, after, last, runs, ended, worker, start = head
            got = max(self.turns.get(turn, 0), start)
            lines = [line for body in bodies for line in body.split(b"\n")]
            assert after <= got and all(name != "dropped" for _, name in runs)
            if last > got:
                self.notifications += [msgspec.json.decode(line) for line in lines[got - after :]]
                self.turns[turn] = last
                self.ended = self.ended or ended
            self.send(["ack", worker, [[turn, last]]])

    def answer(self, number: int) -> dict[str, Any]:
        while not any(line.get("id") == number for line in self.lines):
            self.step()
        (line,) = [line for line in self.lines if line.get("id") == number]
        return line

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close(linger=0)

    def end(self) -> None:
        self.send(["bye"])
        assert self.socket is not None
        self.socket.close(linger=500)
        self._context.term()


@pytest.fixture
def endpoint(config: AppServerConfig) -> Iterator[str]:
    with Pool(1, config) as pool:
        # The pool's own client knows when the broker lets clients in.
        pool.connect().close()
        yield pool.endpoint


@pytest.mark.real
def test_a_client_from_the_page_alone_streams_a_turn_over_two_connections(endpoint: str) -> None:
    client = FromThePage(endpoint)
    try:
        assert client.connect()[:3] == ["welcome", 1, False]
        client.request(1, "thread/start", {})
        thread = client.answer(1)["result"]["thread"]["id"]
        text = " ".join(f"w{number}" for number in range(60))
        prompt = f'[[text "{text}" deltas=60 pace_ms=20]]'
        client.request(2, "turn/start", {"threadId": thread, "input": [{"type": "text", "text": prompt}]})
        while len(client.notifications) < 20:
            client.step()
        assert client.connect()[:3] == ["welcome", 1, True]
        # Its answer may have come; it is given again, and nothing is begun twice.
        client.lines.clear()
        client.request(2, "turn/start", {"threadId": thread, "input": [{"type": "text", "text": prompt}]}, again=True)
        turn = client.answer(2)["result"]["turn"]["id"]
        while not client.ended:
            client.step()
        assert list(client.turns) == [turn]
        methods = [found["method"] for found in client.notifications]
        assert methods[0] == "pool/turn/assigned" and methods[-1] == "turn/completed"
        deltas = [
            found["params"]["delta"] for found in client.notifications if found["method"].endswith("essage/delta")
        ]
        assert "".join(deltas) == text
    finally:
        client.end()
