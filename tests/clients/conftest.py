"""Clients of codex, unmodified, from their packages: on one real app-server, and on a pool."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from codex_servers import CODEX, CodexServer, codex_server

# Where tests/clients/packages/install.sh installs them.
PACKAGES = Path(__file__).parents[2] / "out" / "clients"
NODE_MODULES = PACKAGES / "node_modules"
CODEX_ACP = NODE_MODULES / ".bin" / "codex-acp"
NEWER = (PACKAGES / "newest" / "node_modules" if os.environ.get("CODEX_NEWEST") else NODE_MODULES) / ".bin" / "codex"


# Before the hook of all tests, which looks for these marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("clients")
            item.add_marker(pytest.mark.timeout(120))


@pytest.fixture(params=["real", "pool"])
def server(request: pytest.FixtureRequest, runtime_directory: Path, tmp_path: Path) -> Iterator[CodexServer]:
    """The real app-server, and a pool of two."""
    with codex_server(request.param, runtime_directory, tmp_path) as server:
        yield server


@pytest.fixture
def pool(runtime_directory: Path, tmp_path: Path) -> Iterator[CodexServer]:
    """A pool of two."""
    with codex_server("pool", runtime_directory, tmp_path) as server:
        yield server


@pytest.fixture(params=["0.163", "newer"])
def codex(request: pytest.FixtureRequest) -> str:
    """The codex whose TUI is tested: the version that the pool runs, and a newer one from npm."""
    return CODEX if request.param == "0.163" else str(NEWER)
