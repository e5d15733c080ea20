"""The layers of src/: no import reaches a higher layer, and the drawing in docs/architecture.md is up to date."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def layout() -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("draw_layout", ROOT / "scripts" / "draw_layout.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw_layout"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(layout: ModuleType, tmp_path: Path) -> Path:
    """A small source directory with one module for every part that has a layer."""
    for package, layers in layout.LAYERS.items():
        for part in ("__init__", *(part for layer in layers for part in layer.parts if part != "*")):
            path = tmp_path / "src" / package / f"{part}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    return tmp_path / "src"


def test_every_import_follows_the_layers(layout: ModuleType) -> None:
    assert layout.problems(layout.Source(ROOT / "src")) == []


def test_the_drawing_is_that_of_the_imports(layout: ModuleType) -> None:
    text = layout.PAGE.read_text(encoding="utf-8")
    drawn = layout.page_with(text, layout.draw(layout.Source(ROOT / "src")))
    assert text == drawn, "run scripts/draw_layout.py"


@pytest.mark.parametrize(
    ("path", "line", "problem"),
    [
        # A higher package, also inside a function.
        ("codex_app_server/errors.py", "import codex_pool", "codex_app_server imports codex_pool, of a higher package"),
        (
            "codex_pool/pool.py",
            "def f():\n    from codex_batch import run",
            "imports codex_batch.run, of a higher package",
        ),
        ("codex_pool/broker.py", "from codex_pool_cli import verbs", "imports codex_pool_cli, of a higher package"),
        # A higher layer of its own package.
        ("codex_app_server/_runtime.py", "from ._core import x", "layer 'system' imports codex_app_server._core"),
        ("codex_pool/protocol.py", "from codex_pool.supervisor import x", "'messages' imports codex_pool.supervisor"),
        ("codex_batch/rules.py", "from . import scoring", "layer 'rules' imports codex_batch.scoring"),
        # Another part of a layer whose parts are apart.
        ("codex_pool/broker.py", "from .worker import core", "the parts of layer 'processes' do not import each other"),
        # What a package never imports.
        ("codex_pool/worker.py", "import pydantic", "codex_pool.worker never imports pydantic"),
        ("codex_batch/run.py", "def f():\n    import zmq.asyncio", "codex_batch never imports zmq.asyncio"),
        ("codex_app_server/home.py", "import fcntl", "codex_app_server never imports fcntl"),
        # What a pure module does not import.
        ("codex_batch/rules.py", '"""Prices. Pure."""\nimport time', "says that it is pure, and imports time"),
        # A part without a layer.
        ("codex_pool/extras.py", "", "codex_pool.extras has no layer"),
    ],
)
def test_an_import_against_the_rules_is_found(
    layout: ModuleType, source: Path, path: str, line: str, problem: str
) -> None:
    (source / path).write_text(line)
    (found,) = layout.problems(layout.Source(source))
    assert problem in found
    assert path in found or not line


def test_parts_and_modules_that_import_each_other_are_found(layout: ModuleType, source: Path) -> None:
    (source / "codex_pool" / "protocol.py").write_text("from . import auth")
    (source / "codex_pool" / "auth.py").write_text("from . import options")
    (source / "codex_pool" / "options.py").write_text("from . import protocol")
    names = ("codex_pool", ["auth", "options", "protocol"])
    parts, modules = layout.problems(layout.Source(source))
    assert parts == f"{names[0]} import each other in a circle: {', '.join(names[1])}"
    assert modules == f"modules import each other in a circle: {', '.join(f'{names[0]}.{each}' for each in names[1])}"


def test_an_import_inside_a_function_makes_no_circle(layout: ModuleType, source: Path) -> None:
    (source / "codex_pool" / "protocol.py").write_text("from . import auth")
    (source / "codex_pool" / "auth.py").write_text("def f():\n    from . import protocol")
    assert layout.problems(layout.Source(source)) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("codex_batch/rules.py", "from codex_pool import pool"),
        ("codex_app_server/errors.py", "def f():\n    from . import results"),
        (
            "codex_app_server/errors.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import results",
        ),
        ("codex_pool/protocol.py", "from . import auth, runtime"),
        ("codex_app_server/home.py", "def f():\n    import fcntl"),
    ],
)
def test_other_imports_are_none(layout: ModuleType, source: Path, path: str, line: str) -> None:
    (source / path).write_text(line)
    assert layout.problems(layout.Source(source)) == []


def test_a_layer_of_a_part_that_is_gone_is_found(layout: ModuleType, source: Path) -> None:
    (source / "codex_pool" / "worker.py").unlink()
    assert layout.problems(layout.Source(source)) == ["codex_pool.worker of LAYERS does not exist"]


def test_an_arrow_that_follows_from_others_is_not_drawn(layout: ModuleType, source: Path) -> None:
    (source / "codex_pool" / "pool.py").write_text("from . import supervisor, runtime")
    (source / "codex_pool" / "supervisor.py").write_text("from . import runtime")
    drawing = layout.draw(layout.Source(source))
    assert "p_pool --> p_supervisor" in drawing and "p_supervisor --> p_runtime" in drawing
    assert "p_pool --> p_runtime" not in drawing


def test_a_page_without_a_place_is_refused(layout: ModuleType) -> None:
    with pytest.raises(ValueError, match="no place for the drawing"):
        layout.page_with("# Architecture\n", "")
