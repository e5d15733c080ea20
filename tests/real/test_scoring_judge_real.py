"""The judge as it is asked: a real turn on the real binary."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from scored import context

from codex_app_server import AppServerConfig, AsyncCodex
from codex_app_server.testing.loopback import LoopbackModel, Rule, Script, Text
from codex_batch.rules.bill import Bill
from codex_batch.scoring import Score, ScoreContext, parse_scorers, score_sample
from codex_batch.scoring.ask import Asking


@pytest.mark.real
def test_a_judge_is_asked_in_a_thread_of_its_own(config: AppServerConfig, model: LoopbackModel, tmp_path: Path) -> None:
    grade = json.dumps({"explanation": "it is not", "grade": "incorrect"})
    model.script = Script((Rule(Text(grade), contains="Be strict."),))
    used: list[int] = []

    async def on_usage(tokens: int, bill: Bill) -> None:
        used.append(tokens)

    async def main() -> list[Score]:
        async with AsyncCodex(config) as codex:
            ask = Asking(codex, tmp_path / "empty", on_usage=on_usage)
            scorers = parse_scorers(["judge:Be strict.", {"type": "judge", "name": "second"}], "x")
            asked: ScoreContext = context("41", "42", ask=ask)
            return await score_sample(scorers, asked)

    first, second = asyncio.run(asyncio.wait_for(main(), 30.0))
    assert (first.error, first.passed, first.answer, first.explanation) == (None, False, "incorrect", "it is not")
    # The loopback model's own answer is the first of what the schema allows.
    assert (second.error, second.passed, second.answer) == (None, True, "correct")
    assert len(used) == 2 and all(tokens > 0 for tokens in used)
    assert list((tmp_path / "empty").iterdir()) == []
