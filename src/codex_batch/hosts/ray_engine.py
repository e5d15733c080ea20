"""RayEngine: hosts as actors of a Ray cluster, one on each node that has room for a pool.

The actors are detached: they outlive the process that made them, and its successor finds them by name. Each is bound to
its node, and restarted there by Ray if its process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .engine import Change, EngineError, HostError, HostGoneError

if TYPE_CHECKING:
    from .host import Host

T = TypeVar("T")

LOCAL = "local"
LOOK_EVERY_S = 1.0
# The process of an actor starts Python and loads what a host needs.
START_LIMIT_S = 60.0
CLOSE_LIMIT_S = 30.0
STORE_BYTES = 128 * 2**20
STARTS = 3
TOO_SLOW = "timed out during startup"
_CPU = "CPU"


def _ray() -> Any:
    """Return the package, which takes a second to load. Raises ImportError."""
    return importlib.import_module("ray")


class HostActor:
    """Body of an actor: one host. Errors are returned, since Ray would wrap them with its own words."""

    def __init__(self, root: str | None, run: str) -> None:
        self._root = None if root is None else Path(root)
        self._run = run
        self._host: Host | None = None
        self._lock = asyncio.Lock()

    async def call(self, method: str, *arguments: Any) -> tuple[bool, Any]:
        """Call a method of the host; return True and its result, or False and a message."""
        from .spool import open_host, remove_if_empty

        try:
            async with self._lock:
                if self._host is None:
                    self._host = open_host(self._root, self._run, self._end)
            result = await getattr(self._host, method)(*arguments)
            if method == "close":
                remove_if_empty(self._host.path)
            return True, result
        except Exception as error:
            return False, str(error) if isinstance(error, HostError) else f"{type(error).__name__}: {error}"

    def _end(self) -> None:
        """End this process: no run asks for it, or its pool cannot be replaced."""
        self._ending = asyncio.ensure_future(self._close())

    async def _close(self) -> None:
        ray = _ray()
        if self._host is not None:
            await self._host.close(False)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


class RayEngine:
    """Implements Engine. `address` is that of a cluster, `auto`, or `local` for one of this process alone.

    `cpus` are those that a host asks for: one for each of its workers. Use it as `async with`; raises EngineError.
    """

    def __init__(self, address: str, run: str, *, cpus: int, root: Path | None) -> None:
        self._address = address
        self._run = run
        self._cpus = cpus
        self._root = root
        self._actors: dict[str, Any] = {}
        self._directory: Path | None = None
        self._told: set[str] = set()
        self._is_given_up = False
        # The processes of a local cluster end with the thread that started them.
        self._thread = ThreadPoolExecutor(1, "ray")

    async def __aenter__(self) -> RayEngine:
        try:
            await self._do(self._start)
        except BaseException:
            # A start that is cancelled goes on in its thread; what it has made is ended after it.
            self._is_given_up = True
            self._thread.submit(self._stop)
            self._thread.shutdown(wait=False)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._do(self._stop)
        self._thread.shutdown()

    async def changes(self) -> AsyncIterator[Change]:
        """See Engine."""
        while True:
            nodes = await self._do(self._nodes)
            for name, node in nodes.items():
                change = None if name in self._actors else await self._new(name, node)
                if change is not None:
                    yield change
            for name in [name for name in self._actors if name not in nodes]:
                actor = self._actors.pop(name)
                await self._do(self._kill, actor)
                yield Change(name, is_there=False)
            await asyncio.sleep(LOOK_EVERY_S)

    async def call(self, host: str, method: str, *arguments: Any) -> Any:
        """See Engine."""
        ray = _ray()
        actor = self._actors.get(host)
        if actor is None:
            raise HostGoneError("its machine has gone")
        try:
            is_done, result = await actor.call.remote(method, *arguments)
        except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError, ray.exceptions.ObjectLostError) as error:
            raise HostGoneError(f"its process has gone ({type(error).__name__})") from None
        if not is_done:
            raise HostError(result)
        return result

    async def close(self, *, is_over: bool) -> None:
        """See Engine."""
        if not is_over:
            return

        async def end(name: str, actor: Any) -> None:
            with contextlib.suppress(HostGoneError, HostError, asyncio.TimeoutError):
                await asyncio.wait_for(self.call(name, "close", True), CLOSE_LIMIT_S)
            await self._do(self._kill, actor)

        await asyncio.gather(*(end(name, actor) for name, actor in list(self._actors.items())))

    # The cluster. Each of these may block, and runs on one thread of its own.

    async def _do(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray = _ray()
        except ImportError as error:
            raise EngineError(f"--ray needs Ray ({error}): pip install 'codex-pool[ray]'") from None
        shared: dict[str, Any] = {"namespace": f"codex-pool-{self._run}", "log_to_driver": False}
        shared["logging_level"] = logging.ERROR
        for left in reversed(range(STARTS)):
            try:
                ray.init(**(self._local() if self._address == LOCAL else {"address": self._address}), **shared)
                return
            except Exception as error:
                # Ray raises all kinds. It gives a node of its own 30 s to start, which a busy machine may exceed.
                self._stop()
                if left and self._address == LOCAL and TOO_SLOW in str(error) and not self._is_given_up:
                    continue
                why = " ".join(str(error).split())
                raise EngineError(f"--ray {self._address}: {why[:500]}") from None

    def _local(self) -> dict[str, Any]:
        """Options of a cluster of this machine, which ends with this process."""
        # Sockets are in it, and their paths are short.
        self._directory = Path(tempfile.mkdtemp(prefix="codex-ray-"))
        return {
            "num_cpus": max(self._cpus, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_temp_dir": str(self._directory),
        }

    def _stop(self) -> None:
        ray = _ray()
        ray.shutdown()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _nodes(self) -> dict[str, dict[str, Any]]:
        ray = _ray()
        return {f"{node['NodeManagerHostname']}-{node['NodeID'][:6]}": node for node in ray.nodes() if node["Alive"]}

    async def _new(self, name: str, node: dict[str, Any]) -> Change | None:
        there = int(node["Resources"].get(_CPU, 0))
        if there < self._cpus:
            if name in self._told or not there:
                return None
            self._told.add(name)
            return Change(name, False, f"it has {there} CPUs for Ray, and --workers {self._cpus} asks for {self._cpus}")
        self._actors[name] = await self._do(self._actor, name, node["NodeID"])
        return Change(name, is_there=True)

    def _actor(self, name: str, node_id: str) -> Any:
        ray = _ray()
        strategies: Any = importlib.import_module("ray.util.scheduling_strategies")

        return (
            ray.remote(HostActor)
            .options(
                name=name,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=self._cpus,
                max_restarts=-1,
                max_task_retries=0,
                scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(node_id, soft=False),
            )
            .remote(None if self._root is None else str(self._root), self._run)
        )

    def _kill(self, actor: Any) -> None:
        ray = _ray()
        with contextlib.suppress(Exception):
            ray.kill(actor, no_restart=True)
