"""The hosts of one run, from its settings to an executor."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from codex_app_server import InvalidInputError
from codex_app_server._runtime import threads
from codex_pool.account.lending import Lender
from codex_pool.prices import Prices

from ..configuration.effective import Effective
from ..configuration.settings import Settings
from ..run.loop_clock import RunningClock
from ..run.scheduler import Scheduler
from ..run.stopping import cancel_all
from ..scoring import Scorers
from ..store import AttemptRow, RunDirectory, Start
from .bundle import Bundle
from .engine import Engine, EngineError
from .fleet import Fleet
from .host_state import FleetCallbacks
from .messages import Delivery, Renewed, Spent
from .plan import make_lender, make_plan
from .remote_executor import RemoteExecutor

# Of the facts of a run: its name among hosts.
NAME = "fleet"
# Hosts are waited for at the end: one may have results that an earlier launch had no time to acknowledge.
LAST_COLLECT_S = 30.0


class RunHosts:
    """Opens the hosts of a run. `warn(kind, message)` shows what is new of them, `on_failure` that none will come."""

    def __init__(
        self,
        settings: Settings,
        directory: RunDirectory,
        *,
        scorers: Scorers,
        prices: Prices | None,
        effective: Mapping[str, Effective],
        guarded: bool,
        warn: Callable[[str, str], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._scorers = scorers
        self._prices = prices
        self._effective = effective
        self._guarded = guarded
        self._warn = warn
        self._on_failure = on_failure
        self._fleet: Fleet | None = None
        self._bundle = Bundle()
        self._plan = b""
        self._trees: tuple[str, ...] = ()
        self._lender: Lender | None = None
        self.failure: str | None = None
        """The reason that no host can be reached any more."""

    async def prepare(self) -> None:
        """Make the plan of the hosts. Raises InvalidInputError."""
        try:
            assert self._settings.hosts is not None
            lender = self._lender = make_lender(self._settings.hosts.login)
            plan = await threads.in_thread(
                lambda: make_plan(
                    self._settings,
                    bundle=self._bundle,
                    scorers=self._scorers,
                    prices=self._prices,
                    effective=self._effective,
                    guarded=self._guarded,
                    redactor=self._directory.redactor,
                    lender=lender,
                )
            )
        except OSError as error:
            raise InvalidInputError(f"--ray: what the hosts need cannot be read: {error}") from None
        self._plan, self._trees = plan.to_bytes(), plan.trees

    @contextlib.asynccontextmanager
    async def open(
        self, scheduler: Scheduler, engine: contextlib.AbstractAsyncContextManager[Engine] | None = None
    ) -> AsyncIterator[RemoteExecutor]:
        """Serve the hosts while the context lasts; at its regular end they end too. Raises EngineError.

        They are those of the run's Ray cluster, unless there is another `engine`.
        """
        async with engine or self._engine() as opened:
            clock = RunningClock()
            fleet = self._fleet = self._make_fleet(opened, scheduler, clock)
            beating, serving = asyncio.ensure_future(clock.beat()), asyncio.ensure_future(fleet.run())
            serving.add_done_callback(self._on_served)
            is_over = False

            async def spent(question: Spent) -> None:
                await scheduler.used(question.tokens, question.cost, question.unpriced)

            try:
                yield RemoteExecutor(fleet, self._directory, self._bundle, self._scorers, spent)
                is_over = True
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(fleet.settled(), LAST_COLLECT_S)
            finally:
                await cancel_all([beating, serving])
                await opened.close(is_over=is_over)

    def shown(self) -> list[dict[str, Any]]:
        """Return the hosts as the display and the store have them."""
        return [] if self._fleet is None else [dataclasses.asdict(host) for host in self._fleet.hosts]

    @contextlib.asynccontextmanager
    async def _engine(self) -> AsyncIterator[Engine]:
        from .ray_engine import RayEngine

        options, settings = self._settings.hosts, self._settings
        assert options is not None
        name = self._directory.store.info().get(NAME)
        if name is None:
            name = os.urandom(8).hex()
            await threads.in_thread(lambda: self._directory.note(NAME, name).result())
        async with RayEngine(options.address, name, cpus=settings.workers, root=options.spool) as engine:
            yield engine

    def _make_fleet(self, engine: Engine, scheduler: Scheduler, clock: RunningClock) -> Fleet:
        store = self._directory.store

        def attempt_of(key: str) -> tuple[AttemptRow, bool] | None:
            found = store.attempt_of_key(key)
            return None if found is None else (found, store.sample_at(found.n, scored=False).state == "done")

        async def superseded(start: Start, delivery: Delivery, host: str) -> None:
            note = f"superseded: the sample had the result of another attempt when this one came from host {host}"
            await scheduler.superseded(
                start, delivery.end, note=note, events=delivery.events, unpriced=delivery.unpriced
            )

        lender = self._lender

        def renew(token: str) -> Renewed:
            assert lender is not None
            answer = lender.renew(token)
            return Renewed(token, answer.status, answer.body)

        callbacks = FleetCallbacks(
            attempt_of, superseded, self._warn, scheduler.resize, None if lender is None else renew
        )
        return Fleet(engine, self._plan, self._trees, self._bundle, callbacks, clock=clock)

    def _on_served(self, serving: asyncio.Task[None]) -> None:
        if not serving.cancelled() and (error := serving.exception()) is not None:
            self.failure = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
            self._on_failure()
