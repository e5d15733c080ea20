"""Scoring a run again without running it again: what `codex-pool score` calls.

Answers come from the record, and so does what the agent changed: a workspace that was not kept is prepared again, from
the sample's template or commit, and the diff that was kept is applied to it. Commands of samples that ran in
containers get a new one of the same image.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server._runtime import threads
from codex_app_server._runtime.files import resolved

from ..container import ContainerError, ContainerSession
from ..container.running import Containers
from ..dataset import Sample
from ..rules.validity import SCORED
from ..run.artifacts import redacted_names
from ..scoring import ProcessPool, Score, ScoreContext, Scorer, Scorers, score_sample
from ..scoring.python import Python
from ..scoring.scorer import CONTAINER_GONE, Ask
from ..store import RecordRow, RunDirectory, RunStore, SampleRow, directory_name, layout
from ..workspace import Repositories, Workspace, WorkspaceError, prepare, reopen
from ..workspace import git as workspace_git
from ..workspace.large_files import is_whole
from .new_containers import NewContainers


@dataclass(slots=True)
class Counts:
    """Counts of one rescoring: samples scored, scores by scorers that failed, and samples with nothing to score."""

    scored: int = 0
    scorer_failures: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Scorers and the samples that they are to score. `only` are the names of samples, all if empty.

    `named`: scorers named on the command line, instead of those of the run and of its samples; the scores of others
    stay. `missing`: only samples that one of their scorers has not scored.
    """

    scorers: Scorers
    named: bool
    only: frozenset[str] = frozenset()
    missing: bool = False

    def scorers_of(self, sample: Sample) -> tuple[Scorer, ...]:
        """Raises ScorerError."""
        return self.scorers.of(msgspec.structs.replace(sample, scorers=None) if self.named else sample)

    def dependencies_of(self, sample: Sample) -> dict[str, dict[str, Any]]:
        """Return what scores of these scorers are made of. Raises ScorerError."""
        return self.scorers.dependencies_of(msgspec.structs.replace(sample, scorers=None) if self.named else sample)

    def rows(self, store: RunStore) -> Iterator[SampleRow]:
        """The samples to be scored, in the order of the dataset."""
        for row in store.samples(state="done"):
            if self.only and row.id not in self.only and row.shown_name not in self.only:
                continue
            if row.record is not None and row.record.status in SCORED:
                yield row

    def problems(self, store: RunStore) -> Iterator[str]:
        """List all problems of their scorers."""
        for row in self.rows(store):
            sample = Sample.from_json(row.spec)
            yield from self.scorers.problems([msgspec.structs.replace(sample, scorers=None) if self.named else sample])

    def workspaces(self, store: RunStore, run: Path) -> int:
        """Count the workspaces that have to be made once more for their scorers, because they were not kept."""
        count = 0
        for row in self.rows(store):
            sample, scorers = self.wanted(row)
            if sample.workspace is not None and any(scorer.needs_workspace for scorer in scorers):
                count += reopen(sample, run / layout.WORK / directory_name(*sample.key)) is None
        return count

    def containers(self, store: RunStore) -> int:
        """Count the samples whose scorers need a container, which is made once more for them."""
        wanted = (self.wanted(row) for row in self.rows(store) if row.spec.get("container") is not None)
        return sum(any(scorer.needs_workspace for scorer in scorers) for _, scorers in wanted)

    def wanted(self, row: SampleRow) -> tuple[Sample, tuple[Scorer, ...]]:
        """A sample and the scorers that are to score it now."""
        sample = Sample.from_json(row.spec)
        scorers = self.scorers_of(sample)
        if self.missing:
            there = {score.scorer for score in row.scores if score.error is None}
            scorers = tuple(scorer for scorer in scorers if scorer.name not in there)
        return sample, scorers


async def rescore(
    directory: RunDirectory,
    plan: Plan,
    *,
    ask: Ask | None,
    at_once: int,
    on_scored: Callable[[SampleRow, Sequence[Score]], None],
    codex_bin: str | None = None,
) -> Counts:
    """Score what the plan selects, `at_once` samples at a time. `codex_bin` is for containers, if it is named.

    The scores of a sample are on the disk before `on_scored` is called with them.
    """
    counts = Counts()
    rows = plan.rows(directory.store)
    process_pool = ProcessPool(max(1, os.cpu_count() or 1))
    again = NewContainers(directory, codex_bin)

    async def lane() -> None:
        for row in rows:
            sample, scorers = plan.wanted(row)
            if not scorers:
                counts.skipped += 1
                continue
            remade = directory.path / layout.RESCORING / directory_name(*sample.key)
            scores = await score_row(
                directory, row, sample, scorers, ask=ask, process_pool=process_pool, remade=remade, again=again
            )
            kept = _merged(row, scores, keep_others=plan.named or plan.missing)
            where = directory.store.artifacts_of(row.n)
            artifacts = await threads.in_thread(redacted_names, where, directory.redactor)
            dependencies = plan.dependencies_of(sample)
            await threads.in_thread(directory.replace_scores, row.n, kept, artifacts, dependencies)
            counts.scored += 1
            counts.scorer_failures += sum(score.error is not None for score in scores)
            on_scored(row, scores)

    lanes = [asyncio.ensure_future(lane()) for _ in range(at_once)]
    try:
        await asyncio.gather(*lanes)
    finally:
        for task in lanes:
            task.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)
        await process_pool.close()
        await again.close()
        await threads.in_thread(shutil.rmtree, directory.path / layout.RESCORING, True)
    return counts


async def score_row(
    directory: RunDirectory,
    row: SampleRow,
    sample: Sample,
    scorers: Sequence[Scorer],
    *,
    ask: Ask | None,
    process_pool: ProcessPool,
    remade: Path,
    sources: Repositories | None = None,
    containers: Containers | None = None,
    again: NewContainers | None = None,
) -> list[Score]:
    """Score what is recorded of a sample, in what it worked in: as it is there, or made once more in `remade`.

    Commands of a sample that ran in a container run in that one if `containers` has it, else in a new one of `again`.
    """
    record = row.record
    assert record is not None
    artifacts = directory.store.artifacts_of(row.n)
    diff: bytes | None = None
    with contextlib.suppress(KeyError):
        diff = directory.store.artifact(row.n, layout.DIFF)
    agents_md = directory.store.agents_md(sample.variant)
    changes = _Changes(artifacts / layout.DIFF, diff, agents_md, sources)
    async with contextlib.AsyncExitStack() as stack:
        kept = directory.path / layout.WORK / directory_name(*sample.key)
        place = _Place(sample, record, kept, remade, changes, stack)
        workspace, session, problem = await place.of(scorers, containers, again)
        context = ScoreContext(
            sample=sample,
            final_response=record.final_response,
            responses=record.responses or (record.final_response,),
            workspace=workspace,
            diff=diff,
            artifacts=artifacts,
            ask=ask,
            session=session,
            in_container=sample.container is not None,
        )
        able = [scorer for scorer in scorers if not problem or not scorer.needs_workspace]
        found = {score.scorer: score for score in await score_sample(able, context, process_pool=process_pool)}
    unable = [Score(scorer=each.name, value=0.0, error=problem) for each in scorers if each not in able]
    found |= {score.scorer: score for score in unable}
    names = dict.fromkeys((*(scorer.name for scorer in scorers), *found))
    return [found[name] for name in names if name in found]


@dataclass(frozen=True, slots=True)
class _Changes:
    """Changes that an agent made: the file of the diff, and its contents, None if it was not kept; and the text of the
    AGENTS.md that the agent had of its variant, and the repositories of the run."""

    patch: Path
    diff: bytes | None
    agents_md: str | None
    sources: Repositories | None


@dataclass(frozen=True, slots=True)
class _Place:
    """The directory that a sample worked in: `kept` as it was left, else made in `remade` for as long as `stack`
    lasts."""

    sample: Sample
    record: RecordRow
    kept: Path
    remade: Path
    changes: _Changes
    stack: contextlib.AsyncExitStack

    async def of(
        self, scorers: Sequence[Scorer], containers: Containers | None, again: NewContainers | None
    ) -> tuple[Path | None, ContainerSession | None, str]:
        """Return the directory and the container that scorers get, and why there is none for those that need it."""
        sample, there = self.sample, _there(self.sample, self.kept)
        reopened = None if containers is None else reopen(sample, self.kept, containers)
        session = None if reopened is None else reopened.session
        is_needed = any(scorer.needs_workspace for scorer in scorers)
        # A function may look into a workspace, and may do without.
        is_wanted = is_needed or any(isinstance(scorer, Python) for scorer in scorers)
        is_new = again is not None and sample.container is not None
        if not is_wanted or (there is not None and not (is_new and is_needed)):
            return there, session, ""
        try:
            if again is not None and sample.container is not None:
                made = await self._in_new_container(again)
                return made.path, made.session, ""
            if sample.workspace is None:
                return await self._emptied(), None, ""
            if sample.container is not None:
                raise WorkspaceError(CONTAINER_GONE)
            return (await self._made(sample, None)).path, None, ""
        except (WorkspaceError, ContainerError) as error:
            return there, None, str(error)

    async def _emptied(self) -> Path:
        """The directory of a sample if it was left empty and so not kept. Raises WorkspaceError."""
        if self.sample.cwd is not None or self.record.tool_calls != 0:
            path = self.kept if self.sample.cwd is None else Path(self.sample.cwd)
            raise WorkspaceError(f"the directory {path} that the sample worked in is not there any more")
        await threads.in_thread(lambda: self.remade.mkdir(parents=True, exist_ok=True))
        self.stack.push_async_callback(threads.in_thread, shutil.rmtree, self.remade, True)
        return self.remade

    async def _in_new_container(self, again: NewContainers) -> Workspace:
        """The workspace, in a new container of the same image. Raises WorkspaceError, ContainerError."""
        sample, containers = await again.of(self.sample, self.record)
        there = reopen(sample, self.kept)
        if there is None:
            return await self._made(sample, containers)
        assert sample.container is not None
        container = await containers.start(sample.container, there.path)
        self.stack.push_async_callback(container.remove)
        return replace(there, place=container.place, session=container)

    async def _made(self, sample: Sample, containers: Containers | None) -> Workspace:
        """The workspace made once more, with what the agent changed, in a container if there are some.

        Raises WorkspaceError, ContainerError.
        """
        diff = self.changes.diff
        if diff is None:
            raise WorkspaceError("the workspace was not kept, and neither was its diff: run the sample again")
        if not is_whole(diff):
            raise WorkspaceError(
                "the workspace was not kept, and some of what had changed was too large to be kept: run the sample "
                "again, with --keep to score its workspace later"
            )
        # Where a hook would put it is where codex worked; scorers work on the files, here.
        made = await prepare(
            sample,
            self.remade,
            sources=self.changes.sources,
            agents_md=self.changes.agents_md,
            containers=containers,
        )
        self.stack.push_async_callback(made.remove)
        if diff:
            apply = ("apply", "--whitespace=nowarn", str(resolved(self.changes.patch)))
            await workspace_git.run(*apply, git_dir=made.directory / layout.BASE, work_tree=made.path)
        if containers is not None and sample.container is not None and made.session is not None:
            await containers.give(sample.container, made.session)
        return made


def _there(sample: Sample, kept: Path) -> Path | None:
    """Return the directory a sample worked in, if it is still there; `kept` is its own directory in the run."""
    if sample.workspace is not None:
        workspace = reopen(sample, kept)
        return None if workspace is None else workspace.path
    path = kept if sample.cwd is None else Path(sample.cwd)
    return path if path.is_dir() else None


def _merged(row: SampleRow, scores: Sequence[Score], *, keep_others: bool) -> list[Any]:
    new = {score.scorer for score in scores}
    others = [score for score in row.scores if score.scorer not in new] if keep_others else []
    return [*others, *scores]
