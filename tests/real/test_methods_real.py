"""Requests against the real app-server: every stable method asked once, as docs/reference/methods.md says."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from codex_app_server import AppServerClient, AppServerConfig, AsyncAppServerClient
from codex_app_server.generated import models, routing

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(
    r"^\| `(?P<method>\S+)` \| (?P<params>\S+) \| `(?P<result>\w+)` \| (?P<scope>\w+) \| (?P<answered>.+) \|$"
)


@pytest.fixture
def script() -> Iterator[ModuleType]:
    """scripts/probe_methods.py as a module."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import probe_methods

        yield probe_methods
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.mark.real
@pytest.mark.timeout(120)
def test_the_page_says_what_the_runtime_answers(script: ModuleType) -> None:
    written = script.TABLE.read_text(encoding="utf-8")
    outcomes = script.probe()
    assert script.differences(written, script.render(outcomes)) == []
    results = {method: found.result for method, found in outcomes.items() if found.refusal is None}
    for method, result in results.items():
        assert isinstance(result, getattr(models, routing.REQUESTS[method].result)), method
    rows = [found for line in written.splitlines() if (found := ROW.match(line))]
    assert len(rows) == 105
    assert {row["method"] for row in rows if row["answered"] == "yes"} == results.keys()
    assert f"\n{len(results)} of them were answered" in written


def test_the_page_lists_every_stable_method_with_its_types() -> None:
    page = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    rows = {found["method"]: found.groups()[1:4] for line in page.splitlines() if (found := ROW.match(line))}
    assert list(rows) == sorted(rows)
    assert rows == {
        method: (f"`{row.params}`" if row.params else "none", row.result, row.scope)
        for method, row in routing.REQUESTS.items()
        if not row.experimental
    }


def test_what_the_page_says_otherwise_is_told_by_row(script: ModuleType) -> None:
    outcome = script.Outcome(result=object(), refusal=None)
    refused = script.Outcome(result=None, refusal="-32600: not now")
    before = script.render({"thread/read": outcome, "turn/start": outcome})
    found = script.differences(before, script.render({"thread/read": outcome, "turn/start": refused}))
    assert [line for line in found if line.startswith(("+|", "-|"))] == [
        "-| `turn/start` | `TurnStartParams` | `TurnStartResponse` | owner | yes |",
        "+| `turn/start` | `TurnStartParams` | `TurnStartResponse` | owner | -32600: not now |",
    ]
    assert script.differences(before, before) == []


@pytest.mark.real
def test_a_turn_started_by_its_params_object_is_read_to_its_end(config: AppServerConfig) -> None:
    with AppServerClient(config) as client:
        client.initialize()
        thread = client.request(models.ThreadStartParams()).thread
        started = client.request(
            models.TurnStartParams(thread_id=thread.id, input=[models.TextUserInput(text="[[text yes]]")])
        )
        assert client.held["unclaimed"] == 1
        methods = [notification.method for notification in client.turn_notifications(started.turn.id)]
        read = client.request(models.ThreadReadParams(thread_id=thread.id, include_turns=True)).thread
    assert (methods[0], methods[-1]) == ("turn/started", "turn/completed")
    assert [turn.id for turn in read.turns] == [started.turn.id]


@pytest.mark.real
def test_the_same_without_blocking(config: AppServerConfig) -> None:
    async def run() -> list[str]:
        async with AsyncAppServerClient(config) as client:
            await client.initialize()
            thread = (await client.request(models.ThreadStartParams())).thread
            text = models.TextUserInput(text="[[text yes]]")
            started = await client.request(models.TurnStartParams(thread_id=thread.id, input=[text]))
            assert client.held["unclaimed"] == 1
            return [notification.method async for notification in client.turn_notifications(started.turn.id)]

    methods = asyncio.run(run())
    assert (methods[0], methods[-1]) == ("turn/started", "turn/completed")
