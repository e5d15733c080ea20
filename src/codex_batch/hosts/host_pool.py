"""HostPool: the pool of a host, and all else that its samples need: home, log, scorers, storage. Made from a plan."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from codex_app_server import AppServerError
from codex_app_server._runtime import threads
from codex_app_server._runtime.files import write_atomic
from codex_app_server.errors import InvalidInputError
from codex_pool.account.issuer import URL_VARIABLE
from codex_pool.runtime import log

from ..configuration.defaults import stored
from ..configuration.effective import Effective, differences, fingerprint, in_words
from ..redaction.known_secrets import known_secrets
from ..redaction.redactor import Redactor
from ..rules.breaker import Breaker
from ..rules.limits import RunLimits, RunMeter
from ..rules.progress import Progress
from ..run.background import BackgroundTasks
from ..run.context import RunCallbacks, RunContext, RunnerConfig
from ..run.disks import disks_of
from ..run.launch import NotStartedError
from ..run.live_transcripts import LiveTranscripts
from ..run.local_context import PERMITS, local_context
from ..run.local_executor import LocalExecutor
from ..run.loop_clock import RunningClock
from ..run.pool_clients import POOL_LOST
from ..run.run_pools import RunClients, RunPools, joined_slots
from ..run.stopping import cancel_all
from ..run.storage import Storage
from ..scoring import ProcessPool, Scorers
from ..store import RunDirectory, RunDirectoryError, layout
from ..store.reader import VARIANTS
from ..workspace import Repositories
from .bundle import Laid
from .engine import HostError
from .messages import Opened, Renewed
from .plan import CONFIG, LOGIN, HostPlan
from .token_relay import TokenRelay

STATUS_EVERY_S = 1.0

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class HostCallbacks:
    """`used` counts tokens and money of a judge; `on_news` is called when there is something to report, `on_look` every
    second, and `on_given_up` when the pool is not replaced any more."""

    used: Callable[[int, float | None, str | None], Awaitable[None]]
    on_news: Callable[[], None]
    on_look: Callable[[], None]
    on_given_up: Callable[[], None]


class HostPool:
    """See the module's docstring. `directory` is the host's spool, of which samples may not read what is `private`.

    The process is its own: `open` sets its CODEX_HOME and its environment.
    """

    def __init__(
        self,
        directory: RunDirectory,
        bundle: Laid,
        redactor: Redactor,
        callbacks: HostCallbacks,
        *,
        given: Path,
        private: tuple[Path, ...],
    ) -> None:
        self._directory = directory
        self._bundle = bundle
        self._redactor = redactor
        self._callbacks = callbacks
        self._given = given
        self._private = private
        self._stack = contextlib.AsyncExitStack()
        self._stopping: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.opened: Opened | None = None
        self.context: RunContext | None = None
        """Context of the samples, once the pool is open."""
        self.paused: str | None = None
        self.slots: list[dict[str, Any]] = []
        self.rate_limiter: dict[str, Any] = {}
        self._relay: TokenRelay | None = None

    @property
    def asked(self) -> tuple[str, ...]:
        """Tokens that only the run can renew, and that are to be renewed."""
        return () if self._relay is None else self._relay.asked

    def take_tokens(self, renewed: Renewed) -> None:
        """Take new tokens of the log-in that the run lends."""
        if self._relay is not None:
            self._relay.answer(renewed)

    @property
    def is_stopping(self) -> bool:
        """True once it is to end."""
        return self._stopping.done()

    def stop(self) -> None:
        """Let all that waits end."""
        if not self._stopping.done():
            self._stopping.set_result(None)

    async def close(self) -> None:
        """End the pool."""
        await self._stack.aclose()

    async def open(self, plan: HostPlan) -> Opened:
        """Start the pool. Raises HostError; all begins from the start then, if it is called again."""
        try:
            self._take_home(plan)
            self.opened = await self._open(plan)
        except Exception as error:
            await self._stack.aclose()
            known = (AppServerError, InvalidInputError, NotStartedError, RunDirectoryError, OSError, HostError)
            raise HostError(str(error) if isinstance(error, known) else f"{type(error).__name__}: {error}") from None
        return self.opened

    def _take_home(self, plan: HostPlan) -> None:
        """Make the CODEX_HOME that the pool's is made of, and take the environment that the user has named."""
        if plan.config is not None:
            write_atomic(self._given / CONFIG, plan.config)
        if plan.login is not None:
            write_atomic(self._given / LOGIN, plan.login)
            (self._given / LOGIN).chmod(0o600)
        os.environ.update(plan.environment)
        if plan.is_lent:
            self._relay = TokenRelay(self._callbacks.on_news)
            self._stack.push_async_callback(threads.in_thread, self._relay.close)
            os.environ[URL_VARIABLE] = self._relay.url
        os.environ["CODEX_HOME"] = str(self._given)
        self._redactor.add({name: value for value, name in plan.redactor._names.items()})
        self._redactor.add(known_secrets(os.environ, [self._given]))

    async def _open(self, plan: HostPlan) -> Opened:
        stack, directory = self._stack, self._directory
        stack.enter_context(log.to_file("batch", directory.file(layout.LOG), self._redactor.text))
        for name in (layout.WORK, layout.EVENTS, layout.ARTIFACTS, layout.JUDGE):
            directory.file(name).mkdir(exist_ok=True)
        settings = dataclasses.replace(plan.settings, output=directory.path)
        scorers = Scorers(self._bundle.resolved(plan.scorers))
        sources = Repositories(directory.file(layout.REPOSITORIES))
        pools = RunPools(
            settings,
            directory,
            guarded=plan.guarded,
            private=self._private,
            scorers=scorers,
            sources=sources,
            say=_log.warning,
            on_slots=self._on_slots,
        )
        found = await pools.prepare(stack, self._stopping)
        _refuse_others(plan, found)
        clients = await pools.open(stack, self._stopping, say=self._on_pool_news, on_given_up=self._on_given_up)
        defaults = settings.defaults
        if defaults.variants:
            noted = [stored(each, found[each.name].to_json()) for each in defaults.each()]
            await threads.in_thread(lambda: directory.note(VARIANTS, noted).result())
        breaker = Breaker()
        storage = Storage(
            directory, disks_of(directory.path, pools.main.codex_home), breaker, self._stopping, lambda: None
        )
        clock = RunningClock()
        process_pool = ProcessPool(PERMITS)
        stack.push_async_callback(process_pool.close)
        for work in (clock.beat(), storage.watch(), self._watch(clients, breaker)):
            stack.push_async_callback(cancel_all, [asyncio.ensure_future(work)])
        executor = LocalExecutor(
            local_context(
                settings,
                directory,
                pools,
                clients,
                storage,
                self._callbacks.used,
                scorers=scorers,
                prices=plan.prices,
                sources=sources,
                guarded=plan.guarded,
                containers=None,
                process_pool=process_pool,
                clock=clock,
                live=LiveTranscripts(directory.path),
            )
        )
        stack.callback(executor.close)
        places = pools.workers * pools.main.turns_per_worker
        config = RunnerConfig(concurrency=places, defaults=defaults)
        self.context = self._make_context(executor, storage, config, breaker, scorers)
        return Opened(
            places=places,
            codex_version=clients.main.codex.client.runtime_version,
            effective={name: each.to_json() for name, each in found.items()},
        )

    def _make_context(
        self, executor: LocalExecutor, storage: Storage, config: RunnerConfig, breaker: Breaker, scorers: Scorers
    ) -> RunContext:
        background = BackgroundTasks(on_failure=self._on_given_up)
        self._stack.push_async_callback(_end_background, background)
        return RunContext(
            executor=executor,
            directory=self._directory,
            storage=storage,
            config=config,
            callbacks=RunCallbacks(
                on_retry=lambda sample, outcome: None,
                on_record=lambda row: self._callbacks.on_news(),
                on_problem=_log.warning,
            ),
            progress=Progress(total=0),
            breaker=breaker,
            meter=RunMeter(RunLimits(), time.monotonic()),
            background=background,
            show_pause=lambda: None,
            end_early=lambda reason: None,
            scorers=scorers,
        )

    async def _watch(self, clients: RunClients, breaker: Breaker) -> None:
        while True:
            slots: dict[str, Any] = {}
            for name, pools in clients.all().items():
                with contextlib.suppress(AppServerError):
                    status = await pools.codex.client.request("pool/status")
                    slots[name], self.rate_limiter = status["workers"], status.get("rateLimiter") or {}
            if len(slots) == len(clients.all()):
                self.slots = joined_slots(slots)
            # The run decides about all other trouble.
            self.paused = breaker.pause.message if breaker.pause is not None else None
            self._callbacks.on_look()
            await asyncio.sleep(STATUS_EVERY_S)

    def _on_slots(self, slots: list[dict[str, Any]]) -> None:
        self.slots = slots

    def _on_pool_news(self, kind: str, message: str) -> None:
        self.paused = message if kind == POOL_LOST else None
        _log.warning(message)

    def _on_given_up(self) -> None:
        _log.error("the host gives up: its pool is not replaced any more, or a sample failed in a way it should not")
        self._callbacks.on_given_up()


def _refuse_others(plan: HostPlan, found: dict[str, Effective]) -> None:
    """Raise HostError if codex is configured otherwise than where the run is."""
    for name, each in found.items():
        wanted = plan.effective.get(name)
        if wanted is not None and fingerprint(each) != fingerprint(wanted):
            what = in_words(differences(wanted.to_json(), each.to_json()))
            raise HostError(f"codex is configured otherwise here than where the run is: {what}")


async def _end_background(background: BackgroundTasks) -> None:
    await cancel_all(background.tasks)
