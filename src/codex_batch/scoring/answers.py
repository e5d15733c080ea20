r"""The answer in a response: `\boxed{}`, "Answer: X", or what a pattern catches. The last one counts. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from .scorer import Option, is_text, quote

BOXED, STATED, AUTO = "boxed", "stated", "auto"
ANSWER = Option(r"boxed, stated, auto, or a regular expression with at most one group, as '#### (.*)'", is_text)
_BOX = re.compile(r"\\f?boxed\s?(?=[{\w])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_STATED = re.compile(r"\banswer(?:[ \t]{1,3}is\b(?:[ \t]?:)?|[*_]{0,3}[ \t]?[:=])[*_ \t]{0,4}", re.IGNORECASE)


def check_answer(options: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the option `answer`."""
    rule = options.get("answer")
    if rule is None or rule in (BOXED, STATED, AUTO):
        return []
    try:
        groups = re.compile(rule).groups
    except (re.error, RecursionError, OverflowError) as error:
        return [f"answer: {quote(rule)} is no regular expression: {error}"]
    return [f"answer: {quote(rule)} has {groups} groups; expected at most one: the answer"] if groups > 1 else []


def extracted(rule: str, text: str) -> str | None:
    """The answer in a text by a rule; None if there is none."""
    if rule == BOXED:
        return boxed(text)
    if rule == STATED:
        return stated(text)
    if rule == AUTO:
        found = boxed(text)
        return stated(text) if found is None else found
    last = _last(_pattern(rule), text)
    return None if last is None else (last[last.re.groups] or "").strip()


def wanted(rule: str, target: str) -> str:
    """A target, or the answer in it where it is written as an answer: `... #### 42`."""
    found = extracted(rule, target)
    return target if found is None else found


def boxed(text: str) -> str | None:
    r"""Return the contents of the last \boxed{} that is closed; braces may be nested."""
    marks = list(_BOX.finditer(text))
    begins: list[int] = []
    closed: dict[int, int] = {}
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            begins.append(brace.start())
        elif brace[0] == "}" and begins:
            closed[begins.pop()] = brace.start()
    for mark in reversed(marks):
        place = mark.end()
        if text[place] != "{":
            # \boxed 5
            return text[place]
        if place in closed:
            return text[place + 1 : closed[place]].strip()
    return None


def stated(text: str) -> str | None:
    """Return the last text behind "Answer:" or "the answer is", without the marks around it and the full stop."""
    last = _last(_STATED, text)
    if last is None:
        return None
    # On this line, or on the next that holds anything.
    answer = text[last.end() :].lstrip().partition("\n")[0].strip().strip("*_`").strip()
    if len(answer) > 1 and answer.endswith("."):
        answer = answer[:-1]
    if len(answer) > 1 and answer[0] == answer[-1] == "$":
        answer = answer[1:-1]
    return answer.strip("*_`").strip() or None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for match in pattern.finditer(text):
        last = match
    return last


@lru_cache(64)
def _pattern(rule: str) -> re.Pattern[str]:
    return re.compile(rule)
