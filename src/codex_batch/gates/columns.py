"""Scores of a run or of a baseline by variant, scorer and sample. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..scoring import Scorer
from ..store.rows import SampleRow


@dataclass(slots=True)
class Plan:
    """The variants of a run, its scorers by name, and the ids of the samples that each of them is to score."""

    variants: Sequence[str] = ("",)
    scorers: dict[str, Scorer | None] = field(default_factory=dict)
    """None: it has scored the run, and the run does not name it."""
    ids: dict[str, set[str]] = field(default_factory=dict)

    def add(self, sample: str, scorers: Iterable[Scorer]) -> None:
        """Note that these scorers are to score a sample."""
        for scorer in scorers:
            self.scorers.setdefault(scorer.name, scorer)
            self.ids.setdefault(scorer.name, set()).add(sample)


@dataclass(slots=True)
class Scored:
    """The scores of one scorer in one variant: of each sample one value for each epoch, None where there is none."""

    samples: dict[str, list[float | None]] = field(default_factory=dict)

    @property
    def planned(self) -> int:
        """The number of scores that there should be."""
        return sum(map(len, self.samples.values()))

    @property
    def values(self) -> list[float]:
        """The scores that there are."""
        return [value for epochs in self.samples.values() for value in epochs if value is not None]


Columns = Mapping[str, Mapping[str, Scored]]
"""Scores by variant and scorer. A run without variants has the variant ""."""


def columns_of(rows: Iterable[SampleRow], scorers_of: Callable[[SampleRow], Iterable[str]]) -> Columns:
    """The scores of samples as a store has them; `scorers_of` names the scorers that are to score a sample.

    A scorer that scores only what it was added for later, and is named by no sample, is to score them all.
    """
    found: dict[str, dict[str, Scored]] = {}
    named: dict[str, set[str]] = {}
    keys: dict[str, list[tuple[str, int]]] = {}
    places: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for row in rows:
        variant, key = row.variant, (row.id, row.epoch)
        keys.setdefault(variant, []).append(key)
        named.setdefault(variant, set())
        column = found.setdefault(variant, {})
        for name in scorers_of(row):
            named[variant].add(name)
            column.setdefault(name, Scored()).samples.setdefault(row.id, []).append(value_of(row, name))
        for score in row.scores:
            if score.error is None and score.value is not None and math.isfinite(score.value):
                places.setdefault((variant, score.scorer), {})[key] = score.value
    everywhere = set().union(*named.values()) if named else set()
    for (variant, scorer), values in places.items():
        if scorer not in everywhere:
            later = found[variant].setdefault(scorer, Scored())
            for sample, epoch in keys[variant]:
                later.samples.setdefault(sample, []).append(values.get((sample, epoch)))
    return found


def value_of(row: SampleRow, scorer: str) -> float | None:
    """The score of a sample by a scorer; None if it has none that counts."""
    for score in row.scores:
        if score.scorer == scorer and score.error is None and score.value is not None and math.isfinite(score.value):
            return score.value
    return None


class ScorersOf:
    """The scorers of stored samples: their own, else those of the run; `parse` makes them of specs."""

    def __init__(self, specs: Sequence[Any], parse: Callable[[Sequence[Any]], tuple[Scorer, ...]]) -> None:
        self._parse = parse
        self.run = parse(specs)
        self._parsed: dict[str, tuple[Scorer, ...]] = {}

    def of(self, row: SampleRow) -> tuple[Scorer, ...]:
        """The scorers of a sample. Raises ScorerError."""
        specs = row.spec.get("scorers")
        if specs is None:
            return self.run
        key = json.dumps(specs, sort_keys=True)
        if key not in self._parsed:
            self._parsed[key] = self._parse(specs)
        return self._parsed[key]

    def names(self, row: SampleRow) -> list[str]:
        """The names of the same."""
        return [scorer.name for scorer in self.of(row)]
