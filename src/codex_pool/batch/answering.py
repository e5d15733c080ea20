"""Model, provider and service tier of a thread, asked of the app-server, which decides them."""

from __future__ import annotations

from pathlib import Path

from codex_app_server import AsyncCodex, operations
from codex_pool import trust

from .begun import begin
from .bill import Answering


async def ask_who_answers(codex: AsyncCodex, model: str | None, directory: Path) -> Answering:
    """Find out what answers on threads that ask for `model`, or for none, by starting one in `directory`.

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
    begun = await begin(codex.client, operations.thread_start(options))
    await codex.client.request("thread/unsubscribe", {"thread_id": begun.id})
    return begun.answering
