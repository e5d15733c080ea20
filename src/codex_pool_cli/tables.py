"""Tables on the terminal, of rows of text or of rows of JSON. Pure: rows in, lines out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from codex_pool.runtime.terminal import plain

# Two of the same millisecond aside, so many characters tell the UUIDs of codex apart: they begin with the time.
SHORT_ID_CHARS = 13

Row = Mapping[str, Any]


class Column(NamedTuple):
    """A column of a table of JSON rows.

    `value` gives what rows are sorted by, `text` the cell, which is `value` as text if it is None; `is_text`: it is
    aligned to the left. Where there is no room the columns with the highest `drop` go first, those with 0 never. Cells
    of an `is_id` column are shortened before that, to prefixes that tell the ids in it apart.
    """

    title: str
    value: Callable[[Row], Any]
    text: Callable[[Row], str] | None = None
    is_text: bool = False
    drop: int = 0
    is_id: bool = False
    # Characters that it has at least, so that columns stay where they are while values change.
    least: int = 0

    def cell(self, row: Row) -> str:
        """Return the cell of this row; "-" for nothing."""
        text = self.text(row) if self.text is not None else self.value(row)
        return "-" if text is None or text == "" else plain(str(text)).replace("\n", " ")


class Table(NamedTuple):
    """A table as lines, and the columns that there was room for."""

    header: str
    lines: list[str]
    columns: list[Column]


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int]) -> list[str]:
    """Format rows as lines, each column as wide as its widest cell: no cell is cut.

    The columns numbered in `left` are of text; all others are aligned to the right, as numbers are. Control characters
    are escaped.
    """
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        " ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def fitted(columns: Sequence[Column], rows: Sequence[Row], width: int | None, marked: str = "") -> Table:
    """Format rows as a table of at most `width` characters, if need be with shorter ids and fewer columns.

    Columns that are never dropped may make it wider. `width` None: nothing is shortened. `marked` is the title of a
    column to be marked, as the one that rows are sorted by.
    """
    cells = {column: [column.cell(row) for row in rows] for column in columns}
    titles = {column: column.title + ("*" if column.title == marked else "") for column in columns}
    titles = {column: title.rjust(column.least) for column, title in titles.items()}
    shown = list(columns)
    if width is not None and _width(shown, titles, cells) > width:
        for column in [column for column in columns if column.is_id]:
            chars = prefix_chars(cells[column])
            cells[column] = [cell[:chars] for cell in cells[column]]
        # Those without a value in any row go before all others.
        empty = {column for column in shown if all(cell == "-" for cell in cells[column])}
        while _width(shown, titles, cells) > width and any(column.drop for column in shown):
            droppable = [column for column in shown if column.drop]
            shown.remove(max(droppable, key=lambda column: (column in empty, column.drop)))
    left = {number for number, column in enumerate(shown) if column.is_text}
    header = [titles[column] for column in shown]
    lines = aligned([header, *zip(*(cells[column] for column in shown), strict=True)], left=left)
    return Table(lines[0], lines[1:], shown)


def _width(shown: Sequence[Column], titles: Mapping[Column, str], cells: Mapping[Column, list[str]]) -> int:
    widths = [max(len(titles[column]), *map(len, cells[column]), 0) for column in shown]
    return sum(widths) + len(widths) - 1


def prefix_chars(ids: Iterable[str]) -> int:
    """Return how many characters tell these ids apart, at least SHORT_ID_CHARS."""
    ordered = sorted(set(ids))
    chars = SHORT_ID_CHARS
    for one, other in itertools.pairwise(ordered):
        common = next(
            (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        chars = max(chars, common + 1)
    return chars


def ordered(rows: Iterable[Row], column: Column, *, reverse: bool = False) -> list[Row]:
    """Sort rows by a column: texts from A, numbers from the greatest; rows without a value last."""
    found: list[Row] = []
    none: list[Row] = []
    for row in rows:
        (none if column.value(row) in (None, "") else found).append(row)
    found.sort(key=lambda row: _key(column.value(row)), reverse=reverse != (not column.is_text))
    return [*found, *none]


def _key(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


# Cells.


def time_text(seconds: float | None) -> str | None:
    """Format a duration for a column: "59s", "3m05s", "2h04m", "12d03h"."""
    if seconds is None:
        return None
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, hours = whole // 60, whole // 3600
    if hours < 1:
        return f"{minutes}m{whole % 60:02}s"
    return f"{hours}h{minutes % 60:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"


def count_text(count: int | None) -> str | None:
    """Format a large number for a column: "999", "12.3k", "4.5M"."""
    if count is None:
        return None
    size = float(count)
    for unit in ("", "k", "M"):
        if size < 999.5:
            return f"{size:.0f}" if not unit or size >= 99.95 else f"{size:.1f}{unit}"
        size /= 1000
    return f"{size:.1f}G"


def size_text(size_bytes: int | None) -> str | None:
    """Format a size for a column, in MiB, from 10,000 MiB on in GiB."""
    if size_bytes is None:
        return None
    return f"{size_bytes >> 20} MiB" if size_bytes < 10_000 << 20 else f"{size_bytes / (1 << 30):.1f} GiB"
