"""RemoteExecutor: attempts on the hosts of a run; workspace, turns, diff and scores are all made there."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec

from codex_app_server import TransportClosedError
from codex_app_server._runtime import threads

from ..configuration.effective import Answered
from ..dataset import Sample
from ..rules.retry import Outcome
from ..run.executor import AttemptListener, AttemptResult, SampleJob
from ..run.stopping import Stopped, unless_stopped
from ..scoring import Score, Scorer, Scorers
from ..store import AttemptRow, RunDirectory, SampleRow, ScoreRow, Start, layout
from .bundle import Bundle
from .engine import HostError
from .fleet import AGAIN_S, Fleet
from .host_state import LeaseLost
from .messages import Delivery, Lease, Spent

# How long a sample that is halted may take to end on its host, and its result to come.
HALT_LIMIT_S = 30.0


class NotStarted(Stopped):
    """An attempt that was halted before a turn of it was started. One that has no end yet is Stopped alone."""


class RemoteExecutor:
    """See the module's docstring. Implements Executor. `spent` counts the questions of judges."""

    def __init__(
        self,
        fleet: Fleet,
        directory: RunDirectory,
        bundle: Bundle,
        scorers: Scorers,
        spent: Callable[[Spent], Awaitable[None]],
    ) -> None:
        self._fleet = fleet
        self._directory = directory
        self._bundle = bundle
        self._scorers = scorers
        self._spent = spent
        self._delivered: dict[int, Delivery] = {}

    async def recover(self, job: SampleJob, attempt: AttemptRow) -> AttemptResult:
        """See Executor.recover."""
        start = Start(attempt.n, attempt.attempt)
        found = await unless_stopped(job.halt, self._fleet.recover(job.row.n, attempt))
        if found is None:
            where = f"its host {attempt.host} has not come back with it" if attempt.host else "no host has it"
            problem = {"kind": "lost", "message": f"the run died before the attempt ended; {where}"}
            return AttemptResult(start, Outcome("lost", problem, thread_id=attempt.thread_id))
        result = await self._result(job, attempt.key, start, found)
        result.is_delivered = True
        return result

    async def run(self, job: SampleJob, listener: AttemptListener) -> AttemptResult:
        """See Executor.run."""
        n = job.row.n
        while True:
            late = await self._fleet.offer(n)
            if late is not None:
                return await self._made(job, self._fleet.start_of(late.key), late)
            lease = await self._lease(job, os.urandom(16).hex())
            host = await unless_stopped(job.halt, self._fleet.place(n, lease.key))
            if host is None:
                continue
            try:
                start = await listener.started(lease.key, None, host)
            except BaseException:
                self._fleet.give_back(lease.key)
                raise
            try:
                future = await self._fleet.send(host, lease, start, listener.assigned)
            except HostError:
                # A host that was started again, and has no pool yet.
                self._fleet.give_back(lease.key)
                await listener.not_dispatched(start, None)
                await unless_stopped(job.halt, asyncio.sleep(AGAIN_S))
                continue
            except OSError as error:
                self._fleet.give_back(lease.key)
                return _lost(start, host, f"what the sample needs could not be sent: {error}")
            return await self._until_delivered(job, listener, lease.key, start, future)

    async def _until_delivered(
        self, job: SampleJob, listener: AttemptListener, key: str, start: Start, future: asyncio.Future[Delivery]
    ) -> AttemptResult:
        try:
            return await self._result(job, key, start, future)
        except NotStarted:
            await listener.not_dispatched(start, None)
            self.kept(job, start, is_last=False)
            raise

    async def settle(self, job: SampleJob, result: AttemptResult) -> AttemptResult:
        """See Executor.settle: its host has judged it."""
        return result

    async def artifacts(self, job: SampleJob, result: AttemptResult) -> dict[str, bytes]:
        """See Executor.artifacts."""
        delivery = self._delivered.get(job.row.n)
        return {} if delivery is None else {name: data for name, data in delivery.artifacts.items() if _is_safe(name)}

    async def score(
        self, job: SampleJob, row: SampleRow, sample: Sample, scorers: Sequence[Scorer]
    ) -> tuple[list[Score], list[str]]:
        """See Executor.score."""
        wanted = {scorer.name for scorer in scorers}
        delivery = self._delivered.get(row.n) or self._of_earlier(row)
        if delivery is None or delivery.scores is None or not wanted <= {each["scorer"] for each in delivery.scores}:
            delivery = await self._scored_elsewhere(job, row)
        for question in delivery.questions:
            await self._spent(question)
        made = [_score(each) for each in delivery.scores or () if each["scorer"] in wanted]
        names = [name for name in delivery.artifacts if _is_safe(name)]
        return made, sorted({*(() if row.record is None else row.record.artifacts), *names})

    async def archive(self, job: SampleJob, thread_id: str) -> bool:
        """See Executor.archive: its host has done it."""
        return True

    async def clean_up(self, job: SampleJob) -> str | None:
        """See Executor.clean_up: its host has done it."""
        return None

    def release(self, job: SampleJob) -> None:
        """See Executor.release: its host has done it."""

    def kept(self, job: SampleJob, start: Start | None, *, is_last: bool) -> None:
        """See Executor.kept: its host may remove it."""
        delivery = self._delivered.pop(job.row.n, None)
        if delivery is not None:
            self._fleet.acknowledge(delivery.key)
        if is_last:
            self._fleet.finished(job.row.n)

    # Leases.

    async def _lease(self, job: SampleJob, key: str) -> Lease:
        sample, trees = await threads.in_thread(self._bundle.sample, job.sample, self._scorers)
        return Lease(key, job.row.n, sample, job.row.spec, job.row.digest, trees)

    async def _result(self, job: SampleJob, key: str, start: Start, future: asyncio.Future[Delivery]) -> AttemptResult:
        """Return the outcome of a lease. Raises Stopped if it was to halt before a turn."""
        try:
            either: set[asyncio.Future[Any]] = {future, job.halt}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                self._fleet.halt(key, job.halt.result())
                await asyncio.wait({future}, timeout=HALT_LIMIT_S)
                if not future.done():
                    # The attempt has no end in the store: the next launch asks its host for it.
                    raise asyncio.TimeoutError
            delivery = future.result()
        except LeaseLost as error:
            return _lost(start, self._fleet.name_of(key), str(error))
        except asyncio.TimeoutError:
            raise Stopped from None
        if delivery.key != key:
            start = self._fleet.start_of(delivery.key)
        return await self._made(job, start, delivery)

    async def _made(self, job: SampleJob, start: Start, delivery: Delivery) -> AttemptResult:
        self._delivered[job.row.n] = delivery
        host = self._fleet.name_of(delivery.key)
        record = delivery.record
        if record is None:
            if delivery.problem is None and job.halt.done():
                raise NotStarted
            return _lost(start, host, f"host {host}: {delivery.problem or 'no turn was started'}")
        outcome = Outcome(
            status=record.status,  # type: ignore[arg-type]
            error=record.error,
            final_response=record.final_response,
            usage=record.usage,
            thread_id=record.thread_id,
            turn_id=record.turn_id,
            worker=host if record.worker is None else f"{host}/{record.worker}",
            queued_ms=record.queued_ms,
            duration_ms=record.duration_ms,
            limit=record.limit,
            cost=record.cost,
            unpriced=delivery.unpriced,
        )
        return AttemptResult(
            start,
            outcome,
            None,
            record.responses or (record.final_response,),
            record.turns or 0,
            record.tool_calls or 0,
            record.started_at or time.time(),
            delivery.events,
            delivery.rollouts,
            delivery.note,
            record.agents_md,
            Answered(**{name: getattr(record, name) for name in Answered.__struct_fields__}),
        )

    def _of_earlier(self, row: SampleRow) -> Delivery | None:
        """The result of an answer that an earlier launch has recorded, if its host has brought it."""
        for attempt in reversed(self._directory.store.attempts(row.n)):
            found = self._fleet.found(row.n, attempt.key)
            if found is not None:
                self._delivered[row.n] = found
                return found
        return None

    async def _scored_elsewhere(self, job: SampleJob, row: SampleRow) -> Delivery:
        """Have an answer scored on any host. Raises Stopped."""
        files = {}
        if row.record is not None and layout.DIFF in row.record.artifacts:
            files = {layout.DIFF: self._directory.store.artifact(row.n, layout.DIFF)}
        scores = tuple({name: getattr(score, name) for name in ScoreRow.__slots__} for score in row.scores)
        while True:
            lease = await self._lease(job, os.urandom(16).hex())
            lease = msgspec.structs.replace(lease, record=row.record, scores=scores, artifacts=files)
            host = await unless_stopped(job.halt, self._fleet.place(row.n, lease.key, is_asked=True))
            assert host is not None
            try:
                future = await self._fleet.send(host, lease, None)
                delivery = await unless_stopped(job.halt, _done(future))
            except (HostError, LeaseLost):
                self._fleet.give_back(lease.key)
                continue
            if delivery.scores is not None:
                return delivery
            problem = delivery.problem or f"host {host} has not scored it"
            failed = [_failed(scorer.name, problem) for scorer in self._scorers.of(job.sample)]
            return msgspec.structs.replace(delivery, scores=tuple(failed))


async def _done(future: asyncio.Future[Delivery]) -> Delivery:
    return await future


def _lost(start: Start, host: str, message: str) -> AttemptResult:
    """An attempt that is lost with its host."""
    result = AttemptResult(start, Outcome("lost", {"kind": "lost", "message": message}, worker=host))
    result.pool_gone = TransportClosedError(message)
    return result


def _is_safe(name: str) -> bool:
    """Return True for the name of a file within a directory of artifacts."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _score(fields: dict[str, Any]) -> Score:
    known = {name: fields.get(name) for name in Score.__slots__}
    value, took_ms = known["value"], known["duration_ms"]
    return Score(**{**known, "value": 0.0 if value is None else value, "duration_ms": took_ms or 0})  # type: ignore[arg-type]


def _failed(scorer: str, problem: str) -> dict[str, Any]:
    return {**dict.fromkeys(ScoreRow.__slots__), "scorer": scorer, "error": problem}
