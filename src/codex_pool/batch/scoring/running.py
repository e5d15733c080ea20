"""Several scorers over one sample, one after the other. A scorer that fails is a score that says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace

from codex_app_server import AppServerError

from .base import Score, ScoreContext, Scorer, ScoringFailed, shortened
from .places import Places


async def score_sample(
    scorers: Iterable[Scorer], context: ScoreContext, *, places: Places | None = None
) -> list[Score]:
    """One score a scorer, in their order; each in one of the `places`, or here and now without any."""
    scores = []
    for scorer in scorers:
        async with nullcontext() if places is None else places.place(scorer):
            began_at = time.monotonic()
            score = await _score(scorer, context, places)
        scores.append(replace(score, duration_ms=round((time.monotonic() - began_at) * 1000)))
    return scores


async def _score(scorer: Scorer, context: ScoreContext, places: Places | None) -> Score:
    try:
        return await (scorer.score(context) if places is None else places.score(scorer, context))
    except ScoringFailed as error:
        return _failed(scorer, str(error))
    except (AppServerError, TimeoutError, asyncio.TimeoutError) as error:
        return _failed(scorer, f"the judge could not be asked: {str(error) or type(error).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        return _failed(scorer, f"{type(error).__name__}: {error}")


def _failed(scorer: Scorer, problem: str) -> Score:
    return Score(scorer=scorer.name, value=0.0, error=shortened(problem))
