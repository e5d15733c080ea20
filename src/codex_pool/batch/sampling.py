"""One sample from its workspace to its record: prepared, run, compared, scored, cleaned up - or taken up where a run
that died had left it.

What each step leaves is on the disk before the next begins, so that none is done twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from codex_app_server import AppServerError, AsyncCodex, TransportClosedError, _threads, operations
from codex_app_server._files import resolved
from codex_app_server.async_api import AsyncThread
from codex_pool.configuration import Configuration

from . import policy, validity
from .artifacts import redacted_names
from .attempt import Attempt, Stopped, unless_stopped
from .begun import Begun, begin
from .bill import Bill
from .dataset import Sample
from .disk import LEAST_BYTES, Disk, is_full
from .effective import NOBODY, UNKNOWN, Answered, Effective, of_sample, unlike
from .environments import health, remote
from .left import Left, left_of
from .limits import Limits, Meter, parse_limits
from .policy import Outcome
from .pools import Pools
from .prices import Prices
from .rescore import score_row
from .rollout import hidden_calls
from .scoring import Places, Scorers
from .scoring.base import Ask
from .store import (
    AttemptRow,
    Finished,
    RecordRow,
    RunDirectory,
    SampleRow,
    Start,
    Written,
    directory_name,
    layout,
)
from .validity import SCORED, Facts, ToolCalls
from .workspace import (
    BASE,
    EmptyDirectories,
    LinkTargets,
    Project,
    Repositories,
    Workspace,
    WorkspaceError,
    base_of,
    prepare,
    private_of,
    reopen,
    sweep,
    thread_options,
)

T = TypeVar("T")

DIFF = "diff.patch"
WORKSPACE = "workspace"
# In the directory of a sample: its workspace, made once more to be scored.
REMADE = "remade"
OTHER_CONFIGURATION = "otherConfiguration"
DEFAULT_SANDBOX = "workspace-write"
# How AGENTS.md of a sample's directory reaches its agent.
DEVELOPER_INSTRUCTIONS, CODEX = "developer_instructions", "codex"
# So often is done again what was done while the disk was full; then it is what fills it.
AGAIN_LIMIT = 3


@dataclass(slots=True)
class Job:
    """A sample that is being worked at, from `SampleRow` to its record."""

    row: SampleRow
    sample: Sample
    halt: asyncio.Future[str]
    """Done when it is to be interrupted, with the kind of the error that says so."""
    put_back: int = 0


@dataclass(slots=True)
class Tried:
    """An attempt that has ended and has no end in the store yet."""

    start: Start
    outcome: Outcome
    workspace: Workspace | None = None
    responses: Sequence[str | None] = ()
    turns: int = 0
    tool_calls: int = 0
    started_at: float = field(default_factory=time.time)
    events: bytes | None = None
    note: str | None = None
    pool_gone: TransportClosedError | None = None
    """Why the pool was gone while its turn ran, if it was; its client then was `codex`."""
    codex: AsyncCodex | None = None
    agents_md: str | None = None
    facts: Facts = field(default_factory=Facts)
    """What the validity gate decides by."""
    answered: Answered = NOBODY


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """With what samples are run; the same for all of a run."""

    pools: Pools
    directory: RunDirectory
    thread_options: dict[str, Any]
    limits: Limits = field(default_factory=Limits)
    scorers: Scorers = field(default_factory=Scorers)
    prices: Prices | None = None
    ask: Ask | None = None
    sources: Repositories | None = None
    hook: str | None = None
    keep: bool = False
    empty: EmptyDirectories = field(default_factory=EmptyDirectories)
    guarded: bool = True
    trusting: bool = False
    """True if codex may trust the directories of samples, and take everything from them."""
    private: tuple[Path, ...] = ()
    """What no agent may read."""
    linked: tuple[Path, ...] = ()
    """Targets of the links in `private`."""
    targets: LinkTargets = field(default_factory=LinkTargets)
    configuration: Configuration
    """Configuration of threads; samples without a workspace that name no sandbox ask for the configured one."""
    effective: Effective = UNKNOWN
    """The same, as the results of the run are recorded under it."""
    written: Callable[[Callable[[], Written[Any] | asyncio.Future[Any]]], Any]
    """Waits until a change is on the disk, trying again while the disk is full."""
    room: Callable[[], Awaitable[None]]
    """Waits while a disk is full."""
    was_full: Callable[[float], bool]
    """Whether a disk has been full since then, a time of the monotonic clock."""
    scoring_places: Places
    setup_places: asyncio.Semaphore
    clock: Callable[[], float] = time.monotonic
    """The clock of limits in time of samples."""

    @property
    def codex(self) -> AsyncCodex:
        """The client of the present pool."""
        return self.pools.codex


class Sampling:
    """The steps of one sample. `on_running` is told how many more of its attempts run."""

    def __init__(self, means: Means, job: Job) -> None:
        self._means = means
        self._job = job
        self._directory = means.directory
        self._sample = job.sample
        self._name = directory_name(job.sample.id, job.sample.epoch)
        self._place = f"{means.directory.path}/{layout.WORK}/{self._name}"
        # No tool of its agent has worked there, as far as is known.
        self._is_untouched = False
        self._is_ended = self._is_archived = False

    @property
    def _work(self) -> Path:
        """Where it works, or its workspace lies, unless it says itself where."""
        return Path(self._place)

    # What an earlier run left.

    async def take_up(self) -> Tried | None:
        """The attempt that nobody saw the end of, if its turns were completed: they are not paid for twice.

        Raises Stopped, TransportClosedError.
        """
        if self._job.row.attempts == 0:
            return None
        last = self._last_attempt()
        if last is None or last.status is not None:
            return None
        start = Start(last.n, last.attempt)
        left = await self._left(last)
        how = (
            "its turn was never completed" if left is None or not left.turns else f"it had had {len(left.turns)} turns"
        )
        problem = {"kind": "lost", "message": f"the run died before the attempt ended; {how}"}
        ended = {"status": "lost", "error": problem, "thread_id": last.thread_id}
        if left is not None and left.whole:
            workspace = reopen(self._sample, self._work) if self._sample.workspace is not None else None
            if workspace is not None or self._sample.workspace is None:
                tried = await self._taken_up(start, left, workspace)
                outcome = validity.judged(tried.outcome, tried.facts)
                if outcome.status == "completed":
                    return tried
                ended |= {"status": outcome.status, "error": outcome.error}
        await self._means.written(lambda: self._directory.end_attempt(start, ended))
        return None

    async def look_again(self, tried: Tried) -> Tried:
        """An attempt that was lost with its pool: completed, if its turns are stored as completed, else as it is.

        Raises Stopped, TransportClosedError.
        """
        last = self._last_attempt()
        left = None if last is None else await self._left(last)
        if left is None or not left.whole:
            return tried
        found = await self._taken_up(tried.start, left, tried.workspace)
        # A full disk, or what could not be read, is not seen in what is stored.
        found.facts.full, found.facts.undecoded = tried.facts.full, tried.facts.undecoded
        lost = tried.outcome
        found.outcome = msgspec.structs.replace(
            found.outcome, usage=lost.usage, worker=lost.worker, queued_ms=lost.queued_ms
        )
        found.note = "completed when its pool was lost; taken up"
        found.agents_md, found.answered = tried.agents_md, tried.answered
        return found

    async def _taken_up(self, start: Start, left: Left, workspace: Workspace | None) -> Tried:
        """Raises Stopped, TransportClosedError."""
        facts, client = Facts(left.calls()), self._means.codex.client
        await self._look_for_hidden(facts, None if left.thread is None else left.thread.path)
        if workspace is not None and workspace.environment is not None:
            # This pool has not been told of it.
            await unless_stopped(self._job.halt, client.request("environment/add", workspace.environment))
        ids = remote([*self._environments_of(workspace), *left.environments])
        facts.environments = await health(client, ids, self._job.halt)
        last = left.turns[-1]
        outcome = Outcome(
            "completed",
            final_response=left.responses[-1],
            thread_id=left.thread_id,
            turn_id=last.id,
            duration_ms=sum(turn.duration_ms or 0 for turn in left.turns),
        )
        return Tried(
            start,
            outcome,
            workspace,
            left.responses,
            len(left.turns),
            left.tool_calls,
            started_at=left.turns[0].started_at or time.time(),
            events=left.events(self._directory.redactor),
            note="completed while no run was there to see it; taken up",
            facts=facts,
            answered=self._with_effort(NOBODY if left.thread is None else left.thread.answered),
        )

    def _last_attempt(self) -> AttemptRow | None:
        found = self._directory.store.attempts(self._job.row.n)
        return found[-1] if found else None

    async def _left(self, last: AttemptRow) -> Left | None:
        return await left_of(self._means.codex.client, last, len(self._sample.prompts), self._job.halt)

    # An attempt.

    async def attempt(self, on_assigned: Callable[[], None], on_waiting: Callable[[str | None], None]) -> Tried:
        """One more try. Raises Stopped when the sample was to halt before a turn was started, and
        TransportClosedError when there is no pool to start one in."""
        codex = self._means.codex
        left = await self._to_go_on_with()
        facts = Facts()
        workspace: Workspace | None = None
        try:
            workspace, cwd = await self._workspace(left)
        except WorkspaceError as error:
            return await self._nothing(Outcome("failed", {"kind": WORKSPACE, "message": str(error)}))
        except OSError as error:
            if not is_full(error):
                raise
            return await self._nothing(Outcome("failed", {"kind": WORKSPACE, "message": str(error)}))
        try:
            options, turn_options = self._thread_options(workspace, cwd)
            options, how = self._with_project(options)
            ids = [] if workspace is None else await self._add_environment(workspace)
            facts.environments = await health(codex.client, ids, self._job.halt, told=_told_of(workspace))
            if facts.problem is not None:
                return await self._nothing(validity.judged(Outcome("completed"), facts), workspace)
            begun = await unless_stopped(self._job.halt, self._thread(left, options))
            named = remote(each.environment_id for each in begun.environments or ())
            facts.tools = ToolCalls([*begun.directories, cwd])
            facts.tools.has_environment = bool(ids or named)
            more = await health(codex.client, [each for each in named if each not in ids], self._job.halt)
            facts.environments += more
            if facts.problem is not None:
                outcome = Outcome("completed", thread_id=begun.id)
                return await self._nothing(validity.judged(outcome, facts), workspace)
        except TransportClosedError:
            raise
        except AppServerError as error:
            return await self._nothing(Outcome(*policy.failure(error)), workspace)
        trusting, own = self._means.trusting, of_sample(self._job.row.spec)
        other = None if trusting else unlike(self._means.effective, own, begun.answered)
        if other is not None:
            problem = {"kind": OTHER_CONFIGURATION, "message": f"the configuration was changed during the run: {other}"}
            return await self._nothing(Outcome("failed", problem, thread_id=begun.id), workspace)
        key = os.urandom(16).hex() if left is None else left.key
        started_at = time.time()
        thread = AsyncThread(codex.client, begun.id)
        start: Start = await self._means.written(lambda: self._directory.start_attempt(self._job.row.n, key, thread.id))
        meter = Meter(self._limits())
        meter.turns = 0 if left is None else len(left.turns)
        attempt = Attempt(
            thread,
            self._sample,
            meter,
            self._job.halt,
            key=key,
            number=start.attempt,
            bill=Bill(self._means.prices, begun.answering),
            redactor=self._directory.redactor,
            responses=() if left is None else left.responses,
            turn_options=turn_options,
            on_assigned=on_assigned,
            on_waiting=on_waiting,
            facts=facts,
            clock=self._means.clock,
        )
        try:
            outcome = await attempt.run()
        except Stopped:
            ended = {"status": "interrupted", "thread_id": thread.id}
            note = "the run stopped before the turn was started"
            await self._means.written(lambda: self._directory.end_attempt(start, ended, note=note))
            raise
        responses, events = tuple(attempt.responses), attempt.events.member()
        tried = Tried(start, outcome, workspace, responses, meter.turns, meter.tool_calls, started_at, events)
        tried.pool_gone, tried.codex, tried.agents_md, tried.facts = attempt.pool_gone, codex, how, facts
        tried.answered = self._with_effort(begun.answered, attempt.rerouted)
        if outcome.status in SCORED:
            if attempt.may_have_called:
                await self._look_for_hidden(facts, begun.path)
            self._look_for_full_disk(facts, workspace, cwd)
            await self._look_at_environments(tried, [each.environment for each in facts.environments], codex)
        return tried

    async def _look_for_hidden(self, facts: Facts, path: str | None) -> None:
        """Calls that no notification speaks of."""
        if path is not None:
            facts.tools.hidden(await _threads.in_thread(hidden_calls, path, facts.tools.seen))

    def _look_for_full_disk(self, facts: Facts, workspace: Workspace | None, cwd: str) -> None:
        """A command said that a disk is full: so is one that it could write to, or the words mean something else. Where
        there is no room at all it need not have said so."""
        said = facts.tools.said_full
        if said is None and not facts.tools.has_run:
            return
        places = [Path(cwd), *(() if workspace is None else (workspace.path,)), Path(tempfile.gettempdir())]
        for path in places:
            shortage = Disk(path).shortage(LEAST_BYTES if said is not None else 1) if path.is_dir() else None
            if shortage is not None:
                facts.full = f"the disk of {path} was full: {said or shortage}"
                return

    async def _look_at_environments(self, tried: Tried, ids: list[str], codex: AsyncCodex) -> None:
        """Check the environments again after the last turn. Raises Stopped: the attempt has no end in the store
        then, and the next run takes it up."""
        if not ids:
            return
        try:
            tried.facts.environments = await health(codex.client, ids, self._job.halt, told=_told_of(tried.workspace))
        except TransportClosedError as error:
            # The next pool finds what is stored, and looks again.
            tried.pool_gone = error

    async def _to_go_on_with(self) -> Left | None:
        """Turns of the last attempt that need not be run again."""
        if len(self._sample.prompts) == 1:
            return None
        last = self._last_attempt()
        # Turns that have been asked for in other words are of no use.
        if last is None or last.status in (None, "completed", "limit") or last.digest != self._job.row.digest:
            return None
        if last.fingerprint != self._job.row.fingerprint:
            return None
        # What turns did without room, or without a sandbox, is not built on.
        if not validity.may_be_built_on(last.error):
            return None
        left = await self._left(last)
        if left is None or not left.turns or left.whole or left.calls().problem is not None:
            return None
        return left

    async def _nothing(self, outcome: Outcome, workspace: Workspace | None = None) -> Tried:
        """An attempt that never got as far as a turn."""
        key, thread_id = os.urandom(16).hex(), outcome.thread_id
        start = await self._means.written(lambda: self._directory.start_attempt(self._job.row.n, key, thread_id))
        return Tried(start, outcome, workspace)

    async def _workspace(self, left: Left | None) -> tuple[Workspace | None, str]:
        sample = self._sample
        if sample.workspace is None:
            if sample.cwd is not None:
                return None, sample.cwd
            self._means.empty.make(self._place)
            return None, self._place
        there = reopen(sample, self._work) if left is not None else None
        if there is None:
            async with self._means.setup_places:
                making = prepare(sample, self._work, hook=self._means.hook, sources=self._means.sources)
                there = await unless_stopped(self._job.halt, making)
        return there, str(there.cwd)

    def _thread_options(self, workspace: Workspace | None, cwd: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of the thread, and of its turns after the first."""
        sample = self._sample
        options = {**self._means.thread_options, "cwd": cwd, "model": sample.model}
        configuration = self._means.configuration
        sandbox = sample.sandbox or (None if workspace is None else DEFAULT_SANDBOX)
        asked = configuration.thread_options if sandbox is None else {"sandbox": sandbox}
        more = {} if workspace is None else workspace.thread
        needs_guard = self._means.guarded and (workspace is not None or has_answers(sample, self._means.scorers))
        # Unguarded is also a pool that does not show its configuration.
        base = base_of(configuration, sandbox) if needs_guard else None
        if base is None:
            return {**options, **asked, **more}, {}
        run, work = resolved(self._directory.path), resolved(self._directory.file(layout.WORK))
        changing = {
            run: layout.staying(run),
            work: (),
            work / self._name: [work / self._name / BASE],
        }
        of_sample = [*private_of(sample), *self._means.scorers.files_of(sample)]
        guarded = thread_options(
            base,
            Path(cwd),
            [*self._means.private, *of_sample],
            changing,
            own=sample.cwd is None,
            linked=[*self._means.linked, *self._means.targets.of(of_sample)],
        )
        return {**options, **guarded, **more}, {"permissions": guarded["permissions"]}

    def _with_project(self, options: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Options of the thread with what its directory may bring, and how AGENTS.md reaches the agent."""
        own, cwd = self._sample.cwd is None, options["cwd"]
        project = Project(cwd, own=own)
        text = project.agents_md()
        if self._means.trusting:
            return options, None if text is None else CODEX
        given = options.get("config") or {}
        options = {**options, "config": {**given, **project.untrusted()}}
        if text is None:
            return options, None
        # What is given here takes the place of what is configured.
        before = options.pop("developer_instructions", None) or self._means.configuration.developer_instructions
        options["developer_instructions"] = text if not before else f"{before}\n\n{text}"
        return options, DEVELOPER_INSTRUCTIONS

    async def _add_environment(self, workspace: Workspace) -> list[str]:
        """The environments that the workspace asks for, its own added."""
        if workspace.environment is not None:
            add = self._means.codex.client.request("environment/add", workspace.environment)
            await unless_stopped(self._job.halt, add)
        return remote(self._environments_of(workspace))

    def _environments_of(self, workspace: Workspace | None) -> list[str]:
        if workspace is None:
            return []
        named = workspace.thread.get("environments") or ()
        ids = [str(each.get("environmentId") or each.get("environment_id")) for each in named]
        return ids if workspace.environment is None else [workspace.environment["environmentId"], *ids]

    async def _thread(self, left: Left | None, options: dict[str, Any]) -> Begun:
        client = self._means.codex.client
        if left is not None:
            # Without the turn that was cut: its beginning would confuse whoever reads on.
            kept = {name: value for name, value in options.items() if name != "environments"}
            fork = operations.thread_fork(left.thread_id, {"last_turn_id": left.turns[-1].id, **kept})
            return await begin(client, fork)
        return await begin(client, operations.thread_start(options))

    def _with_effort(self, answered: Answered, rerouted: tuple[str, str] | None = None) -> Answered:
        """Return who answers in a thread, with the effort of the sample's turns and the model it was rerouted to."""
        answered = msgspec.structs.replace(answered, effort=self._sample.effort or answered.effort)
        if rerouted is None:
            return answered
        return msgspec.structs.replace(answered, rerouted_from=rerouted[0], model=rerouted[1])

    def _limits(self) -> Limits:
        return parse_limits(self._sample.limits, self._means.limits)[0]

    # Its end.

    async def give_up(self, tried: Tried) -> None:
        """The end of an attempt that another one follows."""
        await self._means.written(
            lambda: self._directory.end_attempt(tried.start, self._end_of(tried), note=tried.note, events=tried.events)
        )

    async def record(self, tried: Tried) -> Finished | None:
        """The last attempt has ended. None: the sample is still to be scored."""
        artifacts = await self._difference(tried)
        outcome = tried.outcome
        record = RecordRow(
            status=outcome.status,
            attempts=tried.start.attempt,
            limit=outcome.limit,
            final_response=outcome.final_response,
            error=outcome.error,
            usage=outcome.usage,
            cost=outcome.cost,
            thread_id=outcome.thread_id,
            turn_id=outcome.turn_id,
            worker=outcome.worker,
            turns=tried.turns,
            tool_calls=tried.tool_calls,
            queued_ms=outcome.queued_ms,
            duration_ms=outcome.duration_ms,
            started_at=tried.started_at,
            ended_at=time.time(),
            responses=tuple(tried.responses),
            artifacts=tuple(artifacts),
            agents_md=tried.agents_md,
            model=tried.answered.model,
            effort=tried.answered.effort,
            provider=tried.answered.provider,
            codex_version=tried.answered.codex_version,
            rerouted_from=tried.answered.rerouted_from,
        )
        to_score = outcome.status in SCORED and bool(self._means.scorers.of(self._sample))
        self._is_untouched = outcome.status == "completed" and tried.start.attempt == 1 and tried.tool_calls == 0
        finished: Finished | None = await self._means.written(
            lambda: self._directory.finish(
                tried.start, record, self._end_of(tried), to_score=to_score, note=tried.note, events=tried.events
            )
        )
        return finished

    async def score(self) -> Finished:
        """Score what is recorded."""
        row = self._directory.store.sample_at(self._job.row.n)
        there = {score.scorer: score for score in row.scores}
        # Scores that still hold stay: only what is new or was changed since is scored.
        wanted = self._means.scorers.of(self._sample)
        scorers = [scorer for scorer in wanted if scorer.name not in there]
        # A record without its secrets is compared with a sample without them.
        sample = Sample.from_json(row.spec) if self._directory.redactor else self._sample
        made = await self._with_room(
            lambda: score_row(
                self._directory,
                row,
                sample,
                scorers,
                ask=self._means.ask,
                places=self._means.scoring_places,
                remade=self._work / REMADE,
                sources=self._means.sources,
            )
        )
        if self._sample.workspace is not None:
            # Only what was made to be scored leaves it empty.
            with contextlib.suppress(OSError):
                self._work.rmdir()
        found: dict[str, Any] = {**there, **{score.scorer: score for score in made}}
        names = [scorer.name for scorer in wanted]
        scores = [found[name] for name in dict.fromkeys((*names, *there))]
        artifacts = self._directory.store.artifacts_of(row.n)
        kept = await _threads.in_thread(redacted_names, artifacts, self._directory.redactor)
        bases = self._means.scorers.basis_of(self._sample)
        finished: Finished = await self._means.written(lambda: self._directory.scored(row.n, scores, kept, bases))
        return finished

    async def clean_up(self) -> str | None:
        """Remove the workspace, if it is not to be kept; what went wrong with that."""
        if self._sample.workspace is None:
            self._is_ended = True
            self._leave()
            return None
        workspace = reopen(self._sample, self._work)
        try:
            if workspace is not None:
                await (workspace.stop() if self._means.keep else workspace.remove())
        except WorkspaceError as error:
            return str(error)
        return None

    def archived(self) -> None:
        """Nothing of its thread is left in an app-server."""
        self._is_archived = True
        self._leave()

    def _leave(self) -> None:
        """Let the next sample have the directory, once nothing can come into it any more."""
        is_its_own = self._sample.workspace is None and self._sample.cwd is None
        if is_its_own and self._is_untouched and self._is_ended and self._is_archived and not self._means.keep:
            self._means.empty.leave(self._place)

    def _end_of(self, tried: Tried) -> dict[str, Any]:
        outcome = tried.outcome
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

    async def _difference(self, tried: Tried) -> list[str]:
        """Keep what the agent changed; the names of the artifacts there are. A failure is said in the outcome."""
        if tried.workspace is None:
            return []
        artifacts = self._directory.store.artifacts_of(self._job.row.n)
        try:
            diff = await self._with_room(tried.workspace.diff)
        except WorkspaceError as error:
            if tried.outcome.error is None:
                problem = {"kind": WORKSPACE, "message": str(error)}
                tried.outcome = msgspec.structs.replace(tried.outcome, status="failed", error=problem)
            return []
        kept = self._directory.redactor.data(diff)
        await self._means.written(lambda: asyncio.ensure_future(_threads.in_thread(_keep, artifacts, kept)))
        return [DIFF]

    async def _with_room(self, work: Callable[[], Awaitable[T]]) -> T:
        """What came of it while the disk had room: what is done on a full one may be wrong and not say so."""
        again = 0
        while True:
            await self._means.room()
            began_at = time.monotonic()
            try:
                result = await work()
            except WorkspaceError:
                if again == AGAIN_LIMIT or not self._means.was_full(began_at):
                    raise
            else:
                if again == AGAIN_LIMIT or not self._means.was_full(began_at):
                    return result
            again += 1


def _told_of(workspace: Workspace | None) -> str:
    """Name the processes that were ended with a workspace hook, the environment perhaps among them; empty if none."""
    if workspace is None or not workspace.ended:
        return ""
    return (
        f"what the workspace hook had left running was ended with it: {', '.join(workspace.ended)}; let a service "
        "start it (docker, the API service of podman, systemd-run)"
    )


def has_answers(sample: Sample, scorers: Scorers) -> bool:
    """Return True if there is something the agent must not read; denying costs a moment of each thread."""
    return sample.target is not None or bool(scorers.of(sample))


async def remove_left(directory: RunDirectory) -> None:
    """Remove the workspaces of samples that are done, which a run that died had no time to; unless some are kept.

    Raises WorkspaceError.
    """
    work = directory.file(layout.WORK)
    left = {entry.name for entry in os.scandir(work)} if work.is_dir() else set()
    launches = directory.store.info()["launches"]
    if not left or any(launch["config"].get("arguments", {}).get("keep") for launch in launches):
        return
    for row in directory.store.samples(state="done"):
        if row.spec.get("workspace") is not None and directory_name(row.id, row.epoch) in left:
            await sweep(Sample.from_json(row.spec), work / directory_name(row.id, row.epoch))


def _keep(artifacts: Path, diff: bytes) -> None:
    artifacts.mkdir(parents=True, exist_ok=True)
    layout.replace(artifacts / DIFF, diff)
