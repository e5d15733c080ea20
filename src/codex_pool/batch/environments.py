"""Environments of a thread: what runs its commands, and whether it can be reached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from codex_app_server import AppServerError, TransportClosedError
from codex_app_server.async_client import AsyncAppServerClient
from codex_app_server.operations import Operation

from .attempt import unless_stopped
from .validity import LOCAL, PENDING, READY, Health

# codex gives up connecting after 10 s, and resuming a connection after 25 s.
READY_LIMIT_S = 40.0
_FIRST_POLL_S, _LAST_POLL_S = 0.02, 0.5


class Environment(msgspec.Struct, rename="camel", frozen=True):
    """An environment as a thread names it; `cwd` is where it works there."""

    environment_id: str
    cwd: str = ""


class Begun(msgspec.Struct, rename="camel", frozen=True):
    """A thread that was begun: `path` is the file that it is stored in, on the machine of the app-server."""

    id: str
    cwd: str = ""
    path: str | None = None
    environments: list[Environment] | None = None

    @property
    def directories(self) -> list[str]:
        """The directories that its commands start in unless they name another."""
        return [self.cwd, *(each.cwd for each in self.environments or ())]


class _Answer(msgspec.Struct):
    thread: Begun


_decode = msgspec.json.Decoder(_Answer).decode


def _finish(result: bytes) -> Begun:
    try:
        return _decode(result).thread
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AppServerError(f"the answer to the start of a thread cannot be read: {error}") from None


async def begin(client: AsyncAppServerClient, operation: Operation[Any]) -> Begun:
    """Start or fork a thread. The directory is there: it need not be asked for, once more for each sample."""
    return await client.perform(msgspec.structs.replace(operation, finish=_finish, paths=()))


def remote(ids: Iterable[str]) -> list[str]:
    """Those whose health is to be asked for, each once."""
    return [each for each in dict.fromkeys(ids) if each != LOCAL]


async def health(
    client: AsyncAppServerClient, ids: Sequence[str], halt: asyncio.Future[str], *, told: str = ""
) -> list[Health]:
    """The health of each environment, once it is known: `pending` is waited for, READY_LIMIT_S at most.

    Raises Stopped when `halt` is done meanwhile, and TransportClosedError.
    """
    return [await _health(client, each, halt, told) for each in ids]


async def _health(client: AsyncAppServerClient, environment: str, halt: asyncio.Future[str], told: str) -> Health:
    deadline, pause_s = time.monotonic() + READY_LIMIT_S, _FIRST_POLL_S
    while True:
        try:
            asked = client.request("environment/status", {"environment_id": environment})
            answer = await unless_stopped(halt, asked)
        except TransportClosedError:
            raise
        except AppServerError as error:
            # Not known is not ready.
            return Health(environment, "unknown", str(error), told)
        status = str(getattr(answer.status, "value", answer.status))
        if status != PENDING or time.monotonic() > deadline:
            return Health(environment, status, answer.error, "" if status == READY else told)
        await unless_stopped(halt, asyncio.sleep(pause_s))
        pause_s = min(_LAST_POLL_S, pause_s * 2)
