"""LocalContext: the objects that attempts on this machine are run with."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from codex_pool.prices import Prices

from ..configuration.effective import Effective
from ..configuration.settings import Settings
from ..configuration.variants import Variant
from ..container.running import Containers
from ..rules.bill import Bill
from ..rules.limits import Limits
from ..scoring import ProcessPool, Scorers
from ..scoring.ask import Asking
from ..scoring.scorer import Ask
from ..store import RunDirectory, layout
from ..workspace import EmptyDirectories, Repositories
from .live_transcripts import LiveTranscripts
from .run_pool import RunPool
from .run_pools import RunClients, RunPools
from .storage import Storage
from .thread_options import ThreadOptions

# How many scorers, and how many set-ups, there may be at once.
PERMITS = max(1, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalContext:
    """The objects that attempts on this machine are run with; the same for all of a run."""

    clients: RunClients
    directory: RunDirectory
    """Read, never written."""
    storage: Storage
    options: Mapping[str, ThreadOptions]
    """The options of threads by variant, as `effective` has them."""
    effective: Mapping[str, Effective] = field(default_factory=dict)
    """The configuration of threads by variant, as the results of the run are recorded under it."""
    variants: Mapping[str, Variant] = field(default_factory=dict)
    """The variants by name; empty in a run without variants."""
    limits: Limits = field(default_factory=Limits)
    scorers: Scorers = field(default_factory=Scorers)
    prices: Prices | None = None
    ask: Ask | None = None
    sources: Repositories | None = None
    hook: str | None = None
    containers: Containers | None = None
    """The containers of the run; None if its samples have none."""
    keep: bool = False
    rollouts: bool = True
    """True if session files of codex are archived."""
    trusting: bool = False
    """True if codex may trust the directories of samples, and take everything from them."""
    empty: EmptyDirectories = field(default_factory=EmptyDirectories)
    process_pool: ProcessPool
    live: LiveTranscripts
    setup_permits: asyncio.Semaphore
    clock: Callable[[], float] = time.monotonic
    """The clock of limits in time of samples."""


def local_context(
    settings: Settings,
    directory: RunDirectory,
    pools: RunPools,
    clients: RunClients,
    storage: Storage,
    used: Callable[[int, float | None, str | None], Awaitable[None]],
    *,
    scorers: Scorers,
    prices: Prices | None,
    sources: Repositories,
    guarded: bool,
    containers: Containers | None,
    process_pool: ProcessPool,
    clock: Callable[[], float],
    live: LiveTranscripts,
) -> LocalContext:
    """Return the context of a run on its pools, which are open. `used` counts the questions of judges."""

    async def on_usage(tokens: int, bill: Bill) -> None:
        clients.main.turn_finished()
        await used(tokens, bill.cost, bill.unpriced)

    def options_of(pool: RunPool) -> ThreadOptions:
        return ThreadOptions(
            directory.path,
            shared={"approval_policy": pool.approval_policy},
            defaults=settings.defaults,
            configuration=pool.configuration,
            scorers=scorers,
            guarded=guarded,
            trusting=settings.trust_workspaces,
            private=(directory.path, *pool.private),
            linked=pool.linked,
            targets=pool.targets,
        )

    options = [(pool, options_of(pool)) for pool in pools.all()]
    judge = directory.file(layout.JUDGE)
    return LocalContext(
        clients=clients,
        directory=directory,
        storage=storage,
        options={name: each for pool, each in options for name in pool.effective},
        effective=pools.effective,
        variants=settings.defaults.variants,
        limits=settings.limits,
        scorers=scorers,
        prices=prices,
        ask=Asking(clients.main.codex, judge, on_usage=on_usage, prices=prices, replaced=clients.main.replaced),
        sources=sources,
        hook=settings.hook,
        rollouts=settings.rollouts,
        containers=containers,
        keep=settings.keep,
        trusting=settings.trust_workspaces,
        process_pool=process_pool,
        live=live,
        setup_permits=asyncio.Semaphore(PERMITS),
        clock=clock,
    )
