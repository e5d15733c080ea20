"""On-record hooks of a run: each a process beside it that is sent every record, and never waited for but at the end.

Records wait for a hook up to a bound in number and bytes; beyond it they are left out, and counted. A hook that fails
is shown once; one that takes too long, or whose process dies, gets a new process, some times.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codex_app_server._runtime.text import cut, plural

from ..plugins.discovery import Plugin
from ..plugins.hooks import COMMAND
from ..store import RunDirectory

WAITING = 1_000
WAITING_BYTES = 16 * 2**20
# How long a hook may take for one record; how long all of them may take at the end of the run.
RECORD_LIMIT_S = 30.0
CLOSE_LIMIT_S = 10.0
# So long a process that has closed its output may take to end.
DYING_S = 2.0
STARTS = 4

Warn = Callable[[str], None]


@dataclass(slots=True)
class Counts:
    """Records of a hook: `delivered`, `failed` in it, and `left_out`; and the last error."""

    delivered: int = 0
    failed: int = 0
    left_out: int = 0
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class _Failed(Exception):
    """The hook's process did not do what was asked; it is ended."""


class RecordHooks:
    """See the module's docstring. Made on the event loop.

    `run` is what hooks are told of the run; `log` gets what they print; `warn` shows the first problem of each.
    """

    def __init__(self, plugins: Iterable[Plugin], run: Mapping[str, Any], log: Path, warn: Warn) -> None:
        self._hooks = [_Hook(plugin, run, log, warn) for plugin in plugins]

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def offer(self, line: bytes) -> None:
        """Take a record, as a line of JSON; returns at once."""
        for hook in self._hooks:
            hook.offer(line)

    async def close(self) -> None:
        """Let the hooks have what waits, within a bound, and end their processes."""
        if not self._hooks:
            return
        try:
            await asyncio.wait([asyncio.ensure_future(hook.finish()) for hook in self._hooks], timeout=CLOSE_LIMIT_S)
        finally:
            await asyncio.gather(*(hook.stop() for hook in self._hooks))

    def counts(self) -> dict[str, dict[str, Any]]:
        """Return the counts of each hook, by name."""
        return {hook.plugin.name: hook.counts.as_json() for hook in self._hooks}


def run_of(directory: RunDirectory, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what hooks are told of the run; `config` is what is written down of the launch."""
    launch = directory.store.info()["launches"][-1]
    return {
        "path": str(directory.path),
        "launch": launch["number"],
        "started_at": launch["started_at"],
        "command": config.get("command", []),
    }


def rows(counts: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the counts of hooks as rows of a summary."""
    found = []
    for name, each in counts.items():
        words = plural(each["delivered"], "record")
        for what, count in (("failed", each["failed"]), ("left out", each["left_out"])):
            words += f", {count:,} {what}" if count else ""
        found.append((f"on record: {name}", words + (f"; last error: {each['error']}" if each["error"] else "")))
    return found


class _Hook:
    def __init__(self, plugin: Plugin, run: Mapping[str, Any], log: Path, warn: Warn) -> None:
        self.plugin = plugin
        self.counts = Counts()
        self._run = run
        self._log = log
        self._warn = warn
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._has_some = asyncio.Event()
        self._is_over = False
        self._starts = 0
        self._process: asyncio.subprocess.Process | None = None
        self._task = asyncio.ensure_future(self._deliver())

    def offer(self, line: bytes) -> None:
        if len(self._waiting) >= WAITING or self._waiting_bytes + len(line) > WAITING_BYTES:
            self._leave_out(1, f"it is slower than the run: more than {WAITING:,} records wait for it")
            return
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        self._has_some.set()

    async def finish(self) -> None:
        """Wait until the hook has what waits, and has closed."""
        self._is_over = True
        self._has_some.set()
        await asyncio.wait([self._task])

    async def stop(self) -> None:
        """End the process; what it has not taken by now is left out."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._end()
        if self._waiting:
            self._leave_out(len(self._waiting), f"it did not take them within {CLOSE_LIMIT_S:g} s of the run's end")

    async def _deliver(self) -> None:
        while await self._is_more():
            line = self._waiting[0]
            try:
                if self._process is None:
                    await self._start()
                await self._ask(line)
                self.counts.delivered += 1
            except _Failed as error:
                self.counts.failed += 1
                self._show(str(error))
            self._waiting.popleft()
            self._waiting_bytes -= len(line)
        if self._process is not None:
            try:
                assert self._process.stdin is not None
                self._process.stdin.close()
                await self._answer()
            except _Failed as error:
                self._show(f"its end: {error}")

    async def _is_more(self) -> bool:
        """Wait for a record; return False at the end of the run."""
        while not self._waiting:
            if self._is_over:
                return False
            self._has_some.clear()
            await self._has_some.wait()
        return True

    async def _start(self) -> None:
        """Start the process. Raises _Failed."""
        if self._starts >= STARTS:
            raise _Failed(f"it is not started again after {plural(STARTS, 'process', 'processes')}")
        self._starts += 1
        pipe = asyncio.subprocess.PIPE
        try:
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *COMMAND, stdin=pipe, stdout=pipe, stderr=log, cwd="/", start_new_session=True
                )
        except OSError as error:
            raise _Failed(f"its process cannot be started: {error}") from None
        try:
            await self._ask(json.dumps({"value": self.plugin.value, "run": self._run}).encode() + b"\n")
        except _Failed:
            await self._end()
            raise

    async def _ask(self, line: bytes) -> None:
        """Send a line, and wait for the answer. Raises _Failed."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line)
        await self._answer()

    async def _answer(self) -> None:
        """Raises _Failed."""
        assert self._process is not None and self._process.stdout is not None
        try:
            answer = await asyncio.wait_for(self._process.stdout.readline(), RECORD_LIMIT_S)
            failed = json.loads(answer).get("failed")
        except asyncio.TimeoutError:
            await self._end()
            raise _Failed(f"it took more than {RECORD_LIMIT_S:g} s") from None
        except (ValueError, ConnectionError):
            code = await self._end(DYING_S)
            raise _Failed(f"its process died with exit code {code}") from None
        if failed is not None:
            raise _Failed(failed)

    async def _end(self, patience_s: float = 0.0) -> int | None:
        """Kill the process, if there is one and it does not end by itself in `patience_s`; return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        if patience_s:
            # A signal to one that is just ending would take its exit code away from asyncio.
            with contextlib.suppress(asyncio.TimeoutError):
                return await asyncio.wait_for(process.wait(), patience_s)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()

    def _leave_out(self, count: int, why: str) -> None:
        self.counts.left_out += count
        self._show(f"records are left out: {why}")

    def _show(self, problem: str) -> None:
        """Show the first problem; the summary counts them all."""
        if self.counts.error is None:
            self._warn(f"{self.plugin}: {problem}; the run goes on, and its records are not affected")
        self.counts.error = cut(" ".join(problem.split()), 300)
