"""Hooks for `python -m chaos`: a share of the tests for each of its processes, and what was seen of each cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from .report import Report

_KEY: pytest.StashKey[Report] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-report", metavar="PATH", help="what was seen of each cell, as JSON")
    parser.addoption("--chaos-share", metavar="K/N", help="run only every N-th test, from the K-th on")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_KEY] = Report()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share = config.getoption("--chaos-share", default=None)
    if share is not None:
        first, _, count = share.partition("/")
        items[:] = items[int(first) - 1 :: int(count)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]
    result = yield
    callspec = getattr(item, "callspec", None)
    cell = callspec.params.get("cell") if callspec is not None else None
    if cell is not None:
        item.config.stash[_KEY].add(cell, result.when, result.passed, result.duration, dict(result.user_properties))
    elif result.when == "call" and "chaos" in item.nodeid:
        item.config.stash[_KEY].add_other(item.nodeid, result.passed, result.duration)
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--chaos-report", default=None)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(session.config.stash[_KEY].as_json())
