"""RunPools: the pools of a run, one for each codex binary that its variants name, all on one CODEX_HOME."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server import AppServerError
from codex_app_server.config import find_codex
from codex_pool.configuration import Configuration

from ..configuration.effective import Effective
from ..configuration.settings import Settings
from ..scoring import Scorers
from ..store import RunDirectory
from ..workspace import Repositories
from .binaries import Binary, binaries_of
from .launch import NotStartedError
from .pool_clients import Pools
from .run_home import RunHome
from .run_pool import RunPool

Slots = list[dict[str, Any]]


class RunClients:
    """The clients of the pools of a run; `main` is that of the judges as well."""

    def __init__(self, main: Pools, of_variants: Mapping[str, Pools], names: Mapping[str, Pools]) -> None:
        self.main = main
        self._of_variants = of_variants
        self._names = names

    def of(self, variant: str) -> Pools:
        """Return the client of the pool that runs a variant; that of the run's only pool without variants."""
        return self._of_variants.get(variant, self.main)

    def all(self) -> Mapping[str, Pools]:
        """Return each client by the name of its binary, which is empty if there is only one."""
        return self._names

    @property
    def user_agents(self) -> str:
        """The user agents of the app-servers, of each binary one."""
        return ", ".join(dict.fromkeys(each.codex.metadata.user_agent or "" for each in self._names.values()))

    @property
    def versions(self) -> tuple[str | None, ...]:
        """The versions of codex, each once."""
        return tuple(dict.fromkeys(each.codex.client.runtime_version for each in self._names.values()))

    @property
    def given_up(self) -> str | None:
        """The reason why a pool is not replaced any more, if one is not."""
        return next((each.given_up for each in self._names.values() if each.given_up is not None), None)


class RunPools:
    """See the module's docstring. The arguments are those of `RunPool`, for all of them.

    `--workers` are shared out over the binaries. The first pool, of the run's own binary where a variant uses that, is
    also the judges'.
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
        on_slots: Callable[[Slots], None],
    ) -> None:
        self.binaries = _binaries(settings)
        self._on_slots = on_slots
        self._slots: dict[str, Slots] = {}
        home = RunHome(settings, directory, say)
        self._pools = [
            RunPool(
                _settings_of(settings, binary),
                directory,
                home=home,
                guarded=guarded,
                private=private,
                scorers=scorers,
                sources=sources,
                on_slots=partial(self._on_slots_of, binary.name),
            )
            for binary in self.binaries
        ]

    def all(self) -> Sequence[RunPool]:
        """Return the pools, `main` first."""
        return self._pools

    @property
    def main(self) -> RunPool:
        """The pool of the run's own binary, if any variant uses that; else that of the first variant."""
        return self._pools[0]

    @property
    def configurations(self) -> list[Configuration]:
        """The configuration of the threads of each pool that ask for nothing else."""
        return [pool.configuration for pool in self._pools]

    @property
    def workers(self) -> int:
        """Workers of all pools."""
        return sum(pool.workers for pool in self._pools)

    @property
    def effective(self) -> dict[str, Effective]:
        """The configuration of each variant, as far as it decides how agents answer; `""` without variants."""
        return {name: each for pool in self._pools for name, each in pool.effective.items()}

    async def prepare(self, stack: contextlib.AsyncExitStack, stopping: asyncio.Future[Any]) -> dict[str, Effective]:
        """Find out the configuration of each variant, of own pools before any is started; all is ended with `stack`.

        Raises as `RunPool.prepare` does; NotStartedError names the variants of a binary that they name.
        """
        for binary, pool in zip(self.binaries, self._pools, strict=True):
            with _named(binary):
                await pool.prepare(stack, stopping)
        return self.effective

    async def open(
        self,
        stack: contextlib.AsyncExitStack,
        stopping: asyncio.Future[Any],
        *,
        say: Callable[[str, str], None],
        on_given_up: Callable[[], None],
    ) -> RunClients:
        """Start the pools, or use the daemon that was found; arguments and errors as those of `RunPool.open`."""
        opened: list[Pools] = []
        for binary, pool in zip(self.binaries, self._pools, strict=True):
            with _named(binary):
                name = f"the pool of {binary.name}" if binary.name else "the pool"
                opened.append(await pool.open(stack, stopping, name=name, say=say, on_given_up=on_given_up))
        by_binary = list(zip(self.binaries, opened, strict=True))
        return RunClients(
            opened[0],
            {name: pools for binary, pools in by_binary for name in binary.variants},
            {binary.name: pools for binary, pools in by_binary},
        )

    def _on_slots_of(self, name: str, slots: Slots) -> None:
        self._slots[name] = slots
        self._on_slots(joined_slots({each.name: self._slots.get(each.name, []) for each in self.binaries}))


def joined_slots(by_binary: Mapping[str, Slots]) -> Slots:
    """Return the states of all slots, counted through; those of several binaries have the names of these."""
    if len(by_binary) == 1:
        return next(iter(by_binary.values()))
    named = [{**slot, "binary": name} for name, slots in by_binary.items() for slot in slots]
    return [{**slot, "slot": number} for number, slot in enumerate(named)]


def _binaries(settings: Settings) -> tuple[Binary, ...]:
    variants = settings.variants
    if all(variant.codex_bin is None for variant in variants):
        return binaries_of(variants, "", settings.workers)
    try:
        default = str(find_codex(settings.codex_bin))
    except AppServerError:
        # Its pool, if there is to be one, gives the reason.
        default = settings.codex_bin or ""
    return binaries_of(variants, default, settings.workers)


def _settings_of(settings: Settings, binary: Binary) -> Settings:
    """The settings of the pool of one binary."""
    if not binary.variants:
        return settings
    return dataclasses.replace(
        settings,
        variants=tuple(each for each in settings.variants if each.name in binary.variants),
        codex_bin=binary.path or settings.codex_bin,
        pool=msgspec.structs.replace(settings.pool, workers=binary.workers),
    )


@contextlib.contextmanager
def _named(binary: Binary) -> Iterator[None]:
    """Let a NotStartedError within name the binary and its variants, if variants name it."""
    try:
        yield
    except NotStartedError as error:
        if binary.path is None:
            raise
        whose = f"variant {binary.variants[0]}" + (f" and {len(binary.variants) - 1} more" * (len(binary.variants) > 1))
        raise NotStartedError(f"codex_bin {binary.path} of {whose}: {error}") from None
