"""Executor: where attempts at samples are run. `LocalExecutor` runs them on the pool of this run; one for another host
takes its place behind the same protocol.

An executor never writes to the run. Whatever is to be on the disk before the next step goes through the AttemptListener
that it is given, and the rest is in what it returns: the result with its events, and the artifacts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from codex_app_server import AsyncCodex, TransportClosedError

from ..configuration.effective import NOBODY, Answered
from ..dataset import Sample
from ..rules.retry import Outcome
from ..rules.validity import Facts
from ..scoring import Score, Scorer
from ..store import AttemptRow, Rollout, SampleRow, Start
from ..workspace import Workspace
from .harbor_steps import HarborSteps


@dataclass(slots=True)
class SampleJob:
    """A sample that is being worked at, from `SampleRow` to its record."""

    row: SampleRow
    sample: Sample
    halt: asyncio.Future[str]
    """Done when it is to be interrupted, with the kind of the error that says so."""
    put_back: int = 0
    """Number of times that it went back into the queue."""


@dataclass(slots=True)
class AttemptResult:
    """An attempt that has ended and has no end in the store yet."""

    start: Start
    outcome: Outcome
    workspace: Workspace | None = None
    responses: Sequence[str | None] = ()
    turns: int = 0
    tool_calls: int = 0
    started_at: float = field(default_factory=time.time)
    events: bytes | None = None
    rollouts: Sequence[Rollout] = ()
    """Session files of the attempt's threads, without secrets."""
    note: str | None = None
    agents_md: str | None = None
    answered: Answered = NOBODY
    container: dict[str, Any] | None = None
    """The container that it worked in, as the record has it."""
    facts: Facts = field(default_factory=Facts)
    """Facts that the validity gate decides by."""
    pool_gone: TransportClosedError | None = None
    """Error of the pool that was lost while the turn ran, if it was; its client then was `codex`."""
    codex: AsyncCodex | None = None
    steps: HarborSteps | None = None
    """Steps of a Harbor task, until the last one is verified."""
    kept: dict[str, bytes] = field(default_factory=dict)
    """Files to be kept of the container, by name."""
    began_at: float = 0.0
    """Time of the request to the executor, of the monotonic clock."""
    is_delivered: bool = False
    """True of one that was recovered with all that it used: it counts like one that was run now."""


class AttemptListener(Protocol):
    """Receives what happens to an attempt while it is run: the sample's task, which alone writes to the run."""

    def previous(self) -> AttemptRow | None:
        """Return the last attempt at the sample before this one."""

    async def started(self, key: str, thread_id: str | None, host: str | None = None) -> Start:
        """Note the attempt; a turn may be dispatched only when this has returned: the attempt is on the disk.

        `host` is the one that it is leased to, in a run on several machines.
        """

    async def not_dispatched(self, start: Start, thread_id: str | None) -> None:
        """Note that the attempt ended before a turn of it was dispatched."""

    def assigned(self) -> None:
        """The first turn runs: it is not queued any more."""

    def waiting(self, message: str | None) -> None:
        """Note that a turn waits for the network, with its message; None: it goes on."""


class Executor(Protocol):
    """Runs attempts, and what follows them in the same place. Each method raises Stopped when the sample is to halt."""

    async def recover(self, job: SampleJob, attempt: AttemptRow) -> AttemptResult:
        """Return what is stored of an attempt whose end no run saw: `completed` if all of its turns were, else `lost`.

        The outcome is judged.
        """

    async def run(self, job: SampleJob, listener: AttemptListener) -> AttemptResult:
        """Run one attempt; its outcome is not judged yet. Where there is no pool, another one is waited for."""

    async def settle(self, job: SampleJob, result: AttemptResult) -> AttemptResult:
        """Return the result with its judged outcome; turns of a pool that was lost are looked for on the next one."""

    async def artifacts(self, job: SampleJob, result: AttemptResult) -> dict[str, bytes]:
        """Return files to be kept of an attempt, by name. Raises WorkspaceError."""

    async def score(
        self, job: SampleJob, row: SampleRow, sample: Sample, scorers: Sequence[Scorer]
    ) -> tuple[list[Score], list[str]]:
        """Return the scores of a recorded sample, and the names of all artifacts that there are of it then."""

    async def archive(self, job: SampleJob, thread_id: str) -> bool:
        """Archive a thread of a sample, so that the app-server releases it; False if that was not possible."""

    async def clean_up(self, job: SampleJob) -> str | None:
        """Remove the workspace, if it is not to be kept; the error if that failed."""

    def release(self, job: SampleJob) -> None:
        """Let the next sample have the directory of a sample that has left nothing in it."""

    def kept(self, job: SampleJob, start: Start | None, *, is_last: bool) -> None:
        """Note that the run's disk has all of an attempt that is to be kept, and of its sample if it `is_last`.

        Without a `start` it is an attempt of an earlier launch, whose answer was only scored.
        """
