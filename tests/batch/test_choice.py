"""The choice scorer: which option a response chooses."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from scored import Asked, context

from codex_batch.scoring import Score, ScorerError, check_samples, parse_scorer, score_sample
from codex_batch.scoring.choice import chosen_in

OPTIONS = {"A": "Rome", "B": "Paris", "C": "New York", "D": "York"}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("B) Paris", "B"),
        ("B. Paris", "B"),
        ("Option B", "B"),
        ("The answer is B", "B"),
        ("The answer is (B).", "B"),
        ("The correct answer is **B**.", "B"),
        ("Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("**Answer: B**", "B"),
        ("The answer is: B", "B"),
        ("The correct option is B because of the river.", "B"),
        ("The answer is $\\boxed{B}$", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("\\boxed{\\text{(B) Paris}}", "B"),
        ("The answer is A. Wait, the answer is B.", "B"),
        ("Thinking about A, C and D.\n\nB", "B"),
        ("I choose (B), the river.", "B"),
        ("paris", "B"),
        ("The answer is Paris.", "B"),
        ("The answer is Paris, the capital.", "B"),
        ("It has to be Paris then", "B"),
        ("The answer is A", "A"),
        ("The answer is A because", "A"),
        ("The answer is A good one, Paris", "B"),
        ("The answer is not B", None),
        ("A or B", None),
        ("The answer is A or B", None),
        ("The answer is A, B", None),
        ("A man walks in", None),
        ("I think so", None),
        ("Rome or Paris", None),
        ("(A) is wrong, and so is (B)", None),
        ("", None),
        ("E", None),
    ],
)
def test_what_is_chosen(response: str, letter: str | None) -> None:
    assert chosen_in(response, OPTIONS) == letter


def score(spec: Any, response: str | None, target: Any = None, **more: Any) -> Score:
    (found,) = asyncio.run(score_sample([parse_scorer(spec, "scorers")], context(response, target, **more)))
    return found


def test_options_come_from_the_scorer_the_metadata_or_the_prompt() -> None:
    prompt = "Example:\nA) x\nB) y\nAnswer: B\n\nThe capital of France?\nA) Rome\nB) Paris\nC) York\n"
    for more in (
        {"spec": {"type": "choice", "choices": ["Rome", "Paris"]}},
        {"metadata": {"choices": ["Rome", "Paris"]}},
        {"metadata": {"choices": {"label": ["A", "B"], "text": ["Rome", "Paris"]}}},
        {"prompts": (prompt,)},
    ):
        spec = more.pop("spec", "choice")
        for target in ("B", "b", "(B)", "Paris"):
            assert score(spec, "It is Paris.", target, **more).passed
            found = score(spec, "Rome", target, **more)
            assert (found.passed, found.answer, found.error) == (False, "A", None)


@pytest.mark.parametrize(
    "piece", ["The answer is A or B ", "answer: ", "(A) (B) ", "A) x\n", "\\boxed{", "{", "Answer is (", "**"]
)
def test_a_long_response_is_read_in_time(piece: str) -> None:
    began_at = time.process_time()
    chosen_in(piece * (200_000 // len(piece)), OPTIONS)
    assert time.process_time() - began_at < 5


def test_without_options_letters_are_read() -> None:
    assert score("choice:D", "The answer is D.").passed
    assert score({"type": "choice", "answer": "#### (.*)"}, "A or B\n#### (B)", "B").passed
    assert not score("choice:D", None).passed


def test_a_target_that_is_no_choice_is_known_before() -> None:
    scorer = parse_scorer({"type": "choice", "choices": ["Rome", "Paris"]}, "x")
    assert check_samples([scorer], [Asked("a", target="B"), Asked("b", target=1), Asked("c")]) == [
        'b: choice: has the target "1", which is no choice; expected A, B, or the text of one',
        "c: choice: has no target; give the sample one, or the scorer",
    ]
    with pytest.raises(ScorerError, match="choices: is"):
        parse_scorer({"type": "choice", "choices": ["Rome"]}, "x")
