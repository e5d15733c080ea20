"""Fields out of columns of text: of the cells of a table, of the columns of a Parquet file. Pure."""

from __future__ import annotations

import json
from typing import Any

from .fields import FIELDS, STRUCTURED, describe, quote


def of_cells(cells: dict[str, Any]) -> dict[str, Any]:
    """Fields out of text; what is no text is left as it is. Raises ValueError naming the column."""
    value: dict[str, Any] = {}
    for column, cell in cells.items():
        if not isinstance(cell, str):
            value[column] = cell
        elif column == "timeout_s":
            value[column] = _number(column, cell)
        elif column == "tags" and not cell.lstrip().startswith("["):
            value[column] = [tag.strip() for tag in cell.split(",") if tag.strip()]
        else:
            value[column] = cell
    return of_columns(value)


def of_columns(columns: dict[str, Any]) -> dict[str, Any]:
    """Fields out of columns: JSON text of structured ones read, metadata.x put into metadata. Raises ValueError."""
    value: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for column, content in columns.items():
        if column in STRUCTURED and isinstance(content, str):
            try:
                value[column] = json.loads(content, parse_constant=refuse_constant)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{column}: is {quote(content)}, which is not JSON: {error}; expected JSON") from None
        elif column.startswith("metadata.") and column not in FIELDS:
            extra[column.removeprefix("metadata.")] = content
        else:
            value[column] = content
    if extra:
        if not isinstance(value.get("metadata", {}), dict):
            raise ValueError(f"metadata: is {describe(value['metadata'])}; expected an object")
        value["metadata"] = {**value.get("metadata", {}), **extra}
    return value


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; expected a number")


def _number(column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{column}: is {quote(cell)}; expected a number") from None
