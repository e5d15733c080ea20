"""The comparison with other programs: each row has tests that show our part, and sources for the parts of others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick
ROOT = Path(__file__).parents[2]
SOURCE = re.compile(r"\]\(https://[^)]+\)|`(harbor|swebench)/[\w/.]+`|`codex [a-z]+ --help`")
# Cells that claim nothing about a program beyond that it leaves something to others.
CLAIMS_NOTHING = frozenset({"-", "given"})


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each table, without its rule; each row as its cells."""
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in block.splitlines()]
        found.append([row for row in rows if not set("".join(row)) <= set("-|")])
    return found


def test_each_row_names_its_tests_and_its_sources() -> None:
    text = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    claims, _, rest = text.partition("\n## Sources\n")
    (sources,) = tables(rest)
    by_row = {row[0]: row[1:] for row in sources[1:]}
    compared = [(table[0], row) for table in tables(claims) for row in table[1:]]
    assert [row[0] for _, row in compared] == list(by_row) and len(compared) > 25
    for heads, row in compared:
        assert len(row) == len(heads) == 7, row
        tests, *others = by_row[row[0]]
        paths = re.findall(r"`(tests/[\w/]+\.py)`", tests)
        assert paths and all((ROOT / path).is_file() for path in paths), (row[0], tests)
        for program, claim, source in zip(heads[2:], row[2:], others, strict=True):
            has_source = SOURCE.search(source) is not None
            is_of_a_script = "loop" in program and source == "-"
            assert has_source or claim in CLAIMS_NOTHING or is_of_a_script, (row[0], program, claim)
            assert not (has_source and claim == "-"), (row[0], program, source)
