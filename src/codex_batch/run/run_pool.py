"""RunPool: a pool that a run uses - its own, or a daemon - with its home, its guards and its configuration."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codex_app_server import AppServerError, AsyncCodex, JsonRpcError
from codex_app_server._runtime.files import resolved
from codex_app_server.home import codex_home
from codex_pool import aconnect
from codex_pool.configuration import UNKNOWN, Configuration, aread_configuration
from codex_pool.protocol.endpoints import is_tcp

from ..configuration.effective import Effective, differences, fingerprint, in_words
from ..configuration.resolve import aread_effective
from ..configuration.settings import Settings, approval_policy
from ..configuration.variants import Variant
from ..rules.pool_deaths import PoolDeaths
from ..scoring import Scorers
from ..store import RunDirectory, layout
from ..workspace import LinkTargets, Repositories, config_overrides, links_in
from .launch import NotStartedError, OwnPool, own_pool
from .pool_clients import OtherPoolError, Pools
from .run_home import RunHome

CONNECT_LIMIT_S = 5.0
CONNECT_AGAIN_S = 0.05


class RunPool:
    """See the module's docstring.

    `home` is that of an own pool. `private` is what no agent may read, `linked` the targets of the links in it; the
    homes that the pool uses are added to them. `configuration` is that of threads which ask for nothing else.
    """

    def __init__(
        self,
        settings: Settings,
        directory: RunDirectory,
        *,
        home: RunHome,
        guarded: bool,
        private: tuple[Path, ...],
        scorers: Scorers,
        sources: Repositories,
        on_slots: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._home = home
        self._guarded = guarded
        self._scorers = scorers
        self._sources = sources
        self._on_slots = on_slots
        self._log = directory.file(layout.LOG)
        self._own: OwnPool | None = None
        self.targets = LinkTargets()
        self.private = private
        self.linked = tuple(self.targets.of(private)) if guarded else ()
        self.configuration = UNKNOWN
        self.effective: dict[str, Effective] = {}
        """The configuration of each variant, as far as it decides how agents answer; `""` without variants."""
        self._client: AsyncCodex | None = None
        self.codex_home: str | None = None
        """The CODEX_HOME of the app-servers; None where it is not on this machine."""
        self.endpoint = ""
        self.workers, self.turns_per_worker = settings.workers, settings.turns_per_worker

    @property
    def approval_policy(self) -> Any:
        """The approval policy of all threads."""
        return approval_policy(self._settings.overrides, self.configuration)

    async def prepare(self, stack: contextlib.AsyncExitStack, stopping: asyncio.Future[Any]) -> dict[str, Effective]:
        """Find out the configuration of each variant, of an own pool before it is started; all is ended with `stack`.

        Raises NotStartedError, Stopped, InvalidInputError, HomeError, EndpointError, WorkspaceError.
        """
        endpoint = self._settings.endpoint
        if endpoint is None:
            self._own = await self._prepare(stack, stopping)
        else:
            self._client = await self._connect(endpoint)
            stack.push_async_callback(self._close_unused)
            self.configuration = await self._configured(self._client, endpoint)
            self.effective = await self._effective_of(self._client, self.configuration)
        return self.effective

    async def _close_unused(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def open(
        self,
        stack: contextlib.AsyncExitStack,
        stopping: asyncio.Future[Any],
        *,
        name: str,
        say: Callable[[str, str], None],
        on_given_up: Callable[[], None],
    ) -> Pools:
        """Start the pool that was prepared, or use the daemon that was found; all is ended with `stack`.

        Arguments as those of `Pools`. Raises NotStartedError, Stopped, InvalidInputError, WorkspaceError.
        """
        endpoint = self._settings.endpoint
        if endpoint is None:
            assert self._own is not None
            stack.push_async_callback(self._own.close)
            await self._own.start(stopping)
            codex = await self._connect_own(self._own)
            self.endpoint = self._own.pool.endpoint
        else:
            assert self._client is not None
            codex, self._client = self._client, None
            self.endpoint = endpoint
            status = await codex.client.request("pool/status")
            self.workers, self.turns_per_worker = len(status["workers"]), status["turnsPerWorker"]
        is_here = endpoint is None or not is_tcp(endpoint)
        self.codex_home = codex.metadata.codex_home if is_here else None
        if endpoint is not None and self.codex_home is not None:
            self._add_homes(Path(self.codex_home), codex_home())
            # Nothing is started here, but what cannot be denied is refused.
            self._guards()
        remedy = "another is started" if endpoint is None else "it is waited for; start it again with codex-pool serve"
        pools = Pools(
            codex,
            name=name if endpoint is None else f"the pool at {endpoint}",
            remedy=remedy,
            reopen=lambda: self._reopen(stopping),
            deaths=PoolDeaths(is_own=endpoint is None),
            stopping=stopping,
            say=say,
            on_given_up=on_given_up,
        )
        stack.push_async_callback(pools.close)
        return pools

    async def _reopen(self, stopping: asyncio.Future[Any]) -> AsyncCodex:
        if self._own is not None:
            await self._own.start(stopping)
            return await self._connect_own(self._own)
        endpoint = self._settings.endpoint
        assert endpoint is not None
        codex = await self._connect(endpoint)
        try:
            # The threads of a run are made with what was found at its begin.
            if self.codex_home is not None and codex.metadata.codex_home != self.codex_home:
                what = f"CODEX_HOME {codex.metadata.codex_home}, not {self.codex_home}"
                raise OtherPoolError(f"another pool has taken its place, with {what}; run the same command again")
            if await self._configured(codex, endpoint) != self.configuration:
                what = "another sandbox, permission profile or approval policy"
                raise OtherPoolError(f"it came back with {what}; run the same command again")
            for name, other in (await self._effective_of(codex, self.configuration)).items():
                before = self.effective[name]
                if fingerprint(other) != fingerprint(before):
                    what = in_words(differences(before.to_json(), other.to_json()))
                    raise OtherPoolError(
                        f"it came back with another configuration ({what}); run the same command again"
                    )
        except BaseException:
            await codex.close()
            raise
        return codex

    async def _prepare(self, stack: contextlib.AsyncExitStack, stopping: asyncio.Future[Any]) -> OwnPool:
        """The run's own pool, not started, with its home and its guards."""
        settings = self._settings
        path = self._home.open(stack)
        if not settings.demo:
            self._add_homes(path, codex_home())

        def guards(configuration: Configuration) -> tuple[str, ...]:
            # They are start-up options, and what they extend is not known before codex has read the configuration.
            self.configuration = configuration
            return self._guards()

        return await own_pool(
            stopping,
            settings,
            path,
            cwd=self._directory.path,
            log=self._log,
            then=self._ask,
            guards=guards,
            on_slots=self._on_slots,
        )

    async def _ask(self, codex: AsyncCodex, configuration: Configuration) -> None:
        self.effective = await self._effective_of(codex, configuration)

    async def _effective_of(self, codex: AsyncCodex, configuration: Configuration) -> dict[str, Effective]:
        """The configuration of each variant, by its name."""
        return {
            each.name: await self._effective_in(each, codex, configuration) for each in self._settings.defaults.each()
        }

    async def _effective_in(self, variant: Variant, codex: AsyncCodex, configuration: Configuration) -> Effective:
        settings = self._settings
        try:
            return await aread_effective(
                codex,
                self._directory.path,
                configuration,
                approval_policy=approval_policy(settings.overrides, configuration),
                guarded=self._guarded,
                trusting=settings.trust_workspaces,
                is_here=settings.endpoint is None or not is_tcp(settings.endpoint),
                asked=variant,
                sandbox=settings.sandbox,
            )
        except AppServerError as error:
            if settings.endpoint is None:
                raise
            raise NotStartedError(f"{settings.endpoint}: {error}") from None

    async def _configured(self, codex: AsyncCodex, endpoint: str) -> Configuration:
        """Configuration of the daemon's threads that ask for nothing else."""
        try:
            return await aread_configuration(codex)
        except AppServerError as error:
            if is_tcp(endpoint) and isinstance(error, JsonRpcError):
                return UNKNOWN
            raise NotStartedError(f"{endpoint}: {error}") from None

    def _add_homes(self, *homes: Path) -> None:
        """Deny these, and what stands elsewhere and has a link in them, such as a login."""
        there = [path for path in homes if path.is_dir()]
        self.private = (*self.private, *there)
        self.linked = (*self.linked, *(target for path in there for target in links_in(path)))

    def _guards(self) -> tuple[str, ...]:
        if not self._guarded:
            return ()
        run = resolved(self._directory.path)
        of_samples = self._scorers.private | self._sources.local
        self.linked = (*self.linked, *self.targets.of(of_samples))
        private = (run, *self.private, *self.linked)
        return config_overrides(self.configuration, private, {run: layout.lasting_files(run)}, of_samples)

    async def _connect_own(self, own: OwnPool) -> AsyncCodex:
        # An own pool is ready when its workers are; its broker may learn of them a moment later.
        deadline = time.monotonic() + CONNECT_LIMIT_S
        while True:
            try:
                return await own.pool.aconnect(name=self._name, priority="batch")
            except AppServerError as error:
                if time.monotonic() >= deadline or own.pool.failure is not None:
                    raise NotStartedError(str(error)) from None
            await asyncio.sleep(CONNECT_AGAIN_S)

    async def _connect(self, endpoint: str) -> AsyncCodex:
        try:
            return await aconnect(endpoint, name=self._name, key=self._settings.key, priority="batch")
        except AppServerError as error:
            raise NotStartedError(str(error)) from None

    @property
    def _name(self) -> str:
        return f"batch {self._directory.path.name}"
