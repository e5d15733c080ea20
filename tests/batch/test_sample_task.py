"""The life of a sample, from its permit to its end, with an executor of the test's own behind the protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from codex_batch.dataset import Sample
from codex_batch.rules.limits import RunLimits, RunMeter
from codex_batch.rules.progress import Progress
from codex_batch.rules.retry import CANCELLED, DISK_FULL, OTHER_CONFIGURATION, Outcome
from codex_batch.run.context import RunCallbacks, RunnerConfig
from codex_batch.run.disks import Disk
from codex_batch.run.executor import AttemptListener, AttemptResult, Executor, SampleJob
from codex_batch.run.scheduler import Scheduler, entry_of
from codex_batch.scoring import Score, Scorer, Scorers
from codex_batch.store import AttemptRow, RunDirectory, SampleRow, Start, layout

LIMIT_S = 20.0
COMPLETED = Outcome("completed", final_response="an answer", thread_id="t", turn_id="u", usage={"total_tokens": 5})
LOST = Outcome("lost", {"kind": "lost", "message": "gone"})
FAILED = Outcome("failed", {"kind": "other", "message": "no"}, thread_id="t", turn_id="u")


def failed(kind: str) -> Outcome:
    return Outcome("failed", {"kind": kind, "message": kind}, thread_id="t", turn_id="u")


class ScriptedExecutor:
    """An executor on no pool: attempts end as the script says, sample by sample; calls are noted."""

    def __init__(self, *outcomes: Outcome, recovered: Outcome = LOST):
        self.outcomes = list(outcomes)
        self.recovered = recovered
        self.calls: list[str] = []
        self.kept_attempts: list[tuple[int | None, bool]] = []
        self.on_run: Callable[[SampleJob], None] = lambda job: None

    async def recover(self, job: SampleJob, attempt: AttemptRow) -> AttemptResult:
        self.calls.append("recover")
        return AttemptResult(Start(attempt.n, attempt.attempt), self.recovered)

    async def run(self, job: SampleJob, listener: AttemptListener) -> AttemptResult:
        self.calls.append("run")
        self.on_run(job)
        start = await listener.started(f"key-{len(self.calls)}", "t")
        listener.assigned()
        return AttemptResult(start, self.outcomes.pop(0), events=b"{}\n")

    async def settle(self, job: SampleJob, result: AttemptResult) -> AttemptResult:
        return result

    async def artifacts(self, job: SampleJob, result: AttemptResult) -> dict[str, bytes]:
        return {layout.DIFF: b"a diff"}

    async def score(
        self, job: SampleJob, row: SampleRow, sample: Sample, scorers: Sequence[Scorer]
    ) -> tuple[list[Score], list[str]]:
        self.calls.append("score")
        return [Score(scorer=scorer.name, value=1.0, passed=True) for scorer in scorers], [layout.DIFF]

    async def archive(self, job: SampleJob, thread_id: str) -> bool:
        self.calls.append("archive")
        return True

    async def clean_up(self, job: SampleJob) -> str | None:
        self.calls.append("clean up")
        return None

    def release(self, job: SampleJob) -> None:
        self.calls.append("release")

    def kept(self, job: SampleJob, start: Start | None, *, is_last: bool) -> None:
        self.kept_attempts.append((None if start is None else start.attempt, is_last))


class Run:
    """One run over some samples, with a scheduler of its own."""

    def __init__(self, path: Path, samples: int = 1, scorers: Sequence[str] = ()) -> None:
        self.directory = RunDirectory(path)
        self.directory.launch({})
        self.scorers = Scorers(scorers)
        all_samples = [Sample(str(n + 1), ("prompt",), target="an answer") for n in range(samples)]
        self.directory.load((entry_of(sample, self.scorers) for sample in all_samples), "d.jsonl")
        self.progress = Progress(total=samples)
        self.said: list[str] = []
        self.scheduler: Scheduler | None = None

    def run(self, executor: ScriptedExecutor, **config: Any) -> str | None:
        """Run all that is to be done; the reason why nothing more was started, if that is so."""
        is_executor: Executor = executor

        async def main() -> str | None:
            scheduler = self.scheduler = Scheduler(
                self.directory,
                self.progress,
                asyncio.Event(),
                config=RunnerConfig(concurrency=1, **config),
                callbacks=RunCallbacks(
                    on_retry=lambda sample, outcome: self.said.append(f"retry {sample.id}"),
                    on_record=lambda row: self.said.append(f"record {row.id}"),
                    on_problem=self.said.append,
                ),
                meter=RunMeter(RunLimits(), time.monotonic()),
                disks=[Disk(self.directory.path)],
            )
            await asyncio.wait_for(scheduler.run(is_executor, self.scorers), LIMIT_S)
            return scheduler.ended_early

        try:
            return asyncio.run(main())
        finally:
            self.rows = list(self.directory.store.samples())
            self.attempts = [self.directory.store.attempts(row.n) for row in self.rows]
            self.directory.close()

    @property
    def statuses(self) -> list[str | None]:
        return [None if row.record is None else row.record.status for row in self.rows]


def test_a_sample_is_recorded_archived_and_cleaned_up(tmp_path: Path) -> None:
    run, executor = Run(tmp_path), ScriptedExecutor(COMPLETED)
    assert run.run(executor) is None
    (row,), ((attempt,),) = run.rows, run.attempts
    assert (
        row.record is not None and row.record.final_response == "an answer" and row.record.artifacts == (layout.DIFF,)
    )
    assert attempt.status == "completed" and attempt.thread_id == "t"
    # The directory is released once the thread is archived and the sample has ended.
    assert sorted(executor.calls) == ["archive", "clean up", "release", "run"] and executor.calls[0] == "run"
    # What is kept elsewhere may go once all of it is on the run's disk.
    assert executor.kept_attempts == [(1, True)]
    assert run.said == ["record 1"] and run.progress.tokens["total_tokens"] == 5


def test_an_answer_is_scored_after_its_record(tmp_path: Path) -> None:
    run, executor = Run(tmp_path, scorers=["exact"]), ScriptedExecutor(COMPLETED)
    run.run(executor)
    (row,) = run.rows
    assert row.state == "done" and [score.scorer for score in row.scores] == ["exact"]
    assert executor.calls.index("score") < executor.calls.index("clean up")


def test_a_failed_attempt_is_retried_as_often_as_configured(tmp_path: Path) -> None:
    run, executor = Run(tmp_path), ScriptedExecutor(FAILED, FAILED)
    run.run(executor, retries=1)
    assert run.statuses == ["failed"] and [each.status for each in run.attempts[0]] == ["failed", "failed"]
    assert executor.kept_attempts == [(1, False), (2, True)]
    assert run.said[0] == "retry 1" and run.progress.retries == 1 and executor.calls.count("run") == 2


def test_trouble_of_everything_puts_the_sample_back_and_counts_as_no_retry(tmp_path: Path) -> None:
    run, executor = Run(tmp_path, 2), ScriptedExecutor(failed(DISK_FULL), COMPLETED, COMPLETED)
    run.run(executor)
    assert run.statuses == ["completed", "completed"] and run.progress.retries == 0
    assert [len(each) for each in run.attempts] == [2, 1]
    # It is the next one, before those that were not started yet.
    assert run.said == ["record 1", "record 2"]


def test_an_attempt_whose_end_no_run_saw_is_recorded_if_its_turns_were_completed(tmp_path: Path) -> None:
    run, executor = Run(tmp_path), ScriptedExecutor(recovered=COMPLETED)
    run.directory.start_attempt(1, "key", "t").result(5)
    run.run(executor)
    assert run.statuses == ["completed"] and "run" not in executor.calls and len(run.attempts[0]) == 1


def test_an_attempt_that_cannot_be_recovered_is_followed_by_another(tmp_path: Path) -> None:
    run, executor = Run(tmp_path), ScriptedExecutor(COMPLETED)
    run.directory.start_attempt(1, "key", "t").result(5)
    run.run(executor)
    assert run.statuses == ["completed"] and [each.status for each in run.attempts[0]] == ["lost", "completed"]


def test_another_configuration_ends_the_run_early(tmp_path: Path) -> None:
    run, executor = Run(tmp_path, 2), ScriptedExecutor(failed(OTHER_CONFIGURATION))
    reason = run.run(executor, retries=3)
    assert reason == f"{OTHER_CONFIGURATION}; run the same command again"
    assert run.statuses == ["failed", None] and executor.calls.count("run") == 1


def test_too_many_failures_end_the_run_early(tmp_path: Path) -> None:
    run, executor = Run(tmp_path, 3), ScriptedExecutor(FAILED, FAILED)
    reason = run.run(executor, max_failures=2)
    assert reason is not None and "2 samples have failed" in reason and run.said[-1] == reason
    assert run.statuses == ["failed", "failed", None]


def test_a_sample_that_is_cancelled_before_its_start_is_recorded_without_an_attempt(tmp_path: Path) -> None:
    run, executor = Run(tmp_path, 2), ScriptedExecutor(COMPLETED)

    def cancel(job: SampleJob) -> None:
        assert run.scheduler is not None
        run.scheduler.cancel(("2", 1, ""))

    executor.on_run = cancel
    run.run(executor)
    assert run.statuses == ["completed", "interrupted"] and run.attempts[1] == []
    record = run.rows[1].record
    assert record is not None and record.error is not None and record.error["kind"] == CANCELLED


def test_a_failure_of_the_executor_beside_the_lanes_ends_the_run(tmp_path: Path) -> None:
    class Broken(ScriptedExecutor):
        async def archive(self, job: SampleJob, thread_id: str) -> bool:
            raise ZeroDivisionError

    run = Run(tmp_path)
    try:
        run.run(Broken(COMPLETED))
    except ZeroDivisionError:
        return
    raise AssertionError("the error of the executor was lost")
