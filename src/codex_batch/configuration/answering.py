"""Model, provider and service tier of a thread, asked of the app-server, which decides them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codex_app_server import AsyncCodex, operations
from codex_pool import trust
from codex_pool.sandbox_modes import READ_ONLY

from ..rules.bill import Answering
from .started_thread import start_thread, without_servers


async def ask_who_answers(
    codex: AsyncCodex, model: str | None, directory: Path, config: Mapping[str, Any] | None = None
) -> Answering:
    """Find out what answers on threads that ask for `model`, or for none, by starting one in `directory`.

    `config`: further overrides of codex's configuration, as a variant has them.

    Raises AppServerError.
    """
    options = {
        "cwd": str(directory),
        "model": model,
        "sandbox": READ_ONLY,
        "approval_policy": "never",
        "ephemeral": True,
        "config": {**without_servers(config or {}), **trust.untrusting(str(directory))},
    }
    started = await start_thread(codex.client, operations.thread_start(options))
    await codex.client.request("thread/unsubscribe", {"thread_id": started.id})
    return started.answering
