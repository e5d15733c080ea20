"""Hosts as processes of this machine: an engine without Ray, whose hosts can be killed, stopped and cut off.

    python host_process.py SPOOL

serves the calls that come on stdin: frames of length and MessagePack, each answered in one on stdout.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from codex_batch.hosts.engine import Change, HostError, HostGoneError
from codex_batch.hosts.host import Host
from codex_pool.runtime import processes

_HEAD = struct.Struct("!I")
_LIMIT_S = 30.0


class ProcessEngine:
    """Implements Engine. `root` holds the spools, one for each name; a host that is started again has its own."""

    def __init__(self, root: Path, env: dict[str, str]) -> None:
        self.root = root
        self._env = env
        self._hosts: dict[str, _Process] = {}
        self._news: asyncio.Queue[Change] = asyncio.Queue()
        self.deaf: set[str] = set()
        """Hosts that the run cannot reach."""
        self.closed: bool | None = None

    async def __aenter__(self) -> ProcessEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        # Hosts outlive a run that dies.
        for host in self._hosts.values() if self.closed is not False else ():
            await host.end()

    async def add(self, name: str) -> None:
        """Start a host, or start it again."""
        is_new = name not in self._hosts
        self._hosts[name] = await _Process.start(self.root / name, self._env)
        if is_new:
            self._news.put_nowait(Change(name, is_there=True))

    async def kill(self, name: str, *, gone: bool = True) -> None:
        """Kill the process of a host; if it is `gone`, its machine is too."""
        await self._hosts[name].kill()
        if gone:
            del self._hosts[name]
            self._news.put_nowait(Change(name, is_there=False))

    def signal(self, name: str, number: int) -> None:
        """Send a signal to all processes of a host: SIGSTOP and SIGCONT are a machine that is silent for a while."""
        pid = self._hosts[name].pid
        for process in [pid, *(each.pid for each in processes.descendants(pid))]:
            os.kill(process, number)

    def rejoin(self, name: str) -> None:
        """Show a host to the next run."""
        self._news.put_nowait(Change(name, is_there=True))

    async def changes(self) -> AsyncIterator[Change]:
        """See Engine."""
        while True:
            yield await self._news.get()

    async def call(self, host: str, method: str, *arguments: Any) -> Any:
        """See Engine."""
        process = self._hosts.get(host)
        if process is None or host in self.deaf:
            raise HostGoneError("cut off")
        return await process.call(method, arguments)

    async def close(self, *, is_over: bool) -> None:
        """See Engine."""
        self.closed = is_over
        for name in list(self._hosts) if is_over else ():
            with contextlib.suppress(HostGoneError):
                await self.call(name, "close", True)


class _Process:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._reading = asyncio.ensure_future(self._read())

    @classmethod
    async def start(cls, spool: Path, env: dict[str, str]) -> _Process:
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                __file__,
                str(spool),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=env,
                start_new_session=True,
            )
        )

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if self._process.returncode is not None or self._reading.done():
            raise HostGoneError("its process has ended")
        self._number += 1
        number = self._number
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        data = msgspec.msgpack.encode([number, method, list(arguments)])
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(_HEAD.pack(len(data)) + data)
            await self._process.stdin.drain()
        except OSError as error:
            raise HostGoneError(str(error)) from None
        return await future

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while True:
                (length,) = _HEAD.unpack(await self._process.stdout.readexactly(_HEAD.size))
                number, is_done, result = msgspec.msgpack.decode(await self._process.stdout.readexactly(length))
                future = self._calls.pop(number)
                if future.cancelled():
                    continue
                if is_done:
                    future.set_result(result)
                else:
                    future.set_exception(HostError(result))
        except asyncio.IncompleteReadError:
            for future in self._calls.values():
                if not future.done():
                    future.set_exception(HostGoneError("its process has ended"))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        await self._reading

    async def end(self) -> None:
        """Let it end its pool."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _LIMIT_S)
        finally:
            self._reading.cancel()


async def _serve(spool: Path) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    out = os.dup(1)
    os.dup2(2, 1)
    host: Host | None = None

    async def answer(number: int, method: str, arguments: list[Any]) -> None:
        try:
            assert host is not None
            result = [number, True, await getattr(host, method)(*arguments)]
        except Exception as error:
            result = [number, False, str(error) or repr(error)]
        data = msgspec.msgpack.encode(result)
        data = _HEAD.pack(len(data)) + data
        while data:
            data = data[os.write(out, data) :]

    host = Host(spool)
    tasks = set()
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            (length,) = _HEAD.unpack(await reader.readexactly(_HEAD.size))
            task = asyncio.ensure_future(answer(*msgspec.msgpack.decode(await reader.readexactly(length))))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    if spool.exists():
        await host.close(False)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
