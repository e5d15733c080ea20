"""The listeners with real clients: `codex` itself and aiohttp, before real app-servers."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import codex_cli_bin
import pytest
from loops import on_a_loop
from ports import free_port
from stdio_sessions import StdioSessions

from codex_app_server import AppServerConfig, Codex
from codex_pool import Pool
from codex_pool.auth.keys import KeyStore
from codex_pool.auth.principal import Identity
from codex_pool.daemon.config import COMPARED_FEATURES
from codex_pool.gateway.listeners.configuration import CONTROL_SOCKET
from codex_pool.gateway.listeners.server import Listeners
from codex_pool.gateway.listeners.socket_files import target_of
from codex_pool.gateway.sessions import ListenerConfig

pytestmark = pytest.mark.real

CODEX = str(codex_cli_bin.bundled_codex_path())


@asynccontextmanager
async def listening(config: ListenerConfig, servers: AppServerConfig) -> AsyncIterator[StdioSessions]:
    sessions = StdioSessions(servers)
    lines: list[str] = []
    listeners = Listeners(config, sessions, lines.append)
    await listeners.open()
    try:
        yield sessions
    finally:
        await listeners.close("the test is over")
        await sessions.ended()


async def codex(config: AppServerConfig, *words: str, **environ: str) -> tuple[int, str]:
    """Run codex; its exit code and what it has printed."""
    process = await asyncio.create_subprocess_exec(
        CODEX,
        *words,
        env={**config.environ(), **environ},
        cwd=config.cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode is not None
    return process.returncode, out.decode()


class Raw:
    """A client that speaks the protocol by hand."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._last = 0

    async def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._last += 1
        await self._socket.send_str(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            found = await self.next()
            if found.get("id") == self._last:
                return dict(found["result"])

    async def until(self, method: str) -> dict[str, Any]:
        while True:
            found = await self.next()
            if found.get("method") == method:
                return found

    async def next(self) -> dict[str, Any]:
        return dict(json.loads(await self._socket.receive_str(timeout=30)))


async def stored_thread(session: aiohttp.ClientSession, url: str, config: AppServerConfig, **given: Any) -> str:
    """The id of a thread with a turn that was run over a connection."""
    async with session.ws_connect(url, max_msg_size=0, **given) as socket:
        raw = Raw(socket)
        await raw.call("initialize", {"clientInfo": {"name": "raw", "title": None, "version": "1"}})
        await socket.send_str('{"method":"initialized"}')
        thread = (await raw.call("thread/start", {"cwd": str(config.cwd)}))["thread"]["id"]
        await raw.call("turn/start", {"threadId": thread, "input": [{"type": "text", "text": "Say hello."}]})
        assert (await raw.until("turn/completed"))["params"]["turn"]["status"] == "completed"
    return str(thread)


def unix(path: Path) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)))


@on_a_loop
async def test_a_real_client_over_a_unix_socket(config: AppServerConfig, runtime_directory: Path) -> None:
    path = runtime_directory / "listen" / "a.sock"
    async with listening(ListenerConfig(unix=str(path)), config):
        assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
        async with unix(path) as session:
            thread = await stored_thread(session, "http://localhost/rpc", config)
        remote = ("--remote", f"unix://{path}")
        code, said = await codex(config, "queue", "--thread", thread, "--message", "next", *remote)
        assert code == 0, said
    assert not path.exists()


@on_a_loop
async def test_a_real_client_with_a_token(config: AppServerConfig, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    key = store.new(Identity(name="alice"), tmp_path / "alice.key")
    where = f"127.0.0.1:{free_port()}"
    async with listening(ListenerConfig(ws=where, keys=str(store.directory)), config) as sessions:
        bearer = {"Authorization": f"Bearer {key.token}"}
        async with aiohttp.ClientSession() as session:
            thread = await stored_thread(session, f"http://{where}/", config, headers=bearer)
        words = ("queue", "--thread", thread, "--message", "next", "--remote", f"ws://{where}")
        code, said = await codex(config, *words, "--remote-auth-token-env", "TOKEN", TOKEN=key.token)
        assert code == 0, said
        assert [identity.name for _, identity in sessions.opened if identity is not None] == ["alice", "alice"]
        for token in ("wrong", ""):
            code, said = await codex(config, *words, "--remote-auth-token-env", "TOKEN", TOKEN=token)
            assert code != 0
        code, said = await codex(config, *words)
        assert code != 0 and "401" in said, said
        assert len(sessions.opened) == 2


@on_a_loop
async def test_a_real_client_over_tls(config: AppServerConfig, tmp_path: Path) -> None:
    cert, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    names += ["-addext", "basicConstraints=critical,CA:FALSE"]
    done = [*make, *names, "-keyout", str(private), "-out", str(cert)]
    subprocess.run(done, check=True, capture_output=True, timeout=20)
    store = KeyStore(tmp_path / "keys")
    key = store.new(Identity(name="alice"), tmp_path / "alice.key")
    port = free_port()
    listener = ListenerConfig(
        ws=f"127.0.0.1:{port}", tls_cert=str(cert), tls_key=str(private), keys=str(store.directory)
    )
    trusting = ssl.create_default_context(cafile=str(cert))
    async with listening(listener, config):
        async with aiohttp.ClientSession() as session:
            url, bearer = f"https://localhost:{port}/", {"Authorization": f"Bearer {key.token}"}
            thread = await stored_thread(session, url, config, headers=bearer, ssl=trusting)
        words = ("queue", "--thread", thread, "--message", "next", "--remote", f"wss://localhost:{port}")
        words += ("--remote-auth-token-env", "TOKEN")
        code, said = await codex(config, *words, TOKEN=key.token, SSL_CERT_FILE=str(cert))
        assert code == 0, said


@on_a_loop
async def test_the_control_socket_is_found_by_codex_and_kept_from_it(config: AppServerConfig, home: Path) -> None:
    path = home / CONTROL_SOCKET
    async with listening(ListenerConfig(control_socket=str(path)), config):
        code, said = await codex(config, "app-server", "daemon", "version")
        found = json.loads(said.splitlines()[-1])
        assert code == 0 and found["socketPath"] == str(path) and found["appServerVersion"], said
        # Another one is refused, and takes nothing away.
        code, said = await codex(config, "app-server", "--listen", "unix://")
        assert code != 0 and "already in use" in said
        code, said = await codex(config, "app-server", "daemon", "version")
        assert code == 0, said
    assert not os.path.lexists(path) and not target_of(path).exists()


@on_a_loop
async def test_the_control_socket_of_a_living_codex_is_kept(config: AppServerConfig, home: Path) -> None:
    path = home / CONTROL_SOCKET
    process = await asyncio.create_subprocess_exec(
        CODEX, "app-server", "--listen", "unix://", env=config.environ(), stdin=asyncio.subprocess.DEVNULL
    )
    try:
        for _ in range(400):
            if path.exists():
                break
            await asyncio.sleep(0.05)
        target = os.readlink(path)
        assert target == str(target_of(path))
        with pytest.raises(ValueError, match=f"in use: process {process.pid} listens there"):
            async with listening(ListenerConfig(control_socket=str(path)), config):
                pass
        assert os.readlink(path) == target and os.path.exists(target)
        process.kill()
        await process.wait()
        # What a killed one has left is replaced.
        assert os.path.lexists(path)
        async with listening(ListenerConfig(control_socket=str(path)), config):
            code, said = await codex(config, "app-server", "daemon", "version")
            assert code == 0, said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert not os.path.lexists(path)


def test_codex_finds_its_own_features_in_a_pool(config: AppServerConfig) -> None:
    """Features that must equal those of a plain `codex` before it uses a daemon (0.163)."""
    with Codex(config) as own:
        expected = features(own)
    with Pool(1, config) as pool, pool.connect() as codex:
        assert features(codex) == expected
    assert set(expected) == {name.removeprefix("features.") for name in COMPARED_FEATURES}


def features(codex: Codex) -> dict[str, bool]:
    """The features that codex compares."""
    found = codex.client.request("experimentalFeature/list", {})
    compared = {name.removeprefix("features.") for name in COMPARED_FEATURES}
    return {each.name: each.enabled for each in found.data if each.name in compared}
