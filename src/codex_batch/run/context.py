"""RunContext: what all samples of a run share, with its configuration and its callbacks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from ..configuration.defaults import Defaults
from ..dataset import Sample
from ..rules.breaker import Breaker
from ..rules.limits import RunMeter
from ..rules.progress import Progress
from ..rules.retry import RETRY_ON_DEFAULT, Outcome
from ..scoring import Scorers
from ..store import RunDirectory, SampleRow
from .background import BackgroundTasks
from .executor import Executor
from .storage import Storage

log = logging.getLogger("codex_batch")


@dataclass(slots=True, kw_only=True)
class RunnerConfig:
    """Configuration of the runner. `retries` of one that ended as `retry_on` lists; at most `concurrency` at once,
    which `Scheduler.resize` changes."""

    concurrency: int
    retries: int = 0
    retry_on: Collection[str] = RETRY_ON_DEFAULT
    max_failures: int | None = None
    only: frozenset[int] | None = None
    """Positions, among all that is to be done, of the samples to be run; all if None."""
    defaults: Defaults = field(default_factory=Defaults)
    """Defaults of samples that name no model, effort or sandbox."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCallbacks:
    """Called on the event loop with what happens. One that fails is reported, and the run goes on."""

    on_retry: Callable[[Sample, Outcome], None]
    on_record: Callable[[SampleRow], None]
    on_problem: Callable[[str], None]

    def __post_init__(self) -> None:
        for name in ("on_retry", "on_record", "on_problem"):
            object.__setattr__(self, name, _reported(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """The objects that a sample's task works with; the same for all of a run."""

    executor: Executor
    directory: RunDirectory
    storage: Storage
    config: RunnerConfig
    callbacks: RunCallbacks
    progress: Progress
    breaker: Breaker
    meter: RunMeter
    background: BackgroundTasks
    show_pause: Callable[[], None]
    """Shows why the breaker pauses the run, if it does."""
    end_early: Callable[[str], None]
    """Lets nothing more be started, for a reason in words."""
    scorers: Scorers = field(default_factory=Scorers)


def _reported(function: Callable[..., None]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        try:
            function(*args)
        except Exception:
            log.exception("the display of the run failed; the run goes on")

    return call
