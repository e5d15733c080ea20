"""What a run that died has left of an attempt: turns that are stored in its thread."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from codex_app_server import AppServerError, TransportClosedError
from codex_app_server.async_client import AsyncAppServerClient
from codex_app_server.results import final_response

from .attempt import turn_key, unless_stopped
from .begun import Begun, Environment, text
from .effective import Answered
from .environments import remote
from .limits import TOOL_CALLS
from .redaction import NOTHING, Redactor
from .store import AttemptRow, EventLog
from .validity import ToolCalls

# How long a turn that a dead run left may still run.
RUNNING_LIMIT_S = 60.0
RUNNING_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Left:
    """Turns of an attempt that were completed, in a thread that can be gone on with; `whole`: all of them."""

    key: str
    thread_id: str
    turns: Sequence[Any]
    whole: bool
    thread: Begun | None = None

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
                told = {"item": _plain(item), "threadId": self.thread_id, "turnId": turn.id}
                line = {"method": "item/completed", "params": told}
                if events.add(json.dumps(line, separators=(",", ":")).encode()):
                    events.compress()
        return events.member()


async def left_of(
    client: AsyncAppServerClient, attempt: AttemptRow, prompts: int, halt: asyncio.Future[str]
) -> Left | None:
    """What is stored of an attempt with so many prompts; None if there is nothing to be read.

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
            return Left(attempt.key, attempt.thread_id, found, len(found) == prompts, _begun(response.thread))
        await unless_stopped(halt, asyncio.sleep(RUNNING_POLL_S))


def _begun(thread: Any) -> Begun:
    """A `thread` of the answer to thread/read."""
    named = [Environment(each.environment_id, each.cwd) for each in thread.environments or ()]
    names = ("model", "model_provider", "reasoning_effort", "cli_version")
    model, provider, effort, version = (text(getattr(thread, name, None)) for name in names)
    answered = Answered(model=model, provider=provider, effort=effort, codex_version=version)
    return Begun(id=thread.id, cwd=thread.cwd, path=thread.path, environments=named, answered=answered)


def _plain(item: Any) -> dict[str, Any]:
    plain: dict[str, Any] = item.model_dump(mode="json", by_alias=True)
    return plain


def _turn_of(turns: Sequence[Any], key: str, index: int) -> Any:
    """The last turn of a key's prompt: an earlier one was cut."""
    prefix = turn_key(key, index, 0)[:-1]
    found = [turn for turn in turns if any(str(getattr(i, "client_id", None)).startswith(prefix) for i in turn.items)]
    return found[-1] if found else None
