"""The samples of a run, many at once: a lane for each turn that may run takes one sample after the other.

Lanes wait while the breaker is open, and take nothing more once the run is to end. What is answered is scored beside
them, and its thread archived, which frees what the app-server holds of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from codex_app_server import AppServerError, TransportClosedError

from . import policy, validity
from .attempt import CANCELLED, Stopped, ended, unless_stopped
from .bill import Bill
from .breaker import Breaker
from .dataset import Sample
from .disk import Disk, is_full
from .limits import RunMeter
from .policy import DISK_FULL, INTERRUPTED, RETRY_ON_DEFAULT, Outcome
from .progress import Progress
from .sampling import OTHER_CONFIGURATION, Job, Means, Sampling, Tried
from .scoring import Scorers
from .store import Entry, Finished, RecordRow, RunDirectory, SampleRow, Written, layout
from .store.locked import is_locked
from .waking import Waking

T = TypeVar("T")

# How long the threads of the last samples may take to be archived.
ARCHIVE_LIMIT_S = 10.0
PAGE = 200
PAUSE_POLL_S = 0.5

log = logging.getLogger("codex_pool")

WRITE_AGAIN_S = 2.0
# A lock that another program holds for a shorter time is none worth a word.
LOCKED_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How samples are run. `retries` of one that ended as `retry_on` says; at most `concurrency` at once."""

    concurrency: int
    retries: int = 0
    retry_on: Collection[str] = RETRY_ON_DEFAULT
    max_failures: int | None = None
    only: frozenset[int] | None = None
    """The places, among all that is to be done, of the samples to be run; all if None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Who is told what happens, on the event loop. One that fails is reported, and the run goes on."""

    on_retry: Callable[[Sample, Outcome], None]
    on_record: Callable[[SampleRow], None]
    on_trouble: Callable[[str], None]

    def __post_init__(self) -> None:
        for name in ("on_retry", "on_record", "on_trouble"):
            object.__setattr__(self, name, _reported(getattr(self, name)))


class Runner:
    """Runs what is to be done, until all has ended or `stop` is set."""

    def __init__(
        self,
        directory: RunDirectory,
        progress: Progress,
        stop: asyncio.Event,
        *,
        rules: Rules,
        told: Told,
        meter: RunMeter,
        disks: Sequence[Disk],
        cancelled: Collection[tuple[str, int]] = (),
    ) -> None:
        self._directory = directory
        self._progress = progress
        self._stop = stop
        self._rules = rules
        self._told = told
        self._meter = meter
        where = " or of ".join(str(disk.directory) for disk in disks)
        self._breaker = Breaker(max_failures=rules.max_failures, directory=where)
        # The first is that of the run directory.
        self._disks = disks
        self._short: Disk | None = None
        self._unwritten = 0
        self._full = disks[0]
        self._full_at = float("-inf")
        self._jobs: dict[tuple[str, int], Job] = {}
        self._cancelled = set(cancelled)
        self._aside: set[asyncio.Task[None]] = set()
        self._failed_aside: BaseException | None = None
        self._again: deque[Job] = deque()
        self._page: deque[SampleRow] = deque()
        self._after: tuple[int, int] | None = None
        self._place = -1
        self.ended_early: str | None = None
        """Why nothing more was started, if a limit of the run said so."""

    async def run(self, means: Means) -> None:
        """Run all that is to be done. What has not been started when the run stops has no record."""
        self._means = means
        self._waking = Waking()
        self._progress.started_at = time.monotonic()
        self._stopping = asyncio.ensure_future(self._stop.wait())
        self._stopping.add_done_callback(self._halt_all)
        looking = asyncio.ensure_future(self._look_after_disk())
        count = min(self._rules.concurrency, max(1, self._progress.waiting))
        lanes = [asyncio.ensure_future(self._lane()) for _ in range(count)]
        try:
            # Not gathered: a gathering that is cancelled waits for all that it gathers.
            done, _ = await asyncio.wait(lanes, return_when=asyncio.FIRST_EXCEPTION)
            for lane in done:
                lane.result()
            await self._scored()
            if self.ended_early is not None and not self._stop.is_set():
                await self._score_answered()
                await self._scored()
            if self._aside:
                await asyncio.wait(self._aside, timeout=ARCHIVE_LIMIT_S)
            if self._failed_aside is not None:
                raise self._failed_aside
        finally:
            await ended((*lanes, *self._aside, self._stopping, looking))
            means.empty.remove()

    def cancel(self, sample_id: str, epoch: int) -> None:
        """Interrupt one sample, or do not start it at all."""
        self._cancelled.add((sample_id, epoch))
        job = self._jobs.get((sample_id, epoch))
        if job is not None and not job.halt.done():
            job.halt.set_result(CANCELLED)

    async def written(self, change: Callable[[], Written[Any] | asyncio.Future[Any]]) -> Any:
        """What is on the disk now; it gets there also when nobody waits any more.

        A full disk is waited for, and so is a database that another program has locked; raises Stopped when the run
        stops meanwhile.
        """
        failed = False
        try:
            while True:
                try:
                    writing = change()
                    return await (self._waking.result(writing) if isinstance(writing, Written) else writing)
                except (sqlite3.Error, OSError) as error:
                    if is_locked(error):
                        # The directory waits for it unless the run is to end.
                        raise Stopped from error
                    if not is_full(error):
                        raise
                    self._unwritten += not failed
                    failed = True
                    said = error.strerror or str(error) if isinstance(error, OSError) else str(error)
                    self._found_full(self._disks[0], said)
                await unless_stopped(self._stopping, asyncio.sleep(WRITE_AGAIN_S))
        finally:
            if failed:
                self._unwritten -= 1
                self._disk_mended()

    async def room(self) -> None:
        """Waits while a disk is full. Raises Stopped when the run stops meanwhile."""
        while not self._look_for_room():
            await unless_stopped(self._stopping, asyncio.sleep(PAUSE_POLL_S))

    def was_full(self, since: float) -> bool:
        """Whether a disk has been full since then."""
        self._look_for_room()
        return self._full_at >= since

    async def used(self, tokens: int, bill: Bill) -> None:
        """Something besides attempts was paid for: a judge's question. It is on the disk for the runs after this."""
        self._meter.used(tokens, bill.cost, unpriced=bill.unpriced)
        self._progress.spent(bill.cost)
        await self.written(lambda: self._directory.judged(tokens, bill.cost))

    # Lanes.

    async def _lane(self) -> None:
        while await self._may_start():
            job = self._next()
            if job is None:
                return
            self._breaker.started()
            self._jobs[job.sample.key] = job
            if self._stop.is_set():
                job.halt.set_result(INTERRUPTED)
            try:
                await self._run_sample(job)
            except Stopped:
                self._breaker.given_up()
                if job.halt.done() and job.halt.result() == CANCELLED:
                    await self._record_cancelled(job)
            finally:
                self._jobs.pop(job.sample.key, None)

    async def _may_start(self) -> bool:
        """Waits while the run pauses; False when nothing more is to be started."""
        while not self._stop.is_set() and self.ended_early is None:
            now = time.monotonic()
            reached = self._meter.reached(now)
            why = self._breaker.failed_too_often or (None if reached is None else reached.message)
            if why is not None:
                self.ended_early = why
                self._told.on_trouble(f"{why}; what runs may end" if reached is not None else why)
                return False
            if self._look_for_room() and not self._look_for_lock() and self._breaker.may_start(now):
                if self._breaker.pause is None:
                    self._progress.paused = None
                return True
            self._say_pause()
            with contextlib.suppress(Stopped):
                await unless_stopped(self._stopping, asyncio.sleep(PAUSE_POLL_S))
        return False

    def _on_waiting(self, message: str | None) -> None:
        """A running turn waits for the network, or goes on."""
        if message is None:
            self._breaker.going_on()
        else:
            self._breaker.waiting(message, time.monotonic())
            self._say_pause()

    async def _look_after_disk(self) -> None:
        """So that also a disk is noticed that was full for a while, and a database that is locked."""
        while True:
            self._look_for_room()
            self._look_for_lock()
            await asyncio.sleep(PAUSE_POLL_S)

    def _look_for_room(self) -> bool:
        """Whether there is room on the disks of the run, which pauses while there is none on one."""
        for disk in self._disks:
            shortage = disk.shortage()
            if shortage is not None:
                self._no_longer_short(unless=disk)
                self._short = disk
                self._found_full(disk, shortage)
                return False
        self._no_longer_short()
        return True

    def _look_for_lock(self) -> bool:
        """Return True while the run pauses because another program has its database locked."""
        if self._directory.locked_s() >= LOCKED_S:
            self._breaker.database_locked(str(self._directory.file(layout.DATABASE)), time.monotonic())
            self._say_pause()
            return True
        self._breaker.database_free()
        return False

    def _no_longer_short(self, unless: Disk | None = None) -> None:
        if self._short is not None and self._short is not unless:
            self._short = None
            self._disk_mended()

    def _found_full(self, disk: Disk, said: str) -> None:
        self._full, self._full_at = disk, time.monotonic()
        self._breaker.disk_full(said, self._full_at, str(disk.directory))
        self._say_pause()

    def _disk_mended(self) -> None:
        if self._short is None and self._unwritten == 0:
            self._breaker.disk_mended()

    def _say_pause(self) -> None:
        pause = self._breaker.pause
        if pause is not None and pause.message != self._progress.paused:
            self._progress.paused = pause.message
            self._told.on_trouble(pause.message)

    def _next(self) -> Job | None:
        """The next sample to be done; a page of them is in memory at a time."""
        while True:
            if self._again:
                return self._again.popleft()
            if not self._page:
                self._page.extend(self._directory.to_do(PAGE, self._after))
                if not self._page:
                    return None
                self._after = self._page[-1].position, self._page[-1].n
            row = self._page.popleft()
            self._place += 1
            if self._rules.only is None or self._place in self._rules.only:
                # What is kept without a secret is not what was asked.
                spec = self._directory.as_asked.get((row.id, row.epoch), row.spec)
                return Job(row, Sample.from_json(spec), asyncio.get_running_loop().create_future())

    async def _run_sample(self, job: Job) -> None:
        sampling = Sampling(self._means, job)
        if job.row.state == "scoring":
            self._breaker.given_up()
            self._score_later(sampling)
            return
        if job.sample.key in self._cancelled:
            self._breaker.given_up()
            await self._record_cancelled(job)
            return
        tried = await self._on_pool(job, sampling.take_up)
        if tried is not None:
            # No turn was run: it shows nothing of what the run pauses for.
            self._breaker.given_up()
        else:
            tried = await self._tries(sampling, job)
        if tried is None:
            return
        finished = await sampling.record(tried)
        if tried.pool_gone is None:
            # What was lost with its pool is no failure of the sample.
            self._breaker.recorded(tried.outcome)
        self._archive_later(tried.outcome, sampling)
        if finished is None:
            self._score_later(sampling)
            while self._waiting_scores() >= 2 * self._rules.concurrency:
                await asyncio.wait(self._aside, return_when=asyncio.FIRST_COMPLETED)
        else:
            self._ended(finished)
            await self._clean_up(sampling, job)

    async def _tries(self, sampling: Sampling, job: Job) -> Tried | None:
        """The attempt that counts; None if the sample went back into the queue."""
        tries = 0
        while True:
            tried = await self._attempt(sampling, job)
            outcome = tried.outcome
            tries += 1
            rules = self._rules
            is_own = outcome.error is None or outcome.error["kind"] not in (DISK_FULL, OTHER_CONFIGURATION)
            is_own = is_own and not policy.waited_in_vain(outcome)
            if is_own and not job.halt.done() and policy.may_retry(outcome, tries, rules.retries, rules.retry_on):
                self._told.on_retry(job.sample, outcome)
                with contextlib.suppress(Stopped):
                    pause_s = policy.backoff_s(outcome, tries, jitter=random.random())
                    await unless_stopped(job.halt, asyncio.sleep(pause_s))
                if job.halt.done():
                    return tried
                await sampling.give_up(tried)
                self._archive_later(outcome, whole=len(job.sample.prompts) == 1)
                self._progress.retries += 1
                continue
            if self._breaker.ended(outcome, job.put_back, time.monotonic()) and not job.halt.done():
                job.put_back += 1
                await sampling.give_up(tried)
                self._archive_later(outcome, whole=len(job.sample.prompts) == 1)
                self._again.append(job)
                self._say_pause()
                return None
            return tried

    async def _attempt(self, sampling: Sampling, job: Job) -> Tried:
        while len(self._aside) - self._waiting_scores() >= self._rules.concurrency:
            await asyncio.wait(self._aside, return_when=asyncio.FIRST_COMPLETED)
        began_at = time.monotonic()
        with self._progress.counted(job.sample.key) as counted:
            tried = await self._on_pool(
                job, lambda: sampling.attempt(lambda: counted.begin(time.monotonic()), self._on_waiting)
            )
        if tried.pool_gone is not None:
            tried = await self._after_loss(job, sampling, tried)
        elif tried.outcome.turn_id is not None and tried.outcome.status != "lost":
            self._means.pools.turn_finished()
        if _touches_disk(tried) and self.was_full(began_at):
            tried.facts.full = f"the disk of {self._full.directory} was full meanwhile"
        tried.outcome = validity.judged(tried.outcome, tried.facts)
        ended = tried.outcome
        if ended.error is not None and ended.error["kind"] == OTHER_CONFIGURATION:
            # What has been changed stays so, and every further sample would find it.
            self.ended_early = f"{ended.error['message']}; run the same command again"
        self._progress.turn_ended(ended)
        tokens = (ended.usage or {}).get("total_tokens", 0)
        self._meter.used(tokens, ended.cost, is_paid=ended.is_paid, unpriced=ended.unpriced)
        return tried

    async def _on_pool(self, job: Job, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `work`, which is begun again on the next pool where there was none. Raises Stopped."""
        while True:
            codex = self._means.codex
            try:
                return await work()
            except TransportClosedError as error:
                await self._means.pools.replaced(codex, error, job.halt)

    async def _after_loss(self, job: Job, sampling: Sampling, tried: Tried) -> Tried:
        """An attempt whose pool was lost while its turn ran: completed, if the next pool finds that it was."""
        assert tried.pool_gone is not None and tried.codex is not None
        with contextlib.suppress(Stopped):
            await self._means.pools.replaced(tried.codex, tried.pool_gone, job.halt)
            return await self._on_pool(job, lambda: sampling.look_again(tried))
        return tried

    async def _record_cancelled(self, job: Job) -> None:
        problem = {"kind": CANCELLED, "message": "the sample was cancelled before it was started"}
        record = RecordRow("interrupted", len(self._directory.store.attempts(job.row.n)), error=problem)
        self._ended(await self.written(lambda: self._directory.not_started(job.row.n, record)))

    def _ended(self, finished: Finished | None) -> None:
        assert finished is not None and finished.row is not None and finished.row.record is not None
        self._progress.sample_ended(finished.row)
        self._told.on_record(finished.row)

    # Beside the lanes.

    async def _scored(self) -> None:
        """Waits for what is being scored."""
        scoring = [task for task in self._aside if task.get_name() == "score"]
        if scoring:
            await asyncio.wait(scoring)

    async def _score_answered(self) -> None:
        """Score what earlier runs have answers of, although this one starts nothing more, unless that is paid for."""
        for row in self._directory.store.samples(state="scoring", selected=True):
            sample = Sample.from_json(row.spec)
            if any(scorer.needs_model for scorer in self._means.scorers.of(sample)):
                continue
            job = Job(row, sample, asyncio.get_running_loop().create_future())
            self._score_later(Sampling(self._means, job))
            while self._waiting_scores() >= 2 * self._rules.concurrency:
                await asyncio.wait(self._aside, return_when=asyncio.FIRST_COMPLETED)

    def _score_later(self, sampling: Sampling) -> None:
        self._progress.scoring += 1
        self._do_aside(self._score(sampling), "score")

    async def _score(self, sampling: Sampling) -> None:
        try:
            finished = await sampling.score()
        except Stopped:
            # The next run scores what has no scores.
            return
        finally:
            self._progress.scoring -= 1
        self._ended(finished)
        await self._clean_up(sampling, None)

    async def _clean_up(self, sampling: Sampling, job: Job | None) -> None:
        problem = await sampling.clean_up()
        if problem is not None:
            self._told.on_trouble(problem)

    def _archive_later(self, outcome: Outcome, sampling: Sampling | None = None, *, whole: bool = True) -> None:
        # A lost thread is loaded nowhere: archiving would load it first. One to be gone on with stays.
        is_loaded = outcome.status != "lost" or validity.is_of_environment(outcome.error)
        if whole and outcome.thread_id is not None and is_loaded:
            self._do_aside(self._archive(outcome.thread_id, sampling), "archive")

    async def _archive(self, thread_id: str, sampling: Sampling | None) -> None:
        """`sampling`: of the thread's sample, if it was its last."""
        with contextlib.suppress(AppServerError):
            await self._means.codex.thread_archive(thread_id)
            if sampling is not None:
                sampling.archived()

    def _do_aside(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.ensure_future(work)
        task.set_name(name)
        self._aside.add(task)
        task.add_done_callback(self._done_aside)

    def _done_aside(self, task: asyncio.Task[None]) -> None:
        self._aside.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failed_aside = task.exception()
            self._stop.set()

    def _waiting_scores(self) -> int:
        return self._progress.scoring

    # When it is to end.

    def _halt_all(self, _: asyncio.Future[Any]) -> None:
        self._directory.hurry()
        for job in self._jobs.values():
            if not job.halt.done():
                job.halt.set_result(INTERRUPTED)


def _reported(function: Callable[..., None]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        try:
            function(*args)
        except Exception:
            log.exception("the display of the run failed; the run goes on")

    return call


def _touches_disk(tried: Tried) -> bool:
    """Whether an attempt may have come to what it came to because of a full disk; an answer without a command not."""
    if tried.outcome.status == "interrupted":
        return False
    return tried.outcome.status != "completed" or tried.tool_calls > 0


def entry_of(sample: Sample, scorers: Scorers | None = None) -> Entry:
    """A sample as the store keeps it, with what its scores are made of by `scorers`."""
    made_of = None if scorers is None else scorers.basis_of(sample)
    return Entry(sample.id, sample.epoch, sample.digest, sample.to_json(), sample.tags, made_of)
