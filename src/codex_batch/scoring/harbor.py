"""The scorer of tasks in Harbor's format: the rewards that their verifier left, each as a score of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from ..harbor.report import REPORT, Report
from ..harbor.rewards import NoReward
from .scorer import LARGEST, Score, ScoreContext, Scorer, ScoringFailed, is_name, quote


class HarborReward(Scorer):
    """Scorer that reads what the verifier left among the artifacts of the sample; it runs nothing.

    The reward by the scorer's name is its score, right from 1 on; each other key is a further score.
    """

    type: ClassVar[str] = "harbor"

    @property
    def bounds(self) -> tuple[float, float] | None:
        return None

    async def score(self, context: ScoreContext) -> Score:
        path = context.artifacts / REPORT
        try:
            rewards = Report.from_json(path.read_bytes()).rewards()
        except FileNotFoundError:
            raise ScoringFailed(
                f"{path} is missing: the verifier runs in the container of an attempt; run the sample again"
            ) from None
        except NoReward as error:
            raise ScoringFailed(str(error)) from None
        others = tuple(self._other(key, value) for key, value in rewards.items() if key != self.name)
        if self.name not in rewards:
            return Score(scorer=self.name, value=0.0, others=others, is_missing=True)
        value = rewards[self.name]
        return replace(self.graded(value, value >= 1.0), others=others)

    def _other(self, key: str, value: float) -> Score:
        if not is_name(key):
            raise ScoringFailed(f"a reward has the name {quote(key)}; expected letters, digits, '_', '-' and '.'")
        if not -LARGEST <= value <= LARGEST:
            raise ScoringFailed(f"the reward {key} is {value!r}; expected a number up to {LARGEST:g}")
        return Score(scorer=key, value=value)
