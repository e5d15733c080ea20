"""WebSocket clients on a Unix socket, all in one thread: `python bench/socket_readers.py KIND '{"...": ...}'`.

For bench/gateway.py. They speak to a pool's gateway and to `codex app-server --listen unix://PATH` alike, and decode of
a notification no more than they need. `path` is the socket, `clients` their number.

    paced   each starts a turn with `prompt` and reads deltas that are the time of their writing. `ready` comes once all
            turns speak; a line on stdin begins the window, a second one ends it. Then comes one JSON line: the deltas
            that came meanwhile, the CPU of this process in seconds, and how late they were. A third line interrupts the
            turns: `done` comes once all have ended
    turns   for each line on stdin, which is a number, so many turns, one after the other of each client, then `done`
    idle    each initializes, and starts a thread
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 60.0
READ_BYTES = 64 * 1024
DELTA = b'{"method":"item/agentMessage/delta"'
STAMP = b'"delta":"'
ENDED = b'{"method":"turn/completed"'
NOTIFICATION = b'{"method":'


class Client:
    """A client by hand. Requests wait for their answer; `deltas` counts, `ended` is the number of turns that ended."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT_S)
        self._socket.connect(path)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /rpc HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._byte()
        assert head.startswith(b"HTTP/1.1 101 "), head
        self._buffer = bytearray()
        self._last_id = 0
        self.answers: dict[int, dict[str, Any]] = {}
        self.deltas = self.ended = 0
        self.thread_id = self.turn_id = ""
        # Called with a delta's line and the time when it was read.
        self.on_delta: Callable[[bytes, float], None] | None = None

    def _byte(self) -> bytes:
        byte = self._socket.recv(1)
        assert byte, "the connection ended in its handshake"
        return byte

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> None:
        """Take what has come."""
        data = self._socket.recv(READ_BYTES)
        now = time.time()
        assert data, "the server has ended the connection"
        buffer = self._buffer
        buffer += data
        at, have = 0, len(buffer)
        while have - at >= 2:
            size, begin = buffer[at + 1], at + 2
            if size == 126:
                size, begin = int.from_bytes(buffer[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, begin = int.from_bytes(buffer[at + 2 : at + 10], "big"), at + 10
            if have < begin + size:
                break
            assert buffer[at] == 0x81, f"a frame that begins with {buffer[at]:#x}; expected whole texts"
            self._message(bytes(buffer[begin : begin + size]), now)
            at = begin + size
        del buffer[:at]

    def _message(self, line: bytes, now: float) -> None:
        if line.startswith(DELTA):
            self.deltas += 1
            if self.on_delta is not None:
                self.on_delta(line, now)
        elif line.startswith(ENDED):
            self.ended += 1
        elif not line.startswith(NOTIFICATION):
            message = json.loads(line)
            self.answers[message["id"]] = message

    def send(self, method: str, params: dict[str, Any] | None = None) -> int:
        """Send a request, or without parameters a notification; the request's id."""
        self._last_id += params is not None
        message = {"method": method} if params is None else {"id": self._last_id, "method": method, "params": params}
        payload = json.dumps(message).encode()
        size = len(payload)
        head = struct.pack("!BB", 0x81, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x81, 0xFE, size)
        # A mask of zeros changes nothing.
        self._socket.sendall(head + bytes(4) + payload)
        return self._last_id

    def answer(self, request_id: int) -> Any:
        """Wait for the result of a request."""
        while request_id not in self.answers:
            self.read()
        message = self.answers.pop(request_id)
        assert "result" in message, message
        return message["result"]

    def request(self, method: str, params: dict[str, Any]) -> Any:
        return self.answer(self.send(method, params))

    def begin(self) -> None:
        """Initialize, and start a thread."""
        info = {"name": "bench", "title": None, "version": "0"}
        self.request("initialize", {"clientInfo": info, "capabilities": {"experimentalApi": True}})
        self.send("initialized")
        params = {"ephemeral": True, "approvalPolicy": "never", "sandbox": "read-only"}
        self.thread_id = self.request("thread/start", params)["thread"]["id"]

    def send_turn(self, prompt: str) -> int:
        return self.send("turn/start", {"threadId": self.thread_id, "input": [{"type": "text", "text": prompt}]})

    def close(self) -> None:
        self._socket.close()


class Clients:
    """All clients of this process."""

    def __init__(self, path: str, count: int) -> None:
        self._poller = select.epoll()
        self._by_fd: dict[int, Client] = {}
        self.all: list[Client] = []
        for _ in range(count):
            client = Client(path)
            self.all.append(client)
            self._by_fd[client.fileno()] = client
            self._poller.register(client.fileno(), select.EPOLLIN)
            client.begin()
        self._poller.register(0, select.EPOLLIN)

    def read(self) -> bool:
        """Wait for something and read it; True if it is a line on stdin."""
        spoke = False
        ready = self._poller.poll(LIMIT_S)
        assert ready, f"nothing has come for {LIMIT_S:.0f} s"
        for fd, _ in ready:
            if fd:
                self._by_fd[fd].read()
            else:
                spoke = True
        return spoke

    def until(self, is_so: Callable[[Client], bool]) -> None:
        while not all(map(is_so, self.all)):
            assert not self.read(), "a line before its time"

    def until_line(self) -> str:
        while not self.read():
            pass
        return sys.stdin.readline()

    def close(self) -> None:
        for client in self.all:
            client.close()


def paced(clients: Clients, settings: dict[str, Any]) -> None:
    starts = [client.send_turn(settings["prompt"]) for client in clients.all]
    for client, start in zip(clients.all, starts, strict=True):
        client.turn_id = client.answer(start)["turn"]["id"]
    clients.until(lambda client: client.deltas > 0)
    print("ready", flush=True)
    clients.until_line()
    lags: list[float] = []

    def late(line: bytes, now: float) -> None:
        begin = line.find(STAMP) + len(STAMP)
        lags.append(now - float(line[begin : line.find(b'"', begin)]))

    for client in clients.all:
        client.on_delta = late
    began_cpu = time.process_time()
    clients.until_line()
    cpu_s, ended = time.process_time() - began_cpu, sum(client.ended for client in clients.all)
    print(json.dumps({"seen": len(lags), "cpu_s": cpu_s, "lags_s": lags, "ended": ended}), flush=True)
    for client in clients.all:
        client.on_delta = None
    clients.until_line()
    for client in clients.all:
        client.send("turn/interrupt", {"threadId": client.thread_id, "turnId": client.turn_id})
    clients.until(lambda client: client.ended > 0)
    print("done", flush=True)


def turns(clients: Clients, settings: dict[str, Any]) -> None:
    print("ready", flush=True)
    while line := clients.until_line():
        left = int(line)
        wanted = [client.ended for client in clients.all]
        while left or any(client.ended < want for client, want in zip(clients.all, wanted, strict=True)):
            for place, client in enumerate(clients.all):
                if left and client.ended == wanted[place]:
                    left -= 1
                    wanted[place] += 1
                    client.send_turn("x")
            assert not clients.read(), "a line before its time"
        for client in clients.all:
            client.answers.clear()
        print("done", flush=True)


def idle(clients: Clients, settings: dict[str, Any]) -> None:
    print("ready", flush=True)


def main() -> None:
    settings = json.loads(sys.argv[2])
    clients = Clients(settings["path"], settings["clients"])
    {"paced": paced, "turns": turns, "idle": idle}[sys.argv[1]](clients, settings)
    clients.until_line()
    clients.close()


if __name__ == "__main__":
    main()
