"""Rows of Parquet files and of Arrow tables, with their values as JSON has them: a batch of rows at a time.

A column is a field; objects and lists are structs and lists, or JSON text; members without a value are left out.
"""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .cells import of_columns
from .fields import printable
from .row import DatasetRow
from .sample import DatasetError

BATCH_ROWS = 1000
BATCH_BYTES = 32 << 20


def parquet(path: Path) -> Iterator[DatasetRow]:
    """Raises DatasetError when it is no Parquet file, and when there is no pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DatasetError(
            [f"{path}: reading Parquet needs pyarrow; install it: pip install 'codex-pool[parquet]'"]
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            yield from rows_of(file.iter_batches(_batch_rows(file.metadata)), str(path), file.schema_arrow.names)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError([f"{path}: is not Parquet: {error}; expected a Parquet file"]) from None


def _batch_rows(metadata: Any) -> int:
    """Return so many rows that a batch of ordinary ones has no more than BATCH_BYTES."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest)))


def rows_of(batches: Iterable[Any], source: str, names: list[str]) -> Iterator[DatasetRow]:
    """The rows of tables or batches of pyarrow, which have columns of these names."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DatasetError([f"{source}: {printable(name)}: is the name of several columns" for name in twice])
    number = 0
    for batch in batches:
        for value in _values(batch):
            number += 1
            where, name = f"{source}:row {number}", str(number)
            if isinstance(value, Exception):
                yield DatasetRow(where, name, {}, f"cannot be read: {value}")
                continue
            present = {key: plain(part) for key, part in value.items() if part is not None}
            yield DatasetRow(where, name, present, convert=of_columns)


def _values(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    """The rows as Python has them, or why one cannot be: a date before year 1, text that is not UTF-8."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, ArithmeticError):
        pass
    for number in range(batch.num_rows):
        try:
            yield batch.slice(number, 1).to_pylist()[0]
        except (ValueError, ArithmeticError) as error:
            yield error


def plain(value: Any) -> Any:
    """A value as JSON has it: times as ISO 8601, durations in seconds, decimals and UUIDs as text; not bytes."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value
