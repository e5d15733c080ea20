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

from . import policy
from .attempt import turn_key, unless_stopped
from .effective import NOBODY, Answered
from .effective_reading import answered_of
from .limits import TOOL_CALLS
from .store import AttemptRow, EventLog

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
    answered: Answered = NOBODY

    @property
    def responses(self) -> list[str | None]:
        return [final_response(turn.items) for turn in self.turns]

    @property
    def tool_calls(self) -> int:
        return sum(str(getattr(item, "type", "")) in TOOL_CALLS for turn in self.turns for item in turn.items)

    @property
    def refused(self) -> str | None:
        """What the sandbox said, if it let no command of them begin: they are of no use then."""
        commands = policy.Commands()
        for turn in self.turns:
            for item in turn.items:
                commands.completed(_plain(item))
        return commands.refused

    def events(self) -> bytes | None:
        """An event log of what is stored."""
        events = EventLog()
        for turn in self.turns:
            for item in turn.items:
                told = {"item": _plain(item), "threadId": self.thread_id, "turnId": turn.id}
                line = {"method": "item/completed", "params": told}
                events.add(json.dumps(line, separators=(",", ":")).encode())
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
            return Left(attempt.key, attempt.thread_id, found, len(found) == prompts, answered_of(response.thread))
        await unless_stopped(halt, asyncio.sleep(RUNNING_POLL_S))


def _plain(item: Any) -> dict[str, Any]:
    plain: dict[str, Any] = item.model_dump(mode="json", by_alias=True)
    return plain


def _turn_of(turns: Sequence[Any], key: str, index: int) -> Any:
    """The last turn of a key's prompt: an earlier one was cut."""
    prefix = turn_key(key, index, 0)[:-1]
    found = [turn for turn in turns if any(str(getattr(i, "client_id", None)).startswith(prefix) for i in turn.items)]
    return found[-1] if found else None
