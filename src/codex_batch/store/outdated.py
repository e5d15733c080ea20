"""Scores of a run that changes of the dataset or the scorers have outdated. Pure."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class DatasetChanges:
    """Changes of a dataset and its scorers since a run that has results already."""

    added: int = 0
    """Samples that the run did not have."""
    rerun: int = 0
    """Samples that ask something else now, and are run again."""
    rescored: int = 0
    """Samples that are only scored."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Reasons that samples are scored, and the number of samples for each."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Outdated scores by scorers that are not named now, which are removed."""


def dependency_digests(scorer: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests that a score depends on: of its scorer, and of each field of the sample that it looks at."""
    return {"scorer": scorer["scorer"], **{name: _digest(spec.get(name)) for name in scorer["of"]}}


def outdated(
    stored: Mapping[str, str] | None,
    scorer: Mapping[str, Any] | None,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
) -> str | None:
    """Return why a score is outdated; None if it is not.

    `stored` is what it was made of, None if that was not kept; `scorer` is what its scorer is now, None if it is not
    named. `before` and `now` are the sample as JSON.
    """
    fields = [name for name in stored if name != "scorer"] if stored is not None else ["target", "metadata", "tags"]
    for name in fields:
        made_of = _digest(before.get(name)) if stored is None else stored[name]
        if made_of != _digest(now.get(name)):
            return f"another {name}" if name != "tags" else "other tags"
    if stored is not None and scorer is not None and stored["scorer"] != scorer["scorer"]:
        return "another scorer"
    return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
