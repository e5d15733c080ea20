"""scoring: what a sample's answer is worth, in numbers.

scorer         Score, ScoreContext, Scorer, options and how they are checked    pure
parse          specs -> scorers, or all that is wrong with them
assignment     the scorers of each sample
dependencies   what a score depends on, beside the answer
text           exact, includes, regex, number, json_schema                      pure
choice         the option of a multiple-choice question that was chosen         pure
numerals       numbers as people and models write them                          pure
normalisation  texts made comparable: case, punctuation, equal numbers          pure
answers        the answer in a response: \\boxed{}, "Answer: X", a pattern       pure
command        a command in the workspace; its exit code or what it printed
python         a function of the user, in a process of its own; call is that process
plugin         a function of an installed distribution, as python
harbor         the rewards that the verifier of a Harbor task left
judge          a model through the same pool
ask            the questions to it
process        a process of the user, with limits
guard          the process between ours and one of the user: it ends all of it
run_scorers    several scorers over one sample
process_pool   the processes that they run in, off the event loop, so many at once
computing      the process of those that only compute
intervals      bounds of a mean of clustered scores                             pure
metrics        scores -> means, standard errors, intervals, pass@k              pure
metric_rows    metrics -> rows for people and for JSON                          pure
"""

from __future__ import annotations

from .assignment import Scorers
from .parse import check_samples, parse_scorer, parse_scorers
from .process_pool import ProcessPool
from .run_scorers import score_sample
from .scorer import Score, ScoreContext, Scored, Scorer, ScorerError

__all__ = [
    "ProcessPool",
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
