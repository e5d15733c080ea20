"""Sessions of a gateway without a pool: each client has a real `codex app-server` of its own, over stdio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from codex_app_server import AppServerConfig
from codex_pool.auth.principal import Identity
from codex_pool.gateway.sessions import Client

MAX_LINE_BYTES = 256 * 1024 * 1024


class StdioSession:
    """A session; see codex_pool.gateway.sessions.ClientSession."""

    def __init__(self, client: Client, config: AppServerConfig) -> None:
        self._client = client
        self._waiting: list[bytes] = []
        self._process: asyncio.subprocess.Process | None = None
        self._is_closed = False
        self.task = asyncio.get_running_loop().create_task(self._run(config))

    def receive(self, line: bytes) -> None:
        self._waiting.append(line)
        self._pass_on()

    @property
    def accepts(self) -> bool:
        return True

    def congested(self, is_congested: bool) -> None:
        pass

    def close(self) -> None:
        self._is_closed = True
        self._pass_on()

    def _pass_on(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.writelines(line + b"\n" for line in self._waiting)
        self._waiting.clear()
        if self._is_closed:
            self._process.stdin.close()

    async def _run(self, config: AppServerConfig) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *config.argv(),
            env=config.environ(),
            cwd=config.cwd,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
        )
        assert self._process.stdout is not None
        self._pass_on()
        async for line in self._process.stdout:
            self._client.deliver([line.rstrip(b"\n")])
        await self._process.wait()
        self._client.end("the app-server has ended", again=True)


class StdioSessions:
    """A real app-server for each client; see codex_pool.gateway.sessions.Sessions."""

    def __init__(self, config: AppServerConfig) -> None:
        self._config = config
        self.opened: list[tuple[StdioSession, Identity | None]] = []

    def open(self, client: Client, identity: Identity | None, public_key: str, listener: str = "") -> StdioSession:
        session = StdioSession(client, self._config)
        self.opened.append((session, identity))
        return session

    def resume_reading(self, session: object, callback: Callable[[], None]) -> None:
        callback()

    async def ended(self) -> None:
        """Wait until all app-servers have ended."""
        for session, _ in self.opened:
            session.close()
        if self.opened:
            await asyncio.wait_for(asyncio.gather(*(session.task for session, _ in self.opened)), 20)
