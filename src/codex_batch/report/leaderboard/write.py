"""A leaderboard as files: the page, the chart as SVG and PNG, and the table as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from codex_app_server._runtime.files import replacing, resolved

from .. import page
from ..write import writing
from .chart import Chart, chart_of
from .differing import settings_of
from .picture import png, svg
from .table import Table, rows
from .view import page_of

PAGE = "report.html"


def write_page(table: Table, path: Path) -> None:
    """Write the page of a table to `path`. Raises ReportError when it cannot be written."""
    write(path, page.leaderboard_page(page_of(table, _reports(table, path))).encode("utf-8", "backslashreplace"))


def write_svg(table: Table, path: Path) -> None:
    """Write the chart of the first scorer as SVG. Raises ReportError when it cannot be written."""
    write(path, svg(_chart(table)).encode("utf-8", "backslashreplace"))


def write_png(table: Table, path: Path) -> None:
    """Write the chart of the first scorer as PNG. Raises ReportError when it cannot be written, PictureError without
    Pillow."""
    write(path, png(_chart(table)))


def _chart(table: Table) -> Chart:
    return chart_of(table, table.scorers[0])


def as_csv(table: Table) -> str:
    """Return the table as CSV: a row for each scorer and result."""
    found = list(rows(table))
    file = io.StringIO()
    writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _finite(value) for name, value in row.items()} for row in found)
    return file.getvalue()


def as_json(table: Table) -> str:
    """Return the table as JSON: `rows` as in CSV, and the settings of each result."""
    found = [{name: _finite(value) for name, value in row.items()} for row in rows(table)]
    value = {
        "schema_version": 1,
        "baseline": None if table.baseline is None else table.results[table.baseline].name,
        "same_for_all": table.differing.same,
        "settings": {result.name: settings_of(result) for result in table.results},
        "rows": found,
    }
    return json.dumps(value, indent=2) + "\n"


def write(path: Path, content: bytes) -> None:
    """Write a file as a whole. Raises ReportError when it cannot be written."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _reports(table: Table, path: Path) -> Mapping[int, str]:
    """Return the addresses of the reports that stand in the run directories, relative to the page."""
    found = {}
    for place, result in enumerate(table.results):
        report = Path(result.path) / report_name(result.variant)
        if report.is_file() and resolved(report) != resolved(path):
            found[place] = _address(report, path)
    return found


def _address(report: Path, page_path: Path) -> str:
    relative = os.path.relpath(resolved(report), resolved(page_path).parent)
    return quote(os.fsencode(relative))


def report_name(variant: str) -> str:
    """Return the name of the page of a run, or of one of its variants, in the run directory."""
    return f"report@{file_name(variant)}.html" if variant else PAGE


def file_name(text: str) -> str:
    """Return a text as a part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "._+=-@" else "-" for letter in text)
