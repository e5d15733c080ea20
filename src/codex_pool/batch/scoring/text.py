"""Scorers that look at the final response only: exact, includes, regex, number, json_schema."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from codex_app_server._files import read_file

from .base import (
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

NO_RESPONSE = "there is no final response"
# Records hold no targets: they are passed on, and read by whatever works on the run next.
NOT_THE_TARGET = "it is not the target"
# A pattern can take for ever on the text that hits its weak spot.
CPU_LIMIT_S = 1.0
_NUMBER = re.compile(r"(?:(?<![\w.)])[-+\u2212])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")


class Exact(Scorer):
    """The whole response is a target, spaces at both ends aside."""

    type: ClassVar[str] = "exact"
    known: ClassVar = {"target": TARGET, "ignore_case": FLAG}
    main: ClassVar = "target"

    def check_sample(self, sample: Scored) -> str | None:
        return None if targets(self.options, sample) else no_target(sample)

    async def score(self, context: ScoreContext) -> Score:
        if context.final_response is None:
            return self.verdict(False, explanation=NO_RESPONSE)
        answer = context.final_response.strip()
        return _compared(self, answer, context)


def _compared(scorer: Scorer, answer: str, context: ScoreContext) -> Score:
    """Whether the answer is one of the targets, white space around them aside."""
    wanted = targets(scorer.options, context.sample)
    fold = str.casefold if scorer.options.get("ignore_case") else str
    passed = fold(answer) in [fold(target.strip()) for target in wanted]
    return scorer.verdict(passed, answer, None if passed else NOT_THE_TARGET)


class Includes(Scorer):
    """A target stands somewhere in the response; with `all`, every target."""

    type: ClassVar[str] = "includes"
    known: ClassVar = {"target": TARGET, "ignore_case": FLAG, "all": FLAG}
    main: ClassVar = "target"

    def check_sample(self, sample: Scored) -> str | None:
        return None if targets(self.options, sample) else no_target(sample)

    async def score(self, context: ScoreContext) -> Score:
        if context.final_response is None:
            return self.verdict(False, explanation=NO_RESPONSE)
        wanted = targets(self.options, context.sample)
        fold = str.casefold if self.options.get("ignore_case") else str
        text = fold(context.final_response)
        missing = [target for target in wanted if fold(target) not in text]
        passed = not missing if self.options.get("all") else len(missing) < len(wanted)
        answer = next((target for target in wanted if target not in missing), None)
        return self.verdict(passed, answer, None if passed else f"not found: {len(missing)} of {len(wanted)} targets")


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
        return _compared(self, answer, context)


class Number(Scorer):
    """The last number in the response - or the first, or the only one - is the target, give or take the tolerance."""

    type: ClassVar[str] = "number"
    known: ClassVar = {
        "target": TARGET,
        "tolerance": NOT_NEGATIVE,
        "relative": NOT_NEGATIVE,
        "which": Option("last, first or only", ("last", "first", "only").__contains__),
    }
    main: ClassVar = "tolerance"

    def check(self) -> list[str]:
        target = self.options.get("target")
        if target is not None and not _as_numbers(target if isinstance(target, list) else [str(target)]):
            return [f"target: {quote(target)} is no number"]
        return []

    def check_sample(self, sample: Scored) -> str | None:
        wanted = targets(self.options, sample)
        if not wanted:
            return no_target(sample)
        return None if _as_numbers(wanted) else f"has the target {quote(sample.target)}, which is no number"

    async def score(self, context: ScoreContext) -> Score:
        if context.final_response is None:
            return self.verdict(False, explanation=NO_RESPONSE)
        found = numbers(context.final_response)
        which = self.options.get("which", "last")
        if not found or (which == "only" and len(found) > 1):
            return self.verdict(False, explanation=f"{len(found) or 'no'} numbers in the response; expected one")
        answer = found[0] if which == "first" else found[-1]
        wanted = _as_numbers(targets(self.options, context.sample))
        absolute, relative = self.options.get("tolerance", 0.0), self.options.get("relative", 0.0)
        # Decimal fractions have no exact floats: 0.1 + 0.2 is meant to be 0.3.
        passed = any(
            abs(answer - target) <= max(absolute, relative * abs(target)) * (1 + 1e-9) + 1e-12 * abs(target)
            for target in wanted
        )
        return self.verdict(passed, f"{answer:g}", None if passed else NOT_THE_TARGET)


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


def numbers(text: str) -> list[float]:
    """The numbers in a text, in their order; a comma may stand between thousands."""
    found = []
    for match in _NUMBER.finditer(text):
        digits = match.group().replace(",", "").replace("\u2212", "-")
        with contextlib.suppress(ValueError):
            value = float(digits)
            if math.isfinite(value):
                found.append(value)
    return found


def _as_numbers(texts: list[str]) -> list[float]:
    """All of them as numbers; none if one is not."""
    try:
        values = [float(text.strip().replace(",", "")) for text in texts]
    except ValueError:
        return []
    return values if all(map(math.isfinite, values)) else []


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
