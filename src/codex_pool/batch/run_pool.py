"""RunPool: the pool that a run uses - its own, or a daemon - with its home, its guards and its configuration."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codex_app_server import AppServerConfig, AppServerError, AsyncCodex, JsonRpcError
from codex_app_server._files import resolved
from codex_app_server.home import codex_home
from codex_pool.configuration import UNKNOWN, Configuration, aread_configuration
from codex_pool.demo import demo_home
from codex_pool.endpoints import is_tcp
from codex_pool.pool import aconnect

from . import home
from .effective import Effective, differences, fingerprint, said
from .effective_reading import aread_effective
from .launch import START_LIMIT_S, USER_HOME_START_LIMIT_S, NotStartedError, OwnPool, probe
from .pool_deaths import PoolDeaths
from .pools import OtherPoolError, Pools
from .scoring import Scorers
from .settings import Settings, approval_policy
from .store import RunDirectory, layout
from .workspace import LinkTargets, Repositories, config_overrides, links_in

CONNECT_LIMIT_S = 5.0
CONNECT_AGAIN_S = 0.05


class RunPool:
    """See the module's docstring.

    `private` is what no agent may read, `linked` the targets of the links in it; the homes that the pool uses are added
    to them. `configuration` is that of threads which ask for nothing else.
    """

    def __init__(
        self,
        settings: Settings,
        directory: RunDirectory,
        *,
        guarded: bool,
        private: tuple[Path, ...],
        scorers: Scorers,
        sources: Repositories,
        say: Callable[[str], None],
        on_slots: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._guarded = guarded
        self._scorers = scorers
        self._sources = sources
        self._say = say
        self._on_slots = on_slots
        self._log = directory.file(layout.LOG)
        self._own: OwnPool | None = None
        self.targets = LinkTargets()
        self.private = private
        self.linked = tuple(self.targets.of(private)) if guarded else ()
        self.configuration = UNKNOWN
        self.effective = Effective()
        """The same, as far as it decides how agents answer."""
        self._client: AsyncCodex | None = None
        self.codex_home: str | None = None
        """The CODEX_HOME of the app-servers; None where it is not on this machine."""
        self.endpoint = ""
        self.workers, self.turns_per_worker = settings.workers, settings.turns_per_worker

    async def prepare(self, stack: contextlib.AsyncExitStack, stopping: asyncio.Future[Any]) -> Effective:
        """Find out the configuration, of an own pool before it is started; all is ended with `stack`.

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
            name="the pool" if endpoint is None else f"the pool at {endpoint}",
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
            other = await self._effective_of(codex, self.configuration)
            if fingerprint(other) != fingerprint(self.effective):
                what = said(differences(self.effective.to_json(), other.to_json()))
                raise OtherPoolError(f"it came back with another configuration ({what}); run the same command again")
        except BaseException:
            await codex.close()
            raise
        return codex

    async def _prepare(self, stack: contextlib.AsyncExitStack, stopping: asyncio.Future[Any]) -> OwnPool:
        """The run's own pool, not started, with its home and its guards."""
        settings = self._settings
        path = self._directory.file(layout.HOME)
        if settings.demo:
            try:
                stack.enter_context(demo_home(path, str(settings.demo_script or "demo")))
            except RuntimeError as error:
                raise NotStartedError(str(error)) from None
        else:
            path = home.prepare(settings.home, path)
            self._add_homes(path, codex_home())
            if settings.home == home.USER:
                trusted = ", and workspaces that codex trusts are trusted in your home"
                self._say(f"--home user: threads are stored among yours{trusted if settings.trust_workspaces else ''}")
        config = AppServerConfig(
            codex_bin=settings.codex_bin,
            config_overrides=settings.overrides,
            cwd=self._directory.path,
            env={"CODEX_HOME": str(resolved(path))},
        )
        # The guards are start-up options, and what they extend is not known before codex has read the configuration.
        limit_s = START_LIMIT_S if settings.home == home.RUN else USER_HOME_START_LIMIT_S
        self.configuration = await probe(
            stopping,
            config,
            limit_s=limit_s,
            renew=lambda: home.renew(settings.home, path),
            copy=None if settings.demo else home.copy(settings.home, path),
            then=self._ask,
        )
        config.config_overrides = (*self._guards(), *settings.overrides)
        return OwnPool(
            config,
            workers=settings.workers,
            turns_per_worker=settings.turns_per_worker,
            limit_s=limit_s,
            log=self._log,
            on_slots=self._on_slots,
        )

    async def _ask(self, codex: AsyncCodex, configuration: Configuration) -> None:
        self.effective = await self._effective_of(codex, configuration)

    async def _effective_of(self, codex: AsyncCodex, configuration: Configuration) -> Effective:
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
        return config_overrides(self.configuration, private, {run: layout.staying(run)}, of_samples)

    async def _connect_own(self, own: OwnPool) -> AsyncCodex:
        # An own pool is ready when its workers are; its broker may hear of them a moment later.
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
