"""Results of a run of the suite: a small table to print, and all cells in Markdown."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field

from .table import FAULTS, PHASES, TARGETS, Cell, NotApplicable, Run, cells

MARKS = {"passed": "ok", "FAILED": "FAIL", "n/a": "-", "todo": "todo", "not run": "."}


@dataclass
class _Result:
    passed: bool = True
    took_s: float = 0.0
    seen: dict[str, str] = field(default_factory=dict)


class Report:
    """Results of cells, and of the other tests of the suite."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str, str], _Result] = {}
        self._others: dict[str, _Result] = {}

    def add(self, cell: Cell, when: str, passed: bool, took_s: float, properties: dict[str, object]) -> None:
        """One phase of a cell's test: what is left behind shows only in its teardown."""
        result = self._cells.setdefault((cell.fault, cell.target, cell.phase), _Result())
        result.passed = result.passed and passed
        result.took_s += took_s
        seen = properties.get("seen")
        if isinstance(seen, dict):
            result.seen = seen

    def add_other(self, name: str, passed: bool, took_s: float) -> None:
        self._others[name.rpartition("/")[2]] = _Result(passed, took_s)

    def as_json(self) -> str:
        """All that was seen, for `merge`."""
        found = {"cells": [[*key, asdict(result)] for key, result in self._cells.items()]}
        return json.dumps({**found, "others": {name: asdict(result) for name, result in self._others.items()}})

    def merge(self, text: str) -> None:
        """Add what another run has seen of other cells."""
        found = json.loads(text)
        for fault, target, phase, result in found["cells"]:
            self._cells[fault, target, phase] = _Result(**result)
        self._others.update({name: _Result(**result) for name, result in found["others"].items()})

    def table(self) -> str:
        """A line for each fault and target, a column for each phase."""
        lines = [f"{'fault':<26}{'at':<12}" + "".join(f"{phase:<10}" for phase in PHASES)]
        for fault in FAULTS:
            for target in TARGETS:
                marks = [MARKS[self._verdict(cell)] for cell in cells() if (cell.fault, cell.target) == (fault, target)]
                lines.append(f"{fault:<26}{target:<12}" + "".join(f"{mark:<10}" for mark in marks))
        return "\n".join([*lines, self._counts()])

    def markdown(self) -> str:
        """Every cell with what was seen, or why it is not run."""
        lines = ["# The chaos suite", "", self._counts(), ""]
        lines += ["| fault | at | phase | verdict | seen | s |", "|---|---|---|---|---|---|"]
        for cell in cells():
            result = self._cells.get((cell.fault, cell.target, cell.phase))
            seen, took = "", ""
            if result is not None:
                seen = "; ".join(f"{who}: {what}" for who, what in result.seen.items() if what != "answered")
                took = f"{result.took_s:.1f}"
            elif isinstance(cell.verdict, NotApplicable):
                seen = cell.verdict.reason
            elif not isinstance(cell.verdict, Run):
                seen = f"waits for: {cell.verdict.what}"
            seen = seen.replace("|", "\\|").replace("\n", " ")[:400]
            lines.append(f"| {cell.fault} | {cell.target} | {cell.phase} | {self._verdict(cell)} | {seen} | {took} |")
        lines += ["", "| test | | s |", "|---|---|---|"]
        for name, other in self._others.items():
            lines.append(f"| {name} | {'passed' if other.passed else 'FAILED'} | {other.took_s:.1f} |")
        return "\n".join(lines) + "\n"

    def _verdict(self, cell: Cell) -> str:
        result = self._cells.get((cell.fault, cell.target, cell.phase))
        if result is not None:
            return "passed" if result.passed else "FAILED"
        if isinstance(cell.verdict, NotApplicable):
            return "n/a"
        return "not run" if isinstance(cell.verdict, Run) else "todo"

    def _counts(self) -> str:
        counts = Counter(map(self._verdict, cells()))
        return f"{len(cells())} cells: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
