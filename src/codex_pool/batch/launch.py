"""The pool of a run: started with its home and its log, given up in time, and ended whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codex_app_server import AppServerConfig, AppServerError, TransportClosedError, _threads
from codex_app_server._paths import shown
from codex_pool.configuration import Ask, Configuration, ConfigurationError, probe_configuration
from codex_pool.homes import ConfigCopy
from codex_pool.pool import Pool, PoolStartError, codex_home

from .attempt import unless_stopped
from .disk import Disk

# Until any worker is ready. The user's own home may hold thousands of threads, and a first start reads them all.
START_LIMIT_S = 10.0
USER_HOME_START_LIMIT_S = 60.0
# What a pool that was killed has left is ended before the next one starts.
FENCE_LIMIT_S = 15.0
LOG_LINES = 10


class NotStartedError(Exception):
    """There is no pool; the message says why and what to look at."""


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


class OwnPool:
    """The pool that a run starts for itself, and again when it is lost; `close` ends it, also while it starts."""

    def __init__(
        self,
        config: AppServerConfig,
        *,
        workers: int,
        turns_per_worker: int,
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
        self.pool = Pool(workers, config, turns_per_worker=turns_per_worker, log_file=log, on_slots=self._on_change)

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
        self._starting = asyncio.ensure_future(_threads.in_thread(start))
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
        await _threads.in_thread(self.pool.close)

    async def _end_starting(self) -> None:
        """End a start that is under way in its thread."""
        starting = self._starting
        if starting is None:
            return
        while not starting.done():
            await _threads.in_thread(self.pool.close)
            await asyncio.wait({starting}, timeout=0.5)
        if not starting.cancelled():
            # Whoever waited for it has been told.
            starting.exception()

    def _on_change(self, slots: list[dict[str, Any]]) -> None:
        if any(slot["state"] == "ready" for slot in slots):
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._any_ready.set)
        self._on_slots(slots)


def _check_disk(config: AppServerConfig) -> None:
    """An app-server that cannot make its databases dies, and does not say of what. Raises NotStartedError."""
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
