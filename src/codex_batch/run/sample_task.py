"""SampleTask: the life of one sample. What each step leaves is on the disk before the next begins.

    step             what it does                                              next
    recover          looks for turns of an attempt whose end no run saw        record, or attempt
    attempt          one more try, by the executor                             decide
    decide           RETRY after a pause, PUT_BACK into the queue, or RECORD   attempt, end, or record
    record           the attempt that counts is the sample's result            archive; score, or clean up
    archive, score   in the background; the lane takes the next sample         clean up
    clean up         removes the workspace                                     end

It alone writes to the run; where the attempts are run is the executor's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server._runtime import threads
from codex_app_server._runtime.files import write_atomic

from ..dataset import Sample
from ..rules import retry, validity
from ..rules.progress import Counted
from ..rules.retry import CANCELLED, DISK_FULL, OTHER_CONFIGURATION, WORKSPACE, Outcome
from ..rules.validity import SCORED
from ..store import AttemptRow, Finished, RecordRow, SampleRow, Start
from ..workspace import WorkspaceError
from .context import RunContext
from .executor import AttemptResult, SampleJob
from .stopping import Stopped, unless_stopped

SCORE, ARCHIVE = "score", "archive"


class Decision(Enum):
    """The step that follows an attempt."""

    RETRY = auto()
    PUT_BACK = auto()
    RECORD = auto()


class SampleTask:
    """See the module's docstring. Implements AttemptListener for the attempts of its sample."""

    def __init__(self, context: RunContext, job: SampleJob) -> None:
        self._context = context
        self._executor = context.executor
        self._directory = context.directory
        self._written = context.storage.written
        self._job = job
        self._sample = job.sample
        self._counted: Counted | None = None
        # No tool of its agent has worked in its directory, as far as is known.
        self._is_untouched = False
        self._is_ended = self._is_archived = False
        self._last: Start | None = None

    async def run(self) -> bool:
        """Run the sample to its record; False if it is to go back into the queue.

        What follows the record is done in the background. Raises Stopped when the sample was to halt before a turn was
        started: it has no record then.
        """
        breaker = self._context.breaker
        if self._job.row.state == "scoring":
            breaker.given_up()
            self.score_later()
            await scores_below_limit(self._context)
            return True
        result = await self._recover()
        if result is not None and not result.is_delivered:
            # No turn was run: it shows nothing of what the run pauses for.
            breaker.given_up()
        else:
            result = await self._attempts(result)
        if result is None:
            return False
        finished = await self._record(result)
        if result.pool_gone is None:
            # What was lost with its pool is no failure of the sample.
            breaker.recorded(result.outcome)
        self._archive_later(result.outcome, last=True)
        if finished is None:
            self.score_later()
            await scores_below_limit(self._context)
        else:
            self._end(finished)
            await self._clean_up()
        return True

    async def record_cancelled(self) -> None:
        """Record that the sample was cancelled before it was started."""
        problem = {"kind": CANCELLED, "message": "the sample was cancelled before it was started"}
        n = self._job.row.n
        record = RecordRow("interrupted", len(self._directory.store.attempts(n)), error=problem)
        self._end(await self._written(lambda: self._directory.not_started(n, record)))

    # Attempts.

    async def _recover(self) -> AttemptResult | None:
        """The attempt whose end no run saw, if its turns were completed: they are not paid for twice."""
        last = None if self._job.row.attempts == 0 else self.previous()
        if last is None or last.status is not None:
            return None
        result = await self._executor.recover(self._job, last)
        outcome = result.outcome
        if outcome.status == "completed" or result.is_delivered:
            return result
        end = {"status": outcome.status, "error": outcome.error, "thread_id": outcome.thread_id}
        await self._written(lambda: self._directory.end_attempt(result.start, end, rollouts=result.rollouts))
        return None

    async def _attempts(self, recovered: AttemptResult | None) -> AttemptResult | None:
        """The attempt that counts, `recovered` if it is one; None if the sample goes back into the queue."""
        tries, context = 0, self._context
        while True:
            result = await self._attempt() if recovered is None else self._count(recovered)
            recovered, outcome = None, result.outcome
            tries += 1
            decision = self._decide(outcome, tries)
            if decision is Decision.RETRY:
                context.callbacks.on_retry(self._sample, outcome)
                with contextlib.suppress(Stopped):
                    pause_s = retry.pause_s(outcome, tries, jitter=random.random())
                    await unless_stopped(self._job.halt, asyncio.sleep(pause_s))
                if self._job.halt.done():
                    return result
            elif decision is Decision.RECORD:
                return result
            await self._end_attempt(result)
            # A thread that may be continued is not archived.
            if len(self._sample.prompts) == 1:
                self._archive_later(outcome)
            if decision is Decision.PUT_BACK:
                context.show_pause()
                return None
            context.progress.retries += 1

    async def _end_attempt(self, result: AttemptResult) -> None:
        """The end of an attempt that another one follows."""
        end = _end_of(result.outcome)
        await self._written(
            lambda: self._directory.end_attempt(
                result.start, end, note=result.note, events=result.events, rollouts=result.rollouts
            )
        )
        self._executor.kept(self._job, result.start, is_last=False)

    def _decide(self, outcome: Outcome, tries: int) -> Decision:
        context, job = self._context, self._job
        config = context.config
        # What is wrong with everything is for the breaker, not for --retries.
        is_own = outcome.error is None or outcome.error["kind"] not in (DISK_FULL, OTHER_CONFIGURATION)
        is_own = is_own and not retry.waited_in_vain(outcome)
        if is_own and not job.halt.done() and retry.may_retry(outcome, tries, config.retries, config.retry_on):
            return Decision.RETRY
        if context.breaker.ended(outcome, job.put_back, time.monotonic()) and not job.halt.done():
            job.put_back += 1
            return Decision.PUT_BACK
        return Decision.RECORD

    async def _attempt(self) -> AttemptResult:
        context = self._context
        background, progress = context.background, context.progress
        while len(background.tasks) - progress.scoring >= context.config.concurrency:
            await background.any_done()
        with progress.counted(self._sample.key) as self._counted:
            result = await self._executor.run(self._job, self)
        return self._count(await self._executor.settle(self._job, result))

    def _count(self, result: AttemptResult) -> AttemptResult:
        """Count what an attempt used."""
        context, progress = self._context, self._context.progress
        outcome = result.outcome
        if outcome.error is not None and outcome.error["kind"] == OTHER_CONFIGURATION:
            # What has been changed stays so, and every further sample would find it.
            context.end_early(f"{outcome.error['message']}; run the same command again")
        progress.turn_ended(outcome)
        tokens = (outcome.usage or {}).get("total_tokens", 0)
        context.meter.used(tokens, outcome.cost, is_paid=outcome.is_paid, unpriced=outcome.unpriced)
        return result

    # AttemptListener.

    def previous(self) -> AttemptRow | None:
        """Return the last attempt at the sample that the run has."""
        found = self._directory.store.attempts(self._job.row.n)
        return found[-1] if found else None

    async def started(self, key: str, thread_id: str | None, host: str | None = None) -> Start:
        """Write down that an attempt starts."""
        n = self._job.row.n
        start: Start = await self._written(lambda: self._directory.start_attempt(n, key, thread_id, host))
        return start

    async def not_dispatched(self, start: Start, thread_id: str | None) -> None:
        """Write down that an attempt ended before a turn of it was dispatched."""
        end, note = {"status": "interrupted", "thread_id": thread_id}, "no turn of it was started"
        await self._written(lambda: self._directory.end_attempt(start, end, note=note))

    def assigned(self) -> None:
        """Count the attempt among the running ones."""
        assert self._counted is not None
        self._counted.begin(time.monotonic())

    def waiting(self, message: str | None) -> None:
        """Let the breaker know of a turn that waits for the network, or goes on."""
        if message is None:
            self._context.breaker.going_on()
        else:
            self._context.breaker.waiting(message, time.monotonic())
            self._context.show_pause()

    # The record.

    async def _record(self, result: AttemptResult) -> Finished | None:
        """The last attempt has ended. None: the sample is still to be scored."""
        self._last = result.start
        artifacts = await self._keep_artifacts(result)
        outcome, answered = result.outcome, result.answered
        record = RecordRow(
            status=outcome.status,
            attempts=result.start.attempt,
            limit=outcome.limit,
            final_response=outcome.final_response,
            error=outcome.error,
            usage=outcome.usage,
            cost=outcome.cost,
            thread_id=outcome.thread_id,
            turn_id=outcome.turn_id,
            worker=outcome.worker,
            turns=result.turns,
            tool_calls=result.tool_calls,
            queued_ms=outcome.queued_ms,
            duration_ms=outcome.duration_ms,
            started_at=result.started_at,
            ended_at=time.time(),
            responses=tuple(result.responses),
            artifacts=tuple(artifacts),
            agents_md=result.agents_md,
            model=answered.model,
            effort=answered.effort,
            provider=answered.provider,
            codex_version=answered.codex_version,
            rerouted_from=answered.rerouted_from,
            container=result.container,
        )
        to_score = outcome.status in SCORED and bool(self._context.scorers.of(self._sample))
        self._is_untouched = outcome.status == "completed" and result.start.attempt == 1 and result.tool_calls == 0
        finished: Finished | None = await self._written(
            lambda: self._directory.finish(
                result.start,
                record,
                _end_of(outcome),
                to_score=to_score,
                note=result.note,
                events=result.events,
                rollouts=result.rollouts,
            )
        )
        return finished

    async def _keep_artifacts(self, result: AttemptResult) -> list[str]:
        """Keep what the agent changed; the names of the artifacts. A failure is named in the outcome."""
        try:
            files = await self._executor.artifacts(self._job, result)
        except WorkspaceError as error:
            if result.outcome.error is None:
                problem = {"kind": WORKSPACE, "message": str(error)}
                result.outcome = msgspec.structs.replace(result.outcome, status="failed", error=problem)
            return []
        if files:
            redacted = {name: self._directory.redactor.data(data) for name, data in files.items()}
            where = self._directory.store.artifacts_of(self._job.row.n)
            await self._written(lambda: asyncio.ensure_future(threads.in_thread(_keep, where, redacted)))
        return list(files)

    def _end(self, finished: Finished | None) -> None:
        assert finished is not None and finished.row is not None and finished.row.record is not None
        self._executor.kept(self._job, self._last, is_last=True)
        self._context.progress.sample_ended(finished.row)
        self._context.callbacks.on_record(finished.row)
        self._is_ended = True

    # In the background.

    def score_later(self) -> None:
        """Score the recorded sample in the background."""
        self._context.progress.scoring += 1
        self._context.background.start(self._score_and_clean_up(), SCORE)

    async def _score_and_clean_up(self) -> None:
        try:
            finished = await self._score()
        except Stopped:
            # The next run scores what has no scores.
            return
        finally:
            self._context.progress.scoring -= 1
        self._end(finished)
        await self._clean_up()

    async def _score(self) -> Finished:
        row: SampleRow = self._directory.store.sample_at(self._job.row.n)
        there = {score.scorer: score for score in row.scores}
        # Scores that still hold stay: only what is new or was changed since is scored.
        wanted = self._context.scorers.of(self._sample)
        scorers = [scorer for scorer in wanted if scorer.name not in there]
        # A record without its secrets is compared with a sample without them.
        sample = Sample.from_json(row.spec) if self._directory.redactor else self._sample
        made, artifacts = await self._executor.score(self._job, row, sample, scorers)
        found: dict[str, Any] = {**there, **{score.scorer: score for score in made}}
        names = dict.fromkeys((*(scorer.name for scorer in wanted), *found))
        scores: Sequence[Any] = [found[name] for name in names if name in found]
        dependencies = self._context.scorers.dependencies_of(self._sample)
        finished: Finished = await self._written(lambda: self._directory.scored(row.n, scores, artifacts, dependencies))
        return finished

    async def _clean_up(self) -> None:
        self._release()
        problem = await self._executor.clean_up(self._job)
        if problem is not None:
            self._context.callbacks.on_problem(problem)

    def _archive_later(self, outcome: Outcome, *, last: bool = False) -> None:
        """Archive the thread of an attempt, of the sample's last one if it is `last`."""
        # A lost thread is loaded nowhere: archiving would load it first.
        is_loaded = outcome.status != "lost" or validity.is_of_environment(outcome.error)
        if outcome.thread_id is not None and is_loaded:
            self._context.background.start(self._archive(outcome.thread_id, last), ARCHIVE)

    async def _archive(self, thread_id: str, last: bool) -> None:
        if await self._executor.archive(self._job, thread_id) and last:
            self._is_archived = True
            self._release()

    def _release(self) -> None:
        """Let the next sample have the directory, once nothing can come into it any more."""
        if self._is_untouched and self._is_ended and self._is_archived:
            self._executor.release(self._job)


async def scores_below_limit(context: RunContext) -> None:
    """Wait while too many samples wait to be scored."""
    while context.progress.scoring >= 2 * context.config.concurrency:
        await context.background.any_done()


def _end_of(outcome: Outcome) -> dict[str, Any]:
    """The end of an attempt, as the store keeps it."""
    return {
        "status": outcome.status,
        "error": outcome.error,
        "usage": outcome.usage,
        "cost": outcome.cost,
        "worker": outcome.worker,
        "turn_id": outcome.turn_id,
        "thread_id": outcome.thread_id,
        "queued_ms": outcome.queued_ms,
        "duration_ms": outcome.duration_ms,
    }


def _keep(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / name, data)
