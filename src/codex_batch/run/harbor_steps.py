"""Steps of a Harbor task in the container of one attempt: what is done before and after the agent works at each.

prepare    directories of logs, health of the container
before     of a later step: tests and logs of the last one away, its files in, setup.sh, health
agent      a turn, or the solution
after      tests in, stale rewards away, test.sh, its rewards and logs out; may end the attempt early
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codex_app_server._runtime import threads

from ..harbor.collected import Collected
from ..harbor.folder import SETUP, SOLVE, TEST, TaskFolder
from ..harbor.report import Phase, Report, StepReport
from ..harbor.rewards import JSON, TEXT, NoReward, below, rewards_of
from ..harbor.task import AGENT_LOGS, ARTIFACTS, SOLUTION, TESTS, VERIFIER_LOGS, Healthcheck, Step
from ..harbor.variables import UnsetVariable, values_of
from .attempt_steps import StepFailed

if TYPE_CHECKING:
    from ..container.session import ContainerSession, Ran

OUTPUT, ORACLE_OUTPUT = "test-stdout.txt", "oracle.txt"
# Of commands that only move a few files.
SHORT_S, SETUP_S = 60.0, 600.0
# Of a solution whose task has no limit for its agent.
SOLUTION_S = 3600.0
_ROOT = "root"
# Prints how each of some paths is.
_LOOK = """
for path; do
  state=missing
  [ ! -e "$path" ] || state=there
  [ ! -d "$path" ] || [ -n "$(ls -A "$path")" ] || state=empty
  echo $state
done
"""
_ORACLE = {"DEBIAN_FRONTEND": "noninteractive"}


class HarborSteps:
    """The steps of one attempt. `environment` is that of the run, for variables that refer to it."""

    def __init__(
        self,
        folder: TaskFolder,
        session: ContainerSession,
        *,
        oracle: bool = False,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._task = folder.task
        self._session = session
        self._oracle = oracle
        self._environment = environment
        self._clock = clock
        self._reports: list[StepReport] = []
        self._collected = Collected()
        # Of the step that was begun last, until it is verified.
        self._index: int | None = None
        self._began_at = 0.0
        self._ended: str | None = None

    @property
    def _agent_user(self) -> str:
        return self._task.user or self._session.image_user or _ROOT

    @property
    def count(self) -> int:
        """Number of steps."""
        return len(self._task.steps)

    def timeout_s(self, index: int) -> float | None:
        """The limit of the agent's turn in a step, in seconds."""
        return self._task.steps[index].timeout_s

    @property
    def is_fresh(self) -> bool:
        """True until a step was begun."""
        return self._index is None and not self._reports

    def resume(self) -> None:
        """Let the only step be verified whose turn ended in an earlier launch."""
        self._index, self._began_at = 0, self._clock()

    def files(self) -> dict[str, bytes]:
        """The artifacts of the steps that were run, with the report, by name."""
        report = Report(tuple(self._reports), self._task.is_mean, self._oracle, self._ended)
        return self._collected.with_report(report)

    async def before(self, index: int) -> None:
        """Make the container ready for a step. Raises StepFailed."""
        step = self._task.steps[index]
        logs = f"{VERIFIER_LOGS} {AGENT_LOGS} {ARTIFACTS}"
        await self._do(f"mkdir -p {logs} && chmod 777 /logs {logs}")
        if index == 0:
            await self._until_healthy(self._task.environment.healthcheck)
        else:
            await self._do(
                f"rm -rf {TESTS} {VERIFIER_LOGS}/* {VERIFIER_LOGS}/.[!.]* {AGENT_LOGS}/* {AGENT_LOGS}/.[!.]*"
            )
        workdir = self._folder.workdir_of(step)
        if workdir is not None:
            await self._session.put(workdir, self._session.workdir)
            if (workdir / SETUP).is_file():
                await self._set_up(step)
        await self._until_healthy(step.healthcheck)
        self._index, self._began_at = index, self._clock()

    async def solve(self, index: int) -> None:
        """Run the solution of a step; what it ends with is for the verifier to see. Raises StepFailed."""
        step = self._task.steps[index]
        solution = self._folder.solution_of(step)
        assert solution is not None
        await self._session.put(solution, SOLUTION)
        await self._do(f"chmod +x {SOLUTION}/{SOLVE}")
        try:
            environment = {**_ORACLE, **values_of(self._task.solution_environment, self._environment)}
        except UnsetVariable as error:
            raise StepFailed(f"solution.env: {error}") from None
        await self._script(
            f"{SOLUTION}/{SOLVE}",
            f"{AGENT_LOGS}/{ORACLE_OUTPUT}",
            user=self._agent_user,
            environment=environment,
            timeout_s=step.timeout_s or SOLUTION_S,
        )

    async def verify(self) -> bool:
        """See AttemptSteps.verify."""
        if self._index is not None:
            step, self._index = self._task.steps[self._index], None
            await self._verify_and_keep(step)
        return self._ended is None

    async def _verify_and_keep(self, step: Step) -> None:
        agent, began_at = Phase(self._began_at, self._clock()), self._clock()
        prefix = f"steps/{step.name}/" if step.name else ""
        rewards, problem, kind = None, None, None
        try:
            rewards = await self._rewards(step, prefix)
        except NoReward as error:
            problem, kind = str(error), error.kind
        verifier = Phase(began_at, self._clock())
        kept = [(AGENT_LOGS, "agent"), *((each.source, f"artifacts/{each.destination}") for each in step.artifacts)]
        await self._collect(prefix, kept)
        self._reports.append(StepReport(step.name, rewards, problem, kind, agent, verifier))
        place = f"step {step.name}" if step.name else "the task"
        if rewards is None:
            self._ended = f"{place} has no reward"
        elif (why := below(rewards, step.min_reward)) is not None:
            self._ended = f"{place}: {why}"

    async def _rewards(self, step: Step, prefix: str) -> dict[str, float]:
        """The rewards of a step. Raises NoReward."""
        verifier = step.verifier
        await self._do(f"mkdir -p {TESTS} && rm -rf {VERIFIER_LOGS}/{TEXT} {VERIFIER_LOGS}/{JSON}")
        for tests in self._folder.tests_of(step):
            await self._session.put(tests, TESTS)
        await self._do(f"chmod +x {TESTS}/{TEST}")
        try:
            environment = values_of(verifier.environment, self._environment)
        except UnsetVariable as error:
            raise NoReward(f"verifier.env: {error}") from None
        ran = await self._script(
            f"{TESTS}/{TEST}",
            f"{VERIFIER_LOGS}/{OUTPUT}",
            user=verifier.user or self._session.image_user or _ROOT,
            environment=environment,
            timeout_s=verifier.timeout_s,
        )
        logs = await self._collect(prefix, [(VERIFIER_LOGS, "verifier")])
        if ran.timed_out:
            raise NoReward(
                f"test.sh ran longer than verifier.timeout_sec of {verifier.timeout_s:g} s", kind="VerifierTimeoutError"
            )
        return rewards_of(logs)

    async def _set_up(self, step: Step) -> None:
        script = f"{self._session.workdir.rstrip('/')}/{SETUP}"
        ran = await self._session.run(["bash", script], user=self._agent_user, timeout_s=SETUP_S)
        if ran.timed_out or ran.exit_code != 0:
            raise StepFailed(f"setup.sh of step {step.name} {_how(ran, SETUP_S)}: {_tail(ran)}")

    async def _until_healthy(self, check: Healthcheck | None) -> None:
        """Run the check until it ends with 0. Raises StepFailed when it has failed too often."""
        if check is None:
            return
        begins_to_count_at, failures = time.monotonic() + check.start_period_s, 0
        while True:
            ran = await self._session.run(["sh", "-c", check.command], user=self._agent_user, timeout_s=check.timeout_s)
            if ran.exit_code == 0 and not ran.timed_out:
                return
            starts = time.monotonic() < begins_to_count_at
            failures += not starts
            if failures >= check.retries:
                raise StepFailed(f"the healthcheck {check.command!r} {_how(ran, check.timeout_s)}: {_tail(ran)}")
            await asyncio.sleep(check.start_interval_s if starts else check.interval_s)

    async def _script(
        self, path: str, output: str, *, user: str | None, environment: Mapping[str, str], timeout_s: float
    ) -> Ran:
        """Run a script in the working directory, with all that it prints in a file."""
        command = ["sh", "-c", f"exec {path} > {output} 2>&1"]
        return await self._session.run(command, user=user, env=environment, timeout_s=timeout_s)

    async def _do(self, command: str) -> None:
        ran = await self._session.run(["sh", "-c", command], user=_ROOT, timeout_s=SHORT_S)
        if ran.timed_out or ran.exit_code != 0:
            raise StepFailed(f"{command!r} in the container {_how(ran, SHORT_S)}: {_tail(ran)}")

    async def _collect(self, prefix: str, wanted: Sequence[tuple[str, str]]) -> dict[str, bytes]:
        """Keep files and directories of the container, each by a name; return the last one's by their names in it."""
        sources = [posixpath.join(self._session.workdir, source) for source, _ in wanted]
        ran = await self._session.run(["sh", "-c", _LOOK, "sh", *sources], user=_ROOT, timeout_s=SHORT_S)
        states = ran.stdout.decode("utf-8", "replace").split()
        if ran.timed_out or len(states) != len(sources):
            # The agent may have put anything in the place of the shell.
            raise StepFailed(f"the shell in the container does not tell which of {', '.join(sources)} there are")
        found: dict[str, bytes] = {}
        for source, (_, name), state in zip(sources, wanted, states, strict=True):
            if state in ("missing", "empty"):
                self._collected.note(source, prefix, name, state)
                continue
            with tempfile.TemporaryDirectory() as directory:
                target = Path(directory, "collected")
                await self._session.get(source, target)
                found = await threads.in_thread(self._collected.add, source, target, prefix, name)
        return found


def _how(ran: Ran, timeout_s: float) -> str:
    return f"took longer than {timeout_s:g} s" if ran.timed_out else f"ended with {ran.exit_code}"


def _tail(ran: Ran) -> str:
    text = (ran.stderr or ran.stdout).decode("utf-8", "backslashreplace").strip()
    return text[-500:] or "it printed nothing"
