"""A plain `codex`, which attaches by itself to what listens on the control socket of its CODEX_HOME."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from codex_servers import CodexServer, codex_server
from tui import EMPTY


@pytest.fixture(params=["real", "pool"])
def attached(request: pytest.FixtureRequest, runtime_directory: Path, tmp_path: Path) -> Iterator[CodexServer]:
    """A server that listens on the control socket."""
    with codex_server(request.param, runtime_directory, tmp_path, control_socket=True) as server:
        yield server


def test_a_plain_codex_attaches_by_itself(attached: CodexServer, codex: str) -> None:
    with attached.tui(codex=codex, remote=False) as tui:
        tui.wait(EMPTY)
        tui.submit("Answer in pieces.")
        tui.wait("• The answer is sextant, and it comes slowly.", "Worked for")
        tui.submit("/status")
        tui.wait("Local background server", "Model provider:")
