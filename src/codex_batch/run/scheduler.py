"""Scheduler: which samples of a run may be worked at, and when.

A lane for each turn that may run takes one sample after the other, in the order of the dataset, and has its SampleTask
do the rest.

Lanes wait while the breaker is open, and take nothing more once a limit of the run is reached, too many samples have
failed, or the run is to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from ..dataset import Sample
from ..rules.breaker import Breaker
from ..rules.limits import RunMeter
from ..rules.progress import Progress
from ..rules.retry import CANCELLED, INTERRUPTED
from ..scoring import Scorers
from ..store import SUPERSEDED, Entry, RunDirectory, SampleKey, Start
from .background import BackgroundTasks
from .context import RunCallbacks, RunContext, RunnerConfig
from .disks import Disk
from .executor import Executor, SampleJob
from .sample_queue import SampleQueue, job_of
from .sample_task import SCORE, SampleTask, scores_below_limit
from .stopping import Stopped, cancel_all, unless_stopped
from .storage import POLL_S, Storage

# How long the threads of the last samples may take to be archived.
ARCHIVE_LIMIT_S = 10.0


class Scheduler:
    """Runs what is to be done, until all has ended or `stop` is set. Make it on the event loop that it runs on."""

    def __init__(
        self,
        directory: RunDirectory,
        progress: Progress,
        stop: asyncio.Event,
        *,
        config: RunnerConfig,
        callbacks: RunCallbacks,
        meter: RunMeter,
        disks: Sequence[Disk],
        cancelled: Collection[SampleKey] = (),
    ) -> None:
        self._directory = directory
        self._progress = progress
        self._stop = stop
        self._config = config
        self._callbacks = callbacks
        self._meter = meter
        where = " or of ".join(str(disk.directory) for disk in disks)
        self._breaker = Breaker(max_failures=config.max_failures, directory=where)
        self._stopping = asyncio.ensure_future(stop.wait())
        self.storage = Storage(directory, disks, self._breaker, self._stopping, self._show_pause)
        self._background = BackgroundTasks(on_failure=stop.set)
        self._queue = SampleQueue(directory, config.only, config.defaults.filled)
        self._jobs: dict[SampleKey, SampleJob] = {}
        self._cancelled = set(cancelled)
        self._lanes: set[asyncio.Task[None]] = set()
        self._is_open = False
        self.ended_early: str | None = None
        """Limit of the run because of which nothing more was started, if there was one."""

    async def run(self, executor: Executor, scorers: Scorers) -> None:
        """Run all that is to be done. What has not been started when the run stops has no record."""
        self._context = RunContext(
            executor=executor,
            directory=self._directory,
            storage=self.storage,
            config=self._config,
            callbacks=self._callbacks,
            progress=self._progress,
            breaker=self._breaker,
            meter=self._meter,
            background=self._background,
            show_pause=self._show_pause,
            end_early=self._end_early,
            scorers=scorers,
        )
        self._progress.started_at = time.monotonic()
        self._stopping.add_done_callback(self._halt_all)
        watching = asyncio.ensure_future(self.storage.watch())
        self._is_open = True
        self.resize(self._config.concurrency)
        background = self._background
        try:
            while self._lanes:
                # Not gathered: a gathering that is cancelled waits for all that it gathers.
                # Those that are added meanwhile are looked at with the next.
                done, _ = await asyncio.wait(self._lanes, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
                self._lanes -= done
                for lane in done:
                    lane.result()
            self._is_open = False
            await background.wait(SCORE)
            if self.ended_early is not None and not self._stop.is_set():
                await self._score_answered()
                await background.wait(SCORE)
            if background.tasks:
                await asyncio.wait(background.tasks, timeout=ARCHIVE_LIMIT_S)
            if background.failure is not None:
                raise background.failure
        finally:
            self._is_open = False
            await cancel_all((*self._lanes, *background.tasks, self._stopping, watching))

    def resize(self, concurrency: int) -> None:
        """Work at so many samples at once; one more or less than is worked at as samples end."""
        self._config.concurrency = concurrency = max(1, concurrency)
        wanted = min(concurrency, len(self._lanes) + max(1, self._progress.waiting)) if self._is_open else 0
        self._lanes |= {asyncio.ensure_future(self._lane()) for _ in range(wanted - len(self._lanes))}

    def cancel(self, key: SampleKey) -> None:
        """Interrupt one sample, or do not start it at all."""
        self._cancelled.add(key)
        job = self._jobs.get(key)
        if job is not None and not job.halt.done():
            job.halt.set_result(CANCELLED)

    async def used(self, tokens: int, cost: float | None, unpriced: str | None) -> None:
        """Count what was paid for besides attempts: a judge's question. It is on the disk for the runs after this."""
        self._meter.used(tokens, cost, unpriced=unpriced)
        self._progress.spent(cost)
        await self.storage.written(lambda: self._directory.judged(tokens, cost))

    async def superseded(
        self, start: Start, end: Mapping[str, Any], *, note: str, events: bytes | None, unpriced: str | None
    ) -> None:
        """Keep an attempt whose sample has the result of another one, and count what it used."""
        ended = {**end, "status": SUPERSEDED}
        await self.storage.written(lambda: self._directory.end_attempt(start, ended, note=note, events=events))
        tokens, cost = (end.get("usage") or {}).get("total_tokens", 0), end.get("cost")
        is_paid = end.get("turn_id") is not None
        self._meter.used(tokens, cost, is_paid=is_paid, unpriced=unpriced)
        self._progress.tokens.update(end.get("usage") or {})
        if cost is not None or is_paid:
            self._progress.spent(cost)

    async def _lane(self) -> None:
        while await self._may_start():
            lane = asyncio.current_task()
            if len(self._lanes) > self._config.concurrency and lane is not None:
                self._lanes.discard(lane)
                return
            job = self._queue.next()
            if job is None:
                return
            self._breaker.started()
            self._jobs[job.sample.key] = job
            if self._stop.is_set():
                job.halt.set_result(INTERRUPTED)
            task = SampleTask(self._context, job)
            try:
                if job.row.state != "scoring" and job.sample.key in self._cancelled:
                    self._breaker.given_up()
                    await task.record_cancelled()
                elif not await task.run():
                    self._queue.put_back(job)
            except Stopped:
                self._breaker.given_up()
                if job.halt.done() and job.halt.result() == CANCELLED:
                    await task.record_cancelled()
            finally:
                self._jobs.pop(job.sample.key, None)

    async def _may_start(self) -> bool:
        """Wait while the run pauses; return False when nothing more is to be started."""
        while not self._stop.is_set() and self.ended_early is None:
            now = time.monotonic()
            reached = self._meter.reached(now)
            reason = self._breaker.failed_too_often or (None if reached is None else reached.message)
            if reason is not None:
                self._end_early(reason)
                self._callbacks.on_problem(f"{reason}; what runs may end" if reached is not None else reason)
                return False
            if self.storage.has_room() and not self.storage.is_locked() and self._breaker.may_start(now):
                if self._breaker.pause is None:
                    self._progress.paused = None
                return True
            self._show_pause()
            with contextlib.suppress(Stopped):
                await unless_stopped(self._stopping, asyncio.sleep(POLL_S))
        return False

    def _end_early(self, reason: str) -> None:
        self.ended_early = reason

    def _show_pause(self) -> None:
        pause = self._breaker.pause
        if pause is not None and pause.message != self._progress.paused:
            self._progress.paused = pause.message
            self._callbacks.on_problem(pause.message)

    async def _score_answered(self) -> None:
        """Score what earlier runs have answers of, although this one starts nothing more, unless that is paid for."""
        for row in self._directory.store.samples(state="scoring", selected=True):
            sample = self._config.defaults.filled(Sample.from_json(row.spec))
            if any(scorer.needs_model for scorer in self._context.scorers.of(sample)):
                continue
            SampleTask(self._context, job_of(row, sample)).score_later()
            await scores_below_limit(self._context)

    def _halt_all(self, _: asyncio.Future[Literal[True]]) -> None:
        self._directory.hurry()
        for job in self._jobs.values():
            if not job.halt.done():
                job.halt.set_result(INTERRUPTED)


def entry_of(sample: Sample, scorers: Scorers | None = None, position: int | None = None) -> Entry:
    """A sample as the store keeps it, with what its scores are made of by `scorers`."""
    made_of = None if scorers is None else scorers.dependencies_of(sample)
    spec = sample.to_json()
    return Entry(sample.id, sample.epoch, sample.digest, spec, sample.tags, made_of, sample.variant, position)
