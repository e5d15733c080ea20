"""Pools: the client of the pool that a run uses, and of the one that takes its place when that is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from codex_app_server import AppServerError, AsyncCodex, TransportClosedError
from codex_app_server._runtime.text import duration
from codex_pool import PoolLostError

from ..rules.pool_deaths import PoolDeaths
from .launch import NotStartedError
from .stopping import Stopped, cancel_all, unless_stopped

POOL_LOST, POOL_REPLACED = "pool_lost", "pool_replaced"


class OtherPoolError(Exception):
    """The pool that was found is another than the run was started with; the message names the difference."""


class Pools:
    """Holds `codex`, the client of the present pool. Raises, where documented, Stopped when there will be no other.

    `reopen` connects to another pool; raises NotStartedError where there is none yet, OtherPoolError where the run must
    not use it. `say(kind, message)` reports losses and replacements. `stopping` is done when the run stops;
    `on_given_up` is called once when no other pool is tried any more, and `given_up` is the reason.
    """

    def __init__(
        self,
        codex: AsyncCodex,
        *,
        name: str,
        remedy: str,
        reopen: Callable[[], Awaitable[AsyncCodex]],
        deaths: PoolDeaths,
        stopping: asyncio.Future[Any],
        say: Callable[[str, str], None],
        on_given_up: Callable[[], None],
    ) -> None:
        self.codex = codex
        self.given_up: str | None = None
        self._name = name
        self._remedy = remedy
        self._reopen = reopen
        self._deaths = deaths
        self._stopping = stopping
        self._say = say
        self._on_given_up = on_given_up
        self._replacing: asyncio.Task[None] | None = None
        self._last_failure = ""

    def turn_finished(self) -> None:
        """Note that a turn has ended, with any status, other than by the loss of the pool: pools work."""
        self._deaths.turn_finished()

    async def replaced(
        self, lost: AsyncCodex, error: TransportClosedError, stopping: asyncio.Future[str] | None = None
    ) -> AsyncCodex:
        """The client of the pool that takes the place of that of `lost`, which has ended with `error`.

        Raises Stopped when there will be none, or `stopping` is done first, by default with the run.
        """
        if self.codex is lost and self._replacing is None:
            self._replacing = asyncio.ensure_future(self._replace(error))
        await unless_stopped(stopping or self._stopping, self._wait())
        return self.codex

    async def close(self) -> None:
        """Give the client up, and whatever is done for another one."""
        if self._replacing is not None:
            await cancel_all([self._replacing])
        await self.codex.close()

    async def _wait(self) -> None:
        if self._replacing is not None:
            await asyncio.shield(self._replacing)
        if self.given_up is not None:
            raise Stopped

    async def _replace(self, error: TransportClosedError) -> None:
        lost_at = time.monotonic()
        why = error.details if isinstance(error, PoolLostError) else str(error)
        self._deaths.lost(why, lost_at)
        self._say(POOL_LOST, f"{self._name} was lost: {why}; {self._remedy}")
        with contextlib.suppress(AppServerError):
            await self.codex.close()
        given_up = self._deaths.given_up
        while given_up is None:
            await asyncio.sleep(self._deaths.wait_s(random.random()))
            try:
                self.codex = await self._reopen()
            except OtherPoolError as other:
                given_up = str(other)
            except (NotStartedError, AppServerError, OSError) as failure:
                if str(failure) != self._last_failure:
                    self._last_failure = str(failure)
                    self._say(POOL_LOST, f"{self._name} is not there again yet: {failure}; {self._remedy}")
                self._deaths.failed(str(failure), time.monotonic())
                given_up = self._deaths.given_up
            else:
                gone_s = time.monotonic() - lost_at
                self._say(POOL_REPLACED, f"{self._name} was replaced after {duration(gone_s)}; the run goes on")
                self._replacing = None
                return
        self.given_up = given_up
        self._on_given_up()
