"""scoring: what a sample's answer is worth, in numbers.

base       Score, ScoreContext, Scorer, options and how they are checked    pure
parse      specs -> scorers, or all that is wrong with them
basis      what a score is made of, beside the answer
chosen     which scorers score which sample
text       exact, includes, regex, number, json_schema                      pure
choice     which option of a multiple-choice question is chosen             pure
numerals   numbers as people and models write them                          pure
normal     texts made comparable: case, punctuation, equal numbers          pure
answers    the answer in a response: \\boxed{}, "Answer: X", a pattern       pure
command    a command in the workspace; its exit code or what it printed
python     a function of the user, in a process of its own
judge      a model through the same pool
ask        how it is asked
guard      what stands between us and a process of the user: it ends all of it
running    several scorers over one sample
places     where they run: off the event loop, so many at once
computing  the process of those that only compute
intervals  bounds of a mean of clustered scores                             pure
metrics    scores -> means, standard errors, intervals, pass@k              pure
summary    metrics -> rows for people and for JSON                          pure
"""

from __future__ import annotations

from .base import Score, ScoreContext, Scored, Scorer, ScorerError
from .chosen import Scorers
from .parse import check_samples, parse_scorer, parse_scorers
from .places import Places
from .running import score_sample

__all__ = [
    "Places",
    "Score",
    "ScoreContext",
    "Scored",
    "Scorer",
    "ScorerError",
    "Scorers",
    "check_samples",
    "parse_scorer",
    "parse_scorers",
    "score_sample",
]
