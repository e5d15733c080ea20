"""The trace context of requests: of a block, of its thread or task, and of nothing else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from codex_app_server import AsyncCodex, Codex, InvalidInputError, StdioTransport, TracingTransport
from codex_app_server.testing import null_app_server
from codex_app_server.trace_context import trace_context

PARENTS = [f"00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333{number}-01" for number in range(3)]


def sent(path: Path, method: str) -> list[dict[str, Any]]:
    """The requests of a method in a raw trace."""
    lines = [line.split(" ", 2) for line in path.read_text().splitlines()]
    found = [json.loads(line) for _, direction, line in lines if direction == ">"]
    return [message for message in found if message.get("method") == method]


def test_requests_of_a_block_name_its_span(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with Codex(transport=TracingTransport(StdioTransport(null_app_server()), path)) as codex:
        with trace_context(PARENTS[0], "a=1"):
            thread = codex.thread_start()
            with trace_context(PARENTS[1]):
                thread.run("x")
        thread.run("x")
    assert [each["trace"] for each in sent(path, "thread/start")] == [{"traceparent": PARENTS[0], "tracestate": "a=1"}]
    assert [each.get("trace") for each in sent(path, "turn/start")] == [{"traceparent": PARENTS[1]}, None]
    assert "trace" not in sent(path, "initialize")[0]


def test_each_task_has_its_own(tmp_path: Path) -> None:
    path = tmp_path / "trace"

    async def run(codex: AsyncCodex, parent: str) -> None:
        with trace_context(parent):
            thread = await codex.thread_start()
            await asyncio.sleep(0)
            await thread.run(parent)

    async def main() -> None:
        transport = TracingTransport(StdioTransport(null_app_server()), path)
        async with AsyncCodex(transport=transport) as codex:
            await asyncio.gather(*(run(codex, parent) for parent in PARENTS))

    asyncio.run(main())
    found = sent(path, "turn/start")
    assert sorted(each["trace"]["traceparent"] for each in found) == PARENTS
    assert all(each["params"]["input"][0]["text"] == each["trace"]["traceparent"] for each in found)


@pytest.mark.parametrize("wrong", ["", "00-1-2-3", PARENTS[0] + "\n", PARENTS[0].upper(), None])
def test_what_is_no_traceparent_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match="expected VERSION-TRACE_ID-SPAN_ID-FLAGS"), trace_context(wrong):
        pass
