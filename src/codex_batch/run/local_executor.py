"""LocalExecutor: attempts on the pool that the run uses, with workspaces, directories and scorers on this machine."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from codex_app_server import AppServerError, AsyncCodex, TransportClosedError, operations
from codex_app_server._async.api import AsyncThread
from codex_app_server._runtime import threads

from ..configuration.effective import UNKNOWN, of_sample, unlike
from ..configuration.started_thread import StartedThread, start_thread
from ..container import ContainerError
from ..dataset import Sample
from ..manage.rescore import score_row
from ..rules import retry, validity
from ..rules.bill import Bill
from ..rules.limits import Meter, parse_limits
from ..rules.retry import ENVIRONMENT_LOST, OTHER_CONFIGURATION, WORKSPACE, Outcome
from ..rules.validity import SCORED, Facts, ToolCalls
from ..scoring import Score, Scorer
from ..store import AttemptRow, SampleRow, Start, directory_name, layout
from ..workspace import Workspace, WorkspaceError, prepare, reopen
from . import harbor_attempt
from .artifacts import redacted_names
from .attempt import Attempt
from .attempt_containers import check_inside, note_of_container, record_of, take_up
from .attempt_facts import find_full_disk, find_hidden_calls, note_of_ended
from .attempt_steps import failed
from .disks import is_full
from .environments import environments_of, health, remote
from .executor import AttemptListener, AttemptResult, SampleJob
from .local_context import LocalContext
from .pool_clients import Pools
from .recovery import RecoveredTurns, Recovery, with_effort
from .rollout_archive import RolloutArchive
from .stopping import Stopped, unless_stopped

T = TypeVar("T")

# What was done while the disk was full is done again so often; then it is what fills it.
AGAIN_LIMIT = 3


class LocalExecutor:
    """See the module's docstring."""

    def __init__(self, context: LocalContext) -> None:
        self._context = context
        self._directory = context.directory
        self._rollouts = RolloutArchive(context.directory.redactor, is_on=context.rollouts)
        self._recovery = Recovery(context.clients, context.directory, self._rollouts, context.containers)
        self._work = f"{context.directory.path}/{layout.WORK}"

    def _pools(self, job: SampleJob) -> Pools:
        """Return the client of the pool that runs the variant of a sample."""
        return self._context.clients.of(job.sample.variant)

    def _path(self, sample: Sample) -> str:
        """Return the working directory of a sample that names none, or the directory of its workspace."""
        return f"{self._work}/{directory_name(*sample.key)}"

    # Turns that are stored.

    async def recover(self, job: SampleJob, attempt: AttemptRow) -> AttemptResult:
        """See Executor.recover."""
        path = Path(self._path(job.sample))
        await take_up(self._context.containers, job.sample, path)
        result = await self._on_pool(job, lambda: self._recovery.unfinished(job, attempt, path))
        result.container = await record_of(result.workspace)
        await harbor_attempt.verify(job, result)
        return result

    async def settle(self, job: SampleJob, result: AttemptResult) -> AttemptResult:
        """See Executor.settle."""
        if result.pool_gone is not None:
            result = await self._after_loss(job, result)
        elif result.outcome.turn_id is not None and result.outcome.status != "lost":
            self._pools(job).turn_finished()
        storage = self._context.storage
        if _touches_disk(result) and storage.was_full(result.began_at):
            result.facts.full = f"the disk of {storage.full_directory} was full meanwhile"
        result.outcome = validity.judged(result.outcome, result.facts)
        await harbor_attempt.verify(job, result)
        return result

    async def _after_loss(self, job: SampleJob, result: AttemptResult) -> AttemptResult:
        """An attempt whose pool was lost while its turn ran: completed, if the next pool finds that it was."""
        assert result.pool_gone is not None and result.codex is not None
        with contextlib.suppress(Stopped):
            await self._pools(job).replaced(result.codex, result.pool_gone, job.halt)
            return await self._on_pool(job, lambda: self._recovery.after_loss(job, result))
        return result

    # An attempt.

    async def run(self, job: SampleJob, listener: AttemptListener) -> AttemptResult:
        """See Executor.run."""
        began_at = time.monotonic()
        result = await self._on_pool(job, lambda: self._run(job, listener))
        result.began_at = began_at
        return result

    async def _run(self, job: SampleJob, listener: AttemptListener) -> AttemptResult:
        """Raises Stopped when the sample is to halt before a turn was started, and TransportClosedError when there is
        no pool to start one in."""
        context, codex, sample = self._context, self._pools(job).codex, job.sample
        # Steps of a task of Harbor are not continued: their rewards are of one container.
        recovered = None if sample.harbor is not None else await self._recovery.to_continue(job, listener)
        facts = Facts()
        workspace: Workspace | None = None
        try:
            workspace, cwd = await self._workspace(job, recovered)
        except WorkspaceError as error:
            return await _without_turn(listener, Outcome("failed", {"kind": WORKSPACE, "message": str(error)}))
        except OSError as error:
            if not is_full(error):
                raise
            return await _without_turn(listener, Outcome("failed", {"kind": WORKSPACE, "message": str(error)}))
        try:
            steps = harbor_attempt.steps_of(sample, workspace)
        except WorkspaceError as error:
            return await _without_turn(listener, failed(error), workspace)
        if steps is not None and harbor_attempt.is_oracle(sample):
            return await harbor_attempt.run_solutions(job, listener, workspace, steps)
        try:
            of_threads = context.options[sample.variant]
            options, turn_options = of_threads.of(sample, workspace, cwd)
            options, agents_md = of_threads.with_project(sample, options)
            ids = [] if workspace is None else await self._add_environment(job, workspace)
            note = note_of_ended(workspace) or await note_of_container(workspace)
            facts.environments = await health(codex.client, ids, job.halt, note=note)
            if facts.problem is not None:
                return await _without_turn(listener, validity.judged(Outcome("completed"), facts), workspace)
            started = await unless_stopped(job.halt, self._thread(codex, recovered, options))
            named = remote(each.environment_id for each in started.environments or ())
            if workspace is not None and workspace.place is not None:
                check_inside(started, workspace.place.environment)
            facts.tools = ToolCalls([*started.directories, cwd])
            facts.tools.has_environment = bool(ids or named)
            more = await health(codex.client, [each for each in named if each not in ids], job.halt)
            facts.environments += more
            if facts.problem is not None:
                outcome = Outcome("completed", thread_id=started.id)
                return await _without_turn(listener, validity.judged(outcome, facts), workspace)
        except TransportClosedError:
            raise
        except ContainerError as error:
            lost = Outcome("lost", {"kind": ENVIRONMENT_LOST, "message": str(error)})
            return await _without_turn(listener, lost, workspace)
        except AppServerError as error:
            return await _without_turn(listener, Outcome(*retry.failure(error)), workspace)
        own = of_sample(job.row.spec)
        other = (
            None if context.trusting else unlike(context.effective.get(sample.variant, UNKNOWN), own, started.answered)
        )
        if other is not None:
            problem = {"kind": OTHER_CONFIGURATION, "message": f"the configuration was changed during the run: {other}"}
            return await _without_turn(listener, Outcome("failed", problem, thread_id=started.id), workspace)
        key = os.urandom(16).hex() if recovered is None else recovered.key
        started_at = time.time()
        thread = AsyncThread(codex.client, started.id)
        start = await listener.started(key, thread.id)
        meter = Meter(parse_limits(sample.limits, context.limits)[0])
        meter.turns = 0 if recovered is None else len(recovered.turns)
        attempt = Attempt(
            thread,
            sample,
            meter,
            job.halt,
            key=key,
            number=start.attempt,
            bill=Bill(context.prices, started.answering),
            redactor=self._directory.redactor,
            responses=() if recovered is None else recovered.responses,
            turn_options=turn_options,
            on_assigned=listener.assigned,
            on_waiting=listener.waiting,
            facts=facts,
            clock=context.clock,
            steps=steps,
        )
        try:
            with context.live.attempt(job.row.n, start.attempt, attempt.events):
                outcome = await attempt.run()
        except Stopped:
            await listener.not_dispatched(start, thread.id)
            raise
        responses, events = tuple(attempt.responses), attempt.events.member()
        result = AttemptResult(start, outcome, workspace, responses, meter.turns, meter.tool_calls, started_at, events)
        result.steps = steps
        result.pool_gone, result.codex, result.agents_md, result.facts = attempt.pool_gone, codex, agents_md, facts
        result.answered = with_effort(sample, started.answered, attempt.rerouted)
        result.rollouts = await self._rollouts.of(started.id, started.path)
        result.container = await record_of(workspace)
        if outcome.status in SCORED:
            if attempt.may_have_called:
                await find_hidden_calls(facts, started.path)
            find_full_disk(facts, cwd, workspace)
            if facts.environments:
                await self._look_at_environments(job, result)
        return result

    async def _look_at_environments(self, job: SampleJob, result: AttemptResult) -> None:
        """Check the environments again after the last turn. Raises Stopped: the attempt has no end in the store
        then, and the next run recovers it."""
        assert result.codex is not None
        ids = [each.environment for each in result.facts.environments]
        note = note_of_ended(result.workspace) or await note_of_container(result.workspace)
        try:
            result.facts.environments = await health(result.codex.client, ids, job.halt, note=note)
        except TransportClosedError as error:
            # The next pool finds what is stored, and looks again.
            result.pool_gone = error

    async def _workspace(self, job: SampleJob, recovered: RecoveredTurns | None) -> tuple[Workspace | None, str]:
        context, sample = self._context, job.sample
        path = self._path(sample)
        if sample.workspace is None:
            if sample.cwd is not None:
                return None, sample.cwd
            context.empty.make(path)
            return None, path
        there = reopen(sample, Path(path)) if recovered is not None else None
        if there is None:
            async with context.setup_permits:
                variant = context.variants.get(sample.variant)
                making = prepare(
                    harbor_attempt.with_variables(sample),
                    Path(path),
                    hook=context.hook,
                    containers=context.containers,
                    sources=context.sources,
                    agents_md=None if variant is None else variant.agents_md,
                )
                there = await unless_stopped(job.halt, making)
        return there, str(there.cwd)

    async def _add_environment(self, job: SampleJob, workspace: Workspace) -> list[str]:
        """The environments that the workspace asks for, its own added."""
        if workspace.environment is not None:
            add = self._pools(job).codex.client.request("environment/add", workspace.environment)
            await unless_stopped(job.halt, add)
        return remote(environments_of(workspace))

    async def _thread(
        self, codex: AsyncCodex, recovered: RecoveredTurns | None, options: dict[str, Any]
    ) -> StartedThread:
        client = codex.client
        if recovered is not None:
            # Without the turn that was cut: its beginning would confuse the model.
            kept = {name: value for name, value in options.items() if name != "environments"}
            last = {"last_turn_id": recovered.turns[-1].id, **kept}
            return await start_thread(client, operations.thread_fork(recovered.thread_id, last))
        return await start_thread(client, operations.thread_start(options))

    async def _on_pool(self, job: SampleJob, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `work`, which is done again on the next pool where there was none. Raises Stopped."""
        while True:
            codex = self._pools(job).codex
            try:
                return await work()
            except TransportClosedError as error:
                await self._pools(job).replaced(codex, error, job.halt)

    # After the attempts.

    async def artifacts(self, job: SampleJob, result: AttemptResult) -> dict[str, bytes]:
        """See Executor.artifacts."""
        if result.workspace is None:
            return {}
        return {layout.DIFF: await self._with_room(result.workspace.diff), **result.kept}

    async def score(
        self, job: SampleJob, row: SampleRow, sample: Sample, scorers: Sequence[Scorer]
    ) -> tuple[list[Score], list[str]]:
        """See Executor.score."""
        context, directory = self._context, self._directory
        path = Path(self._path(job.sample))
        await take_up(context.containers, sample, path)
        scores = await self._with_room(
            lambda: score_row(
                directory,
                row,
                sample,
                scorers,
                ask=context.ask,
                process_pool=context.process_pool,
                remade=path / layout.REMADE,
                sources=context.sources,
                containers=context.containers,
            )
        )
        if sample.workspace is not None:
            # Only what was made to be scored leaves it empty.
            with contextlib.suppress(OSError):
                path.rmdir()
        artifacts = directory.store.artifacts_of(row.n)
        return scores, await threads.in_thread(redacted_names, artifacts, directory.redactor)

    async def archive(self, job: SampleJob, thread_id: str) -> bool:
        """See Executor.archive."""
        try:
            await self._pools(job).codex.thread_archive(thread_id)
        except AppServerError:
            return False
        return True

    async def clean_up(self, job: SampleJob) -> str | None:
        """See Executor.clean_up."""
        if job.sample.workspace is None:
            return None
        workspace = reopen(job.sample, Path(self._path(job.sample)), self._context.containers)
        try:
            if workspace is not None:
                await (workspace.stop() if self._context.keep else workspace.remove())
        except WorkspaceError as error:
            return str(error)
        return None

    def release(self, job: SampleJob) -> None:
        """See Executor.release."""
        if job.sample.workspace is None and job.sample.cwd is None and not self._context.keep:
            self._context.empty.leave(self._path(job.sample))

    def kept(self, job: SampleJob, start: Start | None, *, is_last: bool) -> None:
        """See Executor.kept: all is on this machine."""

    def close(self) -> None:
        """Remove directories that were released and not used again."""
        self._context.empty.remove()

    async def _with_room(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work` while the disk had room: what is done on a full one may be wrong without an error."""
        storage, again = self._context.storage, 0
        while True:
            await storage.room()
            began_at = time.monotonic()
            try:
                result = await work()
            except WorkspaceError:
                if again == AGAIN_LIMIT or not storage.was_full(began_at):
                    raise
            else:
                if again == AGAIN_LIMIT or not storage.was_full(began_at):
                    return result
            again += 1


async def _without_turn(
    listener: AttemptListener, outcome: Outcome, workspace: Workspace | None = None
) -> AttemptResult:
    """An attempt that never got as far as a turn."""
    start = await listener.started(os.urandom(16).hex(), outcome.thread_id)
    return AttemptResult(start, outcome, workspace)


def _touches_disk(result: AttemptResult) -> bool:
    """Return True if a full disk may be why an attempt ended as it did; an answer without a command needs no disk."""
    if result.outcome.status == "interrupted":
        return False
    return result.outcome.status != "completed" or result.tool_calls > 0
