"""Scorers that look at the final response only: exact, includes, regex, number, json_schema."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from codex_app_server._runtime.files import read_file

from .answers import ANSWER, check_answer, extracted, wanted
from .normalisation import Normal
from .numerals import Numeral, at_end, numbers, only, read, readable
from .scorer import (
    FLAG,
    NOT_NEGATIVE,
    TARGET,
    TEXT,
    Option,
    Score,
    ScoreContext,
    Scored,
    Scorer,
    ScoringFailed,
    no_target,
    quote,
    targets,
)

__all__ = ["CPU_LIMIT_S", "Exact", "Includes", "JsonSchema", "Number", "Regex", "cpu_limit", "numbers"]

NO_RESPONSE = "there is no final response"
# Records hold no targets: they are passed on, and read by whatever works on the run next.
NOT_THE_TARGET = "it is not the target"
# A pattern can take exponential time on a text that hits its weak spot.
CPU_LIMIT_S = 1.0


NORMAL: dict[str, Option] = {
    "ignore_case": FLAG,
    "ignore_punctuation": FLAG,
    "equal_numbers": FLAG,
}


class OnResponse(Scorer):
    """A scorer that compares the response, or the answer found in it, with targets."""

    def check(self) -> list[str]:
        return check_answer(self.options)

    def check_sample(self, sample: Scored) -> str | None:
        return None if targets(self.options, sample) else no_target(sample)

    async def score(self, context: ScoreContext) -> Score:
        if context.final_response is None:
            return self.verdict(False, explanation=NO_RESPONSE)
        answer: str | None = context.final_response
        found = targets(self.options, context.sample)
        if self.options.get("answer") is not None:
            with cpu_limit("the answer's pattern"):
                answer = extracted(self.options["answer"], context.final_response)
                found = [wanted(self.options["answer"], target) for target in found]
        if answer is None:
            return self.verdict(False, explanation=f"no answer was found by {quote(self.options['answer'])}")
        return self.compare(answer, found, context)

    @abstractmethod
    def compare(self, answer: str, targets: list[str], context: ScoreContext) -> Score:
        """The score of what is to be compared."""


class Exact(OnResponse):
    """The whole response is a target, spaces at both ends aside."""

    type: ClassVar[str] = "exact"
    known: ClassVar = {"target": TARGET, **NORMAL, "answer": ANSWER}
    main: ClassVar = "target"

    def compare(self, answer: str, targets: list[str], context: ScoreContext) -> Score:
        return _compared(self, answer.strip(), targets)


def _compared(scorer: Scorer, answer: str, targets: list[str]) -> Score:
    """Score the answer: passed if it is one of the targets, ignoring white space around them."""
    normal = Normal.of(scorer.options)
    passed = normal(answer.strip()) in [normal(target.strip()) for target in targets]
    return scorer.verdict(passed, answer, None if passed else NOT_THE_TARGET)


class Includes(OnResponse):
    """A target stands somewhere in the response; with `all`, every target."""

    type: ClassVar[str] = "includes"
    known: ClassVar = {"target": TARGET, **NORMAL, "all": FLAG, "answer": ANSWER}
    main: ClassVar = "target"

    def compare(self, answer: str, targets: list[str], context: ScoreContext) -> Score:
        normal = Normal.of(self.options)
        text = normal(answer)
        missing = [target for target in targets if normal(target) not in text]
        passed = not missing if self.options.get("all") else len(missing) < len(targets)
        found = next((target for target in targets if target not in missing), None)
        return self.verdict(passed, found, None if passed else f"not found: {len(missing)} of {len(targets)} targets")


class Regex(Scorer):
    """A pattern is found in the response; with `group`, what that group caught is a target."""

    type: ClassVar[str] = "regex"
    known: ClassVar = {
        "pattern": TEXT,
        "target": TARGET,
        "group": Option(
            "the number or name of a group",
            lambda value: isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)),
        ),
        "ignore_case": FLAG,
        "multiline": FLAG,
        "dotall": FLAG,
        "full": FLAG,
    }
    required: ClassVar = ("pattern",)
    main: ClassVar = "pattern"

    def _pattern(self) -> re.Pattern[str]:
        options = self.options
        flags = re.IGNORECASE if options.get("ignore_case") else re.RegexFlag(0)
        flags |= re.MULTILINE if options.get("multiline") else re.RegexFlag(0)
        flags |= re.DOTALL if options.get("dotall") else re.RegexFlag(0)
        return re.compile(options["pattern"], flags)

    def check(self) -> list[str]:
        try:
            pattern = self._pattern()
        except (re.error, RecursionError, OverflowError) as error:
            return [f"pattern: {quote(self.options['pattern'])} is no regular expression: {error}"]
        group = self.options.get("group")
        known = [*range(pattern.groups + 1), *pattern.groupindex]
        if group is not None and group not in known:
            return [f"group: the pattern has no group {quote(group)}; it has {', '.join(map(str, known))}"]
        return []

    def check_sample(self, sample: Scored) -> str | None:
        return no_target(sample) if "group" in self.options and not targets(self.options, sample) else None

    async def score(self, context: ScoreContext) -> Score:
        text = context.final_response
        if text is None:
            return self.verdict(False, explanation=NO_RESPONSE)
        pattern = self._pattern()
        with cpu_limit(f"the pattern {quote(self.options['pattern'])}"):
            match = pattern.fullmatch(text.strip()) if self.options.get("full") else pattern.search(text)
        if match is None:
            return self.verdict(False, explanation="the pattern was not found")
        group = self.options.get("group")
        if group is None:
            return self.verdict(True, match.group())
        answer = (match.group(group) or "").strip()
        return _compared(self, answer, targets(self.options, context.sample))


class Number(OnResponse):
    """The last number in the response - or the first, or the only one - is the target, give or take the tolerance."""

    type: ClassVar[str] = "number"
    known: ClassVar = {
        "target": TARGET,
        "tolerance": NOT_NEGATIVE,
        "relative": NOT_NEGATIVE,
        "which": Option("last, first or only", ("last", "first", "only").__contains__),
        "answer": ANSWER,
    }
    main: ClassVar = "tolerance"

    def check(self) -> list[str]:
        target = self.options.get("target")
        problems = check_answer(self.options)
        if target is not None and not problems and not self._wanted(target if isinstance(target, list) else [target]):
            problems.append(f"target: {quote(target)} is no number")
        return problems

    def check_sample(self, sample: Scored) -> str | None:
        found = targets(self.options, sample)
        if not found:
            return no_target(sample)
        return None if self._wanted(found) else f"has the target {quote(sample.target)}, which is no number"

    def _wanted(self, found: list[Any]) -> list[Numeral]:
        rule = self.options.get("answer")
        texts = [str(target) for target in found]
        return _as_numbers(texts if rule is None else [wanted(rule, text) for text in texts])

    def compare(self, answer: str, targets: list[str], context: ScoreContext) -> Score:
        which = self.options.get("which", "last")
        if which == "only":
            found = read(readable(answer))
        else:
            one = at_end(answer, last=which == "last")
            found = [] if one is None else [one]
        if len(found) != 1:
            return self.verdict(False, explanation=f"{len(found) or 'no'} numbers in the response; expected one")
        given = found[0]
        passed = any(self._is(given, target) for target in _as_numbers(targets))
        shown = f"{given.value:g}%" if given.percent else f"{given.value:g}"
        return self.verdict(passed, shown, None if passed else NOT_THE_TARGET)

    def _is(self, given: Numeral, target: Numeral) -> bool:
        """Return True if they are one number; where only one of them is a percentage, 12 % is 12 and 0.12."""
        values = [(given.value, target.value)]
        if given.percent and not target.percent:
            values.append((given.value / 100, target.value))
        elif target.percent and not given.percent:
            values.append((given.value, target.value / 100))
        absolute, relative = self.options.get("tolerance", 0.0), self.options.get("relative", 0.0)
        # Decimal fractions have no exact floats: 0.1 + 0.2 is meant to be 0.3.
        return any(
            abs(one - other) <= max(absolute, relative * abs(other)) * (1 + 1e-9) + 1e-12 * abs(other)
            for one, other in values
        )


class JsonSchema(Scorer):
    """The response is JSON that fits a schema: the scorer's own, else the sample's output_schema."""

    type: ClassVar[str] = "json_schema"
    known: ClassVar = {
        "schema": Option("an object, or the path of a file that holds one", lambda value: isinstance(value, dict | str))
    }
    main: ClassVar = "schema"

    def _own_schema(self) -> Any:
        schema = self.options.get("schema")
        return json.loads(read_file(self.directory / schema)) if isinstance(schema, str) else schema

    @property
    def spec(self) -> dict[str, Any]:
        # The schema itself, so that the scorer does not change with a file.
        schema = self._own_schema()
        return {**super().spec, **({} if schema is None else {"schema": schema})}

    def check(self) -> list[str]:
        try:
            import jsonschema
        except ImportError:
            return ["json_schema needs the package jsonschema; pip install 'codex-pool[json-schema]'"]
        try:
            schema = self._own_schema()
        except OSError as error:
            return [f"schema: {self.options['schema']}: {error.strerror}; expected a file with a JSON schema"]
        except ValueError as error:
            return [f"schema: {self.options['schema']} is not JSON: {error}"]
        if schema is None:
            return []
        try:
            jsonschema.validators.validator_for(schema).check_schema(schema)
        except jsonschema.SchemaError as error:
            return [f"schema: {error.json_path}: {error.message}"]
        return []

    def check_sample(self, sample: Scored) -> str | None:
        if "schema" in self.options or sample.output_schema is not None:
            return None
        return "has no output_schema; give the sample one, or the scorer a schema"

    async def score(self, context: ScoreContext) -> Score:
        import jsonschema
        from jsonschema_specifications import REGISTRY

        if context.final_response is None:
            return self.verdict(False, explanation=NO_RESPONSE)
        try:
            value = json.loads(context.final_response)
        except (ValueError, RecursionError) as error:
            return self.verdict(False, explanation=f"not JSON: {error}")
        schema = self._own_schema()
        schema = context.sample.output_schema if schema is None else schema
        # With a registry of its own it fetches nothing from the network.
        validator = jsonschema.validators.validator_for(schema)(schema, registry=REGISTRY)
        try:
            with cpu_limit("the schema"):
                wrong = next(validator.iter_errors(value), None)
        except ScoringFailed:
            raise
        except Exception as problem:
            raise ScoringFailed(f"the schema cannot be used: {problem}") from None
        return self.verdict(wrong is None, None, None if wrong is None else f"{wrong.json_path}: {wrong.message}")


def _as_numbers(texts: list[str]) -> list[Numeral]:
    """Return all texts as numbers, or an empty list if one is not a number."""
    found = [only(text) for text in texts]
    return [] if None in found else [one for one in found if one is not None]


@contextlib.contextmanager
def cpu_limit(what: str, seconds: float = CPU_LIMIT_S) -> Iterator[None]:
    """Raises ScoringFailed when what is done inside uses so much CPU time. Works in the main thread only.

    Matching looks for signals now and then; nothing else stops it, and meanwhile the whole batch would stand still.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(*_: object) -> None:
        raise ScoringFailed(f"{what} took more than {seconds:g} s of CPU time on this response")

    before = signal.signal(signal.SIGVTALRM, expired)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
