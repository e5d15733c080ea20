"""The names of a run directory are written down in one module, `codex_batch.store.layout`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from codex_batch.store import layout

SRC = Path(__file__).parents[2] / "src"
NAMES = {
    layout.DATABASE,
    layout.RESULTS,
    layout.CONFIG,
    layout.LOCK,
    layout.LOG,
    layout.OUTPUT,
    layout.PROGRESS,
    layout.CONTROL,
    layout.EVENTS,
    layout.ROLLOUTS,
    layout.ARTIFACTS,
    layout.HOME,
    layout.WORK,
    layout.RESCORING,
    layout.REPOSITORIES,
    layout.WORKSPACE,
    layout.BASE,
    layout.WORKSPACE_STATE,
    layout.REMADE,
    layout.DIFF,
    *(layout.JUDGE + "/" + layout.RESCORING_JUDGE).split("/"),
}
# Names that no key of a record, no option and no message has: as a literal they can only be the file.
DISTINCT = {name for name in NAMES if "." in name} | {layout.REMADE, layout.RESCORING, layout.REPOSITORIES}
PATH_CALLS = ("Path", "file", "joinpath", "join", "with_name", "open")


def literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The literals that name a file of a run directory: distinct ones, and any that is made part of a path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in DISTINCT:
            yield node.lineno, node.value
        operands: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            operands = [node.left, node.right]
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            operands = node.args if called in PATH_CALLS else []
        for operand in operands:
            if isinstance(operand, ast.Constant) and operand.value in NAMES - DISTINCT:
                yield operand.lineno, operand.value


@pytest.mark.parametrize("package", ["codex_batch", "codex_pool_cli"])
def test_only_the_layout_writes_names_of_a_run_directory(package: str) -> None:
    found = [
        f"{path.relative_to(SRC)}:{line}: {name!r}"
        for path in sorted((SRC / package).rglob("*.py"))
        if path != SRC / "codex_batch" / "store" / "layout.py"
        for line, name in literals(ast.parse(path.read_text()))
    ]
    assert not found, f"take these names from codex_batch.store.layout: {found}"


def test_literals_are_found() -> None:
    source = 'path / "lock"\ndirectory.file("events")\nopen("work")\nDIFF = "diff.patch"\nrow["artifacts"]'
    assert {name for _, name in literals(ast.parse(source))} == {"lock", "events", "work", "diff.patch"}
