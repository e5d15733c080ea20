"""Each version of codex in turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from codex_versions import VERSIONS, runtime


# Before the hook of all tests, which looks for these marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("versions")
            item.add_marker("real")
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(params=VERSIONS, scope="session")
def named(request: pytest.FixtureRequest) -> str:
    """Each version in turn, as it was named."""
    return str(request.param)


@pytest.fixture(scope="session")
def version(named: str) -> str:
    """Return the number of the version."""
    return named.partition("=")[0]


@pytest.fixture(scope="session")
def binary(named: str) -> Path:
    """Return the binary of the version."""
    version, _, path = named.partition("=")
    return Path(path) if path else runtime(version)
