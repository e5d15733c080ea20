"""`--field FIELD=COLUMN`: fields of samples out of the columns of a dataset as it was published. Pure.

FIELD is a field of a sample or `metadata.NAME`. COLUMN is a column; or a place in one, `answers.text.0`, also where it
is written as JSON; or a Jinja template over all columns, `{{ answer | letter }}`. Text for a field that is no text is
read as in a cell of CSV. A column that is a field by its name stays that field, unless another is named for it. All
others become members of metadata, but for binary ones and those that the target is made of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .cells import of_cells
from .fields import FIELDS, printable, quote, similar
from .row import DatasetRow
from .sample import DatasetError
from .template import Template

_METADATA = "metadata."
# Of columns that differ from row to row.
_MAX_NAMES = 1000
_MISSING = object()


@dataclass(frozen=True, slots=True)
class _Field:
    """One field and what it is made of."""

    text: str
    name: str
    column: str
    template: Template | None

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it is made of."""
        return frozenset({self.column.partition(".")[0]}) if self.template is None else self.template.columns

    def of(self, columns: dict[str, Any]) -> Any:
        """Return its value in a row; `_MISSING` if the row has none. Raises ValueError."""
        if self.template is None:
            return _at(columns, self.column)
        try:
            return self.template.render(columns)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None


class Columns:
    """Fields by the columns they are made of, each as `FIELD=COLUMN`. Raises DatasetError with all that is wrong."""

    def __init__(self, texts: Iterable[str]) -> None:
        problems: list[str] = []
        self._fields: list[_Field] = []
        for text in texts:
            try:
                self._fields.append(_parsed(text))
            except ValueError as error:
                problems.append(f"--field {printable(text)}: {error}")
            except DatasetError as error:
                problems += error.problems
        self.names = [field.name for field in self._fields]
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        problems += [f"--field {name}=...: stands there several times; expected once" for name in twice]
        if problems:
            raise DatasetError(problems)
        self._used = {field.column for field in self._fields if field.template is None}
        # Records hold no targets: they are passed on, and read by whatever works on the run next.
        self._of_target = {column for field in self._fields if field.name == "target" for column in field.columns}
        self._seen: dict[str, None] = {}
        self._found: set[str] = set()

    def fields_of(self, row: DatasetRow) -> dict[str, Any]:
        """The fields of a row, those of metadata included. Raises ValueError naming the field."""
        columns = row.value
        if len(self._seen) < _MAX_NAMES:
            self._seen.update(dict.fromkeys(columns))
        named: dict[str, Any] = {}
        for field in self._fields:
            value = field.of(columns)
            if value is not _MISSING:
                self._found.add(field.name)
                named[field.name] = value
        rest: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for column, content in columns.items():
            if column in self._used:
                continue
            if (column in FIELDS or column.startswith(_METADATA)) and column not in self.names:
                own[column] = content
            elif column not in self._of_target:
                rest[column] = content
        given = row.convert(own)
        value = {**given, **of_cells({name: part for name, part in named.items() if name in FIELDS})}
        # Later ones count: further columns, members that the row has itself, those that were named.
        members: dict[str, Any] = _without_bytes(rest)
        for metadata in (given.get("metadata"), value.get("metadata")):
            if metadata is not None and not isinstance(metadata, dict):
                return {**value, "metadata": metadata}
            members |= metadata or {}
        members |= {name.removeprefix(_METADATA): part for name, part in named.items() if name not in FIELDS}
        value["metadata"] = members or None
        return value

    def problems(self) -> list[str]:
        """A problem for each column that none of the rows has had, once all have been read."""
        return [
            f"--field {printable(field.text)}: no row has {quote(field.column)}{similar(field.column, self._seen)}; "
            f"expected one of {', '.join(map(printable, self._seen)) or 'its columns, of which it has none'}"
            for field in self._fields
            if field.template is None and field.name not in self._found
        ]


def _parsed(text: str) -> _Field:
    """Raises ValueError, and DatasetError for a template that is none."""
    name, equals, column = (part.strip() for part in text.partition("="))
    if not equals or not name or not column:
        raise ValueError("is no FIELD=COLUMN; expected one, as in id=task_id")
    if name not in FIELDS and not name.startswith(_METADATA):
        known = ", ".join(FIELDS)
        raise ValueError(
            f"{quote(name)} is no field of a sample{similar(name, FIELDS)}; expected one of {known}, or metadata.NAME"
        )
    if name == _METADATA:
        raise ValueError("metadata. names no member; expected metadata.NAME")
    is_template = "{{" in column or "{%" in column
    return _Field(text, name, column, Template(column, f"--field {name}") if is_template else None)


def _at(columns: dict[str, Any], path: str) -> Any:
    """The content of a column, or what is at a place in one; `_MISSING` if there is nothing."""
    if path in columns:
        content = columns[path]
        return _MISSING if content is None else content
    content = columns
    for step in path.split("."):
        if isinstance(content, str):
            try:
                content = json.loads(content)
            except (ValueError, RecursionError):
                return _MISSING
        if isinstance(content, dict) and step in content:
            content = content[step]
        elif isinstance(content, list) and step.isdecimal() and int(step) < len(content):
            content = content[int(step)]
        else:
            return _MISSING
    return _MISSING if content is None else content


def _without_bytes(value: Any) -> Any:
    """A value without what JSON cannot hold: images, sound and other binary columns."""
    if isinstance(value, dict):
        return {name: _without_bytes(part) for name, part in value.items() if not isinstance(part, bytes)}
    if isinstance(value, list):
        return [_without_bytes(part) for part in value if not isinstance(part, bytes)]
    return value
