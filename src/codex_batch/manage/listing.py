"""Runs as they stand in a list: found below a directory, with their states, scores, models and efforts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codex_app_server._runtime.text import one_line

from ..store import RunStore, layout, open_run
from ..store.means import Mean, means

DEPTH = 3
# So long a list waits for a run that another program has locked.
LIMIT_S = 2.0
PROBLEM_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Part:
    """Results of a run, or of its `variant` (`""`: the run has none): counts of samples, and scores by scorer.

    `models` and `efforts` count records by what answered, most first.
    """

    variant: str
    counts: Mapping[str, int]
    scores: Mapping[str, Mean]
    models: Mapping[str, int]
    efforts: Mapping[str, int]

    @property
    def score(self) -> tuple[str, Mean] | None:
        """The first scorer with its mean."""
        return next(iter(self.scores.items()), None)

    @property
    def mean(self) -> float | None:
        """The mean of the first scorer over the samples that have ended, without a score as 0; None without one."""
        if self.score is None:
            return None
        mean, scored = self.score[1]
        return mean * scored / max(self.counts["done"], scored)


@dataclass(frozen=True, slots=True)
class Listed:
    """A run as it stands in a list, with a part for each variant, or one. `problem`: why it cannot be read."""

    path: Path
    state: str = ""
    counts: dict[str, int] | None = None
    created_at: float | None = None
    dataset: str = ""
    parts: tuple[Part, ...] = field(default=())
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values; a run with variants has scores in each of them, and none of its own."""
        own = [_plain(part) for part in self.parts]
        value = {
            "path": str(self.path),
            "state": self.state,
            "counts": self.counts,
            "created_at": self.created_at,
            "dataset": self.dataset,
            "problem": self.problem,
        }
        if not own or self.parts[0].variant:
            return {**value, "scores": {}, "models": {}, "efforts": {}, "variants": own}
        return {**value, **{name: own[0][name] for name in ("scores", "models", "efforts")}, "variants": []}


def find(directory: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Run directories in and below a directory, in order of their names. What cannot be looked into is left out."""
    with contextlib.suppress(OSError):
        if (directory / layout.DATABASE).is_file():
            yield directory
            return
        if depth == 0:
            return
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from find(Path(entry.path), depth - 1)


def listed(path: Path) -> Listed:
    """Return a run for a list. One that is written to meanwhile stands as it is; one that is broken has its problem."""
    try:
        with open_run(path, limit_s=LIMIT_S) as store:
            return _listed(path, store)
    except Exception as error:
        # Whatever is wrong with one directory does not end the list of the others.
        return Listed(path, problem=one_line(str(error) or type(error).__name__, PROBLEM_CHARACTERS))


def _listed(path: Path, store: RunStore) -> Listed:
    info = store.info()
    dataset = info["config"].get("dataset")
    return Listed(
        path,
        info["state"],
        store.counts(),
        info["created_at"],
        str(dataset.get("name", "")) if isinstance(dataset, dict) else "",
        tuple(_part(store, variant) for variant in store.variant_names() or [""]),
    )


def _part(store: RunStore, variant: str) -> Part:
    answered = store.answered(variant or None)
    counts = store.counts(variant or None)
    return Part(variant, counts, means(store, variant), answered["model"], answered["effort"])


def _plain(part: Part) -> dict[str, Any]:
    return {
        "name": part.variant,
        "counts": dict(part.counts),
        "scores": {scorer: {"mean": mean, "scored": scored} for scorer, (mean, scored) in part.scores.items()},
        "models": dict(part.models),
        "efforts": dict(part.efforts),
    }
