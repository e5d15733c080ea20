"""Several scorers over one sample, one after the other. A scorer that fails gives a score with its error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace

from codex_app_server import AppServerError

from .process_pool import ProcessPool
from .scorer import Score, ScoreContext, Scorer, ScoringFailed, shortened


async def score_sample(
    scorers: Iterable[Scorer], context: ScoreContext, *, process_pool: ProcessPool | None = None
) -> list[Score]:
    """Return the scores of each scorer, in their order; each runs in the `process_pool`, or here without one."""
    scores = []
    for scorer in scorers:
        async with nullcontext() if process_pool is None else process_pool.permit(scorer):
            began_at = time.monotonic()
            score = await _score(scorer, context, process_pool)
        duration_ms = round((time.monotonic() - began_at) * 1000)
        found = [*([] if score.is_missing else [score]), *score.others]
        scores += [replace(each, duration_ms=duration_ms, others=()) for each in found]
    return scores


async def _score(scorer: Scorer, context: ScoreContext, process_pool: ProcessPool | None) -> Score:
    try:
        return await (scorer.score(context) if process_pool is None else process_pool.score(scorer, context))
    except ScoringFailed as error:
        return _failed(scorer, str(error))
    except (AppServerError, TimeoutError, asyncio.TimeoutError) as error:
        return _failed(scorer, f"the judge could not be asked: {str(error) or type(error).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        return _failed(scorer, f"{type(error).__name__}: {error}")


def _failed(scorer: Scorer, problem: str) -> Score:
    return Score(scorer=scorer.name, value=0.0, error=shortened(problem))
