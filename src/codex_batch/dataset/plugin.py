"""Formats of plug-ins: the rows that a function of an installed distribution reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..plugins import DatasetFormat, discovery
from ..plugins.discovery import Plugin, PluginError
from .fields import describe
from .row import DatasetRow
from .sample import DatasetError


def reader_of(name: str, built_in: Collection[str]) -> Callable[[Path], Iterator[DatasetRow]]:
    """Return the reader of a format that is not built in. Raises DatasetError if there is none that can be used."""
    plugins = discovery.find(discovery.DATASETS, built_in)
    if name not in plugins:
        known = ", ".join((*built_in, *plugins))
        raise DatasetError([f"--format: no format {name!r}; expected one of {known}; {discovery.LIST}"])
    plugin = plugins[name]
    try:
        read: DatasetFormat = plugin.load()
    except PluginError as error:
        raise DatasetError([f"--format: {error}"]) from None
    return lambda path: _rows(plugin, read, path)


def _rows(plugin: Plugin, read: DatasetFormat, path: Path) -> Iterator[DatasetRow]:
    """Iterate over the rows as they are read. Raises DatasetError, whatever the plug-in raises."""
    number = 0
    try:
        for number, value in enumerate(read(path), 1):
            yield _row(path, number, value)
    except (Exception, SystemExit) as error:
        problem = f"{plugin} failed behind row {number}: {type(error).__name__}: {error}"
        raise DatasetError([f"{path}: {problem}; correct the dataset, or ask its authors"]) from error


def _row(path: Path, number: int, value: Any) -> DatasetRow:
    where = f"{path}:row {number}"
    if not isinstance(value, Mapping):
        return DatasetRow(where, str(number), {}, f"is {describe(value)}; expected a mapping of columns")
    try:
        return DatasetRow(where, str(number), json.loads(json.dumps(dict(value), allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        return DatasetRow(where, str(number), {}, f"is not plain JSON: {error}; expected text, numbers and the like")
