"""The end of a run: its outcome is made and written down, and the user's command is run."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

from codex_app_server._runtime import threads

from ..configuration.settings import Settings
from ..display import by_variant
from ..exit_codes import INTERRUPTED, NOT_STARTED
from ..gates.judge import Judgement
from ..scoring import metric_rows
from ..scoring.metrics import summarise
from ..store import RunDirectory, RunStore, layout, locked
from ..store.bridge import StoreBridge
from . import record_hooks
from .disks import Disk, is_full
from .notify import notify
from .storage import LOCKED_S


def state_of(code: int) -> str:
    """Return the state of a run that ended with this exit code."""
    if code in NOT_STARTED:
        return "not started"
    return "interrupted" if code == INTERRUPTED else "finished"


def outcome_of(
    store: RunStore,
    settings: Settings,
    judgement: Judgement,
    *,
    problem: str | None,
    counts: dict[str, int],
    app_server: str,
    hooks: dict[str, Any],
    currency: str | None,
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return the outcome of a run, as its store keeps it, and its scores as rows of the summary.

    `problem`: why the run could not go on to its end; `counts`: samples by state; `app_server`: its user agents;
    `hooks`: counts of the on-record hooks.
    """
    variants, k = list(settings.defaults.variants), sorted({1, settings.request.epochs})
    if settings.stored:
        variants = store.variant_names()
    # Scores of several variants have no mean.
    samples = store.samples(selected=True) if store.has_scores() and not variants else ()
    scored = summarise(metric_rows.rows_of(samples), k=k)
    figures = by_variant.by_variant(store, variants, k=k)
    outcome: dict[str, Any] = {
        "problem": problem,
        "exit_code": judgement.code,
        "counts": counts,
        "not_valid": store.not_valid(),
        "metrics": metric_rows.as_json(scored),
        "app_server": app_server,
        "gates": [verdict.to_json() for verdict in judgement.verdicts],
    }
    if hooks:
        outcome["hooks"] = hooks
    if variants:
        outcome["variants"] = by_variant.as_json(figures, currency)
    scores = [*metric_rows.printed(scored), *by_variant.table(figures, currency), *record_hooks.rows(hooks)]
    return outcome, scores


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
