"""Faults of the machine, phase by phase; see machine.py."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .machine import CELLS, drive

# What `make test` runs too.
QUICK = {("terminal closed", "mid-turn"), ("socket removed", "mid-turn"), ("clock +2 days", "idle")}

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Paths of sockets have 107 characters at most."""
    path = Path(tempfile.mkdtemp(prefix="cm-"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("fault", "phase"),
    [pytest.param(*cell, id="-".join(cell), marks=() if cell in QUICK else pytest.mark.chaos) for cell in CELLS],
)
def test_fault(fault: str, phase: str, short_path: Path, record_property: Callable[[str, object], None]) -> None:
    record_property("seen", drive(fault, phase, short_path))
