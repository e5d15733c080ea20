"""Readers: a file as rows, each with where it stands and the fields it holds, one at a time.

JSON lines: an object a line, blank lines skipped. CSV and TSV: a header, then cells of text; an empty cell is no value,
a structured field is written as JSON, `tags` also with commas, and a column `metadata.x` is a member of metadata.
Parquet: a column a field, otherwise as CSV. A row that cannot be read is one with a problem.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .fields import FIELDS, STRUCTURED, describe, printable, quote
from .sample import DatasetError

BATCH = 1000
MAX_CELL_CHARS = 1 << 30


@dataclass(frozen=True, slots=True)
class Row:
    """One sample as it was written. `where` is `file:line`, `name` its id unless it has one."""

    where: str
    name: str
    value: dict[str, Any]
    problem: str | None = None
    directory: Path | None = None
    """Where its relative paths begin, if not at the dataset."""
    wheres: Mapping[str, str] = field(default_factory=dict)
    """Of fields that stand elsewhere than the row."""

    def says(self, problem: str, name: str | None = None) -> str:
        """A problem with the row, or with its field `name`, as users read it."""
        if name is None:
            return f"{self.where}: {problem}"
        return f"{self.wheres.get(name.partition('.')[0], self.where)}: {name}: {problem}"


def json_lines(lines: Iterable[bytes], source: str) -> Iterator[Row]:
    is_first = True
    for number, line in enumerate(_as_text(lines, source), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        line = line.rstrip(b"\r\n")
        if not line.strip():
            continue
        if is_first and (problem := _document(line)):
            yield Row(f"{source}:{number}", str(number), {}, problem)
            return
        is_first = False
        where, name = f"{source}:{number}", str(number)
        try:
            value = decode(line)
        except ValueError as error:
            yield Row(where, name, {}, str(error))
            continue
        if isinstance(value, dict):
            yield Row(where, name, value)
        else:
            remedy = ": jq -c '.[]' makes them of an array" if isinstance(value, list) else ""
            yield Row(where, name, {}, f"the line is {describe(value)}; expected a JSON object{remedy}")


def _document(line: bytes) -> str | None:
    """The problem of a file that is one JSON value over several lines, as its first line shows."""
    line = line.strip()
    if line == b"{":
        return "not JSON: the object takes several lines; expected JSON lines, an object a line: jq -c . makes them"
    if line == b"[" or (line.startswith(b"[") and not line.endswith(b"]")):
        return "not JSON lines: a JSON array begins here; expected an object a line: jq -c '.[]' makes them"
    return None


_PACKED = {
    b"\x1f\x8b": ("is compressed with gzip", "gunzip"),
    b"BZh": ("is compressed with bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("is compressed with xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "unzstd"),
    b"PK\x03\x04": ("is a zip archive, as an Excel file is", "unzip, or save it as CSV"),
    b"PAR1": ("is a Parquet file", "--format parquet"),
    b"\xff\xfe": ("is in UTF-16", "iconv -f utf-16 -t utf-8"),
    b"\xfe\xff": ("is in UTF-16", "iconv -f utf-16 -t utf-8"),
}


def _as_text(lines: Iterable[bytes], source: str) -> Iterator[bytes]:
    """The lines as they are. Raises DatasetError when the first shows that the file is no text in UTF-8."""
    is_first = True
    for line in lines:
        if is_first:
            for magic, (problem, remedy) in _PACKED.items():
                if line.startswith(magic):
                    raise DatasetError([f"{source}: {problem}; expected text in UTF-8: use {remedy}"])
            is_first = False
        yield line


def table(lines: Iterable[bytes], source: str, delimiter: str = ",") -> Iterator[Row]:
    """CSV. A row's line is the one it begins at: cells may hold line breaks."""
    csv.field_size_limit(MAX_CELL_CHARS)
    reader = csv.reader(_texts(lines, source), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    begins = 1
    try:
        for cells in reader:
            where, name, begins = f"{source}:{begins}", str(begins), reader.line_num + 1
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_header(header, where)
            elif not any(cell.strip() for cell in cells):
                continue
            elif len(cells) != len(header):
                problem = f"has {len(cells)} cells; expected {len(header)}, as the header has"
                yield Row(where, name, {}, problem)
            else:
                try:
                    yield Row(where, name, _of_cells(dict(zip(header, cells, strict=True))))
                except ValueError as error:
                    yield Row(where, name, {}, str(error))
    except csv.Error as error:
        yield Row(f"{source}:{reader.line_num}", str(reader.line_num), {}, f"not CSV: {error}")


def parquet(path: Path) -> Iterator[Row]:
    """Raises DatasetError when it is no Parquet file, and when there is no pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DatasetError(
            [f"{path}: reading Parquet needs pyarrow; install it: pip install 'codex-pool[parquet]'"]
        ) from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                for value in batch.to_pylist():
                    number += 1
                    where = f"{path}:row {number}"
                    present = {key: _plain(part) for key, part in value.items() if part is not None}
                    try:
                        yield Row(where, str(number), _of_columns(present))
                    except ValueError as error:
                        yield Row(where, str(number), {}, str(error))
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError([f"{path}: is not Parquet: {error}; expected a Parquet file"]) from None


def decode(line: bytes) -> Any:
    """A JSON value. Raises ValueError in the words of this package."""
    try:
        return _decoder.decode(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1} of the line; expected JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON: {error.msg} at column {error.colno}; expected one JSON object on the line"
        ) from None
    except RecursionError:
        raise ValueError("not readable: nested too deeply; expected a JSON object of ordinary depth") from None
    except ValueError as error:
        raise ValueError(f"not readable: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; expected a number")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def _texts(lines: Iterable[bytes], source: str) -> Iterator[str]:
    for number, line in enumerate(_as_text(lines, source), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DatasetError(
                [f"{source}:{number}: not UTF-8 at byte {error.start + 1} of the line; expected CSV in UTF-8"]
            ) from None
        yield text


def _check_header(header: list[str], where: str) -> None:
    problems = [f"{where}: column {n} has no name; expected one" for n, name in enumerate(header, 1) if not name]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    problems += [f"{where}: {printable(name)}: is the name of several columns; expected one" for name in twice]
    if problems:
        raise DatasetError(problems)


def _of_cells(cells: dict[str, str]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for column, cell in cells.items():
        if not cell.strip():
            continue
        if column == "timeout_s":
            value[column] = _number(column, cell)
        elif column == "tags" and not cell.lstrip().startswith("["):
            value[column] = [tag.strip() for tag in cell.split(",") if tag.strip()]
        else:
            value[column] = cell
    return _of_columns(value)


def _of_columns(columns: dict[str, Any]) -> dict[str, Any]:
    """Fields out of columns: JSON text of structured ones read, metadata.x put into metadata."""
    value: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for column, content in columns.items():
        if column in STRUCTURED and isinstance(content, str):
            try:
                value[column] = json.loads(content, parse_constant=_refuse_constant)
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


def _number(column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{column}: is {quote(cell)}; expected a number") from None


def _plain(value: Any) -> Any:
    """A Parquet value as JSON has it; members without a value are left out, times are written as ISO 8601."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value
