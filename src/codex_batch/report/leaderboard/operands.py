"""RUN and RUN@VARIANT of a command line: which results they stand for, and those results, read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codex_app_server._runtime.files import resolved

from ...store import RunDirectoryError, RunStore, open_run
from ..source import Source, rows_of
from .results import RunResult


@dataclass(frozen=True, slots=True)
class Chosen:
    """A run, or one of its variants (`""`: the run has none). `name` tells it from the others of a command."""

    path: Path
    variant: str
    name: str
    variants: int
    """Number of variants of the run."""

    @property
    def identity(self) -> tuple[Path, str]:
        return resolved(self.path), self.variant


def choose(operands: Sequence[str]) -> list[Chosen]:
    """Return the results that operands stand for: a RUN with variants for all of them, in the order of the run.

    An operand that is a directory is a RUN, whatever is in its name. Raises RunDirectoryError for a directory without
    a run, and for a variant that its run does not have.
    """
    return named(list(_found(operands)))


def named(chosen: Sequence[Chosen]) -> list[Chosen]:
    """Return the results with names that tell them apart: of the run directory, or its path where names are equal."""
    paths = {resolved(one.path) for one in chosen}
    names = {path: path.name for path in paths}
    if len(set(names.values())) < len(names):
        common = os.path.commonpath(paths)
        names = {path: os.path.relpath(path, common) for path in paths}
    return [replace(one, name=_name(names[resolved(one.path)], one.variant)) for one in chosen]


def _name(run: str, variant: str) -> str:
    return f"{run}@{variant}" if variant else run


def _found(operands: Sequence[str]) -> Iterator[Chosen]:
    for operand in operands:
        path, wanted = Path(operand), None
        if not path.is_dir() and "@" in operand:
            before, _, after = operand.rpartition("@")
            # Names of variants are text of a file, in UTF-8 whatever the locale.
            path, wanted = Path(before), os.fsencode(after).decode("utf-8", "replace")
        with open_run(path) as store:
            variants = store.variant_names()
        if wanted is None:
            yield from (Chosen(path, variant, "", len(variants)) for variant in variants or [""])
        elif wanted in variants:
            yield Chosen(path, wanted, "", len(variants))
        else:
            has = f"it has {', '.join(variants)}" if variants else "it has no variants"
            raise RunDirectoryError(f"{path} has no variant {wanted!r}; {has}")


def one(operand: str) -> Chosen:
    """Return the one result that an operand stands for. Raises RunDirectoryError if it stands for several."""
    found = choose([operand])
    if len(found) > 1:
        names = ", ".join(f"{operand}@{each.variant}" for each in found)
        raise RunDirectoryError(f"{operand} has {len(found)} variants, and the baseline is one result: name {names}")
    return found[0]


def read(chosen: Sequence[Chosen], progress: Callable[[int], None] = lambda done: None) -> list[RunResult]:
    """Read the results, each run once. Raises RunDirectoryError for a run that cannot be read."""
    results: dict[int, RunResult] = {}
    done = 0
    for path in dict.fromkeys(one.path for one in chosen):
        places = {one.variant: place for place, one in enumerate(chosen) if one.path == path}
        with open_run(path) as store:
            info, stored = store.info(), store.variants()
            for place in places.values():
                results[place] = result_of(info, stored, chosen[place])
            of_sample: dict[int, RunResult] = {}
            for row in rows_of(store):
                if row.variant in places:
                    of_sample[row.n] = results[places[row.variant]]
                    of_sample[row.n].add(row)
                done += 1
                progress(done)
            for attempt in store.all_attempts():
                if attempt.n in of_sample:
                    of_sample[attempt.n].add_attempt(attempt)
    return [results[place] for place in range(len(chosen))]


def result_of(info: Mapping[str, Any], stored: Sequence[Mapping[str, Any]], chosen: Chosen) -> RunResult:
    """Return the result of a run or variant before any sample is added; `info`, `stored`: of its store, `variants`."""
    if not chosen.variant:
        return RunResult(chosen.name, info)
    variant = _named(stored, chosen.variant)
    return RunResult(
        chosen.name,
        info,
        variant=chosen.variant,
        effective=variant.get("effective"),
        variant_settings=variant,
        shares_judges=chosen.variants > 1,
    )


def _named(stored: Sequence[Mapping[str, Any]], variant: str) -> Mapping[str, Any]:
    """Return a variant as its run has stored it; empty if it has not."""
    return next((one for one in stored if one.get("name") == variant), {})


class OfVariant:
    """One variant of a run as the source of a report."""

    def __init__(self, store: RunStore, variant: str, variants: int) -> None:
        self._store, self._variant, self._variants = store, variant, variants

    def info(self) -> Mapping[str, Any]:
        info = self._store.info()
        config = info.get("config") or {}
        own = _named(self._store.variants(), self._variant)
        if self._variants > 1:
            # Of all variants together.
            info.pop("judged", None)
        rest = {name: value for name, value in config.items() if name != "variants"}
        return {**info, "variant": self._variant, "config": {**rest, "variant": own, "effective": own.get("effective")}}

    def samples(self) -> Iterator[Any]:
        return self._store.samples(variant=self._variant)

    def sample(self, sample_id: str, epoch: int = 1) -> Any:
        return self._store.sample(sample_id, epoch, self._variant)

    def attempts(self, n: int) -> Sequence[Any]:
        return self._store.attempts(n)

    def events(self, n: int, attempt: int) -> Iterator[Mapping[str, Any]]:
        return self._store.events(n, attempt)

    def artifact(self, n: int, name: str) -> bytes:
        return self._store.artifact(n, name)


def source_of(store: RunStore, chosen: Chosen) -> Source:
    """Return the source of a report of a run, or of its variant."""
    return OfVariant(store, chosen.variant, chosen.variants) if chosen.variant else store
