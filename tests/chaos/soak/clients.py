"""Clients of a soak: over ZeroMQ with and without a key, and over WebSocket, each a task that runs turn after turn."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from codex_app_server import AsyncCodex
from codex_pool import aconnect

from .daemon import Daemon

LIMIT_S = 90.0
AGAIN_S = 0.05
# The name in metrics of a client without a key.
OWNER = "owner"
PROMPT = "hello"


@dataclass
class Load:
    """Turns of all clients so far. `over` ends them after the turn that each runs.

    `completed`: turns whose end was seen, by principal. `unseen`: turns that began and whose end came while the client
    was not connected; `unanswered`: requests for a turn whose answer was lost with the connection, so that only the
    pool knows whether the turn was. `lost_connections` by kind of client.
    """

    over: asyncio.Event = field(default_factory=asyncio.Event)
    completed: Counter[str] = field(default_factory=Counter)
    unseen: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    connections: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    @property
    def turns(self) -> int:
        """Turns that have ended, as far as clients know."""
        return self.completed.total() + self.unseen.total()

    def ended(self, principal: str, status: str, began: float, what: object = "") -> None:
        """Count the end of a turn."""
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        if status == "completed":
            self.completed[principal] += 1
        else:
            self.failures.append(f"{principal}: a turn was {status}: {what}")

    async def run(self, principal: str, turns: Any) -> None:
        """Run a client; whatever it raises is a failure."""
        try:
            await turns
        except Exception as error:  # A client that gives up is what is looked for, whatever the reason.
            self.failures.append(f"{principal}: {type(error).__name__}: {error}")


async def over_zeromq(daemon: Daemon, load: Load, name: str | None, threads: int, turns_each: int) -> None:
    """A client of the pool's own protocol: that of the owner over ipc, of a key over TCP.

    Each of its tasks begins another thread after `turns_each` turns.
    """
    where = {"endpoint": daemon.endpoint} if name is None else {"endpoint": daemon.tcp, "key": daemon.keys[name]}
    principal = name or OWNER
    async with aconnect(**where, name=f"soak of {principal}") as codex:
        await asyncio.gather(
            *(load.run(principal, _turns(codex, daemon, load, principal, turns_each)) for _ in range(threads))
        )


async def _turns(codex: AsyncCodex, daemon: Daemon, load: Load, principal: str, turns_each: int) -> None:
    while not load.over.is_set():
        thread = await codex.thread_start(cwd=str(daemon.work), sandbox="read-only", approval_policy="never")
        for _ in range(turns_each):
            began = time.monotonic()
            result = await asyncio.wait_for(thread.run(PROMPT), LIMIT_S)
            load.ended(principal, result.status, began, result.error)
            if load.over.is_set():
                break


class LostError(Exception):
    """The connection has ended."""


class WebSocketClient:
    """A client of the app-server's protocol, with the token of a key: one connection, which is made again."""

    def __init__(self, daemon: Daemon, load: Load, name: str, session: aiohttp.ClientSession) -> None:
        self._daemon, self._load, self._name, self._session = daemon, load, name, session
        self._ids = itertools.count(1)
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        # Ends of turns that have come, by their ids.
        self._ends: dict[str, dict[str, Any]] = {}

    async def turns(self, turns_each: int) -> None:
        """Run turn after turn."""
        while not self._load.over.is_set():
            thread = await self._start_thread()
            for _ in range(turns_each):
                await self._turn(thread)
                if self._load.over.is_set():
                    break
        if self._socket is not None:
            await self._socket.close()

    async def _start_thread(self) -> str:
        while True:
            try:
                await self._connected()
                found = await self._call("thread/start", cwd=str(self._daemon.work), sandbox="read-only")
                return str(found["thread"]["id"])
            except LostError:
                continue

    async def _turn(self, thread: str) -> None:
        """Run a turn, over as many connections as it takes."""
        began, turn, is_asked = time.monotonic(), "", False
        while True:
            try:
                if await self._connected():
                    await self._call("thread/resume", threadId=thread)
                    if is_asked and not await self._is_active(thread) and turn not in self._ends:
                        (self._load.unseen if turn else self._load.unanswered)[self._name] += 1
                        return
                if not is_asked:
                    is_asked = True
                    text = {"type": "text", "text": PROMPT}
                    answer = await self._call("turn/start", threadId=thread, input=[text])
                    turn = str(answer["turn"]["id"])
                end = await self._end(turn, thread)
                self._load.ended(self._name, end["status"], began, end.get("error"))
                return
            except LostError:
                if time.monotonic() - began > LIMIT_S:
                    raise

    async def _is_active(self, thread: str) -> bool:
        found = await self._call("thread/read", threadId=thread)
        return bool(found["thread"]["status"]["type"] == "active")

    async def _connected(self) -> bool:
        """Connect if there is no connection; return whether this is another one than before."""
        if self._socket is not None and not self._socket.closed:
            return False
        self._socket, deadline = None, time.monotonic() + LIMIT_S
        headers = {"Authorization": f"Bearer {self._daemon.tokens[self._name]}"}
        while self._socket is None:
            try:
                self._socket = await self._session.ws_connect(self._daemon.ws, headers=headers, max_msg_size=0)
                await self._call("initialize", clientInfo={"name": "soak", "title": None, "version": "1"})
                await self._socket.send_json({"method": "initialized"})
            except (aiohttp.ClientError, OSError, LostError) as error:
                self._socket = None
                if time.monotonic() > deadline:
                    raise RuntimeError(f"no connection to the gateway: {error}") from error
                await asyncio.sleep(AGAIN_S)
        self._load.connections[self._name] += 1
        return True

    async def _call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a request. Raises LostError, and RuntimeError for an error."""
        request = next(self._ids)
        assert self._socket is not None
        try:
            await self._socket.send_json({"id": request, "method": method, "params": params})
        except (aiohttp.ClientError, OSError) as error:
            raise LostError from error
        while True:
            line = await self._line()
            if line.get("id") == request and "method" not in line:
                if "error" in line:
                    raise RuntimeError(f"{method} is refused: {line['error']}")
                return dict(line["result"])

    async def _end(self, turn: str, thread: str) -> dict[str, Any]:
        """The end of a turn; one whose id is not known is the next of its thread."""
        while turn not in self._ends:
            line = await self._line()
            params = line.get("params") or {}
            if not turn and line.get("method") == "turn/completed" and params.get("threadId") == thread:
                turn = str(params["turn"]["id"])
        return self._ends.pop(turn)

    async def _line(self) -> dict[str, Any]:
        assert self._socket is not None
        message = await asyncio.wait_for(self._socket.receive(), LIMIT_S)
        if message.type is not aiohttp.WSMsgType.TEXT:
            await self._socket.close()
            raise LostError
        line: dict[str, Any] = json.loads(message.data)
        if line.get("method") == "turn/completed":
            turn = line["params"]["turn"]
            self._ends[str(turn["id"])] = turn
        return line


async def over_websocket(daemon: Daemon, load: Load, name: str, connections: int, turns_each: int) -> None:
    """Clients of the app-server's protocol, one connection each."""
    async with aiohttp.ClientSession() as session:
        clients = [WebSocketClient(daemon, load, name, session) for _ in range(connections)]
        await asyncio.gather(*(load.run(name, client.turns(turns_each)) for client in clients))
