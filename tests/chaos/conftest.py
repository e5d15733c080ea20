"""The table as it was run: printed at the end, and written where `--chaos-report` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from .report import Report

_KEY: pytest.StashKey[Report] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-report", metavar="PATH", help="write the table of the chaos suite there, and print it")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_KEY] = Report()


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    path = config.getoption("--chaos-report", default=None)
    if path is None:
        return
    report = config.stash[_KEY]
    text = report.markdown()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    terminalreporter.write_line("")
    terminalreporter.write_line(report.table())
    terminalreporter.write_line(f"written to {path}")
