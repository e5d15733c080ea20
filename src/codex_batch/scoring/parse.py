"""Specs of scorers, from a dataset, a file or the command line, to scorers: or all that is wrong with them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .choice import Choice
from .command import Command
from .harbor import HarborReward
from .judge import Judge
from .plugin import kinds
from .python import Python
from .scorer import NAME, Scored, Scorer, ScorerError, quote
from .text import Exact, Includes, JsonSchema, Number, Regex

TYPES: dict[str, type[Scorer]] = {
    scorer.type: scorer
    for scorer in (Exact, Includes, Regex, Number, Choice, JsonSchema, Command, Python, Judge, HarborReward)
}


def _kind(name: Any) -> type[Scorer] | None:
    """The scorer of a type, built in or of a plug-in."""
    if not isinstance(name, str):
        return None
    return TYPES.get(name) or kinds(tuple(TYPES)).get(name)


def _known() -> str:
    """The types of scorers that there are, in words."""
    return ", ".join((*TYPES, *kinds(tuple(TYPES))))


def parse_scorer(spec: str | Mapping[str, Any], where: str, directory: Path | None = None) -> Scorer:
    """The scorer of a spec: an object, or in short `TYPE` or `TYPE:VALUE`.

    `where` is what messages begin with; relative paths begin in `directory`, the current one if None. Raises
    ScorerError with all problems at once.
    """
    directory = Path.cwd() if directory is None else directory
    options, problems = _options(spec, where)
    kind = _kind(options.get("type"))
    if problems or kind is None:
        raise ScorerError(problems)
    name = options.pop("name", None) or kind.type
    del options["type"]
    scorer = kind(name, {key: value for key, value in options.items() if value is not None}, directory)
    problems = [f"{where}: {problem}" for problem in scorer.check()]
    if problems:
        raise ScorerError(problems)
    return scorer


def parse_scorers(
    specs: Iterable[str | Mapping[str, Any]], where: str, directory: Path | None = None
) -> tuple[Scorer, ...]:
    """Several scorers; each has a name of its own: `exact`, `exact-2` unless told. Raises ScorerError."""
    scorers: list[Scorer] = []
    problems: list[str] = []
    specs = list(specs)
    for number, spec in enumerate(specs, 1):
        try:
            scorers.append(parse_scorer(spec, where if len(specs) == 1 else f"{where}[{number}]", directory))
        except ScorerError as error:
            problems += error.problems
    given = Counter(spec["name"] for spec in specs if isinstance(spec, Mapping) and "name" in spec)
    problems += [f"{where}: {count} scorers have the name {quote(name)}" for name, count in given.items() if count > 1]
    if problems:
        raise ScorerError(problems)
    return tuple(_with_own_names(scorers, set(given)))


def unchecked(specs: Iterable[str | Mapping[str, Any]]) -> tuple[Scorer, ...]:
    """The scorers of specs that a run has used, without a look at the files that they name. Raises ScorerError."""
    specs, scorers = list(specs), []
    for spec in specs:
        options, problems = _options(spec, "scorers")
        kind = _kind(options.get("type"))
        if problems or kind is None:
            raise ScorerError(problems)
        name = options.pop("name", None) or kind.type
        scorers.append(kind(name, {key: value for key, value in options.items() if value is not None}, Path()))
    given = {spec["name"] for spec in specs if isinstance(spec, Mapping) and "name" in spec}
    return tuple(_with_own_names(scorers, given))


def with_answer(specs: Sequence[str], answer: str) -> tuple[str, ...]:
    """Specs of the command line with `answer` as the option of those that take it and have none.

    Raises ScorerError when none takes it. What is wrong with a spec is left to parse_scorers.
    """
    made, taken = [], False
    for spec in specs:
        options, problems = _short(spec, "--scorer")
        kind = None if problems else _kind(options.get("type"))
        if kind is None or "answer" not in kind.known:
            made.append(spec)
            continue
        taken = True
        made.append(json.dumps({**options, "answer": options.get("answer") or answer}))
    if not taken:
        able = ", ".join(name for name, kind in TYPES.items() if "answer" in kind.known)
        raise ScorerError([f"--answer: no --scorer takes it; expected one of {able}"])
    return tuple(made)


def check_samples(scorers: Sequence[Scorer], samples: Iterable[Scored]) -> list[str]:
    """Return the samples that could not be scored whatever their answer, each as `id: scorer: problem`."""
    return [
        f"{sample.id}: {scorer.name}: {problem}"
        for sample in samples
        for scorer in scorers
        if (problem := scorer.check_sample(sample)) is not None
    ]


def _with_own_names(scorers: list[Scorer], given: set[str]) -> list[Scorer]:
    taken = set(given)
    named = []
    for scorer in scorers:
        name, number = scorer.name, 1
        if name in given:
            named.append(scorer)
            continue
        while name in taken:
            number += 1
            name = f"{scorer.name}-{number}"
        taken.add(name)
        named.append(scorer if name == scorer.name else type(scorer)(name, scorer.options, scorer.directory))
    return named


def _options(spec: Any, where: str) -> tuple[dict[str, Any], list[str]]:
    """The fields of a spec, and what is wrong with them."""
    if isinstance(spec, str):
        return _short(spec, where)
    if not isinstance(spec, Mapping):
        return {}, [f"{where}: is {quote(spec)}; expected an object with a type, or TYPE or TYPE:VALUE"]
    options = dict(spec)
    kind = _kind(options.get("type"))
    if kind is None:
        what = f"is {quote(options['type'])}" if "type" in options else "is missing"
        return options, [f"{where}: type: {what}; expected one of {_known()}"]
    problems = []
    known = {"name": NAME, **kind.known}
    for field, value in options.items():
        if field == "type":
            continue
        option = known.get(field)
        if option is None:
            problems.append(f"{where}: {field}: is not an option of {kind.type}; expected {', '.join(known) or 'none'}")
        elif value is not None and not option.is_right(value):
            problems.append(f"{where}: {field}: is {quote(value)}; expected {option.wanted}")
    for field in kind.required:
        if options.get(field) is None:
            problems.append(f"{where}: {field}: is missing; expected {known[field].wanted}")
    return options, problems


def _short(spec: str, where: str) -> tuple[dict[str, Any], list[str]]:
    if spec.lstrip().startswith("{"):
        try:
            return _options(json.loads(spec), where)
        except ValueError as error:
            return {}, [f"{where}: {quote(spec)} is not JSON: {error}"]
    name, colon, value = spec.partition(":")
    kind = _kind(name)
    if kind is None:
        return {}, [f"{where}: no scorer {quote(name)}; expected one of {_known()}"]
    options: dict[str, Any] = {"type": name}
    if colon and kind.main is not None:
        try:
            options[kind.main] = float(value) if kind is Number else value
        except ValueError:
            return {}, [f"{where}: tolerance: is {quote(value)}; expected a number of at least 0"]
    checked, problems = _options(options, where)
    if not colon and kind.required:
        return {}, [f"{where}: {name} needs more: {name}:{kind.main.upper() if kind.main else ''}"]
    return checked, problems
