"""Readers of text: a file as rows, each with where it stands and the columns it holds, one at a time.

JSON: an object a line, blank lines skipped; or an array of objects. CSV and TSV: a header, then cells of text; an
empty cell is no value, a structured field is written as JSON, `tags` also with commas, and a column `metadata.x` is a
member of metadata. A row that cannot be read is one with a problem; so is the rest of a file that cannot be read.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from .cells import of_cells, refuse_constant
from .fields import describe, printable
from .json_array import elements
from .row import DatasetRow
from .sample import DatasetError
from .unpacked import MAX_ROW_BYTES, TOO_LONG, ByteReader, UnreadableError, lines, taken

_BOM = b"\xef\xbb\xbf"
# Enough to see whether an array begins.
_HEAD_BYTES = 4096


def json_rows(file: ByteReader, source: str) -> Iterator[DatasetRow]:
    """JSON lines, or a JSON array if the first character is `[`."""
    blank, head = 0, None
    try:
        while piece := taken(file.readline, _HEAD_BYTES):
            head = _text(piece, source).removeprefix(_BOM) if head is None else piece
            if head.strip():
                break
            blank += head.endswith(b"\n")
        if head is None:
            return
        if head.lstrip().startswith(b"["):
            yield from _array(head, file, source)
            return
        if not head.endswith(b"\n"):
            head += taken(file.readline, MAX_ROW_BYTES + 1)
        if len(head) > MAX_ROW_BYTES:
            raise UnreadableError(f"the line {TOO_LONG}")
    except UnreadableError as error:
        yield DatasetRow(f"{source}:{blank + 1}", str(blank + 1), {}, str(error))
        return
    yield from _json_lines(chain((head,), lines(file)), source, blank)


def _json_lines(found: Iterable[bytes], source: str, before: int) -> Iterator[DatasetRow]:
    """Rows of lines, the first of which is line `before` + 1."""
    number = before
    try:
        for number, line in enumerate(found, before + 1):
            line = line.rstrip(b"\r\n")
            if not line.strip():
                continue
            where, name = f"{source}:{number}", str(number)
            if number == before + 1 and line.strip() == b"{":
                problem = "not JSON: the object takes several lines; expected an object a line: jq -c . makes them"
                yield DatasetRow(where, name, {}, problem)
                return
            try:
                value = decode(line)
            except ValueError as error:
                yield DatasetRow(where, name, {}, str(error))
                continue
            if isinstance(value, dict):
                yield DatasetRow(where, name, value)
            else:
                yield DatasetRow(where, name, {}, f"the line is {describe(value)}; expected a JSON object")
    except UnreadableError as error:
        yield DatasetRow(f"{source}:{number + 1}", str(number + 1), {}, str(error))


def _array(head: bytes, file: ByteReader, source: str) -> Iterator[DatasetRow]:
    """Rows of a JSON array that begins with `head`."""
    begun = [head]
    number = 0
    try:
        for number, value in enumerate(elements(lambda size: begun.pop() if begun else taken(file.read, size)), 1):
            where, name = f"{source}:row {number}", str(number)
            if isinstance(value, dict):
                yield DatasetRow(where, name, value)
            else:
                yield DatasetRow(where, name, {}, f"is {describe(value)}; expected a JSON object")
    except UnreadableError as error:
        yield DatasetRow(f"{source}:row {number + 1}", str(number + 1), {}, str(error))


_PACKED = {
    b"\x1f\x8b": ("is compressed with gzip twice", "gunzip"),
    b"BZh": ("is compressed with bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("is compressed with xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "unzstd"),
    b"PK\x03\x04": ("is a zip archive, as an Excel file is", "unzip, or save it as CSV"),
    b"PAR1": ("is a Parquet file", "--format parquet"),
    b"\xff\xfe": ("is in UTF-16", "iconv -f utf-16 -t utf-8"),
    b"\xfe\xff": ("is in UTF-16", "iconv -f utf-16 -t utf-8"),
}


def _text(line: bytes, source: str) -> bytes:
    """The first line of a file. Raises DatasetError when it shows that the file is no text in UTF-8."""
    for magic, (problem, remedy) in _PACKED.items():
        if line.startswith(magic):
            raise DatasetError([f"{source}: {problem}; expected text in UTF-8: use {remedy}"])
    return line


def table(file: ByteReader, source: str, delimiter: str = ",") -> Iterator[DatasetRow]:
    """CSV. A row's line is the one it begins at: cells may hold line breaks."""
    csv.field_size_limit(MAX_ROW_BYTES)
    texts = _Texts(file, source)
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    begins = 1
    try:
        for cells in reader:
            where, name, begins = f"{source}:{begins}", str(begins), reader.line_num + 1
            texts.row_bytes = 0
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_header(header, where)
            elif not any(cell.strip() for cell in cells):
                continue
            elif len(cells) != len(header):
                problem = f"has {len(cells)} cells; expected {len(header)}, as the header has"
                yield DatasetRow(where, name, {}, problem)
            else:
                given = {column: cell for column, cell in zip(header, cells, strict=True) if cell.strip()}
                yield DatasetRow(where, name, given, convert=of_cells)
    except (csv.Error, UnreadableError) as error:
        number = texts.number if isinstance(error, UnreadableError) else reader.line_num
        problem = str(error) if isinstance(error, UnreadableError) else f"not CSV: {error}"
        yield DatasetRow(f"{source}:{number}", str(number), {}, problem)


class _Texts:
    """The lines of a file as text; `row_bytes` is set to 0 where a row begins."""

    def __init__(self, file: ByteReader, source: str) -> None:
        self._lines = lines(file)
        self._source = source
        self.number = 1
        self.row_bytes = 0
        self._is_first = True

    def __iter__(self) -> _Texts:
        return self

    def __next__(self) -> str:
        self.number += not self._is_first
        line = next(self._lines)
        if self._is_first:
            line = _text(line, self._source).removeprefix(_BOM)
            self._is_first = False
        self.row_bytes += len(line)
        if self.row_bytes > MAX_ROW_BYTES:
            raise UnreadableError(f"the row that ends here or later {TOO_LONG}: a quote may be missing")
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise UnreadableError(f"not UTF-8 at byte {error.start + 1} of the line; expected CSV in UTF-8") from None


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


_decoder = json.JSONDecoder(parse_constant=refuse_constant)


def _check_header(header: list[str], where: str) -> None:
    problems = [f"{where}: column {n} has no name; expected one" for n, name in enumerate(header, 1) if not name]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    problems += [f"{where}: {printable(name)}: is the name of several columns; expected one" for name in twice]
    if problems:
        raise DatasetError(problems)
