"""A pool with the gateway's own listeners: WebSocket clients run turns, and come back when the gateway is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from ports import free_port

from codex_app_server import AppServerConfig
from codex_pool import Pool
from codex_pool.auth.keys import KeyStore
from codex_pool.auth.principal import Identity
from codex_pool.runtime import processes

pytestmark = pytest.mark.real

LIMIT_S = 30.0


class Raw:
    """A client that speaks the protocol by hand."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._last = 0

    async def call(self, method: str, **params: Any) -> Any:
        self._last += 1
        await self._socket.send_str(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            found = await self.next()
            if found.get("id") == self._last:
                assert "result" in found, found
                return found["result"]

    async def initialize(self) -> None:
        await self.call("initialize", clientInfo={"name": "raw", "title": None, "version": "1"})
        await self._socket.send_str('{"method":"initialized"}')

    async def run(self, thread_id: str, prompt: str = "hello") -> str:
        """Run a turn; its status."""
        await self.call("turn/start", threadId=thread_id, input=[{"type": "text", "text": prompt}])
        return await self.completed()

    async def completed(self) -> str:
        while True:
            found = await self.next()
            if found.get("method") == "turn/completed":
                return str(found["params"]["turn"]["status"])

    async def next(self) -> dict[str, Any]:
        return dict(json.loads(await self._socket.receive_str(timeout=LIMIT_S)))


def pid_of(pool: Pool, module: bytes) -> int:
    """Return the pid of the pool's process that runs this module, 0 if there is none."""
    assert pool.supervisor_pid is not None
    for process in processes.descendants(pool.supervisor_pid):
        try:
            if module in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0"):
                return process.pid
        except OSError:
            continue
    return 0


def test_clients_over_websocket_share_the_pool_and_come_back(
    config: AppServerConfig, tmp_path: Path, work: Path, runtime_directory: Path
) -> None:
    store = KeyStore(tmp_path / "keys")
    token = store.new(Identity(name="alice", cwd_roots=(str(work),)), tmp_path / "alice.key").token
    path, where = runtime_directory / "listen" / "a.sock", f"127.0.0.1:{free_port()}"
    log = tmp_path / "log"
    pool = Pool(2, config, listen_unix=path, listen_ws=where, keys=store.directory, log_file=log)

    async def clients() -> None:
        own = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)))
        remote = aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"})
        async with own, remote:
            async with own.ws_connect("http://localhost/rpc") as one, remote.ws_connect(f"http://{where}/rpc") as two:
                owner, alice = Raw(one), Raw(two)
                for raw in (owner, alice):
                    await raw.initialize()
                threads = [(await raw.call("thread/start", cwd=str(work)))["thread"]["id"] for raw in (owner, alice)]
                assert [await owner.run(threads[0]), await alice.run(threads[1])] == ["completed"] * 2
                status = await owner.call("pool/status")
                assert [row["identity"] for row in status["sessions"]] == ["", "alice"]
                assert status["gateway"]["state"] == "ready" and status["gateway"]["sessions"] == 2
                os.kill(pid_of(pool, b"codex_pool.broker"), signal.SIGKILL)
                assert await owner.run(threads[0], "once more") == "completed"
                killed = pid_of(pool, b"codex_pool.gateway")
                os.kill(killed, signal.SIGKILL)
                for socket in (one, two):
                    message = await socket.receive(timeout=LIMIT_S)
                    while message.type is aiohttp.WSMsgType.TEXT:
                        message = await socket.receive(timeout=LIMIT_S)
                    assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
            deadline = time.monotonic() + LIMIT_S
            while True:
                try:
                    one = await own.ws_connect("http://localhost/rpc")
                    break
                except (aiohttp.ClientError, OSError):
                    assert time.monotonic() < deadline, "no gateway came back"
                    await asyncio.sleep(0.05)
            async with one:
                back = Raw(one)
                await back.initialize()
                await back.call("thread/resume", threadId=threads[0])
                assert await back.run(threads[0], "and now") == "completed"
                assert (await back.call("pool/status"))["gateway"]["restarts"] == 1

    try:
        with pool:
            asyncio.run(asyncio.wait_for(clients(), 2 * LIMIT_S))
    finally:
        print(log.read_text())
    assert not path.exists()
