"""A row of a dataset: one sample as it was written, with where it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def _as_written(value: dict[str, Any]) -> dict[str, Any]:
    return value


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One sample as it was written. `where` is `file:line`, `name` its id unless it has one, `value` its columns."""

    where: str
    name: str
    value: dict[str, Any]
    problem: str | None = None
    directory: Path | None = None
    """Directory of its relative paths, if not that of the dataset."""
    wheres: Mapping[str, str] = field(default_factory=dict)
    """Places of fields that stand elsewhere than the row."""
    harbor: dict[str, Any] | None = None
    """Task in Harbor's format that it was made of, as Sample.harbor has it."""
    convert: Callable[[dict[str, Any]], dict[str, Any]] = _as_written
    """Makes fields of columns; raises ValueError naming the column."""

    def locate(self, problem: str, name: str | None = None) -> str:
        """Prefix a problem with where it is: the row, or its field `name`."""
        if name is None:
            return f"{self.where}: {problem}"
        return f"{self.wheres.get(name.partition('.')[0], self.where)}: {name}: {problem}"
