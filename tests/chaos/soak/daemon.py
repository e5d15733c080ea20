"""The daemon of a soak: `codex-pool serve` as a process, with its keys and files, and what is done to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from ports import free_port
from prometheus_client.parser import text_string_to_metric_families

from codex_app_server import AppServerError
from codex_pool import aconnect
from codex_pool.runtime import processes

from .plan import Operation

LIMIT_S = 60.0
VERB_LIMIT_S = 240.0
STOP_LIMIT_S = 60.0
TOKEN = "soak-0123456789abcdef0123456789abcdef"
# Of the pool's own processes, by the module that each runs.
ROLES = ("supervisor", "broker", "ingress", "gateway", "worker")

Metrics = dict[tuple[str, ...], float]


@dataclass
class Daemon:
    """A daemon below `root`. Its clients need `endpoint`, `tcp`, `ws` and the files of `keys`; `socket` is for the TUI.

    `codex` is its binary, `names` are those of its keys. `problems`: what was not as it should be.
    """

    root: Path
    codex: Path
    names: tuple[str, ...]
    workers: int
    home: Path
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runtime, self.work, self.log = self.root / "run", self.root / "work", self.root / "log"
        self.configuration, self.socket = self.root / "pool.toml", self.root / "run" / "tui.sock"
        for path in (self.runtime, self.work, self.home, self.root / "user"):
            path.mkdir(mode=0o700, exist_ok=True)
        self._ports = {name: free_port() for name in ("tcp", "ws", "http")}
        self.endpoint = f"ipc://{self.runtime}/p.sock"
        self.tcp, self.ws = f"tcp://127.0.0.1:{self._ports['tcp']}", f"http://127.0.0.1:{self._ports['ws']}/rpc"
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CODEX_")},
            "HOME": str(self.root / "user"),
            "XDG_CONFIG_HOME": str(self.root / "user" / "config"),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "CODEX_HOME": str(self.home),
        }
        self._turns_per_worker = 8
        self._write_configuration()
        self._token = self.root / "metrics.token"
        self._token.touch(mode=0o600)
        self._token.write_text(TOKEN + "\n")
        self.keys = {name: self._new_key(name) for name in self.names}
        self.tokens = {name: self._verb_now("keys", "token", str(file)).strip() for name, file in self.keys.items()}

    def _write_configuration(self) -> None:
        self.configuration.write_text(f"turns_per_worker = {self._turns_per_worker}\n")

    def _new_key(self, name: str) -> Path:
        file = self.root / f"{name}.key"
        self._verb_now("keys", "new", name, "-o", str(file), "--cwd-root", str(self.work))
        return file

    def _verb_now(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "codex_pool_cli", *arguments]
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=LIMIT_S, check=True)
        return done.stdout

    # Its life.

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it from its start to its end; `stop` comes before the end."""
        command = [sys.executable, "-m", "codex_pool_cli", "serve", "--json", "--endpoint", self.endpoint]
        command += ["--workers", str(self.workers), "--codex-bin", str(self.codex), "--home", str(self.home)]
        command += ["--listen", self.tcp, "--listen-ws", f"127.0.0.1:{self._ports['ws']}"]
        command += ["--listen-http", f"127.0.0.1:{self._ports['http']}", "--metrics-token", str(self._token)]
        command += ["--listen-unix", str(self.socket), "--log-file", str(self.log)]
        command += ["--pool-config", str(self.configuration)]
        with (self.root / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                command, env=self.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
            )
        try:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"the daemon did not start: {(self.root / 'stderr').read_text()}")
            self.supervisor: int = json.loads(line)["pid"]
            yield
        finally:
            if self.process.poll() is None:
                self.process.terminate()
                try:
                    self.process.wait(STOP_LIMIT_S)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait()

    async def stop(self) -> None:
        """Stop it as an operator does, and note what is left."""
        below = processes.descendants(self.process.pid)
        await self.verb(("stop",))
        code = await asyncio.to_thread(self.process.wait, STOP_LIMIT_S)
        if code != 0:
            self.problems.append(f"serve has ended with {code}")
        deadline = time.monotonic() + 10
        while left := [each.pid for each in below if processes.identify(each.pid) == each]:
            if time.monotonic() > deadline:
                self.problems.append(f"processes are left: {left}")
                break
            await asyncio.sleep(0.1)
        sockets = [path.name for path in self.runtime.rglob("*") if path.is_socket()]
        if sockets:
            self.problems.append(f"sockets are left: {sockets}")

    # What is done to it.

    async def verb(self, arguments: tuple[str, ...], exit_code: int = 0) -> str:
        """Run a verb of the operator, and note if it ends in another way; its output."""
        command = [sys.executable, "-m", "codex_pool_cli", *arguments, "--connect", self.endpoint]
        process = await asyncio.create_subprocess_exec(
            *command, env=self.environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            out, _ = await asyncio.wait_for(process.communicate(), VERB_LIMIT_S)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()
            self.problems.append(f"codex-pool {' '.join(arguments)} has not ended within {VERB_LIMIT_S:g} s")
            return ""
        text = out.decode(errors="replace").strip()
        if process.returncode != exit_code:
            self.problems.append(f"codex-pool {' '.join(arguments)}: exit code {process.returncode}: {text}")
        return text

    async def carry_out(self, operation: Operation) -> None:
        """Carry out an operation, to its end."""
        if operation.reload:
            await self._reload()
        verb = asyncio.create_task(self.verb(operation.verb, operation.exit_code)) if operation.verb else None
        if operation.kill:
            await asyncio.sleep(operation.kill_after_s)
            await self._kill(operation.kill)
        if verb is not None:
            await verb
        if operation.verb[:1] in (("recycle",), ("scale",), ("upgrade",)):
            await self._until(self._is_settled, "the end of what a verb has begun")

    async def _is_settled(self) -> bool:
        """Return True if each slot has a worker that is ready, and nothing else."""
        rows = (await self._status()).get("workers", [])
        are_ready = all(row["state"] == "ready" and not row.get("recycling") for row in rows)
        return bool(rows) and are_ready and len({row["slot"] for row in rows}) == len(rows)

    async def _status(self) -> dict[str, Any]:
        """The status of the pool; {} while there is none."""
        try:
            async with aconnect(self.endpoint, name="soak") as codex:
                found: dict[str, Any] = await codex.client.request("pool/status", {})
                return found
        except AppServerError:
            return {}

    async def _reload(self) -> None:
        self._turns_per_worker = 14 - self._turns_per_worker
        self._write_configuration()
        os.kill(self.process.pid, signal.SIGHUP)
        await self._until(self._is_reloaded, f"a reload of turns_per_worker = {self._turns_per_worker}")

    async def _is_reloaded(self) -> bool:
        return bool((await self._status()).get("turnsPerWorker") == self._turns_per_worker)

    async def _kill(self, role: str) -> None:
        before = self.processes().get(role, [])
        for pid in before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._until(lambda: self._is_replaced(role, before), f"another {role}")

    async def _is_replaced(self, role: str, before: list[int]) -> bool:
        found = self.processes().get(role, [])
        return bool(found) and set(before).isdisjoint(found)

    async def _until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not await condition():
            if time.monotonic() > deadline:
                self.problems.append(f"not within {LIMIT_S:g} s: {what}")
                return
            await asyncio.sleep(0.2)

    # What is seen of it.

    def processes(self) -> dict[str, list[int]]:
        """The pids of the pool's own processes, by role; `serve` is the process that was started."""
        found: dict[str, list[int]] = {"serve": [self.process.pid]}
        for each in processes.descendants(self.process.pid):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{each.pid}/cmdline").read_bytes().split(b"\0")
                role = next((role for role in ROLES if f"codex_pool.{role}".encode() in words), None)
                if role is not None:
                    found.setdefault(role, []).append(each.pid)
        return found

    async def metrics(self) -> Metrics | None:
        """The metrics by name and labels; None while they cannot be had."""
        url, headers = f"http://127.0.0.1:{self._ports['http']}/metrics", {"Authorization": f"Bearer {TOKEN}"}
        try:
            async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
                if answer.status != 200:
                    return None
                text = await answer.text()
        except (aiohttp.ClientError, OSError):
            return None
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def metrics_soon(self) -> Metrics:
        """The metrics, once they can be had."""
        deadline = time.monotonic() + LIMIT_S
        while (found := await self.metrics()) is None:
            if time.monotonic() > deadline:
                self.problems.append("no metrics")
                return {}
            await asyncio.sleep(0.2)
        return found
