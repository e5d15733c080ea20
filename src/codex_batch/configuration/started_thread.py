"""StartedThread: a thread as the answer to its start, fork or read has it: its directories, its file, who answers.

`thread/start` answers model, provider and service tier as they are; `config/read` does not know of a default model, nor
of a service tier that the model has not got (measured on codex 0.163.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from codex_app_server import AppServerError
from codex_app_server._async.client import AsyncAppServerClient
from codex_app_server.operations import Operation

from ..rules.bill import Answering
from .effective import NOBODY, Answered


class Environment(msgspec.Struct, rename="camel", frozen=True):
    """An environment as a thread names it; `cwd` is where it works there."""

    environment_id: str
    cwd: str = ""


class StartedThread(msgspec.Struct, frozen=True, kw_only=True):
    """A thread that was started: `path` is the file that it is stored in, on the machine of the app-server."""

    id: str
    cwd: str = ""
    path: str | None = None
    environments: list[Environment] | None = None
    answered: Answered = NOBODY
    service_tier: str | None = None

    @property
    def answering(self) -> Answering:
        """Model, provider and service tier by which its requests are priced."""
        return Answering(self.answered.model, self.answered.provider, self.service_tier)

    @property
    def directories(self) -> list[str]:
        """The directories that its commands start in unless they name another."""
        return [self.cwd, *(each.cwd for each in self.environments or ())]


class _Thread(msgspec.Struct, rename="camel"):
    id: str
    cwd: str = ""
    path: str | None = None
    environments: list[Environment] | None = None
    cli_version: Any = None


class _Answer(msgspec.Struct, rename="camel"):
    thread: _Thread
    model: Any = None
    model_provider: Any = None
    reasoning_effort: Any = None
    service_tier: Any = None


_decode = msgspec.json.Decoder(_Answer).decode


def _finish(result: bytes) -> StartedThread:
    try:
        answer = _decode(result)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AppServerError(f"the answer to the start of a thread cannot be read: {error}") from None
    thread = answer.thread
    return StartedThread(
        id=thread.id,
        cwd=thread.cwd,
        path=thread.path,
        environments=thread.environments,
        answered=Answered(
            model=text(answer.model),
            provider=text(answer.model_provider),
            effort=text(answer.reasoning_effort),
            codex_version=text(thread.cli_version),
        ),
        service_tier=text(answer.service_tier),
    )


async def start_thread(client: AsyncAppServerClient, operation: Operation[Any]) -> StartedThread:
    """Perform the start or fork of a thread, whose directory is not looked for before. Raises AppServerError."""
    return await client.perform(msgspec.structs.replace(operation, finish=_finish, paths=()))


def without_servers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides for a thread that is only to be asked: without those of MCP servers, which it would start."""
    return {key: value for key, value in config.items() if key.split(".")[0] != "mcp_servers"}


def text(value: Any) -> str | None:
    """A setting as text, also one of an enumeration; None if it is not that."""
    value = getattr(value, "value", value)
    return value if isinstance(value, str) else None
