"""A pool whose gateway lets clients in over a Unix socket, one JSON-RPC message a line; and such a client.

As a program it is a supervisor or a gateway with that listener in the place of the real ones:

    python line_gateway.py supervisor [LOG_FILE]
    python line_gateway.py gateway [LOG_FILE]

A connection is the pool owner's, unless its first line is `key PUBLIC_KEY`, of a key on the allow-list.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from codex_app_server import AppServerConfig
from codex_app_server._protocol.framing import LineSplitter
from codex_pool.gateway.sessions import ClientSession, ListenerConfig, Sessions
from codex_pool.protocol.endpoints import EndpointError

LIMIT_S = 30.0
WRITE_BUFFER_BYTES = 64 * 1024
MAX_UNSENT_BYTES = 64 * 1024 * 1024


class _Connection(asyncio.Protocol):
    """A client's connection; a `Client` of the gateway."""

    def __init__(self, sessions: Sessions, config: ListenerConfig, connections: set[_Connection]) -> None:
        self._sessions = sessions
        self._config = config
        self._connections = connections
        self._session: ClientSession | None = None
        self._splitter = LineSplitter()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        if self._session is not None:
            self._session.close()

    def data_received(self, data: bytes) -> None:
        for line in self._splitter.feed(data):
            assert isinstance(line, bytes) and self.transport is not None
            if self._session is None:
                identity, key = None, ""
                if line.startswith(b"key "):
                    from codex_pool.auth.keys import KeyStore

                    key = line[4:].decode()
                    identity = KeyStore(self._config.keys).allowed().clients[key]
                self._session = self._sessions.open(self, identity, key)
                if identity is not None:
                    continue
            self._session.receive(line)
        if self._session is not None and self.transport is not None and not self._session.accepts:
            self.transport.pause_reading()
            self._sessions.resume_reading(self._session, self._resume)

    def _resume(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        if self._session is not None:
            self._session.congested(True)

    def resume_writing(self) -> None:
        if self._session is not None:
            self._session.congested(False)

    def deliver(self, lines: list[bytes]) -> None:
        assert self.transport is not None
        if self.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self.transport.abort()
        else:
            self.transport.write(b"\n".join(lines) + b"\n")

    def end(self, reason: str, *, again: bool) -> None:
        assert self.transport is not None
        self.transport.write(json.dumps({"ended": reason, "again": again}).encode() + b"\n")
        self.transport.close()


class _Listeners:
    def __init__(self, server: asyncio.AbstractServer, connections: set[_Connection], path: str) -> None:
        self._server = server
        self._connections = connections
        self._path = path

    def counts(self) -> dict[str, object]:
        return {"clients": len(self._connections)}

    async def close(self) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.end("the gateway ends", again=True)
        with contextlib.suppress(OSError):
            os.unlink(self._path)


async def open_listeners(config: ListenerConfig, sessions: Sessions) -> _Listeners:
    """Listen at config.unix."""
    if not os.path.isdir(os.path.dirname(config.unix)):
        raise EndpointError(f"cannot listen at {config.unix}: there is no such directory")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(config.unix)
    connections: set[_Connection] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: _Connection(sessions, config, connections), config.unix)
    return _Listeners(server, connections, config.unix)


class LineClient:
    """A client of such a gateway: requests, and the messages that it gets, in their order."""

    def __init__(self, path: str | os.PathLike[str], *, key: str = "", name: str = "test") -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                self.socket.connect(os.fspath(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, "nothing listens there"
                time.sleep(0.02)
        self._splitter = LineSplitter()
        self._ids = 0
        self.name = name
        self.messages: list[dict[str, Any]] = []
        self.ended: dict[str, Any] | None = None
        self.is_over = False
        if key:
            self.write(f"key {key}".encode())

    def __enter__(self) -> LineClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def write(self, line: bytes) -> None:
        self.socket.sendall(line + b"\n")

    def send(self, **message: Any) -> None:
        self.write(json.dumps(message).encode())

    def begin(self, method: str, **params: Any) -> int:
        """Send a request; its id."""
        self._ids += 1
        self.send(id=self._ids, method=method, params=params)
        return self._ids

    def answer(self, request_id: Any, timeout_s: float = LIMIT_S) -> dict[str, Any]:
        """The answer to a request."""
        return self.wait(lambda each: each.get("id") == request_id and "method" not in each, timeout_s)

    def call(self, method: str, **params: Any) -> Any:
        """The result of a request."""
        answer = self.answer(self.begin(method, **params))
        assert "result" in answer, answer
        return answer["result"]

    def initialize(self) -> Any:
        info = {"name": self.name, "title": None, "version": "1.0"}
        result = self.call("initialize", clientInfo=info, capabilities={"experimentalApi": True})
        self.send(method="initialized")
        return result

    def wait(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = LIMIT_S) -> dict[str, Any]:
        """The first message that fulfils this, read until it has come."""
        deadline, seen = time.monotonic() + timeout_s, 0
        while True:
            for message in self.messages[seen:]:
                if condition(message):
                    return message
            seen = len(self.messages)
            assert not self.is_over, f"the connection ended: {self.ended}"
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"it never came; the last: {self.messages[-3:]}"
            self.read(left_s)

    def read(self, timeout_s: float) -> None:
        """Read once."""
        self.socket.settimeout(timeout_s)
        try:
            data = self.socket.recv(1024 * 1024)
        except TimeoutError:
            return
        except ConnectionResetError:
            data = b""
        self.is_over = not data
        for line in self._splitter.feed(data):
            assert isinstance(line, bytes)
            message = json.loads(line)
            if "ended" in message:
                self.ended = message
            else:
                self.messages.append(message)

    def wait_ended(self, timeout_s: float = LIMIT_S) -> dict[str, Any] | None:
        """The gateway's words at the end of the connection, None if there were none."""
        deadline = time.monotonic() + timeout_s
        while not self.is_over:
            assert time.monotonic() < deadline, "it goes on"
            self.read(deadline - time.monotonic())
        return self.ended

    def methods(self, turn_id: str) -> list[str]:
        """Methods of the notifications of a turn, in their order."""
        return [each["method"] for each in self.messages if _turn_of(each) == turn_id]

    def completed(self, turn_id: str) -> dict[str, Any]:
        """The end of a turn."""
        return self.wait(lambda each: each.get("method") == "turn/completed" and _turn_of(each) == turn_id)["params"][
            "turn"
        ]


def _turn_of(message: dict[str, Any]) -> Any:
    params = message.get("params") or {}
    return params.get("turnId") or (params.get("turn") or {}).get("id")


@contextlib.contextmanager
def line_gateway(path: Path, *, keys: Path | None = None) -> Iterator[None]:
    """Give the pools that are started meanwhile a gateway that listens at `path`."""
    from codex_pool import pool
    from codex_pool.options import PoolOptions
    from codex_pool.supervisor import spawn
    from codex_pool.supervisor.arguments import SupervisorArguments

    named = str(keys) if keys is not None else None
    listeners = ListenerConfig(unix=str(path), keys=named or "")
    arguments_of, command_of = spawn.arguments_of, spawn.command_of

    def with_gateway(options: PoolOptions, config: AppServerConfig, **members: Any) -> SupervisorArguments:
        arguments = arguments_of(options, config, **members)
        arguments.listeners = listeners
        arguments.options = msgspec.structs.replace(arguments.options, keys=named)
        return arguments

    def command(log_file: str | None) -> list[str]:
        return [sys.executable, os.path.abspath(__file__), "supervisor", *([log_file] if log_file else [])]

    pool.arguments_of, spawn.command_of = with_gateway, command
    try:
        yield
    finally:
        pool.arguments_of, spawn.command_of = arguments_of, command_of


def main() -> None:
    role = sys.argv.pop(1)
    if role == "gateway":
        from codex_pool.gateway import process

        process.main(open_listeners)
        return
    from codex_pool.supervisor import launchers

    python = launchers.startup.python

    def ours(module: str, *arguments: str) -> list[str]:
        if module == "codex_pool.gateway":
            return [sys.executable, os.path.abspath(__file__), "gateway", *arguments]
        return python(module, *arguments)

    launchers.startup.python = ours  # type: ignore[assignment]
    runpy.run_module("codex_pool.supervisor", run_name="__main__")


if __name__ == "__main__":
    main()
