"""The pool of a run: started with its home and its log, given up in time, and ended whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codex_app_server import AppServerConfig, AppServerError, TransportClosedError, _threads
from codex_app_server._paths import shown
from codex_pool.configuration import Configuration, ConfigurationError, probe_configuration
from codex_pool.homes import ConfigCopy
from codex_pool.pool import Pool, PoolStartError, codex_home

from .attempt import unless_stopped
from .disk import Disk

# Until any worker is ready. The user's own home may hold thousands of threads, and a first start reads them all.
START_LIMIT_S = 10.0
USER_HOME_START_LIMIT_S = 60.0
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
) -> Configuration:
    """The configuration that the pool's app-servers will have.

    One that cannot be used is tried once more if `renew` has made another of it; an error about a `copy` names the file
    that it was made of. Gives up when no app-server has answered within `limit_s` seconds. Raises NotStartedError, and
    Stopped.
    """

    _check_disk(config)

    async def ask() -> Configuration:
        return await unless_stopped(stopping, asyncio.wait_for(probe_configuration(config), limit_s))

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


async def start_pool(
    stack: contextlib.AsyncExitStack,
    stopping: asyncio.Future[Any],
    config: AppServerConfig,
    *,
    workers: int,
    turns_per_worker: int,
    limit_s: float,
    log: Path,
    on_slots: Callable[[list[dict[str, Any]]], None],
) -> Pool:
    """A pool that is ready, ended with `stack`. Gives up when no worker is ready within `limit_s` seconds.

    Raises NotStartedError, and Stopped when `stopping` is done first.
    """
    _check_disk(config)
    any_ready = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_change(slots: list[dict[str, Any]]) -> None:
        if any(slot["state"] == "ready" for slot in slots):
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(any_ready.set)
        on_slots(slots)

    pool = Pool(workers, config, turns_per_worker=turns_per_worker, log_file=log, on_slots=on_change)
    starting = asyncio.ensure_future(_threads.in_thread(pool.start))
    stack.push_async_callback(_close, pool, starting)
    try:
        await asyncio.wait({starting, stopping}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done() and not stopping.done() and not any_ready.is_set():
            raise PoolStartError(
                f"the pool could not start {shown(config.argv()[0])}: no app-server was ready within {limit_s:.0f} s",
                _tail(log),
            )
        await unless_stopped(stopping, _join(starting))
    except TransportClosedError as error:
        raise NotStartedError(f"{error}\n  log: {log}") from None
    except AppServerError as error:
        raise NotStartedError(f"the pool could not start: {error}") from None
    return pool


def _check_disk(config: AppServerConfig) -> None:
    """An app-server that cannot make its databases dies, and does not say of what. Raises NotStartedError."""
    disk = Disk(codex_home(config))
    shortage = disk.shortage()
    if shortage is not None:
        raise NotStartedError(disk.problem(shortage))


async def _join(starting: asyncio.Future[None]) -> None:
    await asyncio.shield(starting)


async def _close(pool: Pool, starting: asyncio.Future[None]) -> None:
    """End the pool, also one that is still starting in its thread."""
    while True:
        await _threads.in_thread(pool.close)
        if starting.done():
            break
        await asyncio.wait({starting}, timeout=0.5)
    if not starting.cancelled():
        # Whoever waited for it has been told.
        starting.exception()


def _tail(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return []
