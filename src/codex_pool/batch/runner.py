"""Samples to attempts: a lane for each turn that may run at once takes one sample after the other.

An attempt: a new persisted thread, its start in the journal, one turn, its end on the disk; then the thread is
archived, which frees what the app-server holds of it, while the lane goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from codex_app_server import AppServerError, AsyncCodex, TransportClosedError
from codex_app_server.operations import final_response

from . import policy
from .attempt import Stopped, Turn, unless_stopped
from .dataset import Sample
from .policy import Outcome
from .progress import Progress
from .store import Entry, Finished, RecordRow, RunDirectory, SampleRow, Start, Unfinished, directory_name, layout

# How long the threads of the last samples may take to be archived, and a turn that a dead run left may still run.
ARCHIVE_LIMIT_S = 10.0
LEFT_RUNNING_LIMIT_S = 60.0
LEFT_RUNNING_POLL_S = 0.5
PAGE = 200


class Runner:
    """Runs samples through `codex`, at most `concurrency` at once, until all have ended or `stop` is set.

    `thread_options` go to every thread/start. `on_retry(sample, outcome)` and `on_record(record)` are told what
    happens, on the event loop.
    """

    def __init__(
        self,
        codex: AsyncCodex,
        directory: RunDirectory,
        progress: Progress,
        stop: asyncio.Event,
        *,
        concurrency: int,
        retries: int,
        thread_options: dict[str, Any],
        on_retry: Callable[[Sample, Outcome], None],
        on_record: Callable[[SampleRow], None],
    ) -> None:
        self._codex = codex
        self._directory = directory
        self._progress = progress
        self._stop = stop
        self._concurrency = concurrency
        self._retries = retries
        self._thread_options = thread_options
        self._on_retry = on_retry
        self._on_record = on_record
        self._archiving: set[asyncio.Task[None]] = set()
        self.pool_gone: TransportClosedError | None = None
        """Why the run could not go on, if it could not."""

    async def run(self) -> None:
        """Run all that is to be done. What has not been started when the run stops has no record."""
        self._page: deque[SampleRow] = deque()
        self._after: tuple[int, int] | None = None
        self._progress.started_at = time.monotonic()
        self._stopping = asyncio.ensure_future(self._stop.wait())
        lanes = [asyncio.ensure_future(self._lane()) for _ in range(min(self._concurrency, self._progress.waiting))]
        try:
            await asyncio.gather(*lanes)
            if self._archiving:
                await asyncio.wait(self._archiving, timeout=ARCHIVE_LIMIT_S)
        finally:
            tasks = (*lanes, *self._archiving, self._stopping)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _lane(self) -> None:
        while not self._stop.is_set() and (row := self._next()) is not None:
            with contextlib.suppress(Stopped):
                await self._run_sample(row)

    def _next(self) -> SampleRow | None:
        """The next sample to be done; a page of them is in memory at a time."""
        if not self._page:
            self._page.extend(self._directory.to_do(PAGE, self._after))
            if not self._page:
                return None
            self._after = self._page[-1].position, self._page[-1].n
        return self._page.popleft()

    async def _run_sample(self, row: SampleRow) -> None:
        sample = sample_of(row)
        left = self._directory.unfinished(row.n)
        if left is not None and await self._take_up(left):
            return
        tries = 0
        while True:
            start, outcome = await self._attempt(row.n, sample)
            tries += 1
            if self._stop.is_set() or not policy.may_retry(outcome, tries, self._retries):
                break
            self._on_retry(sample, outcome)
            with contextlib.suppress(Stopped):
                pause_s = policy.backoff_s(outcome, tries, jitter=random.random())
                await unless_stopped(self._stopping, asyncio.sleep(pause_s))
            if self._stop.is_set():
                break
            await self._written(self._directory.end_attempt(start, asdict(outcome)))
            self._archive_later(outcome)
            self._progress.retries += 1
        await self._finish(start, outcome)

    async def _finish(self, start: Start, outcome: Outcome, note: str | None = None) -> None:
        record = RecordRow(attempts=start.attempt, **asdict(outcome))
        finished = await self._written(self._directory.finish(start, record, asdict(outcome), note=note))
        assert isinstance(finished, Finished) and finished.row is not None
        self._progress.ended[outcome.status] += 1
        self._on_record(finished.row)
        self._archive_later(outcome)

    async def _written(self, future: Future[Any]) -> Any:
        """What is on the disk now. It gets there also when nobody waits any more."""
        return await asyncio.wrap_future(future)

    async def _attempt(self, n: int, sample: Sample) -> tuple[Start, Outcome]:
        """Raises Stopped when the run stopped before the turn was started."""
        while len(self._archiving) >= self._concurrency:
            await asyncio.wait(self._archiving, return_when=asyncio.FIRST_COMPLETED)
        key = uuid.uuid4().hex
        with _Counted(self._progress) as counted:
            try:
                thread = await unless_stopped(
                    self._stopping,
                    self._codex.thread_start(
                        **self._thread_options,
                        cwd=self._work_directory(sample),
                        model=sample.model,
                        sandbox=sample.sandbox,  # type: ignore[arg-type]
                    ),
                )
            except TransportClosedError as error:
                self._give_up(error)
                raise Stopped from None
            except AppServerError as error:
                self._progress.attempts += 1
                status, problem = policy.failure(error)
                start = await self._written(self._directory.start_attempt(n, key, None))
                return start, Outcome(status, problem)
            start = await self._written(self._directory.start_attempt(n, key, thread.id))
            turn = Turn(thread, sample, key, counted.begin)
            try:
                outcome = await turn.run(self._stopping)
            except Stopped:
                note = "the run stopped before the turn was started"
                ended = asdict(Outcome("interrupted", thread_id=thread.id))
                await self._written(self._directory.end_attempt(start, ended, note=note))
                raise
        if turn.pool_gone is not None:
            self._give_up(turn.pool_gone)
        self._progress.attempts += 1
        self._progress.turn_ended(outcome)
        return start, outcome

    def _work_directory(self, sample: Sample) -> str:
        """Where a sample works: in a directory of its own below work/ if it names none."""
        if sample.cwd is not None:
            return sample.cwd
        path = self._directory.file(layout.WORK) / directory_name(sample.id, sample.epoch)
        path.mkdir(parents=True, exist_ok=True)
        return str(path.resolve())

    def _give_up(self, error: TransportClosedError) -> None:
        """The pool is gone: what has not been started is better left than failed."""
        self.pool_gone = self.pool_gone or error
        self._stop.set()

    async def _take_up(self, left: Unfinished) -> bool:
        """Record the turn of an attempt whose run died, if it was completed: it is not paid for twice."""
        turn = await self._left_turn(left)
        if turn is None or turn.status != "completed":
            how = "its turn was never started" if turn is None else f"its turn is {turn.status}"
            problem = {"kind": "lost", "message": f"the run died before the attempt ended; {how}"}
            lost = asdict(Outcome("lost", problem, thread_id=left.thread_id))
            await self._written(self._directory.end_attempt(left.start, lost))
            return False
        outcome = Outcome(
            "completed",
            final_response=final_response(turn.items),
            thread_id=left.thread_id,
            turn_id=turn.id,
            duration_ms=turn.duration_ms,
        )
        await self._finish(left.start, outcome, "completed while no run was there to see it; taken up")
        return True

    async def _left_turn(self, left: Unfinished) -> Any:
        """The turn of an attempt as it is stored, None if there is none. One that still runs is waited for."""
        if left.thread_id is None:
            return None
        request = {"thread_id": left.thread_id, "include_turns": True}
        deadline = time.monotonic() + LEFT_RUNNING_LIMIT_S
        while True:
            try:
                response = await unless_stopped(self._stopping, self._codex.client.request("thread/read", request))
            except AppServerError:
                return None
            turn = next((turn for turn in response.thread.turns if _has_key(turn, left.key)), None)
            if turn is None or turn.status != "inProgress" or time.monotonic() > deadline:
                return turn
            await unless_stopped(self._stopping, asyncio.sleep(LEFT_RUNNING_POLL_S))

    def _archive_later(self, outcome: Outcome) -> None:
        # A lost thread is loaded nowhere: archiving would load it first.
        if outcome.thread_id is None or outcome.status == "lost":
            return
        task = asyncio.ensure_future(self._archive(outcome.thread_id))
        self._archiving.add(task)
        task.add_done_callback(self._archiving.discard)

    async def _archive(self, thread_id: str) -> None:
        with contextlib.suppress(AppServerError):
            await self._codex.thread_archive(thread_id)


class _Counted:
    """Counts an attempt among the queued, and from `begin` on among the running, while the context lasts."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._running = False

    def __enter__(self) -> _Counted:
        self._progress.queued += 1
        return self

    def begin(self) -> None:
        if not self._running:
            self._running = True
            self._progress.queued -= 1
            self._progress.running += 1

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._progress.running -= 1
        else:
            self._progress.queued -= 1


def entry_of(sample: Sample) -> Entry:
    """A sample as the store keeps it."""
    return Entry(sample.id, sample.epoch, sample.digest, sample.to_json(), sample.tags)


def sample_of(row: SampleRow) -> Sample:
    """The sample that the store keeps."""
    return Sample.from_json(row.spec)


def _has_key(turn: Any, key: str) -> bool:
    return any(getattr(item, "client_id", None) == key for item in turn.items)
