"""The choice scorer: which option of a multiple-choice question a response chooses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .answers import ANSWER, boxed, extracted
from .normalisation import Normal
from .scorer import TARGET, Option, Score, ScoreContext, Scored, no_target, quote, targets
from .text import NO_RESPONSE, NOT_THE_TARGET, OnResponse, cpu_limit

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Where the options are not given.
UNKNOWN = LETTERS[:10]
# Of more text, or of more statements of an answer, the last ones are read: the time is linear in the length.
OPTION_CHARACTERS = 5_000
STATEMENTS = 50
_SAME = Normal(ignore_case=True, ignore_punctuation=True, equal_numbers=True)
_LINE = re.compile(r"^[ \t]{0,8}[(\[]?([A-Z])[).:\]][ \t]{1,8}(\S[^\n]*)$", re.MULTILINE)
_LATEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathsf)\s?|[\\$]")
_MARKS = " \t\r\n*_`\"'(){}[]<>.:,;!"
_LETTER = r"[\s(\[{{*_`\"'$]{{0,6}}(?:(?i:option|choice)[ ]?[(\[*]{{0,3}})?([{letters}])(?![\w'\u2019])"
_STATES = re.compile(
    r"\b(?:answer|choice|option)\b(?:[*_ ]{0,4}(?:\bis\b|:|=|\b(?:would|must|should) be\b)[*_ :]{0,4}){1,2}",
    re.IGNORECASE,
)
_MORE = re.compile(r"[\s)\]}*_.,]{0,4}(?:\b(?:and|or)\b|[,/&])[\s(\[{*_]{0,4}[A-Z](?![\w'\u2019])")


class Choice(OnResponse):
    """The response chooses the target: a letter, or the text of an option.

    `choices` are the options: a list, or an object of texts by letter. Without it they are looked for in the sample's
    metadata under `choices`, then in its prompts, as lines `A) text`.
    """

    type: ClassVar[str] = "choice"
    known: ClassVar = {
        "target": TARGET,
        "choices": Option(
            "a list of at least two texts, or an object of texts by letter", lambda value: bool(_by_letter(value))
        ),
        "answer": ANSWER,
    }
    main: ClassVar = "target"

    def check_sample(self, sample: Scored) -> str | None:
        found = targets(self.options, sample)
        if not found:
            return no_target(sample)
        options = self._options(sample)
        strange = [target for target in found if _target(target, options) is None]
        if not strange:
            return None
        expected = ", ".join(options) or f"a letter from {UNKNOWN[0]} to {UNKNOWN[-1]}"
        return f"has the target {quote(strange[0])}, which is no choice; expected {expected}, or the text of one"

    def _options(self, sample: Scored) -> dict[str, str]:
        """Texts by letter; empty if not known."""
        metadata = sample.metadata or {}
        return (
            _by_letter(self.options.get("choices")) or _by_letter(metadata.get("choices")) or _in_prompt(sample.prompts)
        )

    async def score(self, context: ScoreContext) -> Score:
        response = context.final_response
        if response is None:
            return self.verdict(False, explanation=NO_RESPONSE)
        options = self._options(context.sample)
        rule = self.options.get("answer")
        if rule is None:
            chosen = chosen_in(response, options)
        else:
            with cpu_limit("the answer's pattern"):
                answer = extracted(rule, response)
            chosen = None if answer is None else chosen_in(answer, options)
        return self._chosen(chosen, targets(self.options, context.sample), options)

    def compare(self, answer: str, targets: list[str], context: ScoreContext) -> Score:
        options = self._options(context.sample)
        return self._chosen(chosen_in(answer, options), targets, options)

    def _chosen(self, chosen: str | None, wanted: Sequence[str], options: Mapping[str, str]) -> Score:
        if chosen is None:
            return self.verdict(False, explanation="the response chooses no option, or several")
        passed = chosen in [_target(target, options) for target in wanted]
        return self.verdict(passed, chosen, None if passed else NOT_THE_TARGET)


def chosen_in(response: str, options: Mapping[str, str]) -> str | None:
    """The letter that a response chooses; None if it chooses none or several."""
    letters = "".join(options) or UNKNOWN
    box = boxed(response)
    if box is not None:
        return _whole(box, letters, options)
    stated = _stated(response, letters, options)
    if stated is not None:
        return stated or None
    lines = [line for line in response.splitlines() if line.strip(_MARKS)]
    for text in (response, *lines[-1:], *lines[:1]):
        whole = _whole(text, letters, options)
        if whole is not None:
            return whole
    alone = set(re.findall(rf"(?<!\w)\(([{letters}])\)|\*\*([{letters}])[.)]?\*\*", response))
    found = {one or other for one, other in alone}
    if found:
        return found.pop() if len(found) == 1 else None
    text = f" {_SAME(response)} "
    named = [letter for letter, option in options.items() if _SAME(option) and f" {_SAME(option)} " in text]
    return named[0] if len(named) == 1 else None


def _stated(response: str, letters: str, options: Mapping[str, str]) -> str | None:
    """Return the option that "the answer is ..." names last; empty if it names several."""
    letter = re.compile(_LETTER.format(letters=letters))
    for marker in reversed(list(_STATES.finditer(response))[-STATEMENTS:]):
        match = letter.match(response, marker.end())
        if match is not None and not _is_word(match[1], response[match.end() : match.end() + 40]):
            return "" if _MORE.match(response, match.end()) else match[1]
        shown = response[marker.end() : marker.end() + OPTION_CHARACTERS].lstrip().partition("\n")[0]
        found = _text(shown, options)
        if found is None:
            # A sentence may go on behind it.
            found = _text(re.split(r"[.,;](?:\s|$)", shown, maxsplit=1)[0], options)
        if found is not None:
            return found
    return None


def _is_word(letter: str, after: str) -> bool:
    """Return True if A or I is the word, as in "The answer is A dog"."""
    if letter not in "AI":
        return False
    following = re.match(r" ([a-z]+)", after)
    return following is not None and following[1] not in ("because", "since", "as", "is", "and", "or", "with", "for")


def _whole(text: str, letters: str, options: Mapping[str, str]) -> str | None:
    """The option that the whole text is: "(B)", "B.", "**B**", "B) text", "Option B", or an option's text."""
    if len(text) > OPTION_CHARACTERS:
        return None
    text = _LATEX.sub("", text).strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1].strip()
    bare = text.strip(_MARKS)
    bare = re.sub(r"^(?:option|choice|answer)[\s:]{1,3}[(*]{0,3}", "", bare, flags=re.IGNORECASE).strip(_MARKS)
    if len(bare) == 1 and bare.upper() in letters:
        return bare.upper()
    found = _text(text, options)
    if found is not None:
        return found
    labelled = re.match(rf"[(\[*_]{{0,4}}([{letters}])[)\].:*_]{{1,4}}\s{{1,4}}(\S[^\n]*)$", text)
    if labelled is None:
        return None
    # With its text, where that is known: "A. The man..." may begin a sentence of its own.
    known = options.get(labelled[1])
    return labelled[1] if known is None or _SAME(known) in _SAME(labelled[2]) else None


def _text(text: str, options: Mapping[str, str]) -> str | None:
    """The option with this text."""
    same = _SAME(text)
    found = [letter for letter, option in options.items() if same and _SAME(option) == same]
    return found[0] if len(found) == 1 else None


def _target(target: str, options: Mapping[str, str]) -> str | None:
    """The letter of a target."""
    letters = "".join(options) or UNKNOWN
    bare = target.strip(_MARKS)
    by_text = _text(target, options)
    if by_text is not None:
        return by_text
    return bare.upper() if len(bare) == 1 and bare.upper() in letters else None


def _by_letter(value: Any) -> dict[str, str]:
    """Options as texts by letter; empty if they are none. Lists have letters from A on."""
    if isinstance(value, list) and 2 <= len(value) <= len(LETTERS):
        value = dict(zip(LETTERS, value, strict=False))
    elif isinstance(value, dict) and isinstance(value.get("label"), list) and isinstance(value.get("text"), list):
        # As ARC has them.
        value = dict(zip(map(str, value["label"]), value["text"], strict=False))
    if not isinstance(value, dict) or len(value) < 2:
        return {}
    found = {}
    for letter, text in value.items():
        letter = str(letter).strip(_MARKS).upper()
        if len(letter) != 1 or letter not in LETTERS or isinstance(text, bool | dict | list) or text is None:
            return {}
        found[letter] = str(text)
    return found


def _in_prompt(prompts: Sequence[str]) -> dict[str, str]:
    """Lines `A) text`, `B) text`, ... of the last prompt that has them."""
    for prompt in reversed(prompts):
        found: dict[str, str] = {}
        for match in _LINE.finditer(prompt):
            if match[1] == LETTERS[len(found)]:
                found[match[1]] = match[2].strip()
            elif match[1] == "A":
                # Examples come before the question.
                found = {"A": match[2].strip()}
        if len(found) >= 2:
            return found
    return {}
