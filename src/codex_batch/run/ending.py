"""The end of a run: how it ended is written down, and the user's command is run."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

from codex_app_server._runtime import threads

from ..exit_codes import INTERRUPTED, NOT_STARTED
from ..store import RunDirectory, layout, locked
from ..store.bridge import StoreBridge
from .disks import Disk, is_full
from .notify import notify
from .storage import LOCKED_S


def state_of(code: int) -> str:
    """Return the state of a run that ended with this exit code."""
    if code in NOT_STARTED:
        return "not started"
    return "interrupted" if code == INTERRUPTED else "finished"


async def note_outcome(
    directory: RunDirectory, outcome: dict[str, Any], launch: Callable[[], Awaitable[None]], say: Callable[[str], None]
) -> str | None:
    """Write down how the run ended, after its launch; return why that could not be done, if it could not."""
    database = directory.file(layout.DATABASE)
    try:
        await launch()
        state = state_of(outcome["exit_code"])
        writing = asyncio.ensure_future(StoreBridge().result(directory.outcome(state, outcome)))
        await asyncio.wait({writing}, timeout=LOCKED_S)
        if not writing.done() and directory.locked_s():
            say(f"codex-pool: {locked.problem(database)}; waiting for it")
        await writing
    except (OSError, sqlite3.Error) as error:
        if locked.is_locked(error):
            return f"{locked.problem(database)}; the same command goes on"
        if not is_full(error):
            raise
        return Disk(directory.path).problem(error)
    except asyncio.CancelledError:
        # Once more Ctrl-C.
        return f"{directory.path}: how the run ended could not be written down; the same command goes on"
    return None


async def notify_user(command: str, directory: RunDirectory, code: int, say: Callable[[str], None]) -> None:
    """Run the user's command, without access to our terminal or our pipes, so that it cannot block on them."""
    printed, problem = await threads.in_thread(notify, command, directory.path, state_of(code), code)
    for line in printed.splitlines():
        say(line)
    if problem is not None:
        say(f"codex-pool: --notify {command}: {problem}")
