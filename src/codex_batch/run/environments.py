"""Environments of a thread: what runs its commands, and whether it can be reached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

from codex_app_server import AppServerError, TransportClosedError
from codex_app_server._async.client import AsyncAppServerClient

from ..rules.validity import LOCAL, PENDING, READY, Health
from ..workspace import Workspace
from .stopping import unless_stopped

# codex gives up connecting after 10 s, and resuming a connection after 25 s.
READY_LIMIT_S = 40.0
_FIRST_POLL_S, _LAST_POLL_S = 0.02, 0.5


def remote(ids: Iterable[str]) -> list[str]:
    """Select the environments whose health is to be asked for, each once."""
    return [each for each in dict.fromkeys(ids) if each != LOCAL]


def environments_of(workspace: Workspace | None) -> list[str]:
    """Return the ids of the environments that a workspace asks for, its own first."""
    if workspace is None:
        return []
    named = workspace.thread.get("environments") or ()
    ids = [str(each.get("environmentId") or each.get("environment_id")) for each in named]
    return ids if workspace.environment is None else [workspace.environment["environmentId"], *ids]


async def health(
    client: AsyncAppServerClient, ids: Sequence[str], halt: asyncio.Future[str], *, note: str = ""
) -> list[Health]:
    """The health of each environment, once it is known: `pending` is waited for, READY_LIMIT_S at most.

    Raises Stopped when `halt` is done meanwhile, and TransportClosedError.
    """
    return [await _health(client, each, halt, note) for each in ids]


async def _health(client: AsyncAppServerClient, environment: str, halt: asyncio.Future[str], note: str) -> Health:
    deadline, pause_s = time.monotonic() + READY_LIMIT_S, _FIRST_POLL_S
    while True:
        try:
            asked = client.request("environment/status", {"environment_id": environment})
            answer = await unless_stopped(halt, asked)
        except TransportClosedError:
            raise
        except AppServerError as error:
            # Not known is not ready.
            return Health(environment, "unknown", str(error), note)
        status = str(getattr(answer.status, "value", answer.status))
        if status != PENDING or time.monotonic() > deadline:
            return Health(environment, status, answer.error, "" if status == READY else note)
        await unless_stopped(halt, asyncio.sleep(pause_s))
        pause_s = min(_LAST_POLL_S, pause_s * 2)
