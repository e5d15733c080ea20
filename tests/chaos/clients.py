"""Clients that are hurt, or that hurt: a program to be killed, and a raw one that writes what no client should."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from codex_pool.protocol import wire

VICTIM = """
import sys
endpoint, phase = sys.argv[1:]
if phase == "starting":
    import zmq
    from codex_pool.protocol import wire
    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.connect(endpoint)
    dealer.send(wire.encode(wire.Hello("victim", "victim")))
else:
    from codex_pool import connect
    codex = connect(endpoint, name="victim")
    thread = codex.thread_start()
    if phase == "draining":
        for _ in range(2):
            thread.run("hello")
    if phase != "idle":
        turn = thread.turn("wait")
        for notification in turn.stream():
            if notification.method == "item/agentMessage/delta":
                break
print("there", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def victim(endpoint: str, phase: str, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A client as a process, in this phase; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, endpoint, phase],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ,
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n", "the victim did not get there"
        watchdog.cancel()
        yield process
    finally:
        watchdog.cancel()
        watchdog.join()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class RawClient:
    """A session on a pool, message by message. One thread uses it; `beat` while nothing else is said."""

    def __init__(self, endpoint: str, name: str = "raw") -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.IDENTITY, secrets.token_hex(8).encode())
        self._dealer.connect(endpoint)
        self.session = f"raw-{secrets.token_hex(6)}"
        self._next_id = 0
        self.lines: list[dict[str, Any]] = []
        self.send(wire.Hello(self.session, name))
        self.until(lambda head, _: isinstance(head, wire.Welcome), "welcome")

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self._dealer.send(wire.encode(wire.Bye()), zmq.NOBLOCK)
        self._dealer.close(linger=1000)
        self._context.term()

    def send(self, head: Any, *bodies: bytes) -> None:
        self._dealer.send_multipart([wire.encode(head), *bodies])

    def write(self, parts: list[bytes]) -> None:
        """These frames as they are."""
        self._dealer.send_multipart(parts)

    def call(self, line: bytes) -> None:
        self.send(wire.Call(), line)

    def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """A request and its answer."""
        self._next_id += 1
        request_id = self._next_id
        self.send(wire.Call(), json.dumps({"id": request_id, "method": method, "params": params}).encode())
        return self.line(lambda line: line.get("id") == request_id and "method" not in line, f"answer to {method}")

    def line(self, wanted: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The first line, of those that came or will, that is wanted."""

        def found(*_: Any) -> bool:
            return any(map(wanted, self.lines))

        if not found():
            self.until(found, what)
        return next(filter(wanted, self.lines))

    def until(self, wanted: Callable[[Any, list[bytes]], bool], what: str, limit_s: float = 60.0) -> None:
        """Read until a message is wanted."""
        deadline = time.monotonic() + limit_s
        while True:
            assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}; lines: {self.lines[-3:]}"
            if not self._dealer.poll(500):
                self._dealer.send(wire.encode(wire.Beat()))
                continue
            frame, *bodies = self._dealer.recv_multipart()
            head = wire.decode_to_client(frame)
            if isinstance(head, wire.Lines | wire.Events | wire.Ended):
                self.lines += [json.loads(line) for body in bodies for line in body.split(b"\n") if line]
            assert not isinstance(head, wire.Refused | wire.Closed), head
            if wanted(head, bodies):
                return


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)


@contextlib.contextmanager
def half_a_frame(path: str) -> Iterator[None]:
    """A connection that says hello in ZMTP, begins a frame and then says nothing more."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(path)
        ready = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
        raw.sendall(GREETING + b"\x04" + bytes([len(ready)]) + ready)
        # A frame of 200 bytes, of which a few come.
        raw.sendall(b"\x00\xc8\x01\x93half")
        yield
