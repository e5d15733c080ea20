"""Batch: one run on its event loop, from the configuration to the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import Any

from codex_app_server import AppServerError, HomeError
from codex_app_server._protocol import runtime_version
from codex_app_server._runtime import threads
from codex_pool import EndpointError, account_notice
from codex_pool.prices import Prices
from codex_pool.runtime import log
from codex_pool.sandbox_modes import FULL_ACCESS

from ..configuration.settings import Settings
from ..display import summary
from ..exit_codes import CANNOT_START, INTERRUPTED, OK, SOME_FAILED, USAGE
from ..gates.judge import Gates
from ..manage import control
from ..plugins.discovery import Plugin
from ..rules import estimate
from ..rules.bill import Answering
from ..rules.limits import RunMeter
from ..rules.progress import Progress
from ..scoring import ProcessPool, Scorers
from ..store import RunDirectory, layout
from ..store.export import line_of
from ..workspace import Repositories
from .context import RunCallbacks, RunnerConfig
from .dataset_checks import is_guarded
from .disks import disks_of
from .ending import note_outcome, notify_user, outcome_of
from .hangup import HangUp
from .interruption import Interruption
from .launch import NotStartedError
from .leftovers import Leftovers
from .local_context import PERMITS, local_context
from .local_executor import LocalExecutor
from .loop_clock import RunningClock
from .monitor import RunMonitor
from .output import RunOutput
from .pool_clients import POOL_LOST
from .price_check import Ask, Models, UnpricedRunError, asking, check
from .record_hooks import RecordHooks, run_of
from .run_configuration import compare, make_directories
from .run_containers import containers_of
from .run_pools import RunPools
from .scheduler import Scheduler
from .stopping import Stopped

_log = logging.getLogger(__name__)


class Batch:
    """Runs the samples that a run directory has been loaded with. `config` is what is written down of the launch."""

    def __init__(
        self,
        settings: Settings,
        directory: RunDirectory,
        config: dict[str, Any],
        prices: Prices | None,
        models: Models,
        scorers: Scorers,
        sources: Repositories,
        private: tuple[Path, ...],
        gates: Gates,
        hooks: tuple[Plugin, ...] = (),
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._config = config
        self._prices = prices
        self._models = models
        self._scorers = scorers
        self._sources = sources
        self._gates = gates
        self._hook_plugins = hooks
        self._hooks: RecordHooks | None = None
        self._guarded = is_guarded(settings)
        self._log = directory.file(layout.LOG)
        counts = directory.store.counts()
        self._progress = Progress(total=counts["total"], skipped=counts["done"])
        # Hosts of a launch that died may still hold what is recorded.
        has_hosts = settings.hosts is not None and directory.store.info()["state"] in ("running", "died")
        self._is_done = counts["total"] == counts["done"] and not has_hosts
        self._progress.turns_per_worker = settings.turns_per_worker
        self._progress.currency = None if prices is None else prices.currency
        self._output = RunOutput(settings, directory, self._progress)
        self._interruption = Interruption(directory, self._output)
        self._stop = self._interruption.stop
        self._monitor = RunMonitor(
            settings, directory, self._progress, self._output, title=self._title, on_request=self._on_request
        )
        self._live = self._monitor.live
        self._pools = RunPools(
            settings,
            directory,
            guarded=self._guarded,
            private=private,
            scorers=scorers,
            sources=sources,
            say=self._output.say,
            on_slots=self._on_slots,
        )
        self._output.workers = tuple(binary.workers for binary in self._pools.binaries)
        self._containers = containers_of(settings, directory)
        self._leftovers = Leftovers(directory, self._containers, keep=settings.keep, say=self._output.say)
        self._app_server = ""
        self._is_configured = self._is_launched = False
        self._only: frozenset[int] | None = None
        if settings.estimate is not None:
            self._only = frozenset(estimate.choose(directory.store.to_do_of_samples(), settings.estimate))
        elif settings.stored:
            self._only = directory.store.begun_positions()

    async def run(self, hang_up: HangUp) -> int:
        """Run to the end; return the exit code."""
        with log.to_file("batch", self._log, self._directory.redactor.text):
            return await self._run(hang_up)

    async def _run(self, hang_up: HangUp) -> int:
        task = asyncio.current_task()
        assert task is not None
        self._interruption.on_signals(task)
        code, problem = None, None
        display = self._output.display
        try:
            async with contextlib.AsyncExitStack() as stack:
                stopping = asyncio.ensure_future(self._stop.wait())
                stack.callback(stopping.cancel)
                if self._is_done:
                    await self._compare_done(stack, stopping)
                display.start(self._title())
                hang_up.on_hang_up(self._interruption.on_hang_up)
                if self._is_done:
                    self._output.launched(None, 0, self._config)
                    await self._leftovers.sweep()
                else:
                    control.clear(self._directory.path)
                    self._live.clear()
                    stack.callback(self._live.clear)
                    problem = await self._on_pool(stack, stopping)
        except NotStartedError as error:
            code, problem = CANNOT_START, str(error)
        except UnpricedRunError as error:
            code, problem = USAGE, f"{error}; nothing was run"
        except (asyncio.CancelledError, Stopped):
            # The second Ctrl-C, or one before samples were run: what there is stands in the files.
            pass
        finally:
            display.stop()
        code = await self._finish(code, problem)
        # A Ctrl-C more ends the wait, not what is done for the user.
        with contextlib.suppress(asyncio.CancelledError):
            if self._settings.notify is not None:
                await notify_user(self._settings.notify, self._directory, code, self._output.say)
        return code

    # Configuration and launch.

    async def _compare_done(self, stack: contextlib.AsyncExitStack, stopping: asyncio.Future[Any]) -> None:
        """Compare the configuration of a run that is done with the one that is asked for now."""
        try:
            await self._configure(stack, stopping)
        except (NotStartedError, HomeError, EndpointError, AppServerError, FileExistsError) as error:
            if self._settings.rerun_changed:
                raise
            # Nothing is run, so nothing is mixed.
            self._output.say(f"the results could not be compared with the configuration of now: {error}")

    async def _configure(self, stack: contextlib.AsyncExitStack, stopping: asyncio.Future[Any]) -> None:
        """Find out the configuration, and compare it with that of the results that there are.

        Raises RunDirectoryError, and what `RunPool.prepare` raises.
        """
        make_directories(self._settings, self._directory)
        prepared = await self._pools.prepare(stack, stopping)
        again = await compare(prepared, self._settings, self._directory, self._config, self._output)
        self._is_configured = True
        if again:
            counts = self._directory.store.counts()
            self._is_done, self._progress.skipped = False, counts["done"]

    async def _launch(self) -> None:
        """Note that the run starts, once."""
        if not self._is_launched:
            self._is_launched = True
            await threads.in_thread(self._directory.launch, self._config)

    async def _check_prices(self, ask: Ask) -> None:
        """Look for prices of all models that are asked for. Raises UnpricedRunError."""
        if self._prices is not None:
            limited, warn = self._settings.run_limits.cost is not None, self._output.warn
            await check(self._prices, self._models, ask, limited=limited, warn=lambda text: warn("no_price", text))

    # Samples.

    async def _on_pool(self, stack: contextlib.AsyncExitStack, stopping: asyncio.Future[Any]) -> str | None:
        """Run what is pending; the reason why that could not go on to the end, if it could not."""
        settings, progress = self._settings, self._progress
        async with contextlib.AsyncExitStack() as inner:
            inner.callback(asyncio.ensure_future(self._monitor.refresh()).cancel)
            if not self._is_configured:
                await self._configure(stack, stopping)
            if settings.hosts is not None:
                return await self._on_hosts(inner)
            await self._launch()
            clients = await self._pools.open(inner, stopping, say=self._on_pool_news, on_given_up=self._stop.set)
            codex = clients.main.codex
            self._app_server = clients.user_agents
            sandboxes = [settings.sandbox or each.sandbox for each in self._pools.configurations]
            if self._guarded and FULL_ACCESS in sandboxes:
                self._output.say(
                    f"the configured sandbox is {FULL_ACCESS}: agents of samples that name no other can read the "
                    "dataset and the run"
                )
            workers, progress.turns_per_worker = self._pools.workers, self._pools.main.turns_per_worker
            self._output.launched(self._pools.main.endpoint, workers, self._config, codex.client.runtime_version)
            for differs in filter(None, map(runtime_version.warning, clients.versions)):
                self._output.warn("codex_version", differs)
            login = account_notice.remedy(settings.endpoint, settings.home)
            missing = None if settings.demo else await account_notice.anotice(codex, login)
            if missing is not None:
                self._output.warn("login_missing", missing)
            await self._check_prices(asking(clients, stopping, self._directory, settings.defaults))
            inner.callback(asyncio.ensure_future(self._monitor.watch(clients)).cancel)
            scheduler = self._interruption.scheduler = self._make_scheduler(workers * progress.turns_per_worker)
            await self._leftovers.sweep()
            self._open_hooks(inner)
            clock = RunningClock()
            inner.callback(asyncio.ensure_future(clock.beat()).cancel)
            process_pool = ProcessPool(PERMITS)
            inner.push_async_callback(process_pool.close)
            executor = LocalExecutor(
                local_context(
                    settings,
                    self._directory,
                    self._pools,
                    clients,
                    scheduler.storage,
                    scheduler.used,
                    scorers=self._scorers,
                    prices=self._prices,
                    sources=self._sources,
                    guarded=self._guarded,
                    containers=self._containers,
                    process_pool=process_pool,
                    clock=clock,
                    live=self._live,
                )
            )
            inner.callback(executor.close)
            if self._containers is not None:
                inner.push_async_callback(self._containers.close)
            await scheduler.run(executor, self._scorers)
            await self._leftovers.sweep_containers(at_end=True)
            if clients.given_up is None:
                return scheduler.ended_early
            return f"the pool is gone: {clients.given_up}; see {self._log}"

    async def _on_hosts(self, stack: contextlib.AsyncExitStack) -> str | None:
        """Run what is pending on other machines; return as `_on_pool`."""
        from ..hosts.engine import EngineError
        from ..hosts.run_hosts import RunHosts

        hosts = RunHosts(
            self._settings,
            self._directory,
            scorers=self._scorers,
            prices=self._prices,
            effective=self._pools.effective,
            guarded=self._guarded,
            warn=self._output.warn,
            on_failure=self._stop.set,
        )
        await hosts.prepare()
        await self._check_prices(self._who_answers)
        assert self._settings.hosts is not None
        await self._launch()
        scheduler = self._interruption.scheduler = self._make_scheduler(1)
        self._output.launched(f"ray {self._settings.hosts.address}", 0, self._config)
        self._open_hooks(stack)
        try:
            executor = await stack.enter_async_context(hosts.open(scheduler))
        except EngineError as error:
            raise NotStartedError(str(error)) from None
        stack.callback(asyncio.ensure_future(self._monitor.watch_hosts(hosts.shown)).cancel)
        await scheduler.run(executor, self._scorers)
        self._progress.hosts = hosts.shown()
        return scheduler.ended_early if hosts.failure is None else f"the hosts are gone: {hosts.failure}"

    async def _who_answers(self, model: str | None, variant: str) -> Answering:
        """Find out what answers on the hosts, which have this configuration or are refused."""
        effective = self._pools.effective[variant]
        return Answering(model or effective.model, effective.provider, effective.service_tier)

    def _make_scheduler(self, concurrency: int) -> Scheduler:
        settings, output = self._settings, self._output
        spent = self._directory.store.spending()
        meter = RunMeter(
            settings.run_limits, time.monotonic(), tokens=spent.tokens, cost=spent.known, unknown=spent.unknown
        )
        return Scheduler(
            self._directory,
            self._progress,
            self._stop,
            config=RunnerConfig(
                concurrency=concurrency,
                retries=settings.retries,
                retry_on=settings.retry_on,
                max_failures=settings.max_failures,
                only=self._only,
                defaults=settings.defaults,
            ),
            callbacks=RunCallbacks(on_retry=output.on_retry, on_record=self._on_record, on_problem=output.say),
            cancelled=self._interruption.cancelled,
            disks=disks_of(self._directory.path, self._pools.main.codex_home),
            meter=meter,
        )

    # Meanwhile.

    def _title(self) -> str:
        return self._output.title(self._is_done)

    def _on_record(self, row: Any) -> None:
        self._output.is_stopping = self._stop.is_set()
        self._output.on_record(row)
        if self._hooks:
            self._hooks.offer(line_of(row))

    def _open_hooks(self, stack: contextlib.AsyncExitStack) -> None:
        """Start the on-record hooks, which end with `stack`."""
        hooked = run_of(self._directory, self._config)
        self._hooks = RecordHooks(self._hook_plugins, hooked, self._log, self._warn_of_hook)
        stack.push_async_callback(self._hooks.close)

    def _warn_of_hook(self, message: str) -> None:
        self._output.warn("on_record", message)

    def _on_request(self, request: dict[str, Any]) -> None:
        """Handle a request to this run from another process."""
        if "cancel" in request:
            self._interruption.cancel(request["cancel"])
        elif isinstance(request.get("follow"), int):
            self._live.follow(request["follow"])

    def _on_slots(self, slots: list[dict[str, Any]]) -> None:
        # Once the run goes on, the monitor knows more.
        if self._progress.started_at is None:
            self._progress.slots = slots

    def _on_pool_news(self, kind: str, message: str) -> None:
        """Handle the loss or replacement of the pool."""
        self._progress.paused = message if kind == POOL_LOST else None
        self._output.warn(kind, message)

    # The end.

    async def _finish(self, code: int | None, problem: str | None) -> int:
        progress, now, store = self._progress, time.monotonic(), self._directory.store
        counts = summary.count(store.counts())
        if code is None:
            wanted = progress.total if self._only is None else progress.skipped + len(self._only)
            code = OK if counts["completed"] + counts["limit"] >= wanted else SOME_FAILED
            code = INTERRUPTED if self._interruption.was_asked else code
        judgement = self._gates.judge(store, code, problem, self._directory.redactor.text)
        code = judgement.code
        outcome, scores = outcome_of(
            store,
            self._settings,
            judgement,
            problem=problem,
            counts=counts,
            app_server=self._app_server,
            hooks=self._hooks.counts() if self._hooks else {},
            currency=progress.currency,
        )
        if not self._is_done or not store.info()["launches"]:
            # Of a shard without samples, too: it was run. Only how it ended is not written down then; that of its
            # samples is.
            unwritten = await note_outcome(self._directory, outcome, self._launch, self._output.say)
            outcome["problem"] = problem or unwritten
        self._output.ended(
            outcome,
            scores,
            judgement.rows,
            now,
            was_run=not self._is_done,
            log=self._log,
            config=self._config,
        )
        judgement.annotate()
        return code
