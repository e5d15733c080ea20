"""Selection of the samples of a dataset that are run, with their order and number of epochs. Pure.

A filter is FIELD OPERATOR VALUE: `tags=easy`, `metadata.level>=3`, `id~^django-`. FIELD is a field of a sample or a
member of its metadata, deeper ones after further dots. Operators: `=`, `!=`, `<`, `<=`, `>`, `>=`; `~` and `!~` search
for a regular expression. Of a list any element counts. Numbers are compared as numbers. Several filters must all hold.
"""

from __future__ import annotations

import fnmatch
import random
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .sample import Sample

_FILTER = re.compile(r"\s*([^\s=!<>~]+)\s*(!=|!~|>=|<=|=|~|>|<)\s?(.*)", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a == b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}
_FIELDS = frozenset(set(Sample.__struct_fields__) - {"epoch", "variant", "directory"} | {"prompt"})


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition. `parse` makes it of its text."""

    text: str
    path: tuple[str, ...]
    operator: str
    value: str
    pattern: re.Pattern[str] | None = None

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Raises ValueError saying what was expected."""
        found = _FILTER.fullmatch(text)
        if found is None:
            raise ValueError(
                f"--filter {text!r} is no condition; expected FIELD=VALUE or one of !=, <, <=, >, >=, ~, !~"
            )
        path, operator, value = tuple(found[1].split(".")), found[2], found[3]
        if path[0] not in _FIELDS or (len(path) > 1 and path[0] not in ("metadata", "workspace", "limits")):
            known = ", ".join(sorted(_FIELDS))
            raise ValueError(f"--filter {text!r}: {found[1]} is no field; expected one of {known}, or metadata.NAME")
        pattern = None
        if operator in ("~", "!~"):
            try:
                pattern = re.compile(value)
            except re.error as error:
                raise ValueError(f"--filter {text!r}: {value!r} is no regular expression: {error}") from None
        return cls(text, path, operator, value, pattern)

    def holds(self, sample: Sample) -> bool:
        content: Any = getattr(sample, self.path[0])
        for name in self.path[1:]:
            content = content.get(name) if isinstance(content, dict) else None
        parts = content if isinstance(content, list | tuple) else [content]
        found = any(self._matches(part) for part in parts)
        return not found if self.operator in ("!=", "!~") else found

    def _matches(self, content: Any) -> bool:
        if content is None:
            return False
        if self.pattern is not None:
            return self.pattern.search(_text(content)) is not None
        compare = _COMPARE[self.operator]
        is_number = isinstance(content, int | float) and not isinstance(content, bool)
        # Text of a table may be a number as well.
        if is_number or (isinstance(content, str) and self.operator[0] in "<>"):
            try:
                return compare(float(content), float(self.value))
            except (ValueError, OverflowError):
                if is_number:
                    return False
        return compare(_text(content), self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The selected part of a dataset: filters and ids first, then the order, then `limit`; all that `epochs` times.

    `sample_ids` may hold patterns with `*`, `?` and `[...]`. One seed gives one order.
    """

    filters: tuple[Filter, ...] = ()
    sample_ids: tuple[str, ...] = ()
    limit: int | None = None
    shuffle: bool = False
    seed: int = 0
    epochs: int = 1

    def takes(self, sample: Sample) -> bool:
        return (not self.sample_ids or any(is_id(wanted, sample.id) for wanted in self.sample_ids)) and all(
            condition.holds(sample) for condition in self.filters
        )

    def order(self, count: int) -> array[int]:
        """The positions of the samples to run, of `count` that were taken."""
        positions = array("L", range(count))
        if self.shuffle:
            random.Random(self.seed).shuffle(positions)
        return positions if self.limit is None else positions[: self.limit]


def is_id(wanted: str, identity: str) -> bool:
    return wanted == identity or fnmatch.fnmatchcase(identity, wanted)


def _text(content: Any) -> str:
    if isinstance(content, bool):
        return "true" if content else "false"
    return str(content)
