"""Codex binaries of a run: which variants each one runs, and its share of the workers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ..configuration.variants import Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """A codex binary of a run. `path`: None for that of the run's options. `variants`: names, none without variants.

    `name` tells it from the others; empty if there is only one.
    """

    path: str | None
    variants: tuple[str, ...]
    workers: int
    name: str = ""


def binaries_of(variants: Sequence[Variant], default: str, workers: int) -> tuple[Binary, ...]:
    """Return the distinct binaries of these variants, that of the run's options first, then in their order.

    `default`: path of the binary of the run's options. `workers`: of the run; each binary gets its share by the number
    of its variants, and one at least.
    """
    by_path: dict[str, list[str]] = {default: []} if any(each.codex_bin is None for each in variants) else {}
    for variant in variants:
        by_path.setdefault(variant.codex_bin or default, []).append(variant.name)
    if len(by_path) < 2 and default in (by_path or {default: []}):
        return (Binary(path=None, variants=tuple(variant.name for variant in variants), workers=workers),)
    parts = shares(workers, [len(names) for names in by_path.values()])
    shown = distinct_names(by_path) if len(by_path) > 1 else [""]
    return tuple(
        Binary(path=None if path == default else path, variants=tuple(names), workers=part, name=name)
        for (path, names), part, name in zip(by_path.items(), parts, shown, strict=True)
    )


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Share out `total` by weight, at least one to each; their sum is `total` where that is possible."""
    found = [1] * len(weights)
    for _ in range(total - len(weights)):
        # To the one that has the least for its weight, the first of several.
        least = min(range(len(weights)), key=lambda one: (found[one] / weights[one], one))
        found[least] += 1
    return found


def distinct_names(paths: Iterable[str]) -> list[str]:
    """Return the last parts of each path, as many as tell all of them apart: "old/codex", "new/codex"."""
    parts = [PurePath(path).parts for path in paths]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(PurePath(*each)) for each in parts]
