"""Pytest fixtures for users of the SDK: `pytest_plugins = ["codex_app_server.testing.fixtures"]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .. import AppServerConfig, Codex
from . import LoopbackModel, null_app_server, write_loopback_home


@pytest.fixture
def loopback_model() -> Iterator[LoopbackModel]:
    """A scripted model server on loopback; set its `script`, look at its `requests`."""
    with LoopbackModel() as model:
        yield model


@pytest.fixture
def loopback_config(tmp_path: Path, loopback_model: LoopbackModel) -> AppServerConfig:
    """The real codex on that model, with a CODEX_HOME and a working directory of the test's own."""
    home, work = tmp_path / "codex-home", tmp_path / "codex-work"
    work.mkdir()
    write_loopback_home(home, loopback_model.base_url)
    return AppServerConfig(cwd=work, env={"CODEX_HOME": str(home)})


@pytest.fixture
def loopback_codex(loopback_config: AppServerConfig) -> Iterator[Codex]:
    """A client of the real codex on that model."""
    with Codex(loopback_config) as codex:
        yield codex


@pytest.fixture
def null_codex() -> Iterator[Callable[..., Codex]]:
    """`null_codex(**scenario)` gives a client of a null app-server; all of them are closed after the test."""
    clients: list[Codex] = []

    def start(**scenario: Any) -> Codex:
        clients.append(Codex(null_app_server(**scenario)))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
