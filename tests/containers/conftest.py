"""Podman with a storage of its own, and the image that samples run in: scripts/test_containers.sh makes both."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


# Before the hook of all tests, which looks for these marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("containers")
            item.add_marker("real")
            item.add_marker(pytest.mark.timeout(400))


def podman(*arguments: str) -> str:
    """What `podman ARGUMENTS` prints."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, timeout=60.0)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def containers() -> set[str]:
    """The names of all containers, running or not."""
    return set(podman("ps", "--all", "--format", "{{.Names}}").split())


@pytest.fixture
def image() -> Iterator[str]:
    """The image; no container of the test may be left."""
    name = os.environ.get("CONTAINERS_TEST_IMAGE")
    assert name is not None, "run these tests by `make test-containers`, which makes their image"
    before = containers()
    yield name
    left = containers() - before
    if left:
        podman("rm", "--force", *left)
    assert not left
