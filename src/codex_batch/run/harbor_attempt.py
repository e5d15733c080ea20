"""Attempts at Harbor tasks: with the solution instead of an agent, and verified once they have ended."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import msgspec

from ..container.errors import ContainerError
from ..dataset import Sample
from ..harbor.folder import TaskFolder, read_folder
from ..harbor.parse import TaskError
from ..harbor.variables import UnsetVariable, values_of
from ..rules.retry import Outcome
from ..rules.validity import SCORED
from ..workspace import Workspace, WorkspaceError
from .attempt_steps import StepFailed, failed
from .executor import AttemptListener, AttemptResult, SampleJob
from .harbor_steps import HarborSteps
from .stopping import unless_stopped

# How long a verifier may go on when the run stops: its turn is paid for.
VERIFY_GRACE_S = 10.0


def is_oracle(sample: Sample) -> bool:
    """Return True for a sample whose solution is run instead of an agent."""
    return sample.harbor is not None and bool(sample.harbor["oracle"])


def steps_of(sample: Sample, workspace: Workspace | None) -> HarborSteps | None:
    """The steps of a sample in its container; None for one that is no task of Harbor. Raises WorkspaceError."""
    if sample.harbor is None:
        return None
    session = None if workspace is None else workspace.session
    if session is None:
        task = sample.harbor["task"]
        raise WorkspaceError(f"{task}: a task of Harbor runs in a container; name an engine with --container")
    return HarborSteps(_folder(sample), session, oracle=is_oracle(sample))


def _folder(sample: Sample) -> TaskFolder:
    assert sample.harbor is not None
    try:
        return read_folder(Path(sample.harbor["task"]), ignored=sample.harbor["ignored"])
    except TaskError as error:
        raise WorkspaceError(f"the task was changed during the run: {error}") from None


def with_variables(sample: Sample) -> Sample:
    """The sample with the variables of its container as the environment of the run has them. Raises WorkspaceError."""
    if sample.harbor is None or sample.container is None:
        return sample
    try:
        variables = values_of(sample.container.environment, os.environ)
    except UnsetVariable as error:
        raise WorkspaceError(f"environment.env: {error}") from None
    return msgspec.structs.replace(sample, container=replace(sample.container, environment=variables))


async def run_solutions(
    job: SampleJob, listener: AttemptListener, workspace: Workspace | None, steps: HarborSteps
) -> AttemptResult:
    """Run the solution of each step; no turn is started. Raises Stopped."""
    start = await listener.started(os.urandom(16).hex(), None)
    listener.assigned()
    began_at, outcome = time.time(), Outcome("completed")

    async def run() -> None:
        for index in range(steps.count):
            if index > 0 and not await steps.verify():
                break
            await steps.before(index)
            await steps.solve(index)

    try:
        await unless_stopped(job.halt, run())
    except (StepFailed, ContainerError) as error:
        outcome = failed(error)
    result = AttemptResult(start, outcome, workspace, started_at=began_at)
    result.steps = steps
    return result


async def verify(job: SampleJob, result: AttemptResult) -> None:
    """Verify the step that the attempt ended in, and keep what it left; an attempt that cannot be verified is lost.

    Raises Stopped: the attempt has no end in the store then, and the next launch recovers it.
    """
    sample = job.sample
    if sample.harbor is None or result.outcome.status not in SCORED:
        return
    try:
        steps = result.steps or steps_of(sample, result.workspace)
        assert steps is not None
        if steps.is_fresh:
            # Its turns ended in an earlier launch, or with an earlier pool.
            if steps.count > 1:
                raise ContainerError("the rewards of its steps are gone with the launch that ran them")
            steps.resume()
        await unless_stopped(job.halt, steps.verify(), grace_s=VERIFY_GRACE_S)
        result.kept = steps.files()
    except (StepFailed, ContainerError, WorkspaceError) as error:
        status, problem = failed(error).status, failed(error).error
        result.outcome = msgspec.structs.replace(result.outcome, status=status, error=problem, limit=None)
