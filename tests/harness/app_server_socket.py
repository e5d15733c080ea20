"""Clients that see every line, of a real app-server on a Unix socket (WebSocket) or of a pool, with one interface."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import socket
import struct
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from codex_app_server._protocol.framing import LongLine
from codex_app_server.config import find_codex
from codex_app_server.errors import TransportClosedError
from codex_app_server.transport import TurnLines
from codex_pool.client.transport import PoolTransport

LIMIT_S = 20.0

Message: TypeAlias = dict[str, Any]


class Peer(ABC):
    """A client of an app-server, as far as it is common to both: what came, in order, and waiting for what comes."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._changed = threading.Condition()
        self._ids = itertools.count(1)

    def send(self, message: Message) -> None:
        """Send a message as it is."""
        self.send_text(json.dumps(message))

    @abstractmethod
    def send_text(self, text: str) -> None:
        """Send a text as it is."""

    @abstractmethod
    def close(self) -> None:
        """Leave as a client does that ends."""

    def deliver(self, message: Message) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def initialize(self, name: str = "test", **capabilities: Any) -> Any:
        capabilities = {"experimentalApi": True, **capabilities}
        result = self.request(
            "initialize", {"clientInfo": {"name": name, "title": None, "version": "1"}, "capabilities": capabilities}
        )
        self.send({"method": "initialized"})
        return result

    def request(self, method: str, params: Any = None, **members: Any) -> Any:
        """The result of a request; raises AssertionError for an error."""
        answer = self.ask(method, params, **members)
        assert "result" in answer, answer
        return answer["result"]

    def ask(self, method: str, params: Any = None, **members: Any) -> Message:
        """The answer to a request, a result or an error. `members` are others of its line, such as `id`."""
        members.setdefault("id", next(self._ids))
        self.send({"method": method, "params": params if params is not None else {}, **members})
        return self.wait(lambda message: "method" not in message and message.get("id") == members["id"])

    def answer(self, request: Message, result: Any) -> None:
        self.send({"id": request["id"], "result": result})

    def wait(self, fits: Callable[[Message], Any], *, after: int = 0, limit_s: float = LIMIT_S) -> Message:
        """The first message, of those from place `after` on, that fits."""
        deadline = time.monotonic() + limit_s
        with self._changed:
            while True:
                found = next((each for each in self.messages[after:] if fits(each)), None)
                if found is not None:
                    return found
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"nothing of {len(self.messages)} messages fits: {self.methods()[-20:]}"
                self._changed.wait(left_s)

    def wait_for(self, method: str, *, after: int = 0, limit_s: float = LIMIT_S, **params: Any) -> Message:
        """The first notification or request of this method and these parameters, from place `after` on."""

        def fits(message: Message) -> bool:
            return message.get("method") == method and params.items() <= message.get("params", {}).items()

        return self.wait(fits, after=after, limit_s=limit_s)

    def methods(self, after: int = 0) -> list[str]:
        """Methods of the notifications and requests that came."""
        return [message["method"] for message in list(self.messages)[after:] if "method" in message]

    @property
    def count(self) -> int:
        return len(self.messages)

    # Whole exchanges.

    def thread(self, **params: Any) -> str:
        thread_id: str = self.request("thread/start", params)["thread"]["id"]
        return thread_id

    def turn(self, thread_id: str, text: str, **params: Any) -> str:
        user_input = [{"type": "text", "text": text}]
        answer = self.request("turn/start", {"threadId": thread_id, "input": user_input, **params})
        turn_id: str = answer["turn"]["id"]
        return turn_id

    def run(self, thread_id: str, text: str = "hello", **params: Any) -> str:
        """A turn from its start to its end."""
        after = self.count
        turn_id = self.turn(thread_id, text, **params)
        self.wait_end(turn_id, after=after)
        return turn_id

    def wait_end(self, turn_id: str, after: int = 0) -> Message:
        def fits(message: Message) -> bool:
            return message.get("method") == "turn/completed" and message["params"]["turn"]["id"] == turn_id

        return self.wait(fits, after=after)

    def sync(self) -> None:
        """Wait until all that was sent to this client so far has come."""
        self.ask("thread/loaded/list")


class SocketPeer(Peer):
    """A client of `codex app-server --listen unix://PATH`."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT_S)
        self._socket.connect(str(path))
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /rpc HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self._socket.recv(1)
            assert byte, f"the connection ended in the handshake: {head!r}"
            head += byte
        assert head.startswith(b"HTTP/1.1 101 "), head
        self._socket.settimeout(None)
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="socket-peer")
        self._thread.start()

    def send_text(self, text: str) -> None:
        self._send(1, text.encode())

    def _send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
        with self._sending:
            # A mask of zeros changes nothing.
            self._socket.sendall(head + bytes(4) + payload)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT_S)
        self._socket.close()

    def _read(self) -> None:
        stream = self._socket.makefile("rb")
        text = b""
        with contextlib.suppress(OSError), stream:
            while len(head := stream.read(2)) == 2:
                size = head[1] & 0x7F
                if size >= 126:
                    size = int.from_bytes(stream.read(2 if size == 126 else 8), "big")
                payload = stream.read(size)
                opcode = head[0] & 0x0F
                if opcode in (0, 1):
                    text += payload
                    if head[0] & 0x80:
                        self.deliver(json.loads(text))
                        text = b""
                elif opcode == 9:
                    self._send(10, payload)
                elif opcode == 8:
                    break


class PoolPeer(Peer):
    """A client of a pool that gets all turns of its threads and keeps its own when it is gone, as the gateway does."""

    def __init__(self, endpoint: str, **options: Any) -> None:
        super().__init__()
        options = {"all_turns": True, "when_gone": "keep", **options}
        self.transport = PoolTransport(endpoint, **options)
        self.transport.start(self)

    def send_text(self, text: str) -> None:
        self.transport.send(text.encode())

    def close(self) -> None:
        self.transport.close()

    def on_batch(self, batch: list[bytes | LongLine | TurnLines]) -> None:
        for each in batch:
            assert not isinstance(each, LongLine)
            lines = each.lines if isinstance(each, TurnLines) else [each]
            for line in [one for many in lines for one in many.split(b"\n")]:
                self.deliver(json.loads(line))

    def on_closed(self, error: TransportClosedError) -> None:
        self.deliver({"closed": str(error)})


@contextlib.contextmanager
def listening_app_server(path: Path, *, env: Mapping[str, str], cwd: Path) -> Iterator[Callable[[], SocketPeer]]:
    """A real app-server that listens at `path`; gives what connects to it. All connections are closed in the end."""
    command = [str(find_codex()), "-c", "features.shell_snapshot=false", "app-server", "--listen", f"unix://{path}"]
    process = subprocess.Popen(
        command, env={**os.environ, **env}, cwd=cwd, stdin=subprocess.DEVNULL, start_new_session=True
    )
    peers: list[SocketPeer] = []

    def connect() -> SocketPeer:
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                peer = SocketPeer(path)
            except OSError:
                assert time.monotonic() < deadline, f"nothing listens at {path}"
                assert process.poll() is None, f"the app-server has exited with {process.returncode}"
                time.sleep(0.02)
                continue
            peers.append(peer)
            return peer

    try:
        yield connect
    finally:
        for peer in peers:
            peer.close()
        process.terminate()
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(LIMIT_S)
        path.unlink(missing_ok=True)
