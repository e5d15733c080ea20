"""Which model answers on a thread, with which provider and service tier: asked of the app-server, which decides it.

`thread/start` answers with all three; `config/read` does not know of a default model, nor of a service tier that the
model has not got (measured on codex 0.163.0).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from codex_app_server import AppServerError, AsyncCodex, operations
from codex_app_server.async_api import AsyncThread
from codex_app_server.async_client import AsyncAppServerClient
from codex_app_server.operations import Operation
from codex_pool import trust

from .bill import Answering


class _Named(msgspec.Struct):
    id: str


class _Begun(msgspec.Struct, rename="camel"):
    """The part of the answer to thread/start, resume or fork that says who answers."""

    thread: _Named
    model: str | None = None
    model_provider: str | None = None
    service_tier: str | None = None


_decode = msgspec.json.Decoder(_Begun).decode


def _finish(result: bytes) -> _Begun:
    try:
        return _decode(result)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AppServerError(f"the answer to the start of a thread does not name one: {error}") from None


async def begin_thread(
    client: AsyncAppServerClient, operation: Operation[Any], *, looked_for: bool = False
) -> tuple[AsyncThread, Answering]:
    """Perform the start or fork of a thread; the thread, and what answers on it. Raises AppServerError.

    `looked_for`: whether its directory is to be looked for first, which costs a request.
    """
    paths = operation.paths if looked_for else ()
    begun = await client.perform(msgspec.structs.replace(operation, finish=_finish, paths=paths))
    return AsyncThread(client, begun.thread.id), Answering(begun.model, begun.model_provider, begun.service_tier)


async def ask_who_answers(codex: AsyncCodex, model: str | None, directory: Path) -> Answering:
    """What answers on threads that ask for `model`, or for none: by starting one, in `directory`, that has no turn.

    Raises AppServerError.
    """
    options = {
        "cwd": str(directory),
        "model": model,
        "sandbox": "read-only",
        "approval_policy": "never",
        "ephemeral": True,
        "config": trust.untrusting(str(directory)),
    }
    thread, answering = await begin_thread(codex.client, operations.thread_start(options))
    await codex.client.request("thread/unsubscribe", {"thread_id": thread.id})
    return answering
