"""Attempts whose end no run saw: their turns are looked for in the stored thread, so that none is paid for twice."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from codex_app_server import AppServerError, TransportClosedError
from codex_app_server._async.client import AsyncAppServerClient
from codex_app_server.results import final_response

from ..configuration.effective import NOBODY, Answered
from ..configuration.started_thread import Environment, StartedThread, text
from ..container.running import Containers
from ..dataset import Sample
from ..redaction.redactor import NOTHING, Redactor
from ..rules import validity
from ..rules.limits import TOOL_CALLS
from ..rules.retry import Outcome
from ..rules.validity import Facts, ToolCalls
from ..store import AttemptRow, EventLog, RunDirectory, Start
from ..workspace import Workspace, reopen
from .attempt import turn_key
from .attempt_facts import find_hidden_calls
from .environments import environments_of, health, remote
from .executor import AttemptListener, AttemptResult, SampleJob
from .rollout_archive import RolloutArchive
from .run_pools import RunClients
from .stopping import unless_stopped

# How long a turn that a dead run left may still run.
RUNNING_LIMIT_S = 60.0
RUNNING_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class RecoveredTurns:
    """Turns of an attempt that were completed, in a thread that can be continued; `whole`: all of them."""

    key: str
    thread_id: str
    turns: Sequence[Any]
    whole: bool
    thread: StartedThread | None = None

    @property
    def path(self) -> str | None:
        """The session file of the thread."""
        return None if self.thread is None else self.thread.path

    @property
    def responses(self) -> list[str | None]:
        return [final_response(turn.items) for turn in self.turns]

    @property
    def tool_calls(self) -> int:
        return sum(str(getattr(item, "type", "")) in TOOL_CALLS for turn in self.turns for item in turn.items)

    def calls(self) -> ToolCalls:
        """Return the tool calls of the turns, as far as the stored items show them."""
        own = [] if self.thread is None else self.thread.directories
        calls = ToolCalls(own)
        calls.has_environment = bool(self.environments)
        for turn in self.turns:
            for item in turn.items:
                calls.completed(_plain(item))
        return calls

    @property
    def environments(self) -> list[str]:
        """The environments of the thread whose health is to be asked for."""
        named = [] if self.thread is None else self.thread.environments or []
        return remote(each.environment_id for each in named)

    def events(self, redactor: Redactor = NOTHING) -> bytes | None:
        """An event log of what is stored."""
        events = EventLog(redactor)
        for turn in self.turns:
            for item in turn.items:
                params = {"item": _plain(item), "threadId": self.thread_id, "turnId": turn.id}
                line = {"method": "item/completed", "params": params}
                if events.add(json.dumps(line, separators=(",", ":")).encode()):
                    events.compress()
        return events.member()


async def recover_turns(
    client: AsyncAppServerClient, attempt: AttemptRow, prompts: int, halt: asyncio.Future[str]
) -> RecoveredTurns | None:
    """Read what is stored of an attempt with so many prompts; None if there is nothing to be read.

    A turn that still runs is waited for. Raises Stopped when `halt` is done meanwhile, and TransportClosedError.
    """
    if attempt.thread_id is None:
        return None
    request = {"thread_id": attempt.thread_id, "include_turns": True}
    deadline = time.monotonic() + RUNNING_LIMIT_S
    while True:
        try:
            response = await unless_stopped(halt, client.request("thread/read", request))
        except TransportClosedError:
            raise
        except AppServerError:
            return None
        found: list[Any] = []
        for index in range(prompts):
            turn = _turn_of(response.thread.turns, attempt.key, index)
            if turn is None or turn.status != "completed":
                break
            found.append(turn)
        else:
            turn = None
        if turn is None or turn.status != "inProgress" or time.monotonic() > deadline:
            return RecoveredTurns(
                attempt.key, attempt.thread_id, found, len(found) == prompts, _thread_of(response.thread)
            )
        await unless_stopped(halt, asyncio.sleep(RUNNING_POLL_S))


class Recovery:
    """Recovers attempts of one run on its present pools."""

    def __init__(
        self,
        clients: RunClients,
        directory: RunDirectory,
        rollouts: RolloutArchive,
        containers: Containers | None = None,
    ) -> None:
        self._clients = clients
        self._directory = directory
        self._rollouts = rollouts
        self._containers = containers

    async def unfinished(self, job: SampleJob, attempt: AttemptRow, path: Path) -> AttemptResult:
        """Return an attempt that a run which died had started, judged: `completed` if all its turns were, else `lost`.

        `path` is the sample's directory. Raises Stopped, TransportClosedError.
        """
        start = Start(attempt.n, attempt.attempt)
        recovered = await self._recovered(job, attempt)
        had = 0 if recovered is None else len(recovered.turns)
        how = f"it had {had} turns before" if had else "its turn was never completed"
        problem = {"kind": "lost", "message": f"the run died before the attempt ended; {how}"}
        lost = AttemptResult(start, Outcome("lost", problem, thread_id=attempt.thread_id))
        if recovered is None:
            return lost
        lost.rollouts = await self._rollouts.of(recovered.thread_id, recovered.path)
        if not recovered.whole:
            return lost
        workspace = reopen(job.sample, path, self._containers) if job.sample.workspace is not None else None
        if workspace is None and job.sample.workspace is not None:
            return lost
        result = await self._completed(job, start, recovered, workspace)
        result.outcome = validity.judged(result.outcome, result.facts)
        return result

    async def after_loss(self, job: SampleJob, result: AttemptResult) -> AttemptResult:
        """Return an attempt that was lost with its pool: completed, if its turns are stored so, else as it is.

        Raises Stopped, TransportClosedError.
        """
        attempts = self._directory.store.attempts(job.row.n)
        recovered = await self._recovered(job, attempts[-1]) if attempts else None
        if recovered is None or not recovered.whole:
            return result
        found = await self._completed(job, result.start, recovered, result.workspace)
        # A full disk, or what could not be read, is not seen in what is stored.
        found.facts.full, found.facts.undecoded = result.facts.full, result.facts.undecoded
        lost = result.outcome
        found.outcome = msgspec.structs.replace(
            found.outcome, usage=lost.usage, worker=lost.worker, queued_ms=lost.queued_ms
        )
        found.note = "completed when its pool was lost; recovered from its thread"
        found.agents_md, found.answered, found.began_at = result.agents_md, result.answered, result.began_at
        return found

    async def to_continue(self, job: SampleJob, listener: AttemptListener) -> RecoveredTurns | None:
        """Return turns of the last attempt that need not be run again. Raises Stopped, TransportClosedError."""
        # A try in a container has one of its own, and a fork would have none.
        if len(job.sample.prompts) == 1 or job.sample.container is not None:
            return None
        last = listener.previous()
        # Turns that have been asked for in other words are of no use.
        if last is None or last.status in (None, "completed", "limit") or last.digest != job.row.digest:
            return None
        if last.fingerprint != job.row.fingerprint:
            return None
        # What turns did without room, or without a sandbox, is not built on.
        if not validity.may_be_built_on(last.error):
            return None
        recovered = await self._recovered(job, last)
        if recovered is None or not recovered.turns or recovered.whole or recovered.calls().problem is not None:
            return None
        return recovered

    async def _recovered(self, job: SampleJob, attempt: AttemptRow) -> RecoveredTurns | None:
        client = self._clients.of(job.sample.variant).codex.client
        return await recover_turns(client, attempt, len(job.sample.prompts), job.halt)

    async def _completed(
        self, job: SampleJob, start: Start, recovered: RecoveredTurns, workspace: Workspace | None
    ) -> AttemptResult:
        """The result of an attempt all of whose turns are stored as completed. Raises Stopped, TransportClosedError."""
        facts, client = Facts(recovered.calls()), self._clients.of(job.sample.variant).codex.client
        await find_hidden_calls(facts, recovered.path)
        if workspace is not None and workspace.environment is not None:
            # This pool does not know it yet.
            await unless_stopped(job.halt, client.request("environment/add", workspace.environment))
        ids = remote([*environments_of(workspace), *recovered.environments])
        facts.environments = await health(client, ids, job.halt)
        last = recovered.turns[-1]
        outcome = Outcome(
            "completed",
            final_response=recovered.responses[-1],
            thread_id=recovered.thread_id,
            turn_id=last.id,
            duration_ms=sum(turn.duration_ms or 0 for turn in recovered.turns),
        )
        return AttemptResult(
            start,
            outcome,
            workspace,
            recovered.responses,
            len(recovered.turns),
            recovered.tool_calls,
            started_at=recovered.turns[0].started_at or time.time(),
            events=recovered.events(self._directory.redactor),
            rollouts=await self._rollouts.of(recovered.thread_id, recovered.path),
            note="completed after its run had died; recovered from its thread",
            facts=facts,
            answered=with_effort(job.sample, NOBODY if recovered.thread is None else recovered.thread.answered),
        )


def with_effort(sample: Sample, answered: Answered, rerouted: tuple[str, str] | None = None) -> Answered:
    """Return who answers in a thread, with the effort of the sample's turns and the model it was rerouted to."""
    answered = msgspec.structs.replace(answered, effort=sample.effort or answered.effort)
    if rerouted is None:
        return answered
    return msgspec.structs.replace(answered, rerouted_from=rerouted[0], model=rerouted[1])


def _thread_of(thread: Any) -> StartedThread:
    """A `thread` of the answer to thread/read."""
    named = [Environment(each.environment_id, each.cwd) for each in thread.environments or ()]
    names = ("model", "model_provider", "reasoning_effort", "cli_version")
    model, provider, effort, version = (text(getattr(thread, name, None)) for name in names)
    answered = Answered(model=model, provider=provider, effort=effort, codex_version=version)
    return StartedThread(id=thread.id, cwd=thread.cwd, path=thread.path, environments=named, answered=answered)


def _plain(item: Any) -> dict[str, Any]:
    plain: dict[str, Any] = item.model_dump(mode="json", by_alias=True)
    return plain


def _turn_of(turns: Sequence[Any], key: str, index: int) -> Any:
    """The last turn of a key's prompt: an earlier one was cut."""
    prefix = turn_key(key, index, 0)[:-1]
    found = [turn for turn in turns if any(str(getattr(i, "client_id", None)).startswith(prefix) for i in turn.items)]
    return found[-1] if found else None
