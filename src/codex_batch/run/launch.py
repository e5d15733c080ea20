"""The pool of a run: started with its home and its log, given up in time, and ended whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from codex_app_server import AppServerConfig, AppServerError, TransportClosedError
from codex_app_server._runtime import threads
from codex_app_server._runtime.files import resolved
from codex_app_server._runtime.paths import shown
from codex_pool import Pool, PoolStartError
from codex_pool.configuration import Ask, Configuration, ConfigurationError, probe_configuration
from codex_pool.homes import ConfigCopy
from codex_pool.options import PoolOptions
from codex_pool.pool import codex_home

from . import home
from .disks import Disk
from .stopping import unless_stopped

# Until any worker is ready. The user's own home may hold thousands of threads, and a first start reads them all.
START_LIMIT_S = 30.0
USER_HOME_START_LIMIT_S = 60.0
# What a pool that was killed has left is ended before the next one starts.
FENCE_LIMIT_S = 15.0
LOG_LINES = 10


class NotStartedError(Exception):
    """No pool could be started; the message gives the reason and what to look at."""


async def probe(
    stopping: asyncio.Future[Any],
    config: AppServerConfig,
    *,
    limit_s: float,
    renew: Callable[[], bool],
    copy: ConfigCopy | None,
    then: Ask | None = None,
) -> Configuration:
    """The configuration that the pool's app-servers will have. `then` asks one of them more.

    One that cannot be used is tried once more if `renew` has made another of it; an error about a `copy` names the file
    that it was made of. Gives up when no app-server has answered within `limit_s` seconds. Raises NotStartedError, and
    Stopped.
    """

    _check_disk(config)

    async def ask() -> Configuration:
        return await unless_stopped(stopping, asyncio.wait_for(probe_configuration(config, then), limit_s))

    try:
        try:
            return await ask()
        except ConfigurationError:
            if not renew():
                raise
            return await ask()
    except asyncio.TimeoutError:
        why = f"no app-server was ready within {limit_s:.0f} s"
        raise NotStartedError(f"the pool could not start: {why}\n  binary: {config.argv()[0]}") from None
    except TransportClosedError as error:
        where = config.argv()[0]
        raise NotStartedError(f"the pool could not start: {error}\n  binary: {where}") from None
    except AppServerError as error:
        message = str(error) if copy is None else copy.named(str(error))
        raise NotStartedError(f"the pool could not start: {message}") from None


class Asked(Protocol):
    """Options of the pool that a run, or the scoring of one, starts for itself."""

    @property
    def pool(self) -> PoolOptions: ...
    @property
    def home(self) -> str: ...
    @property
    def overrides(self) -> tuple[str, ...]: ...
    @property
    def codex_bin(self) -> str | None: ...
    @property
    def demo(self) -> bool: ...


async def own_pool(
    stopping: asyncio.Future[Any],
    asked: Asked,
    path: Path,
    *,
    cwd: Path,
    log: Path,
    then: Ask | None = None,
    guards: Callable[[Configuration], tuple[str, ...]] = lambda configuration: (),
    on_slots: Callable[[list[dict[str, Any]]], None] = lambda slots: None,
) -> OwnPool:
    """A pool, not started, whose app-servers work in `cwd` on the CODEX_HOME `path`, and log to `log`.

    `then` as of `probe`. `guards`: further overrides, made of the configuration that its app-servers will have; those
    that were asked for come after them. Raises NotStartedError, Stopped, and what `guards` raises.
    """
    config = AppServerConfig(
        codex_bin=asked.codex_bin,
        config_overrides=asked.overrides,
        cwd=cwd,
        env={"CODEX_HOME": str(resolved(path))},
    )
    limit_s = START_LIMIT_S if asked.home == home.RUN else USER_HOME_START_LIMIT_S
    configuration = await probe(
        stopping,
        config,
        limit_s=limit_s,
        renew=lambda: home.renew(asked.home, path),
        copy=None if asked.demo else home.copy(asked.home, path),
        then=then,
    )
    config.config_overrides = (*guards(configuration), *asked.overrides)
    return OwnPool(config, asked.pool, limit_s=limit_s, log=log, on_slots=on_slots)


class OwnPool:
    """The pool that a run starts for itself, and again when it is lost; `close` ends it, also while it starts."""

    def __init__(
        self,
        config: AppServerConfig,
        options: PoolOptions,
        *,
        limit_s: float,
        log: Path,
        on_slots: Callable[[list[dict[str, Any]]], None] = lambda slots: None,
    ) -> None:
        self._config = config
        self._limit_s = limit_s
        self._log = log
        self._on_slots = on_slots
        self._any_ready = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._starting: asyncio.Future[None] | None = None
        self.pool = Pool.of(msgspec.structs.replace(options, log_file=str(log)), config, self._on_change)

    async def start(self, stopping: asyncio.Future[Any]) -> Pool:
        """Start it, or start it again at the same endpoint, and wait until it is ready.

        Gives up when no worker is ready within the limit. Raises NotStartedError, and Stopped when `stopping` is done
        first.
        """
        _check_disk(self._config)
        limit_s = self._limit_s
        start = self.pool.start
        if self._starting is not None:
            await self._end_starting()
            limit_s += FENCE_LIMIT_S
            start = self.pool.restart
        self._any_ready.clear()
        self._starting = asyncio.ensure_future(threads.in_thread(start))
        try:
            await asyncio.wait({self._starting, stopping}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not self._starting.done() and not stopping.done() and not self._any_ready.is_set():
                raise PoolStartError(
                    f"the pool could not start {shown(self._config.argv()[0])}: no app-server was ready within "
                    f"{limit_s:.0f} s",
                    _tail(self._log),
                )
            await unless_stopped(stopping, _join(self._starting))
        except TransportClosedError as error:
            raise NotStartedError(f"{error}\n  log: {self._log}") from None
        except AppServerError as error:
            raise NotStartedError(f"the pool could not start: {error}") from None
        return self.pool

    async def close(self) -> None:
        """End the pool."""
        await self._end_starting()
        await threads.in_thread(self.pool.close)

    async def _end_starting(self) -> None:
        """End a start that is under way in its thread."""
        starting = self._starting
        if starting is None:
            return
        while not starting.done():
            await threads.in_thread(self.pool.close)
            await asyncio.wait({starting}, timeout=0.5)
        if not starting.cancelled():
            # The error was raised where it was waited for.
            starting.exception()

    def _on_change(self, slots: list[dict[str, Any]]) -> None:
        if any(slot["state"] == "ready" for slot in slots):
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._any_ready.set)
        self._on_slots(slots)


def _check_disk(config: AppServerConfig) -> None:
    """Check the disk: an app-server that cannot make its databases exits without a reason. Raises NotStartedError."""
    disk = Disk(codex_home(config))
    shortage = disk.shortage()
    if shortage is not None:
        raise NotStartedError(disk.problem(shortage))


async def _join(starting: asyncio.Future[None]) -> None:
    await asyncio.shield(starting)


def _tail(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return []
