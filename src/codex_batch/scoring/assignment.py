"""Assignment of scorers to samples: a sample's own, else the run's. Checked all at once, before anything starts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .dependencies import dependencies_of
from .parse import check_samples, parse_scorers
from .scorer import Scored, Scorer, ScorerError

Spec = str | Mapping[str, Any]


class WithScorers(Scored, Protocol):
    """A sample that may bring scorers of its own; their relative paths begin in its `directory`."""

    @property
    def scorers(self) -> tuple[Any, ...] | None: ...
    @property
    def directory(self) -> str | None: ...


class Scorers:
    """The scorers of a run, of specs; relative paths in them begin in `directory`. Raises ScorerError."""

    def __init__(self, specs: Sequence[Spec] = (), *, where: str = "--scorer", directory: Path | None = None) -> None:
        self.run = parse_scorers(specs, where, directory)
        # Samples of one dataset mostly bring the same.
        self._parsed: dict[tuple[str, str | None], tuple[Scorer, ...]] = {}
        self._dependencies: dict[int, dict[str, dict[str, Any]]] = {}

    def of(self, sample: WithScorers) -> tuple[Scorer, ...]:
        """The scorers of a sample, none if none were named. Raises ScorerError."""
        if sample.scorers is None:
            return self.run
        key = json.dumps(sample.scorers, sort_keys=True), sample.directory
        if key not in self._parsed:
            directory = None if sample.directory is None else Path(sample.directory)
            self._parsed[key] = parse_scorers(sample.scorers, "scorers", directory)
        return self._parsed[key]

    def dependencies_of(self, sample: WithScorers) -> dict[str, dict[str, Any]]:
        """Return the basis of each score of a sample, by scorer, with the files as they were at the first call.

        Raises ScorerError.
        """
        scorers = self.of(sample)
        if id(scorers) not in self._dependencies:
            self._dependencies[id(scorers)] = dependencies_of(scorers)
        return self._dependencies[id(scorers)]

    def files_of(self, sample: WithScorers) -> list[Path]:
        """The files of its scorers, which its agent is not to read."""
        return [path for scorer in self.of(sample) for path in scorer.private]

    @property
    def private(self) -> set[Path]:
        """The files of the run's scorers and of those of all samples that it has been asked about."""
        known = (self.run, *self._parsed.values())
        return {path for scorers in known for scorer in scorers for path in scorer.private}

    def problems(self, samples: Iterable[WithScorers]) -> Iterator[str]:
        """Yield all that is wrong with the scorers of these samples, each as `sample: field: problem`."""
        for sample in samples:
            try:
                scorers = self.of(sample)
            except ScorerError as error:
                yield from (f"{sample.id}: {problem}" for problem in error.problems)
            else:
                yield from check_samples(scorers, [sample])
