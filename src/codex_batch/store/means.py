"""Means of scores as a list of runs shows them, computed in the database."""

from __future__ import annotations

import math
from typing import NamedTuple

from .reader import RunStore, of_run


class Mean(NamedTuple):
    """The mean of a scorer over the samples of a run that it scored, and how many those are."""

    mean: float
    scored: int


def means(store: RunStore, variant: str = "") -> dict[str, Mean]:
    """Return the mean of each scorer over the samples that `counts` of a run or variant counts, in their order."""
    where, values = of_run(variant or None)
    found = store._fetch(
        "SELECT c.scorer, avg(c.value) AS mean, count(c.value) AS scored FROM samples s LEFT JOIN records r USING (n) "
        "JOIN scores c USING (n) "
        f"WHERE {where} AND s.state = 'done' GROUP BY 1 ORDER BY min(c.place), 1",
        values,
    )
    return {
        row["scorer"]: Mean(row["mean"], row["scored"])
        for row in found
        if row["mean"] is not None and math.isfinite(row["mean"])
    }
