"""The table, cell by cell. `make chaos` runs all of it; `make test` the cells marked quick.

One of them: pytest -m "chaos or not chaos" tests/chaos/test_cells.py -k "SIGKILL and broker and mid-turn"
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .driver import drive
from .table import Cell, Run, Todo, cells

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]


def _parameters() -> list[object]:
    found: list[object] = []
    for cell in cells():
        run = cell.verdict
        if isinstance(run, Todo) and os.environ.get("CHAOS_TODO"):
            run = run.run
        if isinstance(run, Run):
            name = f"{cell.fault}-{cell.target}-{cell.phase}"
            found.append(pytest.param(cell, id=name, marks=() if run.quick else pytest.mark.chaos))
    return found


@pytest.mark.parametrize("cell", _parameters())
def test_cell(cell: Cell, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    record_property("seen", drive(cell, tmp_path))
